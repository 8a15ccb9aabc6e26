//! What is known of one VM beyond this agent.
//!
//! In: summaries of blocks as they change; what an earlier agent knew. Out: the same to be written down; pages that
//! begin with the back-off and the heat that their block had, if the VM is still the same process.
//!
//! One byte a block of 2 MiB that has a habit: half a KiB for each GiB of a VM, and nothing for addresses without
//! memory.
//!
//! Limits: pages are not remembered one by one, and of their idle times nothing. Heat is given back to pages of the
//! first tier only: elsewhere it says that a page was accessed where it is.

use super::moves::Moved;
use crate::config::Class;
use crate::predict::Position;
use crate::reclaim::Reclaim;
use crate::sys::Monotonic;
use crate::tiermap::{BLOCK_PAGES, Habit, Place, Seconds, Sparse, VmPages};
use crate::tiers::TierId;

/// Most that a byte can say of heat and of back-off. Any of the two upper bits says that the block was in use: earlier
/// agents wrote there how often trials of it had failed.
const HEAT_MOST: u8 = 15;
const BACKOFF_MOST: u8 = 3;
const IN_USE: u8 = 0b0100_0000;
const IN_USE_BITS: u8 = 0b1100_0000;
/// No VM has more: 16 TiB.
const MOST_BLOCKS: u32 = 1 << 23;

/// What is known of one VM beyond this agent.
#[derive(Clone, Debug, Default)]
pub struct Knowledge {
    /// By block; where there is none the block has no habit.
    habits: Sparse<u8>,
    /// `habits` changed since it was written down.
    changed: bool,
    /// What an earlier agent knew of the blocks, until the pages are found.
    recalled: Option<Sparse<u8>>,
    /// Blocks that were given back what was known of them.
    pub blocks_recalled: u64,
    /// What earlier agents moved.
    pub before: Moved,
    /// What kind of work it seemed to do then, and how surely.
    pub seemed: Option<(Class, f32)>,
    /// Up to where its tape is kept; written by `records::tapes`.
    pub tape_kept: Position,
    /// Epochs of its profile when its history was kept; written by `records::histories`.
    pub history_kept: u64,
}

impl Knowledge {
    /// What an earlier agent knew of this process by block, as [`Self::packed`] gave it, if it knew this process; and
    /// of this VM.
    pub fn recalled(packed: Option<&[u8]>, before: Moved, seemed: Option<(Class, f32)>) -> Self {
        let habits = packed.map(unpack);
        Self {
            // What was taken out of the memory is written down again, also if nothing new is learned.
            changed: habits.as_ref().is_some_and(|habits| !habits.is_empty()),
            recalled: habits.clone(),
            habits: habits.unwrap_or_default(),
            before,
            seemed,
            ..Self::default()
        }
    }

    /// What is known by block, to be written down.
    pub fn packed(&self) -> Vec<u8> {
        pack(&self.habits)
    }

    /// The same, if it changed since this was last called.
    pub fn packed_if_changed(&mut self) -> Option<Vec<u8>> {
        std::mem::take(&mut self.changed).then(|| self.packed())
    }

    /// Notes how the pages of a block behave now, and whether what went out says that it is in use.
    pub fn note(&mut self, block: u32, habit: Habit, in_use: bool) {
        let byte = Some(encode(habit, in_use)).filter(|byte| *byte != 0);
        self.changed |= self.habits.get(block).copied() != byte;
        match byte {
            Some(byte) => *self.habits.get_or_insert_with(block, || byte) = byte,
            None => drop(self.habits.remove(block)),
        }
    }

    /// Gives the pages, which were found just now, what was known of their blocks.
    pub fn recall(&mut self, pages: &mut VmPages, reclaim: &mut Reclaim, (time, now): (Monotonic, Seconds)) {
        let blocks = pages.layout().pages().div_ceil(BLOCK_PAGES);
        let recalled = self.recalled.take().unwrap_or_default();
        for (block, byte) in recalled.iter().take_while(|(block, _)| *block < blocks) {
            let (habit, in_use) = decode(*byte);
            self.blocks_recalled += 1;
            if in_use {
                reclaim.was_in_use(block, time);
            }
            for page in block * BLOCK_PAGES..(block + 1) * BLOCK_PAGES {
                let entry = pages.get(page);
                if entry.place() == Place::Untouched {
                    continue;
                }
                let backoff = entry.backoff().max(habit.backoff.into());
                let accesses = if entry.place() == Place::In(TierId(0)) { habit.heat } else { 0 };
                pages.update(page, |entry| {
                    (0..accesses).fold(entry.with_backoff(backoff), |entry, _| entry.accessed(now, false))
                });
            }
        }
    }
}

fn encode(habit: Habit, in_use: bool) -> u8 {
    (if in_use { IN_USE } else { 0 }) | habit.backoff.min(BACKOFF_MOST) << 4 | habit.heat.min(HEAT_MOST)
}

fn decode(byte: u8) -> (Habit, bool) {
    (Habit { backoff: byte >> 4 & BACKOFF_MOST, heat: byte & HEAT_MOST }, byte & IN_USE_BITS != 0)
}

/// Habits as they are written down: the first block of each run of them (4 bytes, little-endian), how many there are (4
/// bytes), and their bytes.
fn pack(habits: &Sparse<u8>) -> Vec<u8> {
    let all: Vec<(u32, u8)> = habits.iter().map(|(block, byte)| (block, *byte)).collect();
    let mut packed = Vec::new();
    for run in all.chunk_by(|(a, _), (b, _)| a + 1 == *b) {
        // No VM has as many blocks.
        let count = u32::try_from(run.len()).unwrap_or(u32::MAX);
        packed.extend(run[0].0.to_le_bytes().into_iter().chain(count.to_le_bytes()));
        packed.extend(run.iter().map(|(_, byte)| byte));
    }
    packed
}

/// What [`pack`] gave. Nothing behind the first thing that is wrong is believed.
fn unpack(packed: &[u8]) -> Sparse<u8> {
    let mut habits = Sparse::default();
    let mut rest = packed;
    while let Some((head, behind)) = rest.split_first_chunk::<8>() {
        let [first, count] =
            [0, 4].map(|at| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]));
        let Some((bytes, behind)) = behind.split_at_checked(count as usize) else { break };
        if first > MOST_BLOCKS || count > MOST_BLOCKS {
            break;
        }
        for (block, byte) in (first..).zip(bytes).filter(|(_, byte)| **byte != 0) {
            *habits.get_or_insert_with(block, || 0) = *byte;
        }
        rest = behind;
    }
    habits
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiermap::Layout;
    use crate::tiers::NodeTiers;
    use crate::vm::{Hva, ProcessKey, testing};

    fn habits(of: &[(u32, u8)]) -> Sparse<u8> {
        let mut habits = Sparse::default();
        for (block, byte) in of {
            habits.get_or_insert_with(*block, || *byte);
        }
        habits
    }

    #[test]
    fn habits_are_written_when_they_change() {
        let mut known = Knowledge::default();
        known.note(3, Habit::default(), false);
        assert!(!known.changed);
        known.note(3, Habit { backoff: 1, heat: 200 }, true);
        assert!(known.changed);
        assert!(known.habits.iter().eq([(3, &0x5f)]));
        assert_eq!(decode(0x5f), (Habit { backoff: 1, heat: 15 }, true));
        assert!(decode(0x9f).1, "as an earlier agent wrote it");
        known.note(3, Habit::default(), false);
        assert_eq!(known.habits.len(), 0);
    }

    #[test]
    fn habits_are_as_long_as_they_are_many_wherever_they_are() {
        let far = habits(&[(7, 1), (8, 2), (MOST_BLOCKS - 1, 3)]);
        let packed = pack(&far);
        assert_eq!(packed.len(), 8 + 2 + 8 + 1);
        assert!(unpack(&packed).iter().eq(far.iter()));
        let mut known = Knowledge { recalled: Some(far), ..Knowledge::default() };
        let mut pages = {
            let key = ProcessKey { pid: 1, start_time_ticks: 5 };
            VmPages::new(Layout::new(&testing::vm(key, Hva(0x10_0000), 2000 * 4096).ram), NodeTiers(1))
        };
        known.recall(&mut pages, &mut Reclaim::default(), (Monotonic(0), Seconds(1)));
        assert_eq!(known.blocks_recalled, 0, "the VM has four blocks");
    }

    #[test]
    fn what_is_damaged_is_not_believed() {
        let packed = pack(&habits(&[(7, 1), (9, 2)]));
        assert!(unpack(&packed[..packed.len() - 1]).iter().eq([(7, &1)]), "cut off");
        for first in [MOST_BLOCKS + 1, u32::MAX] {
            let wrong = [&first.to_le_bytes()[..], &[1, 0, 0, 0, 5]].concat();
            assert_eq!(unpack(&wrong).len(), 0);
        }
        let long = [&0u32.to_le_bytes()[..], &u32::MAX.to_le_bytes(), &[5; 20]].concat();
        assert_eq!(unpack(&long).len(), 0, "more bytes than there are");
    }
}
