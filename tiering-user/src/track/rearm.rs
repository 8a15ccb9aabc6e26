//! When the mapped pages of a VM are to show their accesses anew.
//!
//! A round begins with all pages of a VM re-armed: from then on the first access to each shows. In: what a round
//! cost and showed. Out: whether the next one is due. Rounds come further apart where they show the same pages again
//! and again, and at once where pages show up that the last one had not. Pure: time is an argument.

use std::time::Duration;

use crate::sys::Monotonic;

/// Taken for the time that re-arming one entry of a page table takes, until it was measured (265 ns on Linux 6.18).
const ENTRY: Duration = Duration::from_nanos(265);
/// After re-arming that took longer than it may it is not tried again for so long.
const REST: Duration = Duration::from_mins(10);
/// After so many rounds in a row of which accesses were missed it rests as well.
const MISSED_MOST: u32 = 2;
/// Most that rounds of a VM that does not change come further apart.
const STRETCH_MOST: u32 = 16;
/// A round in which less than one page of so many is another than in the one before shows nothing new; nor do as few as
/// so many pages.
const CHANGED_SHARE: u64 = 20;
const CHANGED_LEAST: u64 = 16;
/// How often it is asked whether a round may begin: the one that comes closest to the time wanted is taken.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Rounds over which accesses are counted until they fade.
const EPOCH_ROUNDS: u32 = 4;

/// What re-arming may cost, and how often it is wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Time between two rounds of a VM whose pages change.
    pub every: Duration,
    /// Longest that a VM's page faults may be held up.
    pub pause: Duration,
    /// Share of its time that a VM may lose, 0 to 1.
    pub overhead: f64,
    /// What it costs a VM that an access shows.
    pub access: Duration,
}

/// Pages in memory that a round showed, once it is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Accessed in it.
    pub used: u64,
    /// Accessed in the round before, and not in it.
    pub ended: u64,
}

/// Whether a round may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Due,
    NotYet,
    /// It would hold up the VM's page faults for so long.
    TooLong(Duration),
    /// The last rounds ended early, or could not begin: it rests.
    Resting,
}

/// The rounds of one VM.
#[derive(Debug, Default)]
pub struct Rounds {
    began: Option<Monotonic>,
    /// When the last one began, whatever became of it.
    last_began: Option<Monotonic>,
    /// How long re-arming took the last time, and for how many entries.
    took: Option<(Duration, u64)>,
    rest_until: Monotonic,
    /// Rounds in a row of which accesses were missed.
    missed: u32,
    /// Accesses that this round has shown, and that the last one had: about what one costs.
    faults: u64,
    last_faults: u64,
    last: Shown,
    /// Pages that this round has shown and the one before had not.
    new: u64,
    stretch: u32,
    count: u64,
    cooled: u64,
}

impl Rounds {
    /// When the round under way began; none before the first one, or when knowledge was lost since.
    pub fn began(&self) -> Option<Monotonic> {
        self.began
    }

    /// When the last round began, whatever became of it.
    pub fn last_began(&self) -> Option<Monotonic> {
        self.last_began
    }

    /// Rounds so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How long re-arming took the last time.
    pub fn took(&self) -> Option<Duration> {
        self.took.map(|(took, _)| took)
    }

    /// What the last round that is over showed.
    pub fn last(&self) -> Shown {
        self.last
    }

    /// A mapped page showed an access; `new` where it had not in the round before.
    pub fn note(&mut self, new: bool) {
        self.faults += 1;
        self.new += u64::from(new);
    }

    /// Whether a round may begin `now`, in a VM with so many entries in its page tables.
    pub fn turn(&self, entries: u64, limits: &Limits, now: Monotonic) -> Turn {
        let pause = self.estimate(entries, limits, now);
        if pause > limits.pause {
            return Turn::TooLong(pause);
        }
        if now < self.rest_until {
            return Turn::Resting;
        }
        let Some(last) = self.last_began else { return Turn::Due };
        let least = limits.every.max(self.affordable(pause, limits));
        let hurries = self.began.is_none() || self.has_changed();
        let wanted = if hurries { least } else { least.max(limits.every * self.stretch.max(1)) };
        if now.since(last) + LOOK_EVERY / 2 >= wanted { Turn::Due } else { Turn::NotYet }
    }

    /// How long from one round to the next, as things are.
    pub fn every(&self, entries: u64, limits: &Limits, now: Monotonic) -> Duration {
        let least = limits.every.max(self.affordable(self.estimate(entries, limits, now), limits));
        least.max(limits.every * self.stretch.max(1))
    }

    /// A round began, and with it the one before ended, which showed `shown`.
    pub fn begin(&mut self, at: Monotonic, took: Duration, entries: u64, shown: Shown, limits: &Limits) {
        let whole = self.began.is_some();
        let changed = self.new + shown.ended;
        let same = whole && !many(changed, shown.used + shown.ended);
        self.stretch = if same { (self.stretch.max(1) * 2).min(STRETCH_MOST) } else { 1 };
        if took > limits.pause {
            self.rest_until = at.after(REST);
        }
        *self = Self {
            began: Some(at),
            last_began: Some(at),
            took: Some((took, entries)),
            missed: if whole { 0 } else { self.missed },
            faults: 0,
            last_faults: self.faults,
            last: shown,
            new: 0,
            count: self.count + 1,
            ..*self
        };
    }

    /// Re-arming did not work: nothing is known of what is mapped, and it is not tried again for a while.
    pub fn failed(&mut self, now: Monotonic) {
        *self = Self { began: None, took: None, rest_until: now.after(REST), ..*self };
    }

    /// Nothing is known of what is mapped until the next round.
    pub fn forget(&mut self) {
        self.began = None;
    }

    /// Accesses were missed: until the next round nothing is known of what is mapped, and if that happens in each there
    /// is none for a while.
    pub fn missed(&mut self, now: Monotonic) {
        self.began = None;
        self.missed += 1;
        if self.missed >= MISSED_MOST {
            self.missed = 0;
            self.rest_until = now.after(REST);
        }
    }

    /// It matters now what is in use: the round under way ends as soon as it may.
    pub fn hurry(&mut self) {
        self.stretch = 1;
    }

    /// Whether as many rounds have passed as accesses are counted over. Says so once.
    pub fn take_epoch(&mut self) -> bool {
        let over = self.count >= self.cooled + u64::from(EPOCH_ROUNDS);
        if over {
            self.cooled = self.count;
        }
        over
    }

    fn has_changed(&self) -> bool {
        many(self.new, self.last.used)
    }

    /// How long re-arming so many entries will take: as the last time, but for those that came or went since.
    fn estimate(&self, entries: u64, limits: &Limits, now: Monotonic) -> Duration {
        let guess = |entries: u64| ENTRY.mul_f64(entries as f64);
        match self.took {
            // It may have waited for something else: after the rest the guess is tried once more.
            Some((took, _)) if took > limits.pause && now >= self.rest_until => guess(entries),
            Some((took, of)) if entries >= of => took + guess(entries - of),
            Some((took, of)) => took.saturating_sub(guess(of - entries)),
            None => guess(entries),
        }
    }

    /// Rounds that take a VM this long, and cost it what the last one did, leave it its share of the time.
    fn affordable(&self, pause: Duration, limits: &Limits) -> Duration {
        let shown = limits.access.mul_f64(self.last_faults as f64);
        Duration::try_from_secs_f64((pause + shown).as_secs_f64() / limits.overhead).unwrap_or(Duration::MAX)
    }
}

fn many(changed: u64, of: u64) -> bool {
    changed > CHANGED_LEAST && changed * CHANGED_SHARE > of
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        every: Duration::from_secs(10),
        pause: Duration::from_millis(10),
        overhead: 0.005,
        access: Duration::from_micros(2),
    };
    /// Its estimate is 2.65 ms.
    const ENTRIES: u64 = 10_000;
    const STEADY: Shown = Shown { used: 1000, ended: 0 };

    fn at(seconds: u64) -> Monotonic {
        Monotonic(seconds * 1_000_000_000)
    }

    fn begin(rounds: &mut Rounds, seconds: u64, shown: Shown) {
        rounds.begin(at(seconds), Duration::from_millis(2), ENTRIES, shown, &LIMITS);
    }

    /// When the next round is due after that second.
    fn next(rounds: &Rounds, from: u64) -> u64 {
        (from..).find(|second| rounds.turn(ENTRIES, &LIMITS, at(*second)) == Turn::Due).unwrap()
    }

    #[test]
    fn rounds_that_show_the_same_come_further_apart_and_a_change_brings_them_back() {
        let mut rounds = Rounds::default();
        assert_eq!(rounds.turn(ENTRIES, &LIMITS, at(0)), Turn::Due);
        begin(&mut rounds, 0, Shown::default());
        let mut gaps = Vec::new();
        let mut now = 0;
        for _ in 0..7 {
            let due = next(&rounds, now);
            gaps.push(due - now);
            now = due;
            begin(&mut rounds, now, STEADY);
        }
        assert_eq!(gaps, [10, 20, 40, 80, 160, 160, 160]);
        // Pages that had not been there: no wait for the end of the round, but for the least time between two.
        (0..60).for_each(|_| rounds.note(true));
        assert_eq!(next(&rounds, now), now + 10);
        begin(&mut rounds, now + 10, STEADY);
        assert_eq!(next(&rounds, now + 10), now + 20, "the pattern has changed");
        begin(&mut rounds, now + 20, Shown { used: 900, ended: 100 });
        assert_eq!(next(&rounds, now + 20), now + 30, "and goes on to");
        begin(&mut rounds, now + 30, STEADY);
        assert_eq!(next(&rounds, now + 30), now + 50);
        rounds.hurry();
        assert_eq!(next(&rounds, now + 30), now + 40);
    }

    #[test]
    fn what_a_round_costs_keeps_them_apart() {
        let mut rounds = Rounds::default();
        begin(&mut rounds, 0, Shown::default());
        // 2 ms to re-arm and 98 ms of shown accesses, of which 0.5 % of the time may be lost.
        (0..49_000).for_each(|_| rounds.note(true));
        begin(&mut rounds, 10, Shown { used: 49_000, ended: 40_000 });
        assert_eq!(next(&rounds, 10), 10 + 20);
        assert_eq!(rounds.every(ENTRIES, &LIMITS, at(11)), Duration::from_secs(20));
        // 2 ms, and 265 ns for each entry more.
        let more = ENTRIES * 5;
        assert_eq!(rounds.turn(more, &LIMITS, at(100)), Turn::TooLong(Duration::from_micros(12_600)));
        assert_eq!(rounds.turn(ENTRIES / 100, &LIMITS, at(100)), Turn::Due);
    }

    #[test]
    fn re_arming_that_took_too_long_rests() {
        let mut rounds = Rounds::default();
        rounds.begin(at(0), Duration::from_millis(11), ENTRIES, Shown::default(), &LIMITS);
        assert!(matches!(rounds.turn(ENTRIES, &LIMITS, at(599)), Turn::TooLong(_)));
        assert_eq!(rounds.turn(ENTRIES, &LIMITS, at(600)), Turn::Due);
        rounds.failed(at(600));
        assert_eq!(rounds.began(), None);
        assert_eq!(rounds.turn(ENTRIES, &LIMITS, at(601)), Turn::Resting);
    }

    #[test]
    fn accesses_fade_by_rounds_not_by_time() {
        let mut rounds = Rounds::default();
        let over: Vec<bool> = (0..9)
            .map(|round| {
                begin(&mut rounds, round * 10, STEADY);
                rounds.take_epoch()
            })
            .collect();
        assert_eq!(over.iter().filter(|over| **over).count(), 2);
        assert!(!rounds.take_epoch(), "once");
    }

    #[test]
    fn what_was_missed_ends_the_round_and_rounds_that_miss_something_each_time_rest() {
        let mut rounds = Rounds::default();
        begin(&mut rounds, 0, Shown::default());
        rounds.missed(at(1));
        assert_eq!(rounds.began(), None);
        assert_eq!(next(&rounds, 1), 10, "no sooner than without");
        begin(&mut rounds, 10, Shown::default());
        rounds.missed(at(11));
        assert_eq!(rounds.turn(ENTRIES, &LIMITS, at(100)), Turn::Resting);
        assert_eq!(next(&rounds, 100), 11 + 600);
    }
}
