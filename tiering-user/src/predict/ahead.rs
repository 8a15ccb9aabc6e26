//! How far each tape has been followed ahead of a VM.
//!
//! In: where on a tape the page stands that the VM touches now. Out: the part of that tape which is to be staged:
//! as many pages ahead as the window says, without those that were in such a part already.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Origin, Position, Tape};
use crate::track::VmId;

/// For each reason to follow a tape, up to where one VM has followed it.
#[derive(Clone, Debug, Default)]
pub struct Ahead(BTreeMap<Origin, Position>);

impl Ahead {
    /// The VM is at `place` on the tape that `origin` is about: what should be staged now, of the next `window`
    /// pages there.
    pub fn part(&self, origin: Origin, tape: &Tape, place: Position, window: u32) -> Range<Position> {
        let (first, end) = (place.plus(1), place.plus(1 + window).min(tape.end()));
        // Further back or further ahead than the window reaches: it has jumped.
        let until = self.0.get(&origin).copied().filter(|until| *until >= first && *until <= end);
        until.unwrap_or(first)..end
    }

    /// It has been followed up to this place, which is the first that is still to come.
    pub fn followed(&mut self, origin: Origin, until: Position) {
        self.0.insert(origin, until);
    }

    /// Forgets the tape of a VM that has gone.
    pub fn forget(&mut self, leader: VmId) {
        self.0.retain(|origin, _| origin.leader() != Some(leader));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::Match;

    const ORIGIN: Origin = Origin::Followed(VmId(1), Match::Content);

    /// The numbers on a tape of 0, 1, 2, … that are to be staged when the VM is at `place`.
    fn advance(ahead: &mut Ahead, tape: &Tape, place: u32, window: u32) -> Vec<u32> {
        let part = ahead.part(ORIGIN, tape, tape.find(place).unwrap(), window);
        ahead.followed(ORIGIN, part.end);
        tape.part(part).map(|(_, page, _)| page).collect()
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
    fn what_found_no_room_is_given_again() {
        let (tape, mut ahead) = (tape(50), Ahead::default());
        assert_eq!(advance(&mut ahead, &tape, 10, 4), [11, 12, 13, 14]);
        ahead.followed(ORIGIN, tape.find(13).unwrap());
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
