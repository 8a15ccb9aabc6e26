//! When a VM was where on its tape.
//!
//! In: the place at which the tape ends, now and then. Out: the part of the tape that was recorded in a stretch of
//! time.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use super::Position;
use crate::sys::Monotonic;

/// Most marks that are kept: half a day of epochs in each of which something was recorded; 64 KiB.
const MOST: usize = 4096;

/// Of one tape, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Marks(VecDeque<(Monotonic, Position)>);

impl Marks {
    /// The tape ends here now. Where nothing was recorded since the last mark there is none.
    pub fn mark(&mut self, now: Monotonic, end: Position) {
        if self.0.back().is_some_and(|(_, last)| *last == end) {
            return;
        }
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        self.0.push_back((now, end));
    }

    /// When something was recorded last.
    pub fn last(&self) -> Option<Monotonic> {
        self.0.back().map(|(at, _)| *at)
    }

    /// What was recorded from `ago` before now, for so long; as exactly as there are marks. None for what is older than
    /// these.
    pub fn part(&self, now: Monotonic, ago: Duration, long: Duration) -> Option<Range<Position>> {
        let from = Monotonic(now.0.checked_sub(u64::try_from(ago.as_nanos()).ok()?)?);
        Some(self.at(from)?..self.at(from.after(long))?)
    }

    /// Where the tape ended at this time.
    fn at(&self, time: Monotonic) -> Option<Position> {
        let later = self.0.partition_point(|(at, _)| *at <= time);
        self.0.get(later.checked_sub(1)?).map(|(_, end)| *end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::Tape;

    fn at(seconds: u64) -> Monotonic {
        Monotonic(seconds * 1_000_000_000)
    }

    #[test]
    fn what_was_recorded_in_a_stretch_of_time_is_found() {
        let (mut tape, mut marks) = (Tape::new(1000), Marks::default());
        for epoch in 0..100 {
            // Ten pages in each of the epochs 20 to 29.
            if (20..30).contains(&epoch) {
                for page in 0..10 {
                    tape.record(epoch as u32 * 10 + page, None);
                }
            }
            marks.mark(at(10 * (epoch + 1)), tape.end());
        }
        let pages = |ago, long| -> Vec<u32> {
            let part = marks.part(at(1000), Duration::from_secs(ago), Duration::from_secs(long)).unwrap();
            tape.part(part).map(|(_, page, _)| page).collect()
        };
        assert_eq!(pages(800, 20), (200..220).collect::<Vec<_>>());
        assert_eq!(pages(810, 20), (200..210).collect::<Vec<_>>(), "before that there was nothing");
        assert_eq!(pages(500, 100), [0; 0]);
        assert_eq!(marks.part(at(1000), Duration::from_secs(995), Duration::from_secs(9)), None);
        assert_eq!(marks.part(at(5), Duration::from_secs(6), Duration::from_secs(1)), None);
        assert_eq!(marks.0.len(), 11, "one for each epoch in which something was recorded, and the first");
    }

    #[test]
    fn there_are_never_more_than_so_many() {
        let (mut tape, mut marks) = (Tape::new(10), Marks::default());
        for second in 0..2 * MOST as u64 {
            tape.record(1, None);
            marks.mark(at(second), tape.end());
        }
        assert_eq!(marks.0.len(), MOST);
    }
}
