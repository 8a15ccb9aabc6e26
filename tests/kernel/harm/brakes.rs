//! Brakes hold back what is pressed for memory, never its relief.
