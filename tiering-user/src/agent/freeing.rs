//! Has the kernel free copies that page-outs left in the swap cache.
//!
//! In, once a second for each machine: what is due (`policy::LeftBehind`). Out: an order to the mover, and what came of
//! it. One order of a machine at a time.

use super::state::State;
use crate::actuate::Job;
use crate::policy::Wanted;
use crate::sys::{Monotonic, PAGE_BYTES};
use crate::track::VmId;

impl State {
    /// Has a part of what page-outs left in the swap cache freed, where the first tier is short or the operator wants
    /// that.
    pub(super) fn free_swap_cache(&mut self, id: VmId, now: Monotonic) {
        let psi_limit = self.config.policy.psi_limit.0;
        let wanted = match self.braking.short_bytes {
            0 if self.config.policy.free_swap_cache => Wanted::Tidy,
            0 => return,
            bytes => Wanted::Short { bytes },
        };
        let Some(machine) = self.machines.get_mut(&id) else { return };
        if self.dry_run || machine.braking.freeing {
            return;
        }
        let braking = &mut machine.braking;
        let stalls = braking.stalls.above(psi_limit).is_some();
        let due = braking
            .gauge
            .as_ref()
            .map_or(0, |gauge| braking.left_behind.due_bytes(&gauge.memory, wanted, stalls, now));
        if due > 0 {
            braking.left_behind.take(due / PAGE_BYTES);
            braking.freeing = true;
            self.braking.short_bytes = self.braking.short_bytes.saturating_sub(due);
            self.lanes.send(Job::FreeSwapCache(machine.target.clone(), due));
        }
    }

    /// The kernel has freed what it could.
    pub(super) fn on_freed(&mut self, id: VmId, bytes: u64) {
        if let Some(machine) = self.machines.get_mut(&id) {
            tracing::debug!(vm = machine.target.vm.name, bytes, "freed from the swap cache");
            machine.braking.freeing = false;
        }
    }
}
