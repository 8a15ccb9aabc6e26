//! Sampling rates, from the counters of the kernel side and back to it.

use std::time::Duration;

use super::machine::Machine;
use super::state::State;
use crate::bpf::Faults;
use crate::predict::PATIENCE;
use crate::sys::{self, Monotonic};
use crate::track::LOOK_AT_LEAST_EVERY;

/// What was staged while not all touches were seen is not staged any more after that, as a rule.
const BLIND: Duration = PATIENCE.saturating_add(LOOK_AT_LEAST_EVERY);

impl State {
    /// `taken` samples came out of the ring just now: looks whether all machines keep within their budgets.
    pub(super) fn adapt_sampling(&mut self, faults: &mut Faults, taken: usize) {
        self.samples_since_look += taken as u64;
        let now = sys::now();
        if !self.sampling.is_due(self.samples_since_look, now) {
            return;
        }
        self.samples_since_look = 0;
        let mut seen = Vec::with_capacity(self.machines.len());
        for (vm, machine) in &mut self.machines {
            let counters = faults.counters(*vm);
            seen.push((*vm, counters.seen));
            let dropped = std::mem::replace(&mut machine.dropped_samples, counters.dropped);
            if self.sampling.one_in(*vm) > 1 || counters.dropped > dropped {
                machine.is_not_seen(now);
            }
        }
        for (id, log2) in self.sampling.look(&seen, now) {
            let Some(machine) = self.machines.get_mut(&id) else { continue };
            machine.is_not_seen(now);
            let vm = &machine.target.vm;
            // Its process may have ended.
            match faults.sample_one_in(vm, log2) {
                Ok(()) => tracing::debug!(vm = vm.name, one_in = 1u64 << log2, "sampled"),
                Err(error) => tracing::debug!(vm = vm.name, %error, "not sampled anew"),
            }
        }
    }
}

impl Machine {
    /// Until now not all of its touches were seen; they are from the next look on, at best.
    fn is_not_seen(&mut self, now: Monotonic) {
        self.seen_since = now.after(LOOK_AT_LEAST_EVERY);
        self.unseen_until = now.after(BLIND);
    }
}
