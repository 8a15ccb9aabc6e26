//! Which blocks of a table changed since they were last looked at.
//!
//! In: block numbers, as pages change. Out: as many changed blocks as are asked for, in turn, so that a VM that
//! changes faster than it is looked at is still seen as a whole.

use super::sparse::Sparse;

#[derive(Clone, Debug, Default)]
pub(super) struct DirtyBlocks {
    /// 64 blocks each; there only where one of them is changed.
    words: Sparse<u64>,
    /// Word at which the next look begins.
    next: u32,
    /// What was marked last and not taken since: pages change one after the other.
    last: Option<u32>,
}

impl DirtyBlocks {
    pub(super) fn mark(&mut self, block: u32) {
        if self.last.replace(block) == Some(block) {
            return;
        }
        *self.words.get_or_insert_with(block / 64, || 0) |= 1 << (block % 64);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Takes out at most `most` blocks, and goes on there the next time.
    pub(super) fn take(&mut self, most: usize) -> Vec<u32> {
        self.last = None;
        let mut taken = Vec::new();
        let indexes: Vec<u32> = self.words.iter().map(|(index, _)| index).collect();
        let (before, behind) = indexes.split_at(indexes.partition_point(|index| *index < self.next));
        for &index in behind.iter().chain(before) {
            let Some(word) = self.words.get_mut(index) else { continue };
            while *word != 0 {
                if taken.len() >= most {
                    self.next = index;
                    return taken;
                }
                taken.push(index * 64 + word.trailing_zeros());
                *word &= *word - 1;
            }
            self.words.remove(index);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_block_is_taken_once_and_in_turn() {
        let mut dirty = DirtyBlocks::default();
        [3, 64, 65, 199].into_iter().for_each(|block| dirty.mark(block));
        dirty.mark(199);
        assert_eq!(dirty.take(2), [3, 64]);
        dirty.mark(3);
        dirty.mark(3);
        assert_eq!(dirty.take(2), [65, 199], "what changes all the time does not keep others waiting");
        assert_eq!(dirty.take(9), [3]);
        assert!(dirty.take(9).is_empty());
        assert!(dirty.words.is_empty(), "what is taken leaves nothing behind");
    }
}
