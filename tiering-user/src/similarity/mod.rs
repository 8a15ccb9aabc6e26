//! Which VMs of a tenant are so alike that what one touches is worth staging for the other.
//!
//! In: a [`Portrait`] of each VM: what it holds, where, and what it touched lately, as sketches ([`Sketch`],
//! [`Trail`]); and whether what was staged was used. Out: for each VM the others that it might follow, best first,
//! each with a score: the probability that what is staged because of it is used ([`Similarity`], [`Weights`]), and what
//! that follows from ([`Parts`]). Pure and deterministic: no clock, no I/O, no random numbers.
//!
//! It does not know of tenants: one instance each, and the caller keeps them apart.
//!
//! # Limits
//! A sketch only grows: what a VM no longer holds goes when the caller makes the portrait anew. VMs that
//! share no file and less than half of what they hold are found by chance; see `bands`.

mod bands;
mod engine;
mod parts;
mod portrait;
mod sketch;
#[cfg(test)]
mod tests;
mod trail;
mod weights;

pub use engine::{MOST_NEIGHBOURS, Neighbour, RefreshCounts, Similarity};
pub use parts::Parts;
pub use portrait::Portrait;
pub use sketch::Sketch;
pub use trail::Trail;
pub use weights::Weights;
