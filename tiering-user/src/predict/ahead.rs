//! How far each tape has been followed ahead of a VM.
//!
//! In: where on a tape the page stands that the VM touches now. Out: the part of that tape which is to be staged:
//! as many pages ahead as the window says, without those that were in such a part already.
//!
//! A content may stand in several places. Of these the one close to where the VM was last is meant. A single touch
//! somewhere else tells nothing; where the next one stands close to it, the VM has *jumped* there. It is followed a few
//! pages ahead at first, and twice as far each time that it goes on from there. The place from which it jumped is
//! remembered, so a VM may go back and forth between two.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Origin, Position, Tag, Tape};
use crate::tiermap::PageIndex;
use crate::track::VmId;

/// How far a VM is followed that has just jumped.
const FIRST_REACH: u32 = 32;
/// A VM that touches so many pages which are not there has left a tape.
const LOST: u64 = 64;

/// How one VM has followed tapes.
#[derive(Clone, Debug, Default)]
pub struct Ahead {
    /// For each reason to follow one.
    runs: BTreeMap<Origin, Run>,
    /// Where it was last on that of each leader; none stands for its earlier self.
    places: BTreeMap<Option<VmId>, Known>,
}

/// What is known of where a VM is on a tape.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    last: Option<Position>,
    /// Where it was before it jumped, or where what it touched since stands: it may go on there.
    perhaps: Option<Position>,
    /// The place on the VM's own tape of the touch that told `last`.
    told: Position,
}

/// Places of a tape that a VM passes one after the other.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Where the VM was.
    place: Position,
    /// The first place that is still to come.
    until: Position,
    /// Pages that are looked ahead.
    reach: u32,
    /// So far it was only compared with what the VM touched.
    shadow: bool,
}

/// What is to be staged now.
#[derive(Clone, Debug)]
pub struct Part {
    pub places: Range<Position>,
    place: Position,
    reach: u32,
    shadow: bool,
}

impl Ahead {
    /// The VM is at `place` on the tape that `origin` is about: what should be staged now, of the next `window`
    /// pages there; or, in the `shadow`, compared with what the VM touches. What was only compared is yet to be staged.
    pub fn part(&self, origin: Origin, tape: &Tape, place: Position, (window, shadow): (u32, bool)) -> Part {
        let (first, furthest) = (place.plus(1), place.plus(1 + window).min(tape.end()));
        let (until, reach) = match self.runs.get(&origin).filter(|run| place.is_near(run.place)) {
            Some(run) => {
                let again = run.shadow && !shadow || run.until > furthest;
                let until = if again { first } else { run.until.max(first) };
                (until, run.reach.saturating_mul(1 + u32::from(place > run.place)))
            }
            None => (first, FIRST_REACH),
        };
        let reach = reach.min(window);
        let end = place.plus(1 + reach).min(tape.end());
        Part { places: until..end.max(until), place, reach, shadow }
    }

    /// This part has been staged, or compared, up to this place, which is the first that is still to come.
    pub fn followed(&mut self, origin: Origin, part: &Part, until: Position) {
        self.runs.insert(origin, Run { place: part.place, until, reach: part.reach, shadow: part.shadow });
    }

    /// The place of what the VM touches now on the tape of this leader, if that is close to where it was last, or to
    /// where it seemed to be: a content or a page that stands somewhere else alone does not tell that the VM is there.
    /// The touch stands `at` this place on the VM's own tape.
    pub fn place(
        &mut self,
        (leader, tape): (Option<VmId>, &Tape),
        tag: Option<Tag>,
        page: Option<PageIndex>,
        at: Position,
    ) -> Option<Position> {
        let known = self.places.get(&leader).copied().unwrap_or_default();
        let near = |to: Option<Position>| {
            let to = to?;
            let by_page = || tape.find(page?).filter(|place| place.is_near(to));
            tag.and_then(|tag| tape.find_tag_near(to, tag)).or_else(by_page)
        };
        if let Some(place) = near(known.last) {
            self.places.insert(leader, Known { last: Some(place), told: at, ..known });
            return Some(place);
        }
        if let Some(place) = near(known.perhaps) {
            self.places.insert(leader, Known { last: Some(place), perhaps: known.last, told: at });
            return Some(place);
        }
        let anywhere = tag.and_then(|tag| tape.find_tag(tag)).or_else(|| tape.find(page?));
        self.places.insert(leader, Known { perhaps: anywhere.or(known.perhaps), ..known });
        None
    }

    /// Where the VM is on the tape of this leader, if it has not left that before the touch `at` this place on its own.
    pub fn last(&self, leader: Option<VmId>, at: Position) -> Option<Position> {
        let known = self.places.get(&leader)?;
        known.last.filter(|_| at.since(known.told) < LOST)
    }

    /// Forgets the tape of a VM that has gone.
    pub fn forget(&mut self, leader: VmId) {
        self.runs.retain(|origin, _| origin.leader() != Some(leader));
        self.places.remove(&Some(leader));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::Match;

    const ORIGIN: Origin = Origin::Followed(VmId(1), Match::Content);

    /// The numbers on a tape of 0, 1, 2, … that are to be staged when the VM is at `place`.
    fn advance(ahead: &mut Ahead, tape: &Tape, place: u32, window: u32) -> Vec<u32> {
        let part = ahead.part(ORIGIN, tape, tape.find(place).unwrap(), (window, false));
        ahead.followed(ORIGIN, &part, part.places.end);
        tape.part(part.places).map(|(_, page, _)| page).collect()
    }

    fn tape(pages: u32) -> Tape {
        let mut tape = Tape::new(100);
        for page in 0..pages {
            tape.record(page, None);
        }
        tape
    }

    #[test]
    fn each_page_ahead_is_given_once_while_the_vm_goes_on() {
        let (tape, mut ahead) = (tape(50), Ahead::default());
        assert_eq!(advance(&mut ahead, &tape, 10, 4), [11, 12, 13, 14]);
        assert_eq!(advance(&mut ahead, &tape, 11, 4), [15]);
        assert_eq!(advance(&mut ahead, &tape, 13, 8), [16, 17, 18, 19, 20, 21], "the window grew");
        assert_eq!(advance(&mut ahead, &tape, 14, 2), [15, 16], "it shrank: as after a jump");
        assert_eq!(advance(&mut ahead, &tape, 40, 3), [41, 42, 43], "a jump");
        assert_eq!(advance(&mut ahead, &tape, 5, 3), [6, 7, 8], "and back");
        assert_eq!(advance(&mut ahead, &tape, 48, 3), [49], "the end of the tape");
        ahead.forget(VmId(1));
        assert_eq!(advance(&mut ahead, &tape, 6, 2), [7, 8]);
    }

    #[test]
    fn who_jumps_is_followed_further_the_longer_it_goes_on_from_there() {
        let mut tape = Tape::new(10_000);
        for page in 0..10_000 {
            tape.record(page, None);
        }
        let mut ahead = Ahead::default();
        let mut reach = |place| advance(&mut ahead, &tape, place, 1024).last().map(|last| last - place);
        assert_eq!([0, 1, 2, 3].map(&mut reach), [32, 64, 128, 256].map(Some));
        assert_eq!([9_000, 4].map(&mut reach), [32, 32].map(Some), "there and back");
        assert_eq!(
            [44, 84, 244].map(&mut reach),
            [64, 128, 256].map(Some),
            "of many touches few are looked at"
        );
        assert_eq!([245, 246, 247].map(&mut reach), [512, 1024, 1024].map(Some));
    }

    #[test]
    fn a_vm_is_where_two_of_its_touches_stand_close_to_each_other() {
        let mut tape = Tape::new(10_000);
        for page in 0..10_000 {
            tape.record(page, Some(Tag(1 + u64::from(page % 8_000))));
        }
        let mut ahead = Ahead::default();
        let mut place = |tag| {
            let place = ahead.place((Some(VmId(1)), &tape), Some(Tag(tag)), None, Position::default());
            place.map(|place| place.since(Position::default()))
        };
        assert_eq!([5_000, 5_001].map(&mut place), [None, Some(5_000)], "one touch does not tell");
        assert_eq!([3_000, 5_002].map(&mut place), [None, Some(5_001)], "what stands elsewhere alone");
        assert_eq!([2_010, 2_011].map(&mut place), [None, Some(2_010)], "it has jumped");
        assert_eq!(place(1_990), Some(1_989), "not 9,989");
        assert_eq!([1, 2].map(&mut place), [None, Some(8_001)], "of two places far away the later one");
    }

    #[test]
    fn who_touches_much_that_is_not_on_a_tape_has_left_it() {
        let leader = Some(VmId(1));
        let (tape, mut ahead, mut own) = (tape(50), Ahead::default(), Tape::new(1000));
        let mut touch = |pages: Range<PageIndex>| {
            for page in pages {
                let at = own.end();
                own.record(page, None);
                ahead.place((leader, &tape), None, Some(page), at);
            }
            ahead.last(leader, own.end()).map(|place| place.since(Position::default()))
        };
        assert_eq!([touch(10..11), touch(11..12)], [None, Some(11)]);
        assert_eq!([touch(2000..2062), touch(2062..2063)], [Some(11), None]);
        assert_eq!(touch(12..13), Some(12));
    }

    #[test]
    fn what_was_only_compared_is_given_again_when_it_is_to_be_staged() {
        let (tape, mut ahead) = (tape(50), Ahead::default());
        let mut places = |place, shadow| {
            let part = ahead.part(ORIGIN, &tape, tape.find(place).unwrap(), (8, shadow));
            ahead.followed(ORIGIN, &part, part.places.end);
            tape.part(part.places).map(|(_, page, _)| page).collect::<Vec<_>>()
        };
        assert_eq!(places(10, true), [11, 12, 13, 14, 15, 16, 17, 18]);
        assert_eq!(places(12, true), [19, 20]);
        assert_eq!(places(13, false), [14, 15, 16, 17, 18, 19, 20, 21]);
        assert_eq!(places(14, false), [22]);
    }

    #[test]
    fn what_found_no_room_is_given_again() {
        let (tape, mut ahead) = (tape(50), Ahead::default());
        assert_eq!(advance(&mut ahead, &tape, 10, 4), [11, 12, 13, 14]);
        let part = ahead.part(ORIGIN, &tape, tape.find(10).unwrap(), (4, false));
        ahead.followed(ORIGIN, &part, tape.find(13).unwrap());
        assert_eq!(advance(&mut ahead, &tape, 11, 4), [13, 14, 15]);
    }

    #[test]
    fn what_is_behind_the_end_of_the_tape_is_given_when_it_is_there() {
        let (mut tape, mut ahead) = (tape(10), Ahead::default());
        assert_eq!(advance(&mut ahead, &tape, 8, 4), [9]);
        for page in 10..20 {
            tape.record(page, None);
        }
        assert_eq!(advance(&mut ahead, &tape, 9, 4), [10, 11, 12, 13]);
    }
}
