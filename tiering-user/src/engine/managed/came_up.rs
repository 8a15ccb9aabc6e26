//! Pages of a VM that were promoted, by the tier they came from.
//!
//! In: where a page was before an access or a move. Out: bytes a level, for the status.
//!
//! # Limits
//! What came up without an access that was seen (a sweep finds it in memory) is not counted, nor what was staged and
//! not used.

use crate::config::MAX_TIERS;
use crate::sys::PAGE_BYTES;
use crate::tiermap::{PageRun, Place, VmPages};
use crate::tiers::TierId;

/// Counted, and not yet added to the totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CameUp {
    pages: [u64; MAX_TIERS],
}

impl CameUp {
    /// So many pages came up from there.
    pub fn note(&mut self, from: Place, count: u64) {
        if let Place::In(TierId(level)) = from
            && let Some(pages) = self.pages.get_mut(usize::from(level))
        {
            *pages += count;
        }
    }

    /// These pages were found at `to`; `pages` knows yet where they were.
    pub fn note_raised(&mut self, pages: &VmPages, run: PageRun, to: Place) {
        let Place::In(to) = to else { return };
        for page in run.pages() {
            let from = pages.get(page).place();
            if matches!(from, Place::In(from) if to < from) {
                self.note(from, 1);
            }
        }
    }

    /// Moves what was counted into totals, bytes by level.
    pub fn add_to(&mut self, totals: &mut [u64]) {
        for (total, pages) in totals.iter_mut().zip(std::mem::take(&mut self.pages)) {
            *total += pages * PAGE_BYTES;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiermap::Layout;
    use crate::tiers::NodeTiers;
    use crate::vm::{Backing, Hva, RamRegion};

    #[test]
    fn only_what_rose_counts_and_for_the_tier_it_came_from() {
        let ram = RamRegion { start: Hva(0x10_0000), bytes: 64 << 12, backing: Backing::Anonymous };
        let mut pages = VmPages::new(Layout::new(&[ram]), NodeTiers(2));
        let at = |level| Place::In(TierId(level));
        for (first, level) in [(0, 3), (4, 1), (8, 0)] {
            pages.place(PageRun { first, count: 4 }, at(level));
        }
        let mut came_up = CameUp::default();
        // Four from level 3, four from level 1; four were there, and the rest were never touched.
        came_up.note_raised(&pages, PageRun { first: 0, count: 16 }, at(0));
        came_up.note_raised(&pages, PageRun { first: 4, count: 8 }, at(2));
        came_up.note_raised(&pages, PageRun { first: 0, count: 4 }, Place::OtherSwap);
        came_up.note(at(3), 1);
        came_up.note(Place::OtherSwap, 1);
        let mut totals = [100, 0, 0, 0];
        came_up.add_to(&mut totals);
        assert_eq!(totals, [100, 4 << 12, 0, 5 << 12]);
        came_up.add_to(&mut totals);
        assert_eq!(totals, [100, 4 << 12, 0, 5 << 12], "counted once");
    }
}
