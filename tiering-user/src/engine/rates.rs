//! Sampling rates, from the counters of the kernel side and back to it.

use std::time::Duration;

use super::Engine;
use super::command::Command;
use super::managed_vm::ManagedVm;
use crate::bpf::Counters;
use crate::predict::PATIENCE;
use crate::sys::Monotonic;
use crate::track::{LOOK_AT_LEAST_EVERY, VmId};

/// What was staged while not all touches were seen is not staged any more after that, as a rule.
const BLIND: Duration = PATIENCE.saturating_add(LOOK_AT_LEAST_EVERY);

impl Engine {
    /// Whether it is time to look if all VMs keep within their budgets.
    pub fn wants_counters(&self, now: Monotonic) -> bool {
        self.sampling.is_due(self.samples_since_look, now)
    }

    pub(super) fn on_counters(&mut self, counters: &[(VmId, Counters)]) {
        let now = self.clock.now;
        self.samples_since_look = 0;
        let mut seen = Vec::with_capacity(counters.len());
        for (id, counters) in counters {
            let Some(vm) = self.vms.get_mut(id) else { continue };
            seen.push((*id, counters.seen));
            let dropped = std::mem::replace(&mut vm.watch.dropped_samples, counters.dropped);
            if self.sampling.one_in(*id) > 1 || counters.dropped > dropped {
                vm.is_not_seen(now);
            }
        }
        for (id, log2) in self.sampling.look(&seen, now) {
            let Some(vm) = self.vms.get_mut(&id) else { continue };
            vm.is_not_seen(now);
            self.commands.push(Command::SampleOneIn(vm.info.clone(), log2));
        }
    }
}

impl ManagedVm {
    /// Until now not all of its touches were seen; they are from the next look on, at best.
    fn is_not_seen(&mut self, now: Monotonic) {
        self.watch.seen_since = now.after(LOOK_AT_LEAST_EVERY);
        self.watch.unseen_until = now.after(BLIND);
    }
}
