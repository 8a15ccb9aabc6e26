//! Sets of pages of a block.

use crate::tiermap::BLOCK_PAGES;

/// A bit for each page of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bits([u64; BLOCK_PAGES as usize / 64]);

impl Bits {
    pub(super) fn get(&self, page: u32) -> bool {
        self.0[page as usize / 64] & 1 << (page % 64) != 0
    }

    /// Returns whether it was set.
    pub(super) fn set(&mut self, page: u32, to: bool) -> bool {
        let was = self.get(page);
        let (word, bit) = (&mut self.0[page as usize / 64], 1 << (page % 64));
        *word = if to { *word | bit } else { *word & !bit };
        was
    }

    pub(super) fn add(&mut self, other: Self) {
        self.0.iter_mut().zip(other.0).for_each(|(word, other)| *word |= other);
    }

    pub(super) fn both(mut self, other: Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(word, other)| *word &= other);
        self
    }

    pub(super) fn count(self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    pub(super) fn ones(self) -> impl Iterator<Item = u32> {
        (0..BLOCK_PAGES).filter(move |page| self.get(*page))
    }
}
