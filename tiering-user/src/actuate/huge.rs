//! Huge pages among those of a step: which pages are mapped as a part of one right now.
//!
//! In: a VM and pages, and what the page tables said of them. Out: numbers of huge pages; how many are none any
//! more after a step; and, of a VM whose huge pages are kept (`huge = "keep"`), which pages may be paged out. Not
//! here: whether they are kept, which the configuration says.
//!
//! The mapping table knows huge pages too, as the last sweep found them. A page can have become huge since:
//! `khugepaged`, the agent, or a fault makes it so. So the page tables are read before a step, and of a VM whose
//! huge pages are kept again right before each page-out.
//!
//! [`PageStates`] tell which pages are parts of huge ones, or at least their frames: those of a huge page follow each
//! other, and the first one's number is a multiple of 512. Where it shows other frames, the kernel need not be asked.
//!
//! # Limits
//! A page may still become huge between that last read and its own page-out, of at most 2 MiB at a time. Only pages
//! that are mapped as huge ones count (`PAGE_IS_HUGE` of `PAGEMAP_SCAN`): parts of a large folio that are mapped one by
//! one do not. Before Linux 6.7 a huge page is told by its frames, which small pages in a row look like, and where
//! frame numbers are not shown, all that is in memory counts as huge.

use std::borrow::Cow;
use std::io;

use super::page_states::{HUGE_BYTES, PageStates};
use super::target::{Outcome, Skip, Target, gone, place_runs};
use crate::policy::Action;
use crate::sys::{PAGE_BYTES, PageState, Pagemap};
use crate::tiermap::{BLOCK_PAGES, PageIndex, PageRun, Place, Places};

/// Huge pages of a process by number, which is their host-virtual address / 2 MiB. Ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HugePages(Vec<u64>);

impl HugePages {
    /// Those that some of these ascending pages were a part of, all of which were looked at.
    ///
    /// # Errors
    /// `ESRCH` or `ENOENT` where the process has ended.
    pub(super) fn of(target: &Target, look: &PageStates, pages: &[PageIndex]) -> io::Result<Self> {
        match look.huge() {
            Some([]) => Ok(Self::default()),
            Some(huge) => {
                let asked = numbers(&target.addresses(pages));
                let of_these = huge.iter().copied().filter(|number| asked.binary_search(number).is_ok());
                Ok(Self(of_these.collect()))
            }
            None => Self::among(target, &candidates(target, look, pages)),
        }
    }

    /// Those that some of these pages are a part of now.
    fn now(target: &Target, pages: &[PageIndex]) -> io::Result<Self> {
        Self::among(target, &numbers(&target.addresses(pages)))
    }

    fn among(target: &Target, numbers: &[u64]) -> io::Result<Self> {
        if numbers.is_empty() {
            return Ok(Self::default());
        }
        let pagemap = target.process.pagemap()?;
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

    /// Of those that some of these ascending pages are a part of, pages of those that are none any more, as far as it
    /// can be told; all of the pages were looked at again.
    pub(super) fn lost_pages(&self, target: &Target, after: &PageStates, pages: &[PageIndex]) -> u64 {
        if self.0.is_empty() {
            return 0;
        }
        let tried = numbers(&target.addresses(pages));
        Self::of(target, after, pages).map_or(0, |after| self.not_in(&after, &tried))
    }

    fn not_in(&self, after: &Self, tried: &[u64]) -> u64 {
        let tried = self.0.iter().filter(|number| tried.binary_search(number).is_ok());
        let lost = tried.filter(|number| after.0.binary_search(number).is_err()).count();
        lost as u64 * u64::from(BLOCK_PAGES)
    }

    /// Splits these pages into those that are a part of none and those that are. Pages of the hugetlb pool count as
    /// small: they have a reason of their own to stay.
    fn split(&self, target: &Target, pages: &[PageIndex]) -> (Vec<PageIndex>, Vec<PageIndex>) {
        let is_part = |page: &PageIndex| {
            let at = target.info.layout.locate(*page).filter(|_| !target.info.layout.is_hugetlb(*page));
            at.is_some_and(|(hva, _)| self.holds(hva.0))
        };
        let (huge, small) = pages.iter().copied().partition(is_part);
        (small, huge)
    }
}

fn numbers(addresses: &[u64]) -> Vec<u64> {
    let mut numbers: Vec<u64> = addresses.iter().map(|hva| hva / HUGE_BYTES).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

/// Numbers of huge pages that these pages may have been a part of, by their frames.
fn candidates(target: &Target, look: &PageStates, pages: &[PageIndex]) -> Vec<u64> {
    let at = |page| target.info.layout.locate(page).map(|(hva, _)| hva.0);
    let parts = look.of(pages).filter_map(|(page, state)| Some((at(page)?, state)));
    let parts: Vec<(u64, PageState)> = parts.collect();
    let blocks = parts.chunk_by(|(a, _), (b, _)| a / HUGE_BYTES == b / HUGE_BYTES);
    blocks.filter(|block| lie_as_in_one(block)).map(|block| block[0].0 / HUGE_BYTES).collect()
}

/// Whether the frames of these pages, given by their addresses, lie as those of one huge page do.
fn lie_as_in_one(parts: &[(u64, PageState)]) -> bool {
    let mut found = None;
    parts.iter().all(|(hva, state)| match state {
        // Not shown.
        PageState::Present { pfn: 0 } => true,
        PageState::Present { pfn } => {
            let first = pfn.checked_sub(hva / PAGE_BYTES % u64::from(BLOCK_PAGES));
            first.is_some_and(|first| {
                first % u64::from(BLOCK_PAGES) == 0 && *found.get_or_insert(first) == first
            })
        }
        PageState::Absent | PageState::Zero | PageState::Swapped { .. } => false,
    })
}

/// Where nothing tells better: whether the frames lie as those of a huge page do.
fn may_be_huge(pagemap: &Pagemap, number: u64) -> io::Result<bool> {
    let states = pagemap.read(number * HUGE_BYTES, BLOCK_PAGES as usize)?;
    let parts: Vec<_> = (number * HUGE_BYTES..).step_by(PAGE_BYTES as usize).zip(states).collect();
    Ok(lie_as_in_one(&parts))
}

/// Of a VM whose huge pages are kept: leaves those out of a step to a swap tier. Returns where they are, and all
/// huge pages that the step's pages are a part of.
pub(super) fn leave_out(
    target: &Target,
    places: &Places,
    look: &PageStates,
    outcome: &mut Outcome,
) -> (Vec<(PageRun, Place)>, HugePages) {
    let to_swap = matches!(outcome.action, Action::Place { to } if !places.nodes.tiers().contains(to));
    let found = HugePages::of(target, look, &outcome.asked);
    if !target.info.keep_huge || !to_swap {
        // A VM that cannot be read any more is told of by what comes next.
        return (Vec::new(), found.unwrap_or_default());
    }
    match found {
        Ok(found) => {
            let (small, huge) = found.split(target, &outcome.asked);
            outcome.asked = small;
            outcome.skip(Skip::KeptHuge, huge.len() as u64);
            let runs = place_runs(&huge, look.places(&huge, places).into_iter());
            outcome.left_out.extend(huge);
            (runs, found)
        }
        // It cannot be told which they are: nothing of the step may be done.
        Err(error) => {
            let left = std::mem::take(&mut outcome.asked);
            outcome.skip(gone(error), left.len() as u64);
            outcome.left_out.extend(left);
            (Vec::new(), HugePages::default())
        }
    }
}

/// Of these pages those that may be paged out now: of a VM whose huge pages are kept, those that are a part of
/// none.
///
/// # Errors
/// `ESRCH` or `ENOENT` where the process has ended.
pub(super) fn may_go<'a>(target: &Target, pages: &'a [PageIndex]) -> io::Result<Cow<'a, [PageIndex]>> {
    if !target.info.keep_huge || pages.is_empty() {
        return Ok(Cow::Borrowed(pages));
    }
    Ok(Cow::Owned(HugePages::now(target, pages)?.split(target, pages).0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_huge_and_is_not_is_lost_as_a_whole() {
        let before = HugePages(vec![3, 4, 9]);
        let tried = [3, 4, 5, 9];
        assert_eq!(before.not_in(&HugePages(vec![3, 9]), &tried), 512);
        assert_eq!(before.not_in(&HugePages(vec![3, 4, 5, 9]), &tried), 0, "one that is new is no loss");
        assert_eq!(before.not_in(&HugePages::default(), &tried), 3 * 512);
        assert_eq!(before.not_in(&HugePages::default(), &[3]), 512, "of what was not tried nothing is told");
    }

    #[test]
    fn a_page_belongs_to_the_huge_page_at_its_address() {
        let huge = HugePages(vec![3]);
        assert!(huge.holds(3 * HUGE_BYTES) && huge.holds(4 * HUGE_BYTES - 1));
        assert!(!huge.holds(3 * HUGE_BYTES - 1) && !huge.holds(4 * HUGE_BYTES));
    }

    /// Pages of one block, by number in it, and their frames.
    fn parts(frames: impl IntoIterator<Item = (u64, u64)>) -> Vec<(u64, PageState)> {
        let part = |(at, pfn)| (7 * HUGE_BYTES + at * PAGE_BYTES, PageState::Present { pfn });
        frames.into_iter().map(part).collect()
    }

    #[test]
    fn frames_in_a_row_look_huge_and_hidden_ones_count_as_such() {
        let row = |first: u64| parts((0..512).map(|at| (at, first + at)));
        assert!(lie_as_in_one(&row(1024)));
        assert!(!lie_as_in_one(&row(1025)), "not aligned");
        let mut gap = row(1024);
        gap[7].1 = PageState::Swapped { area: 1, slot: 7 };
        assert!(!lie_as_in_one(&gap));
        let hidden = parts((0..512).map(|at| (at, 0)));
        assert!(lie_as_in_one(&hidden), "it cannot be told");
    }

    #[test]
    fn a_few_pages_of_a_huge_page_tell_that_they_may_be_parts_of_one() {
        assert!(lie_as_in_one(&parts([(3, 1024 + 3), (5, 1024 + 5), (511, 1024 + 511)])));
        assert!(!lie_as_in_one(&parts([(3, 1024 + 3), (5, 1024 + 6)])), "one of them lies elsewhere");
        assert!(!lie_as_in_one(&parts([(3, 1024 + 3), (5, 2048 + 5)])), "two huge pages");
        assert!(!lie_as_in_one(&parts([(3, 2)])));
    }
}
