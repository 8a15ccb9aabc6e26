//! How much of what page-outs left in the swap cache is to be freed now.
//!
//! A page that was paged out leaves the page table, and its copy stays in memory, in the swap cache, until the kernel
//! reclaims it: a page that comes back soon costs no read. So what was paged out waits, and what came back meanwhile is
//! taken off. How long depends on how short memory is ([`Wanted`]). The rest is freed in steps of [`STEP_BYTES`], and
//! no more than the machine's group has in the swap cache. Pure.
//!
//! # Limits
//! How much, not which: the kernel chooses the pages.

use std::collections::VecDeque;
use std::time::Duration;

use crate::sys::{Monotonic, PAGE_BYTES};
use crate::vm::GroupMemory;

/// Why copies are to be freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The operator wants it (`policy.free_swap_cache`): a copy stays for half a minute, in case its page comes back,
    /// and nothing is freed while the VM waits for memory.
    Tidy,
    /// The first tier has so many bytes less free than it should, without copies: a copy stays until it is written.
    Short { bytes: u64 },
}

/// How long a copy stays, in case its page comes back.
const PROBATION: Duration = Duration::from_secs(30);
/// How long a write to a tier may take: until then the kernel cannot free the copy, and would take another page
/// instead.
const WRITTEN_AFTER: Duration = Duration::from_secs(5);
/// Bytes freed at a time.
const STEP_BYTES: u64 = 8 << 20;
/// Twice as many seconds as the probation.
const ENTRIES_MOST: usize = 60;

/// Pages paged out, by when, that have not come back.
#[derive(Clone, Debug, Default)]
pub struct LeftBehind(VecDeque<(Monotonic, u64)>);

impl LeftBehind {
    /// So many pages were paged out. Those of a second are one entry, and of the oldest two are made one where there
    /// are many: nobody may ask for them.
    pub fn paged_out(&mut self, pages: u64, now: Monotonic) {
        match self.0.back_mut() {
            _ if pages == 0 => return,
            Some((at, last)) if now.since(*at) < Duration::from_secs(1) => *last += pages,
            _ => self.0.push_back((now, pages)),
        }
        if self.0.len() > ENTRIES_MOST
            && let Some((_, oldest)) = self.0.pop_front()
            && let Some((_, next)) = self.0.front_mut()
        {
            *next += oldest;
        }
    }

    /// So many came back, or were freed: the oldest, as far as that is known.
    pub fn take(&mut self, mut pages: u64) {
        while let Some((_, first)) = self.0.front_mut() {
            if *first > pages {
                *first -= pages;
                return;
            }
            pages -= *first;
            self.0.pop_front();
        }
    }

    /// Bytes to free now: none of a group that holds other processes too.
    pub fn due_bytes(&self, memory: &GroupMemory, wanted: Wanted, stalls: bool, now: Monotonic) -> u64 {
        let (stays, most) = match wanted {
            Wanted::Tidy if stalls => return 0,
            Wanted::Tidy => (PROBATION, STEP_BYTES),
            Wanted::Short { bytes } => (WRITTEN_AFTER, bytes.min(STEP_BYTES)),
        };
        if !memory.holds_only_vm {
            return 0;
        }
        let old = self.0.iter().take_while(|(at, _)| now.since(*at) >= stays);
        let pages: u64 = old.map(|(_, pages)| pages).sum();
        (pages * PAGE_BYTES).min(memory.swap_cached_bytes.unwrap_or(0)).min(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Monotonic {
        Monotonic(seconds * 1_000_000_000)
    }

    fn memory(cached_mib: u64) -> GroupMemory {
        GroupMemory {
            swap_cached_bytes: Some(cached_mib << 20),
            holds_only_vm: true,
            ..GroupMemory::default()
        }
    }

    #[test]
    fn copies_are_kept_for_a_while_and_freed_in_steps() {
        let mut left = LeftBehind::default();
        left.paged_out(1024, at(10));
        left.paged_out(4096, at(20));
        let due = |left: &LeftBehind, cached_mib, seconds| {
            left.due_bytes(&memory(cached_mib), Wanted::Tidy, false, at(seconds)) >> 20
        };
        assert_eq!(due(&left, 64, 39), 0);
        assert_eq!(due(&left, 64, 40), 4);
        assert_eq!(due(&left, 64, 50), 8, "a step");
        assert_eq!(due(&left, 3, 50), 3, "no more than there is");
        left.take(1024 + 3072);
        assert_eq!(due(&left, 64, 50), 4, "the rest");
        left.take(9999);
        assert_eq!(due(&left, 64, 99), 0);
    }

    #[test]
    fn what_nobody_asks_for_takes_no_room_and_is_not_forgotten() {
        let mut left = LeftBehind::default();
        for second in 0..1000 {
            left.paged_out(1, at(second));
            left.paged_out(1, at(second));
        }
        assert_eq!(left.0.len(), ENTRIES_MOST);
        assert_eq!(left.due_bytes(&memory(64), Wanted::Tidy, false, at(9999)), 2000 * PAGE_BYTES);
    }

    #[test]
    fn where_memory_is_short_copies_go_as_soon_as_they_are_written_and_no_more_than_is_missing() {
        let mut left = LeftBehind::default();
        left.paged_out(4096, at(10));
        let due = |bytes, seconds| left.due_bytes(&memory(64), Wanted::Short { bytes }, true, at(seconds));
        assert_eq!((due(1 << 30, 14), due(1 << 30, 15)), (0, STEP_BYTES), "also while the VM waits");
        assert_eq!(due(4096, 15), 4096);
    }

    #[test]
    fn nothing_is_freed_of_a_group_that_waits_or_holds_others() {
        let mut left = LeftBehind::default();
        left.paged_out(1024, at(0));
        assert_eq!(left.due_bytes(&memory(64), Wanted::Tidy, true, at(99)), 0);
        let shared = GroupMemory { holds_only_vm: false, ..memory(64) };
        let untold = GroupMemory { swap_cached_bytes: None, ..memory(64) };
        for wanted in [Wanted::Tidy, Wanted::Short { bytes: 1 << 30 }] {
            assert_eq!(left.due_bytes(&shared, wanted, false, at(99)), 0);
            assert_eq!(left.due_bytes(&untold, wanted, false, at(99)), 0);
        }
    }
}
