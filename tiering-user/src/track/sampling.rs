//! How many accesses of each VM become samples.
//!
//! In: how many accesses of each VM were seen so far, and budgets of samples a second: for each, and for all. Out:
//! of how many accesses of a VM one is to be sampled, as a power of two. What all may have is divided so that who
//! needs less than an equal share gets what it needs, and the others share the rest (max-min fairness). Pure: time is
//! an argument.
//!
//! # Limits
//! VMs are looked at every [`LOOK_EVERY`] while much comes, and once a second in any case: who begins to flood
//! puts everything into the ring until then. 4 MiB of ring hold what 1.3 million accesses a second produce in
//! [`LOOK_EVERY`]. A VM that makes more than 65,536 times its share goes beyond it.

use std::collections::BTreeMap;
use std::time::Duration;

use tiering_common::MAX_ONE_IN_LOG2;

use super::VmId;
use crate::sys::Monotonic;

/// How often rates are looked at while there is much to take from the ring.
pub const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often they are looked at in any case: what came in a long rest says nothing about now.
pub const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(1);
/// Below this share of its budget a VM is given a finer sampling again, so that it does not change back at once: 3
/// / 4.
const SETTLED: f64 = 0.75;

/// Samples a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    pub each: u64,
    pub all: u64,
}

/// What is known of the VMs' rates.
#[derive(Debug)]
pub struct Sampling {
    budgets: Budgets,
    vms: BTreeMap<VmId, Rate>,
    looked: Monotonic,
}

#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    seen: u64,
    one_in_log2: u32,
}

impl Sampling {
    pub fn new(budgets: Budgets, now: Monotonic) -> Self {
        Self { budgets, vms: BTreeMap::new(), looked: now }
    }

    /// Whether it is time to [`look`](Self::look), so many samples having come since the last time.
    pub fn is_due(&self, samples: u64, now: Monotonic) -> bool {
        let since = now.since(self.looked);
        let reduced = || self.vms.values().any(|rate| rate.one_in_log2 > 0);
        // A quarter of the least that matters.
        let many =
            || samples as f64 * 4.0 >= self.budgets.each.min(self.budgets.all) as f64 * since.as_secs_f64();
        since >= LOOK_AT_LEAST_EVERY || since >= LOOK_EVERY && (reduced() || many())
    }

    /// Of these VMs so many accesses were seen so far, those of all VMs that are tracked. Returns those whose
    /// sampling changes.
    pub fn look(&mut self, seen: &[(VmId, u64)], now: Monotonic) -> Vec<(VmId, u32)> {
        let seconds = now.since(self.looked).as_secs_f64();
        self.looked = now;
        self.vms.retain(|vm, _| seen.iter().any(|(there, _)| there == vm));
        if seconds <= 0.0 {
            return Vec::new();
        }
        let demands: Vec<f64> = seen
            .iter()
            .map(|(vm, seen)| {
                let before = self.vms.entry(*vm).or_insert(Rate { seen: *seen, one_in_log2: 0 });
                let more = seen.saturating_sub(std::mem::replace(&mut before.seen, *seen));
                more as f64 / seconds
            })
            .collect();
        let level = fair_level(&demands, self.budgets);
        let mut changed = Vec::new();
        for ((vm, _), demand) in seen.iter().zip(demands) {
            let Some(rate) = self.vms.get_mut(vm) else { continue };
            let wanted = one_in_log2(demand / level);
            let next = if wanted >= rate.one_in_log2 {
                wanted
            } else if one_in_log2(demand / (level * SETTLED)) < rate.one_in_log2 {
                rate.one_in_log2 - 1
            } else {
                rate.one_in_log2
            };
            if next != rate.one_in_log2 {
                rate.one_in_log2 = next;
                changed.push((*vm, next));
            }
        }
        changed
    }

    /// Whether of some VM not all accesses are looked at.
    pub fn is_reduced(&self) -> bool {
        self.vms.values().any(|rate| rate.one_in_log2 > 0)
    }

    /// Of so many accesses of this VM one is sampled.
    pub fn one_in(&self, vm: VmId) -> u32 {
        1 << self.vms.get(&vm).map_or(0, |rate| rate.one_in_log2)
    }
}

/// What each may have, so that no more than all may is taken: who needs less leaves the rest to the others.
fn fair_level(demands: &[f64], budgets: Budgets) -> f64 {
    let each = budgets.each as f64;
    let mut left = budgets.all as f64;
    let mut sorted: Vec<f64> = demands.iter().map(|demand| demand.min(each)).collect();
    sorted.sort_by(f64::total_cmp);
    let vms = sorted.len();
    for (number, demand) in sorted.into_iter().enumerate() {
        let share = left / (vms - number) as f64;
        if demand > share {
            return share;
        }
        left -= demand;
    }
    each
}

fn one_in_log2(times: f64) -> u32 {
    (0..MAX_ONE_IN_LOG2).find(|log2| f64::from(1u32 << log2) >= times).unwrap_or(MAX_ONE_IN_LOG2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BUDGETS: Budgets = Budgets { each: 1000, all: 2000 };

    fn at(ms: u64) -> Monotonic {
        Monotonic(ms * 1_000_000)
    }

    /// What becomes of VMs that make so many accesses a second for some seconds.
    fn settled(sampling: &mut Sampling, from_s: u64, rates: &[u64]) -> Vec<u32> {
        let vms = || (1..).map(VmId).zip(rates);
        for second in from_s..from_s + 10 {
            let seen: Vec<_> = vms().map(|(vm, rate)| (vm, rate * second)).collect();
            sampling.look(&seen, at(second * 1000));
        }
        vms().map(|(vm, _)| sampling.one_in(vm)).collect()
    }

    fn after(rates: &[u64]) -> Vec<u32> {
        settled(&mut Sampling::new(BUDGETS, at(0)), 0, rates)
    }

    #[test]
    fn who_needs_little_keeps_all_of_it_beside_one_that_floods() {
        assert_eq!(after(&[900, 50]), [1, 1]);
        assert_eq!(after(&[1_000_000, 50, 300]), [1024, 1, 1], "1,000 a second are left of a million");
        assert_eq!(after(&[4000]), [4], "no more than one may, also where nobody else is there");
        assert_eq!(after(&[1000, 1000, 1000, 10]), [2, 2, 2, 1]);
        assert_eq!(after(&[u64::from(u32::MAX)]), [1 << MAX_ONE_IN_LOG2]);
    }

    #[test]
    fn a_vm_that_is_quiet_again_is_seen_in_full_again() {
        let mut sampling = Sampling::new(BUDGETS, at(0));
        assert_eq!(settled(&mut sampling, 0, &[64_000]), [64]);
        // What was seen so far does not go back.
        let mut seen = 64_000 * 20;
        let mut steps = Vec::new();
        for second in 20..30 {
            seen += 10;
            steps.extend(sampling.look(&[(VmId(1), seen)], at(second * 1000)));
        }
        assert_eq!(steps.last(), Some(&(VmId(1), 0)), "{steps:?}");
        assert!(!sampling.is_due(0, at(29_500)), "nothing to do any more");
    }

    #[test]
    fn a_rate_at_the_edge_does_not_change_all_the_time() {
        let mut sampling = Sampling::new(BUDGETS, at(0));
        let (mut seen, mut changes) = (0, 0);
        for look in 1..100u64 {
            seen += if look % 2 == 0 { 99 } else { 101 };
            changes += sampling.look(&[(VmId(1), seen)], at(look * 100)).len();
        }
        assert_eq!(changes, 1);
    }

    #[test]
    fn it_looks_only_where_there_is_much_to_look_at() {
        let sampling = Sampling::new(BUDGETS, at(0));
        assert!(!sampling.is_due(1_000_000, at(50)));
        assert!(sampling.is_due(50, at(100)));
        assert!(!sampling.is_due(10, at(100)));
    }

    #[test]
    fn a_flood_after_a_long_rest_is_seen_as_soon_as_any() {
        let mut sampling = Sampling::new(BUDGETS, at(0));
        const HOUR: u64 = 3_600_000;
        sampling.look(&[(VmId(1), 0)], at(1));
        assert!(sampling.is_due(0, at(HOUR)), "the rest ends the look before");
        sampling.look(&[(VmId(1), 100)], at(HOUR));
        assert!(sampling.is_due(40_000, at(HOUR + 100)));
        assert_eq!(sampling.look(&[(VmId(1), 40_100)], at(HOUR + 100)), [(VmId(1), 9)]);
    }

    proptest! {
        #[test]
        fn no_more_than_the_budgets_is_sampled(rates in proptest::collection::vec(0u64..1_000_000, 1..20)) {
            let sampled: Vec<_> =
                rates.iter().zip(after(&rates)).map(|(rate, one_in)| *rate as f64 / f64::from(one_in)).collect();
            prop_assert!(sampled.iter().sum::<f64>() <= BUDGETS.all as f64 * 1.01, "{:?}", sampled);
            prop_assert!(sampled.iter().all(|rate| *rate <= BUDGETS.each as f64 * 1.01), "{:?}", sampled);
        }
    }
}
