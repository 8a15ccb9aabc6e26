//! Brakes judge each machine by its own control group.
