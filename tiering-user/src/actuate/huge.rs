//! Huge pages among those of a step: which pages are mapped as a part of one right now.
//!
//! In: a machine and pages. Out: numbers of huge pages, as the page tables have them at this moment; how many are none
//! any more after a step; and, of a machine whose huge pages are kept (`huge = "keep"`), which pages may be paged out.
//! Not here: whether they are kept, which the configuration says.
//!
//! The mapping table knows huge pages too, as the last sweep found them. A page can have become huge since:
//! `khugepaged`, the agent, or a fault makes it so. So the page tables are read before a step, and again right before
//! each page-out.
//!
//! # Limits
//! A page may still become huge between that last read and its own page-out, of at most 2 MiB at a time. Only pages
//! that are mapped as huge ones count (`PAGE_IS_HUGE` of `PAGEMAP_SCAN`): parts of a large folio that are mapped one by
//! one do not. Before Linux 6.7 a huge page is told by its frames, which small pages in a row look like, and where
//! frame numbers are not shown, all that is in memory counts as huge.

use std::borrow::Cow;
use std::io;

use super::target::{Outcome, Skip, Target, gone, place_runs};
use crate::policy::Action;
use crate::sys::{PAGE_BYTES, PageState, Pagemap};
use crate::tiermap::{BLOCK_PAGES, PageIndex, PageRun, Place, Places};

const HUGE_BYTES: u64 = BLOCK_PAGES as u64 * PAGE_BYTES;

/// Huge pages of a process by number, which is their host-virtual address / 2 MiB. Ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HugePages(Vec<u64>);

impl HugePages {
    /// Those that some of these pages are a part of.
    ///
    /// # Errors
    /// `ESRCH` or `ENOENT` where the process has ended.
    pub(super) fn of(target: &Target, pages: &[PageIndex]) -> io::Result<Self> {
        let pagemap = target.process.pagemap()?;
        let mut numbers: Vec<u64> = target.addresses(pages).iter().map(|hva| hva / HUGE_BYTES).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let mut huge = Vec::new();
        for row in numbers.chunk_by(|a, b| a + 1 == *b) {
            let (first, last) = (row[0], row[row.len() - 1]);
            let scanned = pagemap.huge(first * HUGE_BYTES, (last + 1) * HUGE_BYTES, |range| {
                huge.extend(range.start / HUGE_BYTES..range.end.div_ceil(HUGE_BYTES));
            });
            match scanned {
                Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
                    for number in row {
                        if may_be_huge(&pagemap, *number)? {
                            huge.push(*number);
                        }
                    }
                }
                result => result?,
            }
        }
        huge.dedup();
        Ok(Self(huge))
    }

    fn holds(&self, hva: u64) -> bool {
        self.0.binary_search(&(hva / HUGE_BYTES)).is_ok()
    }

    /// Of these, pages of those that are none any more.
    pub(super) fn lost_pages(&self, after: &Self) -> u64 {
        let lost = self.0.iter().filter(|number| after.0.binary_search(number).is_err()).count();
        lost as u64 * u64::from(BLOCK_PAGES)
    }

    /// Splits these pages into those that are a part of none and those that are. Pages of the hugetlb pool count as
    /// small: they have a reason of their own to stay.
    fn split(&self, target: &Target, pages: &[PageIndex]) -> (Vec<PageIndex>, Vec<PageIndex>) {
        let is_part = |page: &PageIndex| {
            let at = target.layout.locate(*page).filter(|_| !target.layout.is_hugetlb(*page));
            at.is_some_and(|(hva, _)| self.holds(hva.0))
        };
        let (huge, small) = pages.iter().copied().partition(is_part);
        (small, huge)
    }
}

/// Where nothing tells better: whether the frames follow each other as those of a huge page do.
fn may_be_huge(pagemap: &Pagemap, number: u64) -> io::Result<bool> {
    Ok(looks_huge(&pagemap.read(number * HUGE_BYTES, BLOCK_PAGES as usize)?))
}

fn looks_huge(states: &[PageState]) -> bool {
    let Some(PageState::Present { pfn: first }) = states.first().copied() else { return false };
    let hidden = first == 0;
    let follows = |(pfn, state): (u64, &PageState)| match state {
        PageState::Present { pfn: found } => hidden || *found == pfn,
        _ => false,
    };
    first % u64::from(BLOCK_PAGES) == 0 && (first..).zip(states).all(follows)
}

/// Of a machine whose huge pages are kept: leaves those out of a step to a swap tier. Returns where they are.
///
/// # Errors
/// Why it cannot be told which they are: nothing of the step may be done then.
pub(super) fn leave_out(
    target: &Target,
    places: &Places,
    outcome: &mut Outcome,
) -> Result<Vec<(PageRun, Place)>, Skip> {
    let to_swap = matches!(outcome.action, Action::Place { to } if !places.nodes.tiers().contains(to));
    if !target.keep_huge || !to_swap {
        return Ok(Vec::new());
    }
    let (small, huge) = HugePages::of(target, &outcome.asked).map_err(gone)?.split(target, &outcome.asked);
    let there = target.places(&huge, places).map_err(gone)?;
    outcome.asked = small;
    outcome.skip(Skip::KeptHuge, huge.len() as u64);
    let runs = place_runs(&huge, there.into_iter());
    outcome.left_out.extend(huge);
    Ok(runs)
}

/// Of these pages those that may be paged out now: of a machine whose huge pages are kept, those that are a part of
/// none.
///
/// # Errors
/// As [`HugePages::of`].
pub(super) fn may_go<'a>(target: &Target, pages: &'a [PageIndex]) -> io::Result<Cow<'a, [PageIndex]>> {
    if !target.keep_huge || pages.is_empty() {
        return Ok(Cow::Borrowed(pages));
    }
    Ok(Cow::Owned(HugePages::of(target, pages)?.split(target, pages).0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_huge_and_is_not_is_lost_as_a_whole() {
        let before = HugePages(vec![3, 4, 9]);
        assert_eq!(before.lost_pages(&HugePages(vec![3, 9])), 512);
        assert_eq!(before.lost_pages(&HugePages(vec![3, 4, 5, 9])), 0, "one that is new is no loss");
        assert_eq!(before.lost_pages(&HugePages::default()), 3 * 512);
    }

    #[test]
    fn a_page_belongs_to_the_huge_page_at_its_address() {
        let huge = HugePages(vec![3]);
        assert!(huge.holds(3 * HUGE_BYTES) && huge.holds(4 * HUGE_BYTES - 1));
        assert!(!huge.holds(3 * HUGE_BYTES - 1) && !huge.holds(4 * HUGE_BYTES));
    }

    #[test]
    fn without_a_scan_frames_in_a_row_look_huge_and_hidden_ones_count_as_such() {
        let row =
            |first: u64| -> Vec<_> { (first..first + 512).map(|pfn| PageState::Present { pfn }).collect() };
        assert!(looks_huge(&row(1024)));
        assert!(!looks_huge(&row(1025)), "not aligned");
        let mut gap = row(1024);
        gap[7] = PageState::Swapped { area: 1, slot: 7 };
        assert!(!looks_huge(&gap));
        let hidden = vec![PageState::Present { pfn: 0 }; 512];
        assert!(looks_huge(&hidden), "it cannot be told");
        assert!(!looks_huge(&[]));
    }
}
