//! What is known of a block of 2 MiB as a whole: what came of the pages last sent down, and whether it is huge.
//!
//! Data only; what follows from it is for the policy.

use super::entry::{IDLE_CAP, Seconds};

/// Most that the back-off of a block counts.
const BACKOFF_MAX: u8 = 3;

/// A trial: some pages of a block (or some blocks of a machine) were sent down, to see whether they come back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    at: Seconds,
    /// When it was decided, which is the same for all batches of one plan.
    planned: Seconds,
    window: u16,
    sent: u16,
    returned: u16,
    backoff: u8,
    strict: bool,
}

/// Of what was sent: a trial failed if more came back than so many of so many.
const RETURNED_MOST: (u32, u32) = (3, 4);
/// The same where each return costs more than a short fault.
const RETURNED_MOST_STRICT: (u32, u32) = (1, 16);

impl Probe {
    /// One that fails early, or not.
    pub fn new(strict: bool) -> Self {
        Self { strict, ..Self::default() }
    }

    /// Begins a trial of `count` at `now`, or goes on with the one that was `planned` at the same time: what comes back
    /// within `window` seconds counts against it.
    pub fn begin(&mut self, count: u32, window: u16, planned: Seconds, now: Seconds) {
        let sent = u16::try_from(count).unwrap_or(u16::MAX);
        if self.is_known() && self.planned == planned {
            self.sent = self.sent.saturating_add(sent);
            self.at = now;
            return;
        }
        let backoff = if self.failed() { self.failures() } else { 0 };
        *self = Self { at: now, planned, window, sent, returned: 0, backoff, strict: self.strict };
    }

    /// Keeps the age from wrapping around to young again.
    pub fn cap_age(&mut self, now: Seconds) {
        if self.age(now) > IDLE_CAP {
            self.at = Seconds(now.0.wrapping_sub(IDLE_CAP));
        }
    }

    /// One came back. After the window that says that times have changed: nothing is known any more.
    pub fn note_return(&mut self, now: Seconds) {
        if self.is_open(now) {
            self.returned = self.returned.saturating_add(1);
        } else if !self.failed() {
            *self = Self::new(self.strict);
        }
    }

    /// Whether something was ever tried.
    pub fn is_known(self) -> bool {
        self.sent > 0
    }

    /// Whether it is too early to judge.
    pub fn is_open(self, now: Seconds) -> bool {
        self.is_known() && self.age(now) <= self.window
    }

    /// Whether so much came back that the rest is not worth sending.
    pub fn failed(self) -> bool {
        let (most, of) = if self.strict { RETURNED_MOST_STRICT } else { RETURNED_MOST };
        u32::from(self.returned) * of > u32::from(self.sent) * most
    }

    /// Whether it fails early.
    pub fn is_strict(self) -> bool {
        self.strict
    }

    /// How many were sent.
    pub fn sent(self) -> u32 {
        self.sent.into()
    }

    /// Trials in a row that failed before this one.
    pub fn backoff(self) -> u32 {
        self.backoff.into()
    }

    /// Trials in a row that failed, this one counted as soon as it has.
    pub fn failures(self) -> u8 {
        (self.backoff + u8::from(self.failed())).min(BACKOFF_MAX)
    }

    /// What is left of so many failed trials in a row when the agent begins anew: the last of them is as if it had just
    /// failed.
    pub fn recalled(failures: u8, strict: bool, now: Seconds) -> Self {
        match failures.min(BACKOFF_MAX).checked_sub(1) {
            Some(backoff) => Self { at: now, planned: now, window: 0, sent: 1, returned: 1, backoff, strict },
            None => Self::new(strict),
        }
    }

    /// Seconds since it began.
    pub fn age(self, now: Seconds) -> u16 {
        now.0.wrapping_sub(self.at.0)
    }
}

/// A block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockInfo {
    pub probe: Probe,
    /// One huge page, as the last sweep found it.
    pub huge: bool,
    /// It was one before.
    pub was_huge: bool,
    /// The kernel did not make it one again when it was asked to.
    pub given_up: bool,
    /// Sent down as a whole, and nothing of it has come back yet.
    pub out: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_outlive_the_agent_and_end_with_a_trial_that_succeeds() {
        assert_eq!(Probe::recalled(0, false, Seconds(50)), Probe::default());
        for failures in 1..=BACKOFF_MAX {
            let probe = Probe::recalled(failures, false, Seconds(50));
            assert!(probe.failed() && !probe.is_open(Seconds(51)));
            assert_eq!(probe.failures(), failures);
        }
        let mut probe = Probe::recalled(2, false, Seconds(50));
        probe.begin(8, 5, Seconds(90), Seconds(90));
        assert_eq!(probe.failures(), 2, "the next trial has not told anything yet");
        probe.begin(64, 5, Seconds(99), Seconds(99));
        assert_eq!(probe.failures(), 0, "nothing of it came back");
    }

    #[test]
    fn a_trial_is_judged_by_what_comes_back_within_its_window() {
        let mut probe = Probe::new(true);
        assert!(!probe.is_known() && !probe.failed());
        probe.begin(32, 5, Seconds(10), Seconds(10));
        assert!(probe.is_open(Seconds(15)) && !probe.is_open(Seconds(16)));
        probe.note_return(Seconds(11));
        probe.note_return(Seconds(12));
        assert!(!probe.failed(), "2 of 32");
        probe.note_return(Seconds(15));
        assert!(probe.failed(), "3 of 32");
    }

    #[test]
    fn where_a_return_costs_little_a_trial_fails_only_if_most_came_back() {
        let mut probe = Probe::default();
        probe.begin(8, 5, Seconds(10), Seconds(10));
        (0..6).for_each(|_| probe.note_return(Seconds(11)));
        assert!(!probe.failed(), "6 of 8");
        probe.note_return(Seconds(11));
        assert!(probe.failed(), "7 of 8");
    }

    #[test]
    fn what_comes_back_later_forgets_a_trial_that_went_well() {
        let mut probe = Probe::default();
        probe.begin(32, 5, Seconds(10), Seconds(10));
        probe.note_return(Seconds(100));
        assert_eq!(probe, Probe::default());
    }

    #[test]
    fn trials_that_fail_in_a_row_are_counted() {
        let mut probe = Probe::new(true);
        for (round, backoff) in [0, 1, 2, 3, 3].into_iter().enumerate() {
            let now = Seconds(u16::try_from(round).unwrap() * 100);
            probe.begin(8, 5, now, now);
            assert_eq!(probe.backoff(), backoff);
            probe.note_return(now);
            probe.note_return(Seconds(now.0 + 50));
            assert!(probe.failed(), "late returns do not whitewash it");
        }
        probe.begin(8, 5, Seconds(1000), Seconds(1000));
        probe.begin(8, 5, Seconds(1010), Seconds(1010));
        assert_eq!(probe.backoff(), 0);
    }

    #[test]
    fn the_batches_of_one_plan_are_one_trial() {
        let mut probe = Probe::new(true);
        probe.begin(16, 5, Seconds(10), Seconds(11));
        probe.note_return(Seconds(12));
        probe.begin(16, 5, Seconds(10), Seconds(13));
        assert_eq!((probe.sent(), probe.failed(), probe.is_open(Seconds(18))), (32, false, true));
        probe.note_return(Seconds(14));
        probe.note_return(Seconds(14));
        assert!(probe.failed(), "3 of 32");
    }

    #[test]
    fn an_old_trial_does_not_become_young_again() {
        let mut probe = Probe::default();
        probe.begin(16, 5, Seconds(0), Seconds(0));
        for hour in 1..100u32 {
            let now = Seconds((hour * 3600 % 65536) as u16);
            probe.cap_age(now);
            assert!(!probe.is_open(now) && probe.age(now) >= 3600, "hour {hour}");
        }
    }
}
