//! Which blocks of a table changed since they were last looked at.
//!
//! In: block numbers, as pages change. Out: as many changed blocks as are asked for, in turn, so that a machine that
//! changes faster than it is looked at is still seen as a whole.

#[derive(Clone, Debug)]
pub(super) struct DirtyBlocks {
    bits: Vec<u64>,
    /// Word at which the next look begins.
    next: usize,
}

impl DirtyBlocks {
    pub(super) fn new(blocks: usize) -> Self {
        Self { bits: vec![0; blocks.div_ceil(64)], next: 0 }
    }

    pub(super) fn mark(&mut self, block: u32) {
        if let Some(word) = self.bits.get_mut((block / 64) as usize) {
            *word |= 1 << (block % 64);
        }
    }

    /// Takes out at most `most` blocks, and goes on there the next time.
    pub(super) fn take(&mut self, most: usize) -> Vec<u32> {
        let mut taken = Vec::new();
        let words = self.bits.len();
        for step in 0..words {
            let index = (self.next + step) % words;
            let first = u32::try_from(index * 64).unwrap_or(u32::MAX);
            let word = &mut self.bits[index];
            while *word != 0 {
                if taken.len() >= most {
                    self.next = index;
                    return taken;
                }
                taken.push(first + word.trailing_zeros());
                *word &= *word - 1;
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_block_is_taken_once_and_in_turn() {
        let mut dirty = DirtyBlocks::new(200);
        [3, 64, 65, 199].into_iter().for_each(|block| dirty.mark(block));
        assert_eq!(dirty.take(2), [3, 64]);
        dirty.mark(3);
        assert_eq!(dirty.take(2), [65, 199], "what changes all the time does not keep others waiting");
        assert_eq!(dirty.take(9), [3]);
        assert!(dirty.take(9).is_empty());
        dirty.mark(70_000);
        assert!(dirty.take(9).is_empty(), "there is no such block");
    }
}
