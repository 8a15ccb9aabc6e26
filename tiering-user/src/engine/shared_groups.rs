//! Makes room in control groups that hold several VMs and are nearly full.
//!
//! In, once a second: what the scanner found of the VMs' groups. Out: how much each VM has beyond its share.
//!
//! # Limits
//! Only on ladders with one memory tier: what goes to a lower memory tier stays charged to the group. A VM that was
//! moved into the group with memory that is charged elsewhere is asked for it all the same, down to its floor.

use super::Engine;
use super::managed::ManagedVm;
use crate::policy::{GroupReading, Holding, SharedGroup, relief};
use crate::sys::PAGE_BYTES;

impl Engine {
    pub(super) fn divide_shared_groups(&mut self) {
        if self.ladder.node_tiers().0 > 1 {
            return;
        }
        let now = self.clock.now;
        let readings = self.vms.values().filter_map(|vm| {
            let gauge = vm.braking.gauge.as_ref()?;
            Some(GroupReading {
                vm: vm.info.id,
                limits: &gauge.memory.charge_limits,
                at: gauge.at,
                staged_bytes: vm.staged_in_swap_cache() * PAGE_BYTES,
            })
        });
        for SharedGroup { name, vms, missing_pages, read_at } in self.shared_groups.look(readings, now) {
            let members = || vms.iter().filter_map(|vm| self.vms.get(vm));
            // What left memory since the group was looked at is missing no more.
            let since = now.since(read_at);
            let left =
                |vm: &ManagedVm| vm.reclaimed_lately.within(since, now) + vm.moves.left_within(since, now);
            let missing_pages = missing_pages.saturating_sub(members().map(left).sum());
            if missing_pages == 0 {
                continue;
            }
            let movable = members().filter(|vm| vm.unmovable().is_none());
            let holdings: Vec<Holding> =
                movable.map(|vm| vm.holding(self.config.policy.floor, true, now)).collect();
            for (holding, relief) in holdings.iter().zip(relief(&holdings, missing_pages)) {
                let Some(vm) = self.vms.get_mut(&holding.claim.vm) else { continue };
                vm.share.room_pages = vm.share.room_pages.min(relief.share_pages);
                if relief.excess_pages > vm.share.excess_pages {
                    vm.share.excess_pages = relief.excess_pages;
                    vm.share.excess_of = Some(name.clone());
                }
            }
        }
    }
}

impl ManagedVm {
    /// Where memory is short, and how much of it the VM has beyond its share.
    pub(super) fn gives(&self) -> Option<String> {
        let short = match &self.share.excess_of {
            Some(group) => format!("control group {group} is nearly full"),
            None => "tier 0 is short of memory".to_owned(),
        };
        let excess_mib = (self.share.excess_pages * PAGE_BYTES).div_ceil(1 << 20);
        (excess_mib > 0).then(|| format!("{short}: this VM has {excess_mib} MiB beyond its share of it"))
    }
}
