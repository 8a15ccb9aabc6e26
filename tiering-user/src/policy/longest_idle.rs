//! Of what may go, what was idle for longest.
//!
//! In: pages and huge pages, each with its idle time. Out: as many of them as are wanted, longest idle first; and when
//! enough was found. Pure.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::tiermap::PageIndex;

/// What goes together: a page, or the pages of a huge block. Longest idle first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Unit {
    pub idle: Reverse<u16>,
    pub first: PageIndex,
    pub pages: u32,
}

#[derive(Debug, Default)]
pub(super) struct Units(pub Vec<Unit>);

impl Units {
    pub(super) fn push(&mut self, first: PageIndex, pages: u32, idle: u16) {
        self.0.push(Unit { idle: Reverse(idle), first, pages });
    }

    /// Keeps at most `most` pages.
    pub(super) fn keep_longest_idle(&mut self, most: u64) {
        let units = usize::try_from(most).unwrap_or(usize::MAX);
        if self.0.len() > units {
            self.0.select_nth_unstable(units);
            self.0.truncate(units);
        }
        if self.0.iter().map(|unit| u64::from(unit.pages)).sum::<u64>() > most {
            self.0.sort_unstable();
            let mut left = most;
            self.0.retain(|unit| {
                let fits = u64::from(unit.pages) <= left;
                left -= if fits { unit.pages.into() } else { 0 };
                fits
            });
        }
    }
}

/// Whether enough was found while blocks are gone through, those with the longest idle page first: as much as is wanted
/// that was idle for at least as long as anything in the blocks to come.
pub(super) struct Enough {
    wanted: u64,
    sure: u64,
    /// Pages that were idle for less than that.
    others: BinaryHeap<u16>,
}

impl Enough {
    pub(super) fn of(wanted: u64) -> Self {
        Self { wanted, sure: 0, others: BinaryHeap::new() }
    }

    pub(super) fn found(&mut self, idle: u16) {
        self.others.push(idle);
    }

    /// In the blocks to come nothing was idle for longer than that.
    pub(super) fn is_met(&mut self, longest: u16) -> bool {
        while self.others.peek().is_some_and(|idle| *idle >= longest) {
            self.others.pop();
            self.sure += 1;
        }
        self.sure >= self.wanted
    }
}
