//! Over which parts of its RAM a VM's accesses spread, and when that changes.

use crate::tiermap::{BLOCK_PAGES, PageIndex, Sparse};

/// Equal parts of RAM that are compared: fine enough to tell where a VM works, coarse enough that few accesses
/// show it.
const PARTS: usize = 64;
/// Accesses until a comparison says something: two samples of so many from one distribution over all parts differ by
/// about 0.2.
const COMPARE: f64 = 256.0;
/// Share of accesses that is elsewhere than in the phase so far, from which on it is another one.
const ANOTHER_PHASE: f64 = 0.5;
/// How much the last comparison counts in what a phase is like.
const LEARN: f64 = 0.25;

/// Accesses by place.
#[derive(Debug)]
pub struct Spread {
    /// Of the running epoch, by block.
    blocks: Sparse<f32>,
    /// Blocks of RAM.
    count: u32,
    /// Since the last comparison.
    parts: [f64; PARTS],
    /// What the phase is like: shares of accesses. Zeroes before the first comparison.
    phase: [f64; PARTS],
    changes: u64,
}

/// Over how many blocks the accesses of an epoch spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Width {
    /// Entropy, bits: 0 if all were in one block, n if they were spread evenly over 2 to the power of n.
    pub bits: f64,
    /// Blocks in which there were any.
    pub blocks: u32,
}

impl Spread {
    /// For RAM of so many pages.
    pub fn new(pages: u32) -> Self {
        let count = pages.div_ceil(BLOCK_PAGES).max(1);
        Self { blocks: Sparse::default(), count, parts: [0.0; PARTS], phase: [0.0; PARTS], changes: 0 }
    }

    pub fn access(&mut self, page: PageIndex, weight: f64) {
        let block = page / BLOCK_PAGES;
        let part = block as usize * PARTS / self.count as usize;
        if let Some(part) = self.parts.get_mut(part) {
            *self.blocks.get_or_insert_with(block, || 0.0) += weight as f32;
            *part += weight;
        }
    }

    /// Ends an epoch. Returns over what its accesses were spread; none where there were none.
    pub fn end_epoch(&mut self) -> Option<Width> {
        let total: f64 = self.blocks.iter().map(|(_, count)| f64::from(*count)).sum();
        let share = |count: f32| f64::from(count) / total;
        let used = || self.blocks.iter().map(|(_, count)| *count).filter(|count| *count > 0.0);
        let width = (total > 0.0).then(|| {
            let bits = used().map(|count| -share(count) * share(count).log2()).sum::<f64>();
            // A sum of nothing but zeroes may be negative zero.
            Width { bits: bits.max(0.0), blocks: u32::try_from(used().count()).unwrap_or(u32::MAX) }
        });
        self.blocks = Sparse::default();
        self.compare();
        width
    }

    /// How often the VM began to work elsewhere.
    pub fn phase_changes(&self) -> u64 {
        self.changes
    }

    fn compare(&mut self) {
        let total: f64 = self.parts.iter().sum();
        if total < COMPARE {
            return;
        }
        let now = self.parts.map(|count| count / total);
        self.parts = [0.0; PARTS];
        let apart: f64 = now.iter().zip(&self.phase).map(|(now, was)| (now - was).abs()).sum::<f64>() / 2.0;
        let is_first = self.phase.iter().all(|share| *share == 0.0);
        if is_first || apart > ANOTHER_PHASE {
            self.changes += u64::from(!is_first);
            self.phase = now;
        } else {
            for (phase, now) in self.phase.iter_mut().zip(now) {
                *phase += LEARN * (now - *phase);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCKS: u32 = 512;

    fn random(from: u32, blocks: u32, seed: u32) -> impl Iterator<Item = PageIndex> {
        (0..300).map(move |access: u32| {
            let hash = (access ^ seed << 16).wrapping_mul(2_654_435_761) >> 8;
            (from + hash % blocks) * BLOCK_PAGES + access % BLOCK_PAGES
        })
    }

    fn epoch(spread: &mut Spread, pages: impl Iterator<Item = PageIndex>) -> Option<Width> {
        pages.for_each(|page| spread.access(page, 1.0));
        spread.end_epoch()
    }

    #[test]
    fn entropy_says_over_how_many_blocks_accesses_spread() {
        let mut spread = Spread::new(BLOCKS * BLOCK_PAGES);
        assert_eq!(epoch(&mut spread, 0..0), None);
        assert_eq!(epoch(&mut spread, 0..BLOCK_PAGES), Some(Width { bits: 0.0, blocks: 1 }));
        let evenly = epoch(&mut spread, (0..16).map(|block| block * BLOCK_PAGES)).unwrap();
        assert!((evenly.bits - 4.0).abs() < 1e-6 && evenly.blocks == 16, "{evenly:?}");
    }

    #[test]
    fn a_vm_that_goes_on_has_one_phase_and_one_that_moves_another() {
        let mut spread = Spread::new(BLOCKS * BLOCK_PAGES);
        for seed in 0..20 {
            epoch(&mut spread, random(0, BLOCKS, seed));
        }
        assert_eq!(spread.phase_changes(), 0, "chance is no change");
        let mut spread = Spread::new(BLOCKS * BLOCK_PAGES);
        for (phase, from) in [0, 100, 0].into_iter().enumerate() {
            for seed in 0..5 {
                epoch(&mut spread, random(from, 60, seed));
            }
            assert_eq!(spread.phase_changes(), phase as u64);
        }
    }

    #[test]
    fn few_accesses_are_gathered_before_they_are_compared() {
        let mut spread = Spread::new(BLOCKS * BLOCK_PAGES);
        for block in 0..200 {
            epoch(&mut spread, std::iter::once(block * 2 * BLOCK_PAGES));
        }
        assert_eq!(spread.phase_changes(), 0);
    }
}
