//! Which blocks of a table have a digest, and the sums of those.
//!
//! In: digests, as they are made and go out of date. Not here: making them, which needs the table.

use super::digest::{Digest, HEAT_BINS};
use super::dirty::DirtyBlocks;

/// Which blocks have a digest, and what these say together.
#[derive(Clone, Debug, Default)]
pub(super) struct Freshness {
    /// Blocks without one.
    pub(super) stale: DirtyBlocks,
    /// Of them, those that cannot have one now.
    pub(super) later: Vec<u32>,
    /// Pages in memory of all others, by heat.
    pub(super) heat: [u64; HEAT_BINS],
}

impl Freshness {
    /// A page of the block was changed.
    pub(super) fn outdate(&mut self, number: u32, digest: &mut Option<Digest>) {
        if let Some(before) = digest.take() {
            self.heat.iter_mut().zip(before.heat()).for_each(|(sum, pages)| *sum -= u64::from(pages));
            self.stale.mark(number);
        }
    }

    /// A block has got this digest.
    pub(super) fn add(&mut self, digest: &Digest) {
        self.heat.iter_mut().zip(digest.heat()).for_each(|(sum, pages)| *sum += u64::from(pages));
    }
}
