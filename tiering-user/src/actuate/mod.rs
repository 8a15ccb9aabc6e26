//! Carries steps out, and reports what really happened.
//!
//! Two lanes, each a thread of its own that takes one [`Job`] at a time: the *mover* owns the swap tiers and pages
//! out, the *stager* brings pages up, so that staging does not wait behind a slow page-out. Both look once more whether
//! the machine may be touched, act, read back where the pages are, and send an [`Outcome`]. Nothing here decides.

mod bring_up;
mod lanes;
mod place;
mod target;

pub use lanes::{Done, Job, Lanes};
pub use target::{Outcome, Roots, Skip, Target};
