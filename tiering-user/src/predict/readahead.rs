//! What comes next in the order of addresses, as the kernel's readahead of files has it.
//!
//! In: a page that a VM touched, and what it touched before. Out: the pages at the next addresses, which are to be
//! staged: as many as were touched lately at the addresses just before, without a gap; and a few in any case where the
//! VM had to wait.

use std::ops::Range;

use super::{Position, Tape};
use crate::tiermap::PageIndex;

/// Touches of a VM up to the present one that count as lately.
const LATELY: u64 = 1024;
/// After a page for which the VM waited: so many pages, or this part of the window.
const LEAST: u32 = 2;
const LEAST_PART: u32 = 8;

/// The pages to stage for a touch of `page`, which stands `at` this place on the VM's tape, and for which the VM waited
/// where that is `missed`.
pub fn readahead(
    tape: &Tape,
    (page, at): (PageIndex, Position),
    missed: bool,
    window: u32,
) -> Range<PageIndex> {
    let is_recent = |page: &PageIndex| {
        let place = tape.find(*page);
        place.is_some_and(|place| place < at && at.since(place) < LATELY)
    };
    let before = (page.saturating_sub(window)..page).rev().take_while(is_recent).count();
    let least = if missed { LEAST.max(window / LEAST_PART) } else { 0 };
    // No more than the window was looked at.
    let pages = (before as u32).max(least).min(window);
    let first = page.saturating_add(1);
    first..first.saturating_add(pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The VM touches these pages; what is staged for the last one.
    fn after(pages: impl IntoIterator<Item = PageIndex>, missed: bool, window: u32) -> Range<PageIndex> {
        let mut tape = Tape::new(10_000);
        let mut last = (0, tape.end());
        for page in pages {
            last = (page, tape.end());
            tape.record(page, None);
        }
        readahead(&tape, last, missed, window)
    }

    #[test]
    fn the_longer_a_vm_goes_on_by_address_the_further_it_is_read_ahead() {
        assert_eq!(after([7, 100, 101, 102, 103], false, 16), 104..107);
        assert_eq!(after([7, 100, 101, 102, 103], true, 16), 104..107);
        assert_eq!(after([7, 100, 8], false, 16), 9..10);
        assert_eq!(after(0..1000, false, 16), 1000..1016, "the window is the limit");
        assert_eq!(after((0..1000).rev(), false, 16), 1..1, "it goes the other way");
    }

    #[test]
    fn where_it_had_to_wait_a_little_is_read_ahead() {
        assert_eq!(after([7, 100], false, 16), 101..101);
        assert_eq!(after([7, 100], true, 16), 101..103);
        assert_eq!(after([7, 100], true, 64), 101..109, "more where that was right");
        assert_eq!(after([PageIndex::MAX], true, 16), PageIndex::MAX..PageIndex::MAX);
    }

    #[test]
    fn what_was_touched_long_ago_or_later_tells_nothing() {
        let walk = |others: u32| (100..104).chain(5000..5000 + others).chain([104]);
        assert_eq!([after(walk(1019), false, 16), after(walk(1020), false, 16)], [105..109, 105..108]);
        assert_eq!(after(walk(2000), false, 16), 105..105);
        let mut tape = Tape::new(10_000);
        let at = tape.end();
        [105, 104, 103].iter().for_each(|page| _ = tape.record(*page, None));
        assert_eq!(readahead(&tape, (105, at), false, 16), 106..106, "of touches read in one go");
    }
}
