//! The order in which one virtual machine touched its pages.
//!
//! A ring of page numbers, and for each page where it stands last. When a page is touched again, what stands
//! behind its former place is what the same machine touched right after it last time.
//!
//! # Limits
//! One former place a page: of two alternating orders only the last one is known. The ring forgets what is older
//! than its length.

use crate::tiermap::PageIndex;

/// Most pages a tape remembers: 4 MiB. The index takes 4 bytes more for each page up to the highest one recorded.
const MOST: usize = 1 << 20;

/// A place on a tape. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(u64);

/// The tape of one virtual machine.
#[derive(Clone, Debug)]
pub struct Tape {
    ring: Vec<PageIndex>,
    capacity: usize,
    next: u64,
    /// For each page the low half of the position after the one where it stands last; true only if the ring says so.
    last: Vec<u32>,
}

impl Tape {
    /// An empty tape for a machine of `pages` pages.
    pub fn new(pages: u32) -> Self {
        let capacity = (pages as usize).clamp(1, MOST);
        Self { ring: Vec::new(), capacity, next: 0, last: Vec::new() }
    }

    /// Appends `page`. Returns where it stood before, if that is still on the tape.
    pub fn record(&mut self, page: PageIndex) -> Option<Position> {
        let before = self.find(page);
        let slot = self.slot(self.next);
        if slot == self.ring.len() {
            self.ring.push(page);
        } else {
            self.ring[slot] = page;
        }
        self.next += 1;
        if self.last.len() <= page as usize {
            self.last.resize(page as usize + 1, 0);
        }
        self.last[page as usize] = self.next as u32;
        // What was just overwritten may be the place that was found.
        before.filter(|position| self.holds(position.0))
    }

    fn find(&self, page: PageIndex) -> Option<Position> {
        let age = (self.next as u32).wrapping_sub(*self.last.get(page as usize)?);
        let at = self.next.checked_sub(u64::from(age) + 1)?;
        (self.holds(at) && self.ring[self.slot(at)] == page).then_some(Position(at))
    }

    /// Up to `window` pages that stand behind `position`.
    pub fn following(&self, position: Position, window: u32) -> impl Iterator<Item = PageIndex> + '_ {
        let first = position.0 + 1;
        (first..first + u64::from(window)).take_while(|at| self.holds(*at)).map(|at| self.ring[self.slot(at)])
    }

    fn holds(&self, at: u64) -> bool {
        at < self.next && at + self.capacity as u64 >= self.next
    }

    fn slot(&self, at: u64) -> usize {
        (at % self.capacity as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_followed_last_time_is_found() {
        let mut tape = Tape::new(100);
        for page in [7, 3, 9, 4] {
            assert_eq!(tape.record(page), None);
        }
        let before = tape.record(3).unwrap();
        assert_eq!(tape.following(before, 2).collect::<Vec<_>>(), [9, 4]);
        assert_eq!(tape.following(before, 9).collect::<Vec<_>>(), [9, 4, 3]);
    }

    proptest! {
        /// Against a plain list of all that was recorded.
        #[test]
        fn it_agrees_with_a_list(pages in prop::collection::vec(0u32..20, 1..300), size in 1u32..40, window in 0u32..8) {
            let mut tape = Tape::new(size);
            let mut list: Vec<PageIndex> = Vec::new();
            for page in pages {
                let known = list.len().saturating_sub(size as usize - 1);
                let expected = list.iter().rposition(|p| *p == page).filter(|at| *at >= known);
                let before = tape.record(page);
                list.push(page);
                prop_assert_eq!(before.map(|p| p.0 as usize), expected);
                if let Some(at) = expected {
                    let end = (at + 1 + window as usize).min(list.len());
                    let found: Vec<_> = tape.following(before.unwrap(), window).collect();
                    prop_assert_eq!(&found, &list[at + 1..end]);
                }
            }
        }
    }
}
