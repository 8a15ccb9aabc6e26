//! What staging was worth in the last day.
//!
//! In: pages that were there when the VM touched them, and pages that were staged in vain, each with the VM whose touches
//! had predicted it. Out: sums of this hour and the 23 before it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::AddAssign;

use crate::sys::Monotonic;
use crate::track::VmId;

const HOUR_NS: u64 = 3_600_000_000_000;
const HOURS: u64 = 24;

/// Pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Worth {
    /// Waits for a read that a VM was spared.
    pub avoided: u64,
    /// Read in vain.
    pub wasted: u64,
}

impl AddAssign for Worth {
    fn add_assign(&mut self, other: Self) {
        self.avoided += other.avoided;
        self.wasted += other.wasted;
    }
}

/// Of one VM, by leader; none stands for the VM's own touches.
type ByLeader = BTreeMap<Option<VmId>, Worth>;

#[derive(Clone, Debug, Default)]
pub struct LastDay {
    by_hour: VecDeque<(u64, ByLeader)>,
}

impl LastDay {
    pub(super) fn note(&mut self, leader: Option<VmId>, worth: Worth, now: Monotonic) {
        let hour = now.0 / HOUR_NS;
        if self.by_hour.back().is_none_or(|(at, _)| *at != hour) {
            self.by_hour.push_back((hour, ByLeader::new()));
            self.by_hour.retain(|(at, _)| is_lately(*at, hour));
        }
        if let Some((_, by_leader)) = self.by_hour.back_mut() {
            *by_leader.entry(leader).or_default() += worth;
        }
    }

    pub fn sums(&self, now: Monotonic) -> ByLeader {
        let mut sums = ByLeader::new();
        let lately = self.by_hour.iter().filter(|(at, _)| is_lately(*at, now.0 / HOUR_NS));
        for (leader, worth) in lately.flat_map(|(_, by_leader)| by_leader) {
            *sums.entry(*leader).or_default() += *worth;
        }
        sums
    }
}

fn is_lately(hour: u64, now: u64) -> bool {
    now.saturating_sub(hour) < HOURS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_day_ago_does_not_count() {
        let at = |hours: u64| Monotonic(hours * HOUR_NS);
        let (mut day, leader) = (LastDay::default(), Some(VmId(7)));
        for hour in 0..30 {
            day.note(leader, Worth { avoided: 10, wasted: 0 }, at(hour));
            day.note(None, Worth { avoided: 0, wasted: 1 }, at(hour));
        }
        let sums = day.sums(at(29));
        assert_eq!(sums[&leader], Worth { avoided: 240, wasted: 0 });
        assert_eq!(sums[&None], Worth { avoided: 0, wasted: 24 });
        assert_eq!(day.sums(at(30))[&leader].avoided, 230);
        assert!(day.sums(at(60)).is_empty());
        assert_eq!(day.by_hour.len(), 24);
    }
}
