//! Whether a VM waits for memory more than it does by itself.
//!
//! In: how long the VM has waited so far ([`Waited`]), once a second, and when its pages were last demoted. Out: a
//! [`Stall`] where that is too much.
//!
//! 1. The share of time that the VM waited is taken over the last [`WINDOW`].
//! 2. Every [`WINDOW`] that share is a sample; the last [`SAMPLES`], five minutes at least, are kept. A sample above
//!    the baseline counts only while the agent has demoted nothing of the VM for [`QUIET`]: what the agent causes is
//!    not the VM's own.
//! 3. The baseline, what the VM waits by itself, is the median of the samples plus twice its distance to the lower
//!    quartile. A VM whose stalls are always about the same is at or below it; a burst of two minutes does not move it.
//! 4. The VM stalls where the share is above the baseline by more than the operator's limit.
//!
//! Pure: time comes with what was read.
//!
//! # Limits
//! In the first ten seconds of a VM nothing is told, and until it has samples its baseline is 0. What goes on for three
//! minutes after the last demotion is taken for the VM's own, whatever began it. The kernel does not count as waiting
//! what KVM has another task read from swap while the guest runs something else (asynchronous page faults).

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use crate::sys::Monotonic;

/// Over which the share of time is taken.
const WINDOW: Duration = Duration::from_secs(10);
const SAMPLES: usize = 30;
/// How long after a demotion a stall may be the agent's doing.
const QUIET: Duration = Duration::from_secs(30);

/// Who says how long a VM waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StallSource {
    /// The kernel, of the VM's own control group: time in which one of its tasks at least waited for memory.
    Group,
    /// The agent, by the pages that the VM waited for.
    Faults,
}

/// How long a VM has waited until `at`, from any moment on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waited {
    pub source: StallSource,
    pub total: Duration,
    pub at: Monotonic,
}

/// A VM waits for memory more than it does by itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stall {
    pub source: StallSource,
    /// Of the last ten seconds.
    pub percent: f64,
    /// The baseline.
    pub own_percent: f64,
    /// What may be added to that.
    pub limit_percent: f64,
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, percent, own_percent, limit_percent } = self;
        f.write_str(match source {
            StallSource::Group => "its control group waited for memory",
            StallSource::Faults => "it waited for pages from swap",
        })?;
        write!(
            f,
            " for {percent:.2} % of the last 10 s: without the agent it is {own_percent:.2} % (psi_limit {limit_percent} % more)"
        )
    }
}

/// The stalls of one VM.
#[derive(Clone, Debug, Default)]
pub struct Stalls {
    /// Of the last [`WINDOW`], and the last one before.
    readings: VecDeque<Waited>,
    /// Percent, each over a [`WINDOW`]; the oldest first.
    samples: VecDeque<f64>,
    sampled_at: Option<Monotonic>,
    demoted_at: Option<Monotonic>,
}

impl Stalls {
    /// Takes in what was read; none where nobody can tell.
    pub fn look(&mut self, waited: Option<Waited>) {
        let last = self.readings.back().copied();
        let goes_on = |now: &Waited| last.is_none_or(|l| l.source == now.source && l.total <= now.total);
        let Some(waited) = waited.filter(goes_on) else {
            // What another source said, or the same one of another group, is nothing to compare with.
            *self = Self { demoted_at: self.demoted_at, ..Self::default() };
            self.readings.extend(waited);
            return;
        };
        if last.is_some_and(|last| waited.at <= last.at) {
            return;
        }
        self.readings.push_back(waited);
        while self.readings.get(1).is_some_and(|second| waited.at.since(second.at) >= WINDOW) {
            self.readings.pop_front();
        }
        self.sample(waited.at);
    }

    /// Pages of the VM were demoted.
    pub fn demoted(&mut self, now: Monotonic) {
        self.demoted_at = Some(now);
    }

    /// The stall, where the VM waits for more than `limit_percent` beyond its baseline.
    pub fn above(&self, limit_percent: f64) -> Option<Stall> {
        let (percent, own_percent) = (self.percent()?, self.own_percent());
        let source = self.readings.back()?.source;
        let stall = Stall { source, percent, own_percent, limit_percent };
        (percent > own_percent + limit_percent).then_some(stall)
    }

    /// Of the last [`WINDOW`]; none before that is over.
    fn percent(&self) -> Option<f64> {
        let (first, last) = (self.readings.front()?, self.readings.back()?);
        let elapsed = last.at.since(first.at);
        let share = last.total.saturating_sub(first.total).as_secs_f64() / elapsed.as_secs_f64();
        // Tasks that wait at the same time wait no longer than all the time.
        (elapsed >= WINDOW).then_some((share * 100.0).min(100.0))
    }

    fn sample(&mut self, now: Monotonic) {
        let Some(percent) = self.percent() else { return };
        if self.sampled_at.is_some_and(|at| now.since(at) < WINDOW) {
            return;
        }
        self.sampled_at = Some(now);
        let quiet = self.demoted_at.is_none_or(|at| now.since(at) >= QUIET);
        if quiet || percent <= self.own_percent() {
            self.samples.push_back(percent);
        }
        if self.samples.len() > SAMPLES {
            self.samples.pop_front();
        }
    }

    fn own_percent(&self) -> f64 {
        let mut sorted: Vec<f64> = self.samples.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
        let (lower, median) = (sorted[last / 4], sorted[last / 2]);
        median + 2.0 * (median - lower)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: f64 = 0.5;

    /// A VM of which is read once a second how long it waited.
    #[derive(Default)]
    struct Vm {
        stalls: Stalls,
        total: Duration,
        second: u64,
    }

    impl Vm {
        /// So many seconds go by with this much waiting. Returns in how many of them it stalled.
        fn waits(&mut self, percent: f64, seconds: u64) -> u64 {
            let mut above = 0;
            for _ in 0..seconds {
                self.total += Duration::from_secs(1).mul_f64(percent / 100.0);
                self.second += 1;
                let waited = Waited { source: StallSource::Group, total: self.total, at: self.now() };
                self.stalls.look(Some(waited));
                above += u64::from(self.stalls.above(LIMIT).is_some());
            }
            above
        }

        fn now(&self) -> Monotonic {
            Monotonic(self.second * 1_000_000_000)
        }
    }

    #[test]
    fn a_vm_that_always_stalls_is_not_braked_for_that_and_for_more_it_is() {
        let mut vm = Vm::default();
        assert_eq!(vm.waits(5.0, 600), 0);
        vm.stalls.demoted(vm.now());
        assert!(vm.waits(12.0, 20) > 10);
        let stall = vm.stalls.above(LIMIT).unwrap();
        assert_eq!(
            stall.to_string(),
            "its control group waited for memory for 12.00 % of the last 10 s: without the agent it is 5.00 % (psi_limit 0.5 % more)"
        );
        vm.waits(5.0, 10);
        assert_eq!(vm.stalls.above(LIMIT), None, "over after the window");
    }

    #[test]
    fn what_the_agent_causes_does_not_become_the_vms_own() {
        let mut vm = Vm::default();
        vm.waits(0.0, 300);
        for _ in 0..60 {
            vm.stalls.demoted(vm.now());
            vm.waits(3.0, 10);
        }
        assert!(vm.stalls.above(LIMIT).is_some(), "ten minutes of demotions");
        assert!(vm.stalls.own_percent() < 0.1);
    }

    #[test]
    fn what_goes_on_without_the_agent_does() {
        let mut vm = Vm::default();
        vm.waits(0.0, 600);
        vm.stalls.demoted(vm.now());
        assert_eq!(vm.waits(8.0, 120), 120, "from the first second on, for two minutes");
        vm.waits(8.0, 180);
        assert_eq!(vm.stalls.above(LIMIT), None, "the VM's work has changed");
    }

    #[test]
    fn a_vm_that_calms_down_is_held_to_that_also_while_its_pages_go() {
        let mut vm = Vm::default();
        vm.waits(20.0, 600);
        for _ in 0..60 {
            vm.stalls.demoted(vm.now());
            vm.waits(0.0, 10);
        }
        vm.stalls.demoted(vm.now());
        vm.waits(4.0, 10);
        assert!(vm.stalls.above(LIMIT).is_some(), "far less than what it once was");
    }

    #[test]
    fn another_source_is_nothing_to_compare_with() {
        let mut vm = Vm::default();
        vm.waits(0.0, 60);
        vm.total = Duration::from_secs(1000);
        let faults = Waited { source: StallSource::Faults, total: vm.total, at: vm.now() };
        vm.stalls.look(Some(faults));
        assert_eq!(vm.stalls.above(LIMIT), None);
        vm.stalls.look(None);
        assert_eq!(vm.waits(9.0, 9), 0, "nothing is told before ten seconds are over");
        let again = Waited { source: StallSource::Group, total: Duration::ZERO, at: vm.now() };
        vm.stalls.look(Some(again));
        assert_eq!(vm.stalls.above(LIMIT), None, "a group that was made anew");
    }

    proptest! {
        #[test]
        fn whatever_a_vm_waits_by_itself_all_the_time_brakes_nothing(
            percent in 0.0..100.0_f64, demotions in proptest::collection::vec(any::<bool>(), 60),
        ) {
            let mut vm = Vm::default();
            vm.waits(percent, 60);
            for demotes in demotions {
                if demotes {
                    vm.stalls.demoted(vm.now());
                }
                prop_assert_eq!(vm.waits(percent, 10), 0);
            }
        }

        #[test]
        fn more_than_three_times_the_worst_that_was_brakes_whatever_that_was(
            own in proptest::collection::vec(0.0..10.0_f64, 30), more in 0.6..50.0_f64,
        ) {
            let mut vm = Vm::default();
            for percent in &own {
                vm.waits(*percent, 10);
            }
            // No baseline is above three times its median.
            let worst = own.iter().copied().fold(0.0, f64::max);
            vm.stalls.demoted(vm.now());
            vm.waits(3.0 * worst + more, 10);
            prop_assert!(vm.stalls.above(LIMIT).is_some());
        }
    }
}
