//! Sampling rates, from the counters of the kernel side and back to it.

use super::Engine;
use super::command::Command;
use crate::bpf::Counters;
use crate::sys::Monotonic;
use crate::track::VmId;

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
            if vm.watch.note_dropped(counters.dropped, self.sampling.one_in(*id) > 1, now) {
                vm.sweeps.disturb();
            }
        }
        for (id, log2) in self.sampling.look(&seen, now) {
            let Some(vm) = self.vms.get_mut(&id) else { continue };
            vm.watch.note_unseen(now);
            self.commands.push(Command::SampleOneIn(vm.info.clone(), log2));
        }
    }
}
