//! Sampling rates, from the counters of the kernel side and back to it.

use super::state::State;
use crate::bpf::Faults;
use crate::sys;
use crate::track::VmId;

impl State {
    /// `taken` samples came out of the ring just now: looks whether all machines keep within their budgets.
    pub(super) fn adapt_sampling(&mut self, faults: &mut Faults, taken: usize) {
        self.samples_since_look += taken as u64;
        let now = sys::now();
        if !self.sampling.is_due(self.samples_since_look, now) {
            return;
        }
        self.samples_since_look = 0;
        let seen: Vec<(VmId, u64)> =
            self.machines.keys().map(|vm| (*vm, faults.counters(*vm).seen)).collect();
        for (id, log2) in self.sampling.look(&seen, now) {
            let Some(machine) = self.machines.get(&id) else { continue };
            let vm = &machine.target.vm;
            // Its process may have ended.
            match faults.sample_one_in(vm, log2) {
                Ok(()) => tracing::debug!(vm = vm.name, one_in = 1u64 << log2, "sampled"),
                Err(error) => tracing::debug!(vm = vm.name, %error, "not sampled anew"),
            }
        }
    }
}
