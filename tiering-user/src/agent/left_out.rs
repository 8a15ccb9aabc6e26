//! VMs that were found and could not be taken in.
//!
//! In: VMs, each with the reason. Out: those to be tried again, every second, and lines for the status. Pure.

use std::collections::BTreeMap;

use crate::vm::{ProcessKey, Vm};

#[derive(Debug, Default)]
pub(super) struct LeftOut(BTreeMap<ProcessKey, (Vm, String)>);

impl LeftOut {
    /// This VM could not be taken in. Returns whether the reason is news.
    pub(super) fn note(&mut self, vm: Vm, why: &str) -> bool {
        let before = self.0.insert(vm.key, (vm, why.to_owned()));
        before.is_none_or(|(_, told)| told != why)
    }

    /// It was taken in, or has ended.
    pub(super) fn forget(&mut self, key: ProcessKey) {
        self.0.remove(&key);
    }

    pub(super) fn has(&self, key: ProcessKey) -> bool {
        self.0.contains_key(&key)
    }

    /// All, to be tried again.
    pub(super) fn vms(&self) -> Vec<Vm> {
        self.0.values().map(|(vm, _)| vm.clone()).collect()
    }

    /// Name of one of them, and the reason.
    pub(super) fn first(&self) -> Option<(&String, String)> {
        self.0.values().next().map(|(vm, why)| (&vm.name, why.clone()))
    }

    pub(super) fn warnings(&self) -> impl Iterator<Item = String> {
        self.0.values().map(|(vm, why)| {
            format!("{} (pid {}) is left alone: {why}; it is tried again every second", vm.name, vm.key.pid)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::{Hva, testing};

    #[test]
    fn a_vm_that_could_not_be_taken_in_is_told_once_and_tried_until_it_is() {
        let key = ProcessKey { pid: 7, start_time_ticks: 1 };
        let vm = testing::vm(key, Hva(0x10_0000), 4096);
        let mut left_out = LeftOut::default();
        assert!(left_out.note(vm.clone(), "no descriptor"));
        assert!(!left_out.note(vm.clone(), "no descriptor"), "the same again is no news");
        assert!(left_out.note(vm.clone(), "the map is full"));
        assert_eq!(left_out.vms(), std::slice::from_ref(&vm));
        let told: Vec<_> = left_out.warnings().collect();
        assert_eq!(told, ["web-1 (pid 7) is left alone: the map is full; it is tried again every second"]);
        left_out.forget(key);
        assert_eq!((left_out.vms().len(), left_out.warnings().count()), (0, 0));
    }
}
