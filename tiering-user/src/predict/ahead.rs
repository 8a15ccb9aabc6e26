//! How far ahead of a virtual machine each tape has been followed.
//!
//! In: where on a tape the page stands that the machine touches now. Out: the part of that tape which is to be staged: as many
//! pages ahead as the window says, without those that were in such a part already.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Position, Tape};
use crate::track::VmId;

/// For each tape, its own included, up to where one machine has followed it.
#[derive(Clone, Debug, Default)]
pub struct Ahead(BTreeMap<VmId, Position>);

impl Ahead {
    /// The machine is at `place` on the tape of `leader`: what should be staged now, of the next `window` pages there.
    pub fn advance(&mut self, leader: VmId, tape: &Tape, place: Position, window: u32) -> Range<Position> {
        let (first, end) = (place.plus(1), place.plus(1 + window).min(tape.end()));
        // Further back or further ahead than the window reaches: it has jumped.
        let followed = self.0.get(&leader).copied().filter(|until| *until >= first && *until <= end);
        self.0.insert(leader, end);
        followed.unwrap_or(first)..end
    }

    /// Forgets the tape of a machine that has gone.
    pub fn forget(&mut self, leader: VmId) {
        self.0.remove(&leader);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    const LEADER: VmId = VmId(1);

    /// The numbers on a tape of 0, 1, 2, … that are to be staged when the machine is at `place`.
    fn advance(ahead: &mut Ahead, tape: &Tape, place: u32, window: u32) -> Vec<u32> {
        let part = ahead.advance(LEADER, tape, tape.find(place).unwrap(), window);
        tape.part(part).map(|(page, _)| page).collect()
    }

    #[test]
    fn each_page_ahead_is_given_once_while_the_machine_goes_on() {
        let mut tape = Tape::new(100);
        for page in 0..50 {
            tape.record(page, None);
        }
        let mut ahead = Ahead::default();
        assert_eq!(advance(&mut ahead, &tape, 10, 4), [11, 12, 13, 14]);
        assert_eq!(advance(&mut ahead, &tape, 11, 4), [15]);
        assert_eq!(advance(&mut ahead, &tape, 13, 8), [16, 17, 18, 19, 20, 21], "the window grew");
        assert_eq!(advance(&mut ahead, &tape, 14, 2), [15, 16], "it shrank: as after a jump");
        assert_eq!(advance(&mut ahead, &tape, 40, 3), [41, 42, 43], "a jump");
        assert_eq!(advance(&mut ahead, &tape, 5, 3), [6, 7, 8], "and back");
        assert_eq!(advance(&mut ahead, &tape, 48, 3), [49], "the end of the tape");
        ahead.forget(LEADER);
        assert_eq!(advance(&mut ahead, &tape, 6, 2), [7, 8]);
    }

    #[test]
    fn what_is_behind_the_end_of_the_tape_is_given_when_it_is_there() {
        let mut tape = Tape::new(100);
        for page in 0..10 {
            tape.record(page, None);
        }
        let mut ahead = Ahead::default();
        assert_eq!(advance(&mut ahead, &tape, 8, 4), [9]);
        for page in 10..20 {
            tape.record(page, None);
        }
        assert_eq!(advance(&mut ahead, &tape, 9, 4), [10, 11, 12, 13]);
    }
}
