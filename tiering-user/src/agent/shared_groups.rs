//! Makes room in control groups that hold several VMs and are nearly full.
//!
//! In, once a second: what the scanner found of the VMs' groups. Out: how much each VM has beyond its share.
//!
//! # Limits
//! Only on ladders with one memory tier: what goes to a lower memory tier stays charged to the group.

use super::machine::Machine;
use super::state::State;
use crate::policy::{Holding, SharedGroup, relief};

impl State {
    pub(super) fn divide_shared_groups(&mut self) {
        if self.ladder.node_tiers().0 > 1 {
            return;
        }
        let limits = self.machines.values().filter_map(|machine| {
            let gauge = machine.braking.gauge.as_ref()?;
            Some((machine.target.id, &*gauge.memory.charge_limits))
        });
        for SharedGroup { vms, missing_pages, .. } in self.shared_groups.look(limits) {
            if missing_pages == 0 {
                continue;
            }
            let movable = |machine: &&Machine| machine.unmovable().is_none();
            let members = vms.iter().filter_map(|vm| self.machines.get(vm)).filter(movable);
            let holdings: Vec<Holding> =
                members.map(|machine| machine.holding(self.config.policy.floor, true)).collect();
            for (holding, relief) in holdings.iter().zip(relief(&holdings, missing_pages)) {
                if let Some(machine) = self.machines.get_mut(&holding.claim.vm) {
                    machine.excess_pages = machine.excess_pages.max(relief.excess_pages);
                    machine.room_pages = machine.room_pages.min(relief.share_pages);
                }
            }
        }
    }
}
