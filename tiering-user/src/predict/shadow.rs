//! What is predicted by origins that are not trusted. Nothing is staged for it: it is noted, and compared with what the
//! VM touches. So to find out whether an origin is right costs no page of I/O, before it is trusted and after it
//! was wrong.
//!
//! In: pages that are in swap and that an origin predicts; touches. Out: for each of these pages whether the origin
//! was right.
//!
//! # Limits
//! What is staged for another origin is not noted: who predicts the same as one that is trusted stays unknown.

use super::Origin;
use crate::sys::Monotonic;
use crate::tiermap::PageIndex;
use crate::track::VmId;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::AddAssign;

/// Pages of one origin that are noted at a time.
pub const SHADOW_PAGES: u32 = 64;
/// What comes next on a tape is touched before so many other pages, or was not right.
const TOUCHES: u64 = 2 * SHADOW_PAGES as u64;

/// What became of pages that an origin predicted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Foreseen {
    pub right: u64,
    pub wrong: u64,
}

impl AddAssign for Foreseen {
    fn add_assign(&mut self, other: Self) {
        self.right += other.right;
        self.wrong += other.wrong;
    }
}

#[derive(Clone, Copy, Debug)]
struct Note {
    page: PageIndex,
    at: Monotonic,
    /// Touches of the VM until then.
    touches: u64,
}

/// Of one VM.
#[derive(Clone, Debug, Default)]
pub(super) struct Shadows {
    by_page: HashMap<PageIndex, Vec<Origin>>,
    /// The same pages, in the order in which they were noted.
    noted: BTreeMap<Origin, VecDeque<Note>>,
    touches: u64,
}

impl Shadows {
    /// `origin` predicts `page`.
    pub(super) fn note(&mut self, origin: Origin, page: PageIndex, now: Monotonic) {
        let noted = self.noted.entry(origin).or_default();
        let by = self.by_page.entry(page).or_default();
        if noted.len() < SHADOW_PAGES as usize && !by.contains(&origin) {
            noted.push_back(Note { page, at: now, touches: self.touches });
            by.push(origin);
        } else if by.is_empty() {
            self.by_page.remove(&page);
        }
    }

    /// Whether more of what this origin predicts can be noted.
    pub(super) fn has_room(&self, origin: Origin) -> bool {
        self.noted.get(&origin).is_none_or(|noted| noted.len() < SHADOW_PAGES as usize)
    }

    /// The VM touched `page`. Returns the origins that had predicted it, each with whether it was right: what
    /// comes too late was not.
    pub(super) fn touched(&mut self, page: PageIndex, now: Monotonic) -> Vec<(Origin, bool)> {
        self.touches += 1;
        let touches = self.touches;
        let by = self.by_page.remove(&page).unwrap_or_default();
        let outcome = |origin: Origin| {
            let noted = self.noted.get_mut(&origin)?;
            let place = noted.iter().position(|note| note.page == page)?;
            let note = noted.remove(place)?;
            Some((origin, !is_over(origin, note, touches, now)))
        };
        by.into_iter().filter_map(outcome).collect()
    }

    /// Forgets what a VM that has gone predicted.
    pub(super) fn forget(&mut self, leader: VmId) {
        self.noted.retain(|origin, _| origin.leader() != Some(leader));
        self.by_page.retain(|_, by| {
            by.retain(|origin| origin.leader() != Some(leader));
            !by.is_empty()
        });
    }

    /// How many of the pages that this origin predicted were wrong, as is known since the last call.
    pub(super) fn expire(&mut self, origin: Origin, now: Monotonic) -> u64 {
        let Some(noted) = self.noted.get_mut(&origin) else { return 0 };
        let touches = self.touches;
        let mut wrong = 0;
        while let Some(note) = noted.pop_front_if(|note| is_over(origin, *note, touches, now)) {
            wrong += 1;
            if let Some(by) = self.by_page.get_mut(&note.page) {
                by.retain(|other| *other != origin);
                if by.is_empty() {
                    self.by_page.remove(&note.page);
                }
            }
        }
        wrong
    }
}

/// Whether what was noted can be right no more, after so many touches of the VM. What comes next does so after a rest
/// too.
fn is_over(origin: Origin, note: Note, touches: u64, now: Monotonic) -> bool {
    match origin.is_for_later() {
        true => now.since(note.at) >= origin.patience(),
        false => touches - note.touches >= TOUCHES,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::predict::Match;

    const PULL: Origin = Origin::Followed(VmId(1), Match::Content);
    const PUSH: Origin = Origin::Touched(VmId(2), Match::Content);

    fn at(seconds: u64) -> Monotonic {
        Monotonic(seconds * 1_000_000_000)
    }

    #[test]
    fn all_that_foretold_a_page_were_right_once() {
        let mut shadows = Shadows::default();
        [PULL, PUSH, PULL].iter().for_each(|origin| shadows.note(*origin, 7, at(0)));
        assert_eq!(shadows.touched(8, at(1)), []);
        assert_eq!(shadows.touched(7, at(1)), [(PULL, true), (PUSH, true)]);
        assert_eq!(shadows.touched(7, at(1)), []);
    }

    #[test]
    fn what_is_passed_by_on_a_tape_was_wrong_soon_and_what_another_touched_after_a_while() {
        let mut shadows = Shadows::default();
        for page in 0..3 {
            shadows.note(PULL, page, at(0));
            shadows.note(PUSH, page, at(0));
        }
        shadows.touched(1, at(0));
        (100..100 + TOUCHES).for_each(|page| drop(shadows.touched(page as PageIndex, at(0))));
        let wrong =
            |shadows: &mut Shadows, seconds| [PULL, PUSH].map(|origin| shadows.expire(origin, at(seconds)));
        assert_eq!(wrong(&mut shadows, 1), [2, 0]);
        assert_eq!(wrong(&mut shadows, 10), [0, 2]);
        assert_eq!(shadows.touched(0, at(10)), [], "it was wrong: it is not right as well");
    }

    #[test]
    fn what_comes_next_on_a_tape_comes_next_after_a_rest_too() {
        let mut shadows = Shadows::default();
        shadows.note(PULL, 7, at(0));
        assert_eq!(shadows.expire(PULL, at(3600)), 0);
        assert_eq!(shadows.touched(7, at(3600)), [(PULL, true)]);
    }

    #[test]
    fn what_a_period_foretells_may_be_touched_for_as_long_as_it_says() {
        const SEASON: Origin = Origin::Season(Duration::from_secs(60));
        let mut shadows = Shadows::default();
        shadows.note(SEASON, 7, at(0));
        shadows.note(SEASON, 8, at(0));
        (100..1000).for_each(|page| drop(shadows.touched(page, at(1))));
        assert_eq!(shadows.expire(SEASON, at(59)), 0);
        assert_eq!(shadows.touched(7, at(59)), [(SEASON, true)]);
        assert_eq!(shadows.expire(SEASON, at(60)), 1);
    }

    #[test]
    fn what_is_touched_too_late_was_not_right() {
        let mut shadows = Shadows::default();
        shadows.note(PUSH, 7, at(0));
        assert_eq!(shadows.touched(7, at(10)), [(PUSH, false)]);
        assert_eq!(shadows.expire(PUSH, at(20)), 0, "told once");
    }

    #[test]
    fn no_more_is_noted_than_there_is_room_and_nothing_is_left_of_it() {
        let mut shadows = Shadows::default();
        (0..1000).for_each(|page| shadows.note(PUSH, page, at(0)));
        assert!(!shadows.has_room(PUSH) && shadows.has_room(PULL));
        assert_eq!(shadows.by_page.len(), SHADOW_PAGES as usize);
        assert_eq!(shadows.expire(PUSH, at(10)), u64::from(SHADOW_PAGES));
        assert!(shadows.has_room(PUSH) && shadows.by_page.is_empty());
        shadows.note(PUSH, 5000, at(10));
        shadows.forget(VmId(2));
        assert!(shadows.by_page.is_empty() && shadows.noted.is_empty());
    }
}
