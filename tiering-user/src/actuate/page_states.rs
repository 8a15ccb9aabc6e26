//! What the page tables said of a batch.
//!
//! In: a VM and pages. Out: the state of each page as one read of the page tables told it. The checks
//! before a batch share one read: which of the pages are parts of huge pages, what the control groups have
//! room for, which nodes they are on, where they must be brought up from. What is read after a page-out replaces what
//! was read before.
//!
//! The first read is one of ranges (`PAGEMAP_SCAN`) as long as nothing of a block of 2 MiB is in swap and nobody needs
//! the frames, since it costs less than reading the entries of pagemap. In which area a page is, its entry alone tells.
//!
//! # Limits
//! A look is as old as its read: what a guest does meanwhile is seen after the batch. Which pages of a VM that keeps
//! its huge pages may go is therefore read again right before each page-out ([`super::huge::may_go`]).

use std::io;

use super::target::Target;
use crate::sys::{PAGE_BYTES, PageState, ScanRange};
use crate::tiermap::{BLOCK_PAGES, PageIndex, Place, Places};

/// Bytes of a huge page.
pub(super) const HUGE_BYTES: u64 = BLOCK_PAGES as u64 * PAGE_BYTES;
/// More ranges than these in a block cost more than its entries.
const MOST_RANGES: usize = 32;

/// Pages, ascending, and the state of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PageStates {
    pages: Vec<PageIndex>,
    states: Vec<PageState>,
    /// Numbers of the huge pages that these pages are parts of (address / 2 MiB), ascending; none where only the frames
    /// tell.
    huge: Option<Vec<u64>>,
}

impl PageStates {
    /// Reads the page tables of these ascending pages.
    ///
    /// # Errors
    /// `ESRCH`, `ENOENT` or end of file where the process has ended.
    pub(super) fn at(target: &Target, pages: &[PageIndex]) -> io::Result<Self> {
        Ok(Self { pages: pages.to_vec(), states: target.states(pages)?, huge: None })
    }

    /// The same at less cost: where all memory is one tier and one node, the frames of some pages are not told.
    ///
    /// # Errors
    /// As [`PageStates::at`].
    pub(super) fn in_brief(target: &Target, pages: &[PageIndex], places: &Places) -> io::Result<Self> {
        if places.nodes.tiers().0 > 1 || target.has_homes(places) {
            return Self::at(target, pages);
        }
        let mut look = Self { pages: pages.to_vec(), ..Self::default() };
        look.scan(target)?;
        look.states.extend(target.states(&pages[look.states.len()..])?);
        Ok(look)
    }

    /// Scans blocks from the front until one has something in swap.
    fn scan(&mut self, target: &Target) -> io::Result<()> {
        let pagemap = target.process.pagemap()?;
        let addresses = target.addresses(&self.pages);
        let (mut huge, mut ranges) = (Vec::new(), Vec::new());
        for block in addresses.chunk_by(|a, b| a / HUGE_BYTES == b / HUGE_BYTES) {
            let (first, last) = (block[0], block[block.len() - 1]);
            ranges.clear();
            match pagemap.scan(first, last + PAGE_BYTES, |range| ranges.push(range)) {
                // Before Linux 6.7.
                Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => return Ok(()),
                result => result?,
            }
            if ranges.len() > MOST_RANGES || ranges.iter().any(|range| range.swapped) {
                return Ok(());
            }
            if ranges.iter().any(|range| range.huge) {
                huge.push(first / HUGE_BYTES);
            }
            self.states.extend(in_ranges(block, &ranges));
        }
        self.huge = Some(huge);
        Ok(())
    }

    /// Numbers of the huge pages that the pages are parts of, if the kernel told them.
    pub(super) fn huge(&self) -> Option<&[u64]> {
        self.huge.as_deref()
    }

    /// Each page and its state.
    pub(super) fn all(&self) -> impl Iterator<Item = (PageIndex, PageState)> + '_ {
        self.pages.iter().copied().zip(self.states.iter().copied())
    }

    /// The same of those of these ascending pages that were looked at.
    pub(super) fn of<'a>(
        &'a self,
        pages: &'a [PageIndex],
    ) -> impl Iterator<Item = (PageIndex, PageState)> + 'a {
        let mut wanted = pages.iter().copied().peekable();
        self.all().filter(move |(page, _)| {
            while wanted.next_if(|next| next < page).is_some() {}
            wanted.next_if_eq(page).is_some()
        })
    }

    /// Where these ascending pages were, in the same order; all of them were looked at.
    pub(super) fn places(&self, pages: &[PageIndex], places: &Places) -> Vec<Place> {
        let mut place = in_a_row(places);
        self.of(pages).map(|(_, state)| place(state)).collect()
    }

    /// Those of these ascending pages whose place is one to `keep`.
    pub(super) fn select(
        &self,
        pages: &[PageIndex],
        places: &Places,
        keep: impl Fn(Place) -> bool,
    ) -> Vec<PageIndex> {
        let mut place = in_a_row(places);
        self.of(pages).filter(|(_, state)| keep(place(*state))).map(|(page, _)| page).collect()
    }

    /// Reads the page tables of these ascending pages again, all of which were looked at.
    ///
    /// # Errors
    /// As [`PageStates::at`].
    pub(super) fn again(&mut self, target: &Target, pages: &[PageIndex]) -> io::Result<()> {
        let states = target.states(pages)?;
        self.replace(pages, &states);
        Ok(())
    }

    fn replace(&mut self, pages: &[PageIndex], states: &[PageState]) {
        // Pages that went may have been parts of some.
        self.huge = None;
        let mut newer = pages.iter().zip(states).peekable();
        for (page, state) in self.pages.iter().zip(&mut self.states) {
            while newer.next_if(|(next, _)| *next < page).is_some() {}
            if let Some((_, now)) = newer.next_if(|(next, _)| *next == page) {
                *state = *now;
            }
        }
    }
}

/// Tells the places of many pages: of those in one area behind each other, the tier is looked up once.
fn in_a_row(places: &Places) -> impl FnMut(PageState) -> Place {
    let mut last = None;
    move |state| match (state, last) {
        (PageState::Swapped { area, .. }, Some((known, place))) if area == known => place,
        (PageState::Swapped { area, .. }, _) => {
            let place = places.of(state);
            last = Some((area, place));
            place
        }
        _ => places.of(state),
    }
}

/// The states of the pages at these ascending addresses, by ranges of what is in memory.
fn in_ranges(addresses: &[u64], ranges: &[ScanRange]) -> impl Iterator<Item = PageState> {
    let mut ranges = ranges.iter().peekable();
    addresses.iter().map(move |hva| {
        while ranges.next_if(|range| range.end <= *hva).is_some() {}
        match ranges.peek() {
            Some(range) if range.start <= *hva => PageState::Present { pfn: 0 },
            _ => PageState::Absent,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_no_range_is_not_there() {
        let range = |first: u64, end: u64| ScanRange {
            start: first * PAGE_BYTES,
            end: end * PAGE_BYTES,
            swapped: false,
            huge: false,
        };
        let addresses: Vec<u64> = [1, 2, 4, 5, 8, 9].iter().map(|page| page * PAGE_BYTES).collect();
        let there: Vec<bool> = in_ranges(&addresses, &[range(2, 5), range(6, 9)])
            .map(|state| state == PageState::Present { pfn: 0 })
            .collect();
        assert_eq!(there, [false, true, true, false, true, false]);
        assert!(in_ranges(&addresses, &[]).all(|state| state == PageState::Absent));
    }

    fn swapped(slot: u64) -> PageState {
        PageState::Swapped { area: 1, slot }
    }

    fn look() -> PageStates {
        let states = vec![PageState::Absent, PageState::Present { pfn: 7 }, swapped(3), swapped(4)];
        PageStates { pages: vec![2, 3, 5, 9], states, huge: Some(vec![7]) }
    }

    #[test]
    fn a_part_of_what_was_looked_at_is_told_in_order() {
        let look = look();
        let part: Vec<_> = look.of(&[3, 9]).collect();
        assert_eq!(part, [(3, PageState::Present { pfn: 7 }), (9, swapped(4))]);
        let part: Vec<_> = look.of(&[1, 2, 4, 10]).collect();
        assert_eq!(part, [(2, PageState::Absent)], "what was not looked at is not told");
        assert_eq!(look.of(&[]).count(), 0);
        assert_eq!(look.all().count(), 4);
    }

    #[test]
    fn what_is_read_again_replaces_what_was_read() {
        let mut look = look();
        look.replace(&[3, 9], &[swapped(1), PageState::Zero]);
        let now: Vec<_> = look.all().map(|(_, state)| state).collect();
        assert_eq!(now, [PageState::Absent, swapped(1), swapped(3), PageState::Zero]);
        assert_eq!(look.huge(), None, "what was huge before tells nothing any more");
        look.replace(&[1, 5], &[PageState::Zero, PageState::Absent]);
        assert_eq!(look.of(&[5]).next(), Some((5, PageState::Absent)));
    }
}
