//! What a virtual machine will touch next, and whether such guesses were right before.
//!
//! In: the pages it touched that were, or had been, in a lower tier, in order ([`Tape`]). Out: the pages that
//! followed last time ([`Tape::record`] and [`Tape::following`]), and from what became of them the window and the confidence
//! ([`Stages`]). Pure: the time is an argument.

mod stages;
mod tape;

pub use stages::{StageCounts, Stages};
pub use tape::{Position, Tape};
