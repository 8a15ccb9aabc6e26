//! The order in which one VM touched its pages.
//!
//! A ring of page numbers, with the tags of their contents where these are known, and for each page and tag where it
//! stands last. When a page is touched again, what stands behind its former place is what the same VM touched
//! right after it last time; and what stands there on the tape of another VM, this one may touch next.
//!
//! # Limits
//! One former place a page: of two alternating orders only the last one is known. The ring forgets what is older than
//! its length. The index of tags has one entry for all tags of equal low bits, so now and then a place is not found.

use std::collections::HashMap;
use std::ops::Range;

use super::Tag;
use crate::tiermap::PageIndex;

/// Most pages a tape remembers: 4 MiB, and 12 more where there are tags. The index takes 18 MiB more at most: it holds
/// the pages that are on the tape and no others, whatever their numbers are.
const MOST: usize = 1 << 20;

/// What is close to a place: behind it and ahead of it.
const NEAR_BEHIND: u64 = 64;
const NEAR_AHEAD: u32 = 512;

/// A place on a tape. Never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(u64);

impl Position {
    /// Touches that were recorded from `before` until here.
    pub fn since(self, before: Self) -> u64 {
        self.0.saturating_sub(before.0)
    }

    /// Whether a VM that was at `place` may be here now without having jumped.
    pub fn is_near(self, place: Self) -> bool {
        self.0 + NEAR_BEHIND >= place.0 && self <= place.plus(NEAR_AHEAD)
    }

    /// The place so many pages further.
    pub fn plus(self, pages: u32) -> Self {
        Self(self.0 + u64::from(pages))
    }
}

/// One touch: the page, and what it held where that is known.
pub type Touch = (PageIndex, Option<Tag>);

/// The tape of one VM.
#[derive(Clone, Debug)]
pub struct Tape {
    ring: Vec<PageIndex>,
    capacity: usize,
    next: u64,
    /// For each page on the tape the low half of the position after the one where it stands last.
    last: HashMap<PageIndex, u32>,
    /// Beside `ring`, from the first tag on; 0 is none.
    tags: Vec<u64>,
    /// For the low bits of a tag the same; true only if the ring says so.
    last_of_tag: Vec<u32>,
}

impl Tape {
    /// An empty tape for a VM of `pages` pages.
    pub fn new(pages: u32) -> Self {
        let capacity = (pages as usize).clamp(1, MOST);
        let (tags, last_of_tag) = (Vec::new(), Vec::new());
        Self { ring: Vec::new(), capacity, next: 0, last: HashMap::new(), tags, last_of_tag }
    }

    /// The tape of a VM of `pages` pages that touched these, in order. Pages that it cannot have are left out.
    pub fn of(touches: &[Touch], pages: u32) -> Self {
        let mut tape = Self::new(pages);
        for (page, tag) in touches.iter().filter(|(page, _)| *page < pages) {
            tape.record(*page, *tag);
        }
        tape
    }

    /// Touches that are still on the tape.
    pub fn len(&self) -> usize {
        self.ring.len()
    }

    /// Whether nothing was ever recorded.
    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// Memory that it takes, bytes.
    pub fn bytes(&self) -> u64 {
        // A byte beside each entry tells whether it is taken.
        let index = self.last.capacity() * (size_of::<(PageIndex, u32)>() + 1);
        (self.ring.capacity() * 4 + index + self.tags.capacity() * 8 + self.last_of_tag.capacity() * 4) as u64
    }

    /// The latest touches, at most so many, oldest first.
    pub fn latest(&self, most: usize) -> impl Iterator<Item = Touch> + '_ {
        let first = self.next.saturating_sub(most as u64);
        self.part(Position(first)..self.end()).map(|(_, page, tag)| (page, tag))
    }

    /// Appends `page`, which had this content. Returns where it stood before, if that is still on the tape.
    pub fn record(&mut self, page: PageIndex, tag: Option<Tag>) -> Option<Position> {
        let before = self.find(page);
        let slot = self.slot(self.next);
        if slot == self.ring.len() {
            self.ring.push(page);
        } else {
            let overwritten = std::mem::replace(&mut self.ring[slot], page);
            let there = (self.next - self.capacity as u64 + 1) as u32;
            if self.last.get(&overwritten) == Some(&there) {
                self.last.remove(&overwritten);
            }
        }
        self.next += 1;
        self.last.insert(page, self.next as u32);
        self.record_tag(slot, tag);
        // What was just overwritten may be the place that was found.
        before.filter(|position| self.holds(position.0))
    }

    fn record_tag(&mut self, slot: usize, tag: Option<Tag>) {
        if tag.is_some() && self.last_of_tag.is_empty() {
            self.last_of_tag = vec![0; self.capacity.next_power_of_two()];
        }
        if self.last_of_tag.is_empty() {
            return;
        }
        self.tags.resize(self.ring.len(), 0);
        self.tags[slot] = tag.map_or(0, |tag| tag.0);
        if let Some(tag) = tag {
            let entry = self.entry_of(tag);
            self.last_of_tag[entry] = self.next as u32;
        }
    }

    /// Where `page` stands last.
    pub fn find(&self, page: PageIndex) -> Option<Position> {
        let at = self.position(*self.last.get(&page)?)?;
        (self.ring[self.slot(at)] == page).then_some(Position(at))
    }

    /// Sorts pages in the order in which they were touched last; before them, by number, those that are not on the
    /// tape. A page goes with its `lead`, of which it is one of the pages that follow without a gap.
    pub fn sort(&self, pages: &mut [PageIndex], lead: impl Fn(PageIndex) -> PageIndex) {
        pages.sort_by_cached_key(|page| (self.find(lead(*page)), *page));
    }

    /// Where a page of this content stands last.
    pub fn find_tag(&self, tag: Tag) -> Option<Position> {
        let at = self.position(*self.last_of_tag.get(self.entry_of(tag))?)?;
        (self.tags[self.slot(at)] == tag.0).then_some(Position(at))
    }

    /// The place of the page that will be appended next.
    pub fn end(&self) -> Position {
        Position(self.next)
    }

    /// The pages in this part of the tape, as far as it is still, and already, there; with their places and contents.
    pub fn part(
        &self,
        part: Range<Position>,
    ) -> impl Iterator<Item = (Position, PageIndex, Option<Tag>)> + '_ {
        let oldest = self.next.saturating_sub(self.capacity as u64);
        (part.start.0.max(oldest)..part.end.0.min(self.next)).map(|at| {
            let slot = self.slot(at);
            let tag = self.tags.get(slot).copied().filter(|tag| *tag != 0);
            (Position(at), self.ring[slot], tag.map(Tag))
        })
    }

    /// Where the content stands close to this place, the nearest one ahead of it first: of several places that is the
    /// one which a VM means that has just been there.
    pub fn find_tag_near(&self, place: Position, tag: Tag) -> Option<Position> {
        if self.tags.is_empty() {
            return None;
        }
        let first = place.0.saturating_sub(NEAR_BEHIND).max(self.next.saturating_sub(self.capacity as u64));
        let end = place.plus(NEAR_AHEAD).0.saturating_add(1).min(self.next);
        let stands = |at: &u64| self.tags.get(self.slot(*at)) == Some(&tag.0);
        let found = (place.0 + 1..end).find(stands);
        found.or_else(|| (first..=place.0.min(self.next)).rev().find(stands)).map(Position)
    }

    /// The position before the one of which these are the low bits, if it is on the tape.
    fn position(&self, low: u32) -> Option<u64> {
        let age = (self.next as u32).wrapping_sub(low);
        let at = self.next.checked_sub(u64::from(age) + 1)?;
        self.holds(at).then_some(at)
    }

    fn entry_of(&self, tag: Tag) -> usize {
        // The length is a power of two; of none, there is no entry.
        tag.0 as usize & self.last_of_tag.len().saturating_sub(1)
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
            assert_eq!(tape.record(page, None), None);
        }
        let before = tape.record(3, None).unwrap();
        assert_eq!(following(&tape, before, 2), [9, 4]);
        assert_eq!(following(&tape, before, 9), [9, 4, 3]);
        assert_eq!(tape.find_tag(Tag(7)), None);
    }

    #[test]
    fn pages_are_sorted_as_they_were_touched_and_what_belongs_together_stays_so() {
        let mut tape = Tape::new(100);
        for page in [7, 3, 9, 4, 7, 16] {
            tape.record(page, None);
        }
        let mut pages = [3, 4, 5, 7, 9, 16, 17, 18, 80];
        tape.sort(&mut pages, |page| page);
        assert_eq!(pages, [5, 17, 18, 80, 3, 9, 4, 7, 16]);
        tape.sort(&mut pages, |page| if page >= 16 { 16 } else { page });
        assert_eq!(pages, [5, 3, 9, 4, 7, 16, 17, 18, 80]);
    }

    #[test]
    fn a_content_is_found_and_told_where_it_was_touched_last() {
        let mut tape = Tape::new(4);
        tape.record(5, None);
        tape.record(7, Some(Tag(0x70)));
        tape.record(3, Some(Tag(0x31)));
        let place = tape.find_tag(Tag(0x70)).unwrap();
        assert_eq!(place, tape.find(7).unwrap());
        assert_eq!(tape.find_tag(Tag(0x74)), None, "another tag of the same low bits");
        let all: Vec<_> =
            tape.part(tape.find(5).unwrap()..place.plus(9)).map(|(_, page, tag)| (page, tag)).collect();
        assert_eq!(all, [(5, None), (7, Some(Tag(0x70))), (3, Some(Tag(0x31)))]);
        // It stands somewhere else now, with another content; then it is overwritten.
        tape.record(7, Some(Tag(0x72)));
        assert_eq!(tape.find_tag(Tag(0x72)), tape.find(7));
        for _ in 0..4 {
            tape.record(1, None);
        }
        assert_eq!(tape.find_tag(Tag(0x72)), None);
    }

    fn following(tape: &Tape, position: Position, pages: u32) -> Vec<PageIndex> {
        tape.part(position.plus(1)..position.plus(1 + pages)).map(|(_, page, _)| page).collect()
    }

    #[test]
    fn what_it_takes_follows_from_its_touches_and_not_from_the_numbers_of_pages() {
        let mut tape = Tape::new(100);
        for page in 0..1000u32 {
            tape.record(u32::MAX - page * 1_000_003, None);
        }
        assert_eq!((tape.len(), tape.last.len()), (100, 100));
        assert!(tape.bytes() < 4096, "{}", tape.bytes());
    }

    proptest! {
        /// Against a plain list of all that was recorded.
        #[test]
        fn it_agrees_with_a_list(pages in prop::collection::vec((0u32..20, 0u64..9), 1..300), size in 1u32..40, window in 0u32..8) {
            let mut tape = Tape::new(size);
            let mut list: Vec<PageIndex> = Vec::new();
            let mut tags: Vec<u64> = Vec::new();
            for (page, tag) in pages {
                let known = list.len().saturating_sub(size as usize - 1);
                let expected = list.iter().rposition(|p| *p == page).filter(|at| *at >= known);
                let before = tape.record(page, (tag != 0).then_some(Tag(tag)));
                list.push(page);
                tags.push(tag);
                if let Some(at) = tape.find_tag(Tag(1)) {
                    prop_assert_eq!(Some(at.0 as usize), tags.iter().rposition(|tag| *tag == 1));
                }
                prop_assert_eq!(before.map(|p| p.0 as usize), expected);
                if let Some(at) = expected {
                    let end = (at + 1 + window as usize).min(list.len());
                    prop_assert_eq!(following(&tape, before.unwrap(), window), &list[at + 1..end]);
                }
            }
        }
    }
}
