//! Processes that are no VMs, and when they are looked at again: one can become QEMU by `exec` without a new pid or
//! start time.
//!
//! In: what a look at a process has found. Out: whether it need not be looked at in this scan. Pure.

use std::collections::{HashMap, HashSet};

/// Scans in which a process is looked at once it was found to be no VM, and after those one in so many.
const YOUNG_SCANS: u32 = 5;
const EVERY: u32 = 10;

/// By pid, each with the scan that found that out first.
#[derive(Clone, Debug, Default)]
pub(super) struct Others(HashMap<i32, u32>);

impl Others {
    pub(super) fn retain(&mut self, pids: &HashSet<i32>) {
        self.0.retain(|pid, _| pids.contains(pid));
    }

    /// It was looked at in this scan, and is no VM, or is one.
    pub(super) fn note(&mut self, pid: i32, is_none: bool, scan: u32) {
        if is_none {
            self.0.entry(pid).or_insert(scan);
        } else {
            self.0.remove(&pid);
        }
    }

    pub(super) fn rests(&self, pid: i32, scan: u32) -> bool {
        self.0.get(&pid).is_some_and(|first| {
            // Not all of them in one scan.
            let turn = scan.wrapping_add(pid.cast_unsigned());
            scan.wrapping_sub(*first) >= YOUNG_SCANS && !turn.is_multiple_of(EVERY)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_vm_is_looked_at_in_its_first_scans_and_then_in_one_of_ten() {
        let mut others = Others::default();
        assert!(!others.rests(7, 1));
        others.note(7, true, 1);
        assert!((2..6).all(|scan| !others.rests(7, scan)));
        others.note(7, true, 5);
        let looks: Vec<u32> = (6..40).filter(|scan| !others.rests(7, *scan)).collect();
        assert_eq!(looks, [13, 23, 33]);
        others.note(7, false, 13);
        assert!(!others.rests(7, 14), "it has become one");
        others.note(8, true, 13);
        others.retain(&HashSet::new());
        assert!(!others.rests(8, 30), "another process has its pid by now");
    }
}
