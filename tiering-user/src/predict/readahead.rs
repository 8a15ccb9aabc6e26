//! What comes next in the order of addresses, as the kernel's readahead of files has it.
//!
//! In: a page that a VM touched, and what it touched before. Out: the pages after it that are to be staged: as many as
//! lie just before it without a gap and were touched lately, and a few in any case where the VM had to wait.

use std::ops::Range;

use super::Tape;
use crate::tiermap::PageIndex;

/// The latest touches of a VM that count as one with what it touches now.
const LATELY: u64 = 1024;
/// After a page for which the VM waited: so many, or this part of the window.
const LEAST: u32 = 2;
const LEAST_PART: u32 = 8;

/// The pages to stage now that the VM touched `page`, for which it waited where that is `missed`.
pub fn readahead(tape: &Tape, page: PageIndex, missed: bool, window: u32) -> Range<PageIndex> {
    let is_recent =
        |page: &PageIndex| tape.find(*page).is_some_and(|place| tape.end().since(place) <= LATELY);
    let before = (page.saturating_sub(window)..page).rev().take_while(is_recent).count();
    let least = if missed { LEAST.max(window / LEAST_PART) } else { 0 };
    // No more than the window was looked at.
    let pages = (before as u32).max(least);
    let first = page.saturating_add(1);
    first..first.saturating_add(pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tape(pages: impl IntoIterator<Item = PageIndex>) -> Tape {
        let mut tape = Tape::new(10_000);
        pages.into_iter().for_each(|page| _ = tape.record(page, None));
        tape
    }

    #[test]
    fn the_longer_a_vm_goes_on_by_address_the_further_it_is_read_ahead() {
        let walk = tape([7, 100, 101, 102, 103]);
        assert_eq!(readahead(&walk, 103, false, 16), 104..107);
        assert_eq!(readahead(&walk, 103, true, 16), 104..107);
        assert_eq!(readahead(&walk, 8, false, 16), 9..10);
        assert_eq!(readahead(&tape(0..1000), 999, false, 16), 1000..1016, "the window is the limit");
    }

    #[test]
    fn where_it_had_to_wait_a_little_is_read_ahead() {
        let walk = tape([7, 100]);
        assert_eq!(readahead(&walk, 100, false, 16), 101..101);
        assert_eq!(readahead(&walk, 100, true, 16), 101..103);
        assert_eq!(readahead(&walk, 100, true, 64), 101..109, "more where that was right");
        assert_eq!(readahead(&walk, PageIndex::MAX, true, 16), PageIndex::MAX..PageIndex::MAX);
    }

    #[test]
    fn what_was_touched_long_ago_tells_nothing() {
        let walk = tape((100..104).chain(5000..6100).chain([104]));
        assert_eq!(readahead(&walk, 104, false, 16), 105..105);
    }
}
