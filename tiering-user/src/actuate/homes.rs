//! The memory node of the first tier that each block of a VM was on last.
//!
//! In: nodes, as the lanes take blocks out of the first tier ([`super::bring_up`]). Out: the node of a block, or of the
//! nearest block that has one.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::tiermap::BLOCK_PAGES;

/// Blocks of which memory is taken at a time: 8 GiB of guest RAM.
const CHUNK_BLOCKS: usize = 4096;
/// How far away a block may be to count as near: 128 MiB.
const NEAR_BLOCKS: u32 = 64;

type Chunk = [AtomicU8; CHUNK_BLOCKS];

/// Node by block. Shared by the lanes.
#[derive(Debug)]
pub struct Homes(Box<[OnceLock<Box<Chunk>>]>);

impl Homes {
    /// For a VM of so many pages; takes no memory before something is noted.
    pub fn new(pages: u32) -> Self {
        let chunks = (pages.div_ceil(BLOCK_PAGES) as usize).div_ceil(CHUNK_BLOCKS);
        Self((0..chunks).map(|_| OnceLock::new()).collect())
    }

    pub(super) fn get(&self, block: u32) -> Option<u32> {
        let chunk = self.0.get(block as usize / CHUNK_BLOCKS)?.get()?;
        // 0 is none.
        chunk[block as usize % CHUNK_BLOCKS].load(Ordering::Relaxed).checked_sub(1).map(u32::from)
    }

    pub(super) fn note(&self, block: u32, node: u32) {
        let Some(chunk) = self.0.get(block as usize / CHUNK_BLOCKS) else { return };
        // Of nodes with higher numbers nothing is noted.
        if let Some(byte) = node.checked_add(1).and_then(|byte| u8::try_from(byte).ok()) {
            let chunk = chunk.get_or_init(|| Box::new([const { AtomicU8::new(0) }; CHUNK_BLOCKS]));
            chunk[block as usize % CHUNK_BLOCKS].store(byte, Ordering::Relaxed);
        }
    }

    /// The node of the nearest block that has one.
    pub(super) fn nearest(&self, block: u32) -> Option<u32> {
        (1..=NEAR_BLOCKS).find_map(|far| {
            let before = block.checked_sub(far).and_then(|block| self.get(block));
            before.or_else(|| self.get(block.checked_add(far)?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_the_node_that_was_noted_or_that_of_the_nearest_one() {
        let homes = Homes::new(u32::MAX);
        let far = u32::MAX / BLOCK_PAGES;
        assert_eq!((homes.get(7), homes.nearest(7)), (None, None));
        homes.note(3, 0);
        homes.note(10, 1);
        homes.note(far, 5);
        assert_eq!([3, 10, far].map(|block| homes.get(block)), [Some(0), Some(1), Some(5)]);
        assert_eq!([5, 8, 10 + NEAR_BLOCKS].map(|block| homes.nearest(block)), [Some(0), Some(1), Some(1)]);
        assert_eq!(homes.nearest(11 + NEAR_BLOCKS), None);
        homes.note(3, 1);
        homes.note(far + 1, 1);
        homes.note(4, 700);
        assert_eq!([3, far + CHUNK_BLOCKS as u32, 4].map(|block| homes.get(block)), [Some(1), None, None]);
    }
}
