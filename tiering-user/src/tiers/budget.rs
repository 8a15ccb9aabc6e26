//! How much may be written to a tier, or read ahead of need: a rate and a daily allowance.
//!
//! A token bucket that holds at most one second of the rate, so that a quiet minute does not become a burst.
//! Pure: the time is an argument.

use std::time::Duration;

use crate::sys::Monotonic;

const DAY: Duration = Duration::from_hours(24);

/// What was written to a tier in its running day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpentToday {
    pub bytes: u64,
    /// Of the day.
    pub left: Duration,
}

/// An allowance.
#[derive(Clone, Debug)]
pub struct Budget {
    bytes_per_second: Option<u64>,
    bytes_per_day: Option<u64>,
    tokens: u64,
    refilled: Monotonic,
    day_ends: Monotonic,
    written_today: u64,
}

impl Budget {
    /// A full budget. `None` means no limit.
    pub fn new(bytes_per_second: Option<u64>, bytes_per_day: Option<u64>, now: Monotonic) -> Self {
        let tokens = bytes_per_second.unwrap_or(0);
        Self {
            bytes_per_second,
            bytes_per_day,
            tokens,
            refilled: now,
            day_ends: now.after(DAY),
            written_today: 0,
        }
    }

    /// Bytes that may be written, or read, now.
    pub fn available(&mut self, now: Monotonic) -> u64 {
        if let Some(rate) = self.bytes_per_second {
            let elapsed = now.since(self.refilled).as_secs_f64();
            // Truncation is fine: what is not granted now is granted at the next call.
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "seconds times a rate"
            )]
            let earned = (elapsed * rate as f64) as u64;
            if earned > 0 {
                self.tokens = self.tokens.saturating_add(earned).min(rate);
                self.refilled = now;
            }
        }
        self.begin_day(now);
        let by_rate = self.bytes_per_second.map_or(u64::MAX, |_| self.tokens);
        let by_day = self.bytes_per_day.map_or(u64::MAX, |most| most.saturating_sub(self.written_today));
        by_rate.min(by_day)
    }

    /// Whether nothing may be written for the rest of the day.
    pub fn is_day_spent(&mut self, now: Monotonic) -> bool {
        self.begin_day(now);
        self.bytes_per_day.is_some_and(|most| self.written_today >= most)
    }

    /// What was written today, and how much of the day is left: what must outlive the agent.
    pub fn spent_today(&mut self, now: Monotonic) -> SpentToday {
        self.begin_day(now);
        SpentToday { bytes: self.written_today, left: self.day_ends.since(now) }
    }

    /// Goes on with the day of an agent before this one.
    pub fn restore(&mut self, spent: SpentToday, now: Monotonic) {
        if !spent.left.is_zero() {
            self.written_today = self.written_today.saturating_add(spent.bytes);
            self.day_ends = now.after(spent.left.min(DAY));
        }
    }

    fn begin_day(&mut self, now: Monotonic) {
        if now >= self.day_ends {
            self.day_ends = now.after(DAY);
            self.written_today = 0;
        }
    }

    /// Puts `bytes` back that were taken out and not written after all.
    pub fn refund(&mut self, bytes: u64) {
        self.tokens = self.tokens.saturating_add(bytes).min(self.bytes_per_second.unwrap_or(0));
        self.written_today = self.written_today.saturating_sub(bytes);
    }

    /// Takes `bytes` out.
    pub fn spend(&mut self, bytes: u64) {
        self.tokens = self.tokens.saturating_sub(bytes);
        self.written_today = self.written_today.saturating_add(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Monotonic {
        Monotonic(seconds * 1_000_000_000)
    }

    #[test]
    fn without_limits_all_may_be_written() {
        let mut budget = Budget::new(None, None, at(0));
        budget.spend(u64::MAX);
        assert_eq!(budget.available(at(1)), u64::MAX);
    }

    #[test]
    fn a_rate_refills_and_never_holds_more_than_a_second() {
        let mut budget = Budget::new(Some(100), None, at(0));
        budget.spend(100);
        assert_eq!(budget.available(at(0)), 0);
        assert_eq!(budget.available(Monotonic(500_000_000)), 50);
        assert_eq!(budget.available(at(3600)), 100);
    }

    #[test]
    fn a_day_goes_on_in_the_next_agent() {
        let mut budget = Budget::new(None, Some(1000), at(0));
        budget.spend(900);
        let spent = budget.spent_today(at(3600));
        assert_eq!(spent, SpentToday { bytes: 900, left: Duration::from_hours(23) });
        // The clock may have begun anew meanwhile.
        let mut next = Budget::new(None, Some(1000), at(10));
        next.restore(spent, at(10));
        assert_eq!(next.available(at(11)), 100);
        next.spend(100);
        assert!(next.is_day_spent(at(82_809)));
        assert!(!next.is_day_spent(at(82_810)));
        assert_eq!(next.available(at(82_810)), 1000);
        next.restore(SpentToday { bytes: 5, left: Duration::ZERO }, at(82_811));
        assert_eq!(next.available(at(82_811)), 1000, "that day is over");
    }

    #[test]
    fn what_was_not_written_can_be_written_later() {
        let mut budget = Budget::new(Some(100), Some(1000), at(0));
        budget.spend(100);
        budget.refund(40);
        assert_eq!(budget.available(at(0)), 40);
        assert_eq!(budget.spent_today(at(0)).bytes, 60);
    }

    #[test]
    fn a_day_ends() {
        let mut budget = Budget::new(None, Some(1000), at(0));
        budget.spend(900);
        assert_eq!(budget.available(at(10)), 100);
        budget.spend(100);
        assert_eq!(budget.available(at(86_399)), 0);
        assert_eq!(budget.available(at(86_400)), 1000);
    }
}
