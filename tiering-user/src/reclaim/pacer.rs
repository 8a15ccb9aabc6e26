//! How many pages of a VM go out in a step.
//!
//! In, before each step: what the VM may wait for in a minute. In, at any time: what it waited for, and how many pages
//! went out. Out: pages, none where it is too early for a step or too much came back.
//!
//! 1. The rate of waits is that of the last minute, or six times that of the last ten seconds, whichever is more.
//! 2. Under three quarters of the budget the step grows by half, or up to there; above the size at which it
//!    was last cut, by a tenth. It does not grow while there is nothing to go.
//! 3. Over the budget it is halved, once in ten seconds at most.
//! 4. At twice the budget nothing goes for a minute, and then it begins small.

use std::time::Duration;

use super::recent::Recent;
use crate::sys::Monotonic;

/// Of the VM's pages: the first step, and the largest that the agent chooses.
const START_SHARE: f64 = 0.001;
const MOST_SHARE: f64 = 0.05;
/// The first step is no smaller.
const START_PAGES: f64 = 256.0;
/// Least pages of a step that the agent chooses: two blocks.
const LEAST_PAGES: f64 = 1024.0;
const GROWTH: f64 = 1.5;
const GROWTH_ABOVE_CUT: f64 = 1.1;
/// Of the budget: below that the step grows.
const CALM_SHARE: f64 = 0.75;
/// Times the budget: from there on nothing goes for a while.
const REST_FACTOR: f64 = 2.0;
const REST: Duration = Duration::from_mins(1);
const CUT_EVERY: Duration = Duration::from_secs(10);
const MINUTE: Duration = Duration::from_mins(1);
const FAST: Duration = Duration::from_secs(10);

/// The steps of one VM.
#[derive(Clone, Debug)]
pub struct Pacer {
    /// A step is no smaller, however small the VM, and no larger than this share of its pages.
    least_pages: f64,
    most_share: f64,
    /// Of the last minute, all faults together.
    waits: Recent<Duration>,
    /// None before the first step.
    step_pages: Option<f64>,
    /// The size that was last too much.
    cut_pages: Option<f64>,
    cut_at: Option<Monotonic>,
    stepped_at: Option<Monotonic>,
    /// Since the last step.
    sent_pages: u64,
    rests_until: Option<Monotonic>,
}

impl Default for Pacer {
    fn default() -> Self {
        Self::new(LEAST_PAGES, MOST_SHARE)
    }
}

impl Pacer {
    /// Steps of at least so many pages, and at most this share of the VM's.
    pub fn new(least_pages: f64, most_share: f64) -> Self {
        Self {
            least_pages,
            most_share,
            waits: Recent::new(MINUTE),
            step_pages: None,
            cut_pages: None,
            cut_at: None,
            stepped_at: None,
            sent_pages: 0,
            rests_until: None,
        }
    }

    /// The next step is as small as the first one.
    pub fn begin_small(&mut self) {
        self.step_pages = None;
    }

    /// The VM waited for pages that had gone out.
    pub fn waited(&mut self, wait: Duration, now: Monotonic) {
        self.waits.add(wait, now);
    }

    /// So many pages went out.
    pub fn sent(&mut self, pages: u64) {
        self.sent_pages += pages;
    }

    /// What it waits for in a minute: by the last minute, or by the last ten seconds, whichever is more.
    pub fn waits_a_minute(&self, now: Monotonic) -> Duration {
        self.waits.within(MINUTE, now).max(self.waits.within(FAST, now) * 6)
    }

    /// Until when nothing goes, where too much came back.
    pub fn rests_until(&self, now: Monotonic) -> Option<Monotonic> {
        self.rests_until.filter(|until| now < *until)
    }

    /// How many of the VM's `pages` may go now, of a VM that may wait for `budget` in a minute; at most one step in
    /// `every`.
    pub fn step(&mut self, pages: u64, budget: Duration, every: Duration, now: Monotonic) -> u64 {
        if self.stepped_at.is_some_and(|at| now.since(at) < every) || self.rests_until(now).is_some() {
            return 0;
        }
        self.stepped_at = Some(now);
        let sent = std::mem::take(&mut self.sent_pages) as f64;
        let pages = pages as f64;
        let start = (pages * START_SHARE).max(START_PAGES).max(self.least_pages);
        let size = self.step_pages.unwrap_or(start);
        let share = self.waits_a_minute(now).as_secs_f64() / budget.as_secs_f64().max(f64::MIN_POSITIVE);
        let size = if share >= REST_FACTOR {
            self.rests_until = Some(now.after(REST));
            self.cut(size, now);
            self.step_pages = Some(start);
            return 0;
        } else if share > 1.0 {
            if self.cut_at.is_some_and(|at| now.since(at) < CUT_EVERY) { size } else { self.cut(size, now) }
        } else if share < CALM_SHARE && sent * 2.0 >= size {
            let above = self.cut_pages.is_some_and(|cut| size >= cut);
            // Not beyond what would be too much if waits grow as the step does.
            size * if above { GROWTH_ABOVE_CUT } else { GROWTH.min(CALM_SHARE / share) }
        } else {
            size
        };
        let size = size.clamp(self.least_pages, (pages * self.most_share).max(start));
        self.step_pages = Some(size);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "pages of a VM")]
        let size = size as u64;
        size
    }

    fn cut(&mut self, size: f64, now: Monotonic) -> f64 {
        self.cut_pages = Some(size);
        self.cut_at = Some(now);
        size / 2.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: u64 = 2_000_000;
    const EVERY: Duration = Duration::from_secs(5);
    const BUDGET: Duration = Duration::from_millis(60);

    fn at(second: u64) -> Monotonic {
        Monotonic(second * 1_000_000_000)
    }

    /// Steps at these seconds, in each of which the VM waits for so long before.
    fn steps(pacer: &mut Pacer, seconds: impl Iterator<Item = u64>, wait: Duration) -> Vec<u64> {
        seconds
            .map(|second| {
                pacer.waited(wait, at(second));
                let step = pacer.step(PAGES, BUDGET, EVERY, at(second));
                pacer.sent(step);
                step
            })
            .filter(|pages| *pages > 0)
            .collect()
    }

    #[test]
    fn without_waits_it_grows_by_half_every_five_seconds_up_to_a_twentieth_of_the_vm() {
        let mut pacer = Pacer::default();
        let sizes = steps(&mut pacer, 0..100, Duration::ZERO);
        assert_eq!(sizes.len(), 20);
        assert_eq!(sizes[..4], [2000, 3000, 4500, 6750]);
        assert_eq!(sizes.last(), Some(&(PAGES / 20)));
    }

    #[test]
    fn over_the_budget_it_is_halved_and_grows_slowly_beyond_where_that_was() {
        let mut pacer = Pacer::default();
        let before = *steps(&mut pacer, 0..30, Duration::ZERO).last().unwrap();
        pacer.waited(Duration::from_millis(70), Monotonic(1));
        let after = steps(&mut pacer, 30..45, Duration::ZERO);
        assert_eq!(after[..3], [before / 2, before / 2, before / 4], "once in ten seconds: {after:?}");
        let grown = steps(&mut pacer, 120..200, Duration::ZERO);
        let cut = before / 2;
        let above: Vec<_> = grown.windows(2).filter(|pair| pair[0] >= cut).collect();
        assert!(!above.is_empty() && above.iter().all(|pair| pair[1] < pair[0] * 12 / 10), "{grown:?}");
    }

    #[test]
    fn at_twice_the_budget_nothing_goes_for_a_minute_and_then_it_begins_small() {
        let mut pacer = Pacer::default();
        steps(&mut pacer, 0..60, Duration::ZERO);
        assert_eq!(steps(&mut pacer, 60..61, Duration::from_millis(25)), [0; 0], "150 ms a minute");
        assert!(pacer.rests_until(at(100)).is_some());
        assert_eq!(steps(&mut pacer, 61..120, Duration::ZERO), [0; 0]);
        assert_eq!(steps(&mut pacer, 120..126, Duration::ZERO), [2000, 3000]);
    }

    #[test]
    fn it_does_not_grow_while_there_is_nothing_to_go() {
        let mut pacer = Pacer::default();
        for second in (0..100).step_by(5) {
            assert_eq!(pacer.step(PAGES, BUDGET, EVERY, at(second)), 2000);
            pacer.sent(999);
        }
        pacer.sent(1);
        assert_eq!(pacer.step(PAGES, BUDGET, EVERY, at(100)), 3000, "half of it went");
    }

    #[test]
    fn a_vm_without_budget_gets_no_steps() {
        let mut pacer = Pacer::default();
        pacer.waited(Duration::from_micros(1), at(0));
        assert_eq!(pacer.step(PAGES, Duration::ZERO, EVERY, at(0)), 0);
    }
}
