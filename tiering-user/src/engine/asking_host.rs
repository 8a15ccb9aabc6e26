//! Has the kernel reclaim memory of the whole host (`policy.reclaim = "host"`), for VMs without a control group of
//! their own.
//!
//! In, once a second: the VMs, the kernel's count of pages that were read back (`/proc/vmstat`). Out: orders for the
//! lane, and what came of them. How much it is asked for, and when, is decided in `reclaim`, as for one VM: its budget
//! is that of all VMs concerned together. What went is found by sweeps.
//!
//! Nothing is asked for while a VM is there that must not be touched, since the kernel would take its memory too.
//!
//! # Limits
//! Only where the ladder has one memory tier. Pages that processes other than VMs read back count like those of VMs.
//! What others lack is taken by priority, which the kernel does not know: such pages the agent chooses.

use std::time::Duration;

use super::Engine;
use super::asking::ChosenBy;
use super::command::Command;
use super::managed::Asked;
use super::managed::ManagedVm;
use crate::actuate::{NoReclaim, Reclaimed};
use crate::config::ReclaimBy;
use crate::reclaim::{Budget, Reclaim};
use crate::sys::{Monotonic, PAGE_BYTES};
use crate::tiers::TierId;
use crate::vm::Refusal;

/// While VMs are read for, refaults are counted so often all the same.
const COUNT_LATEST: Duration = Duration::from_secs(5);

/// What the kernel is asked for of the whole host.
#[derive(Debug, Default)]
pub(super) struct HostReclaim {
    asked: Asked,
    reclaim: Reclaim,
    counted_at: Monotonic,
    /// Why it is not asked at all; looked at once a second.
    not_asked: Option<String>,
}

impl HostReclaim {
    /// Why the kernel is not asked for memory of the host.
    pub(super) fn not_asked(&self, now: Monotonic) -> Option<&str> {
        self.not_asked.as_deref().or_else(|| self.asked.refused(now))
    }

    /// Why it is asked for nothing now.
    pub(super) fn rests(&self, now: Monotonic) -> Option<String> {
        self.asked.rests(now).map(str::to_owned).or_else(|| self.reclaim.rests(now))
    }

    pub(super) fn has_found_no_cold(&self) -> bool {
        self.reclaim.has_found_no_cold()
    }

    /// The agent has read so many pages of a VM.
    pub(super) fn note_own_read(&mut self, pages: u64, at: Monotonic) {
        self.asked.note_own_read(pages, at);
    }
}

impl Engine {
    /// Has the kernel reclaim what may go now of the host's memory.
    pub(super) fn ask_host(&mut self) {
        if self.config.policy.reclaim != ReclaimBy::Host || self.dry_run {
            return;
        }
        let now = self.clock.now;
        self.host_reclaim.not_asked = self.why_host_is_not_asked();
        self.commands.push(Command::AllowNodeReclaim(self.host_reclaim.not_asked.is_none()));
        let chosen = |vm: &&ManagedVm| matches!(self.chosen_by(vm, now), ChosenBy::Host);
        let vms: Vec<&ManagedVm> = self.vms.values().filter(chosen).collect();
        if vms.is_empty() {
            self.host_reclaim.asked.forget_refaults();
            return;
        }
        let first = TierId(self.ladder.node_tiers().0);
        let limit = self.config.policy.refault_limit.0;
        // What one VM may not have taken, none can: the kernel takes memory of all of them.
        let by_brakes = |vm: &ManagedVm| match vm.braking.rests(now) {
            true => 0,
            false => vm.braking.allowed(first, vm.pages.node_tiers()),
        };
        let by_brakes = self.vms.values().filter(|vm| !is_bound(vm)).map(by_brakes).min();
        let pages: u64 = vms.iter().map(|vm| vm.touched_pages()).sum();
        let read_wait = vms.iter().map(|vm| vm.read_wait).max().unwrap_or_default();
        let budgets =
            vms.iter().map(|vm| Budget::new(vm.info.vm.vcpus, vm.touched_pages(), limit, vm.read_wait));
        let budget: Option<Budget> = budgets.sum();
        let staged = self.vms.values().any(|vm| vm.prefetch.stages.up_unmapped().next().is_some());
        let freeing = self.vms.values().any(|vm| vm.freeing);
        let reading = self.vms.values().any(|vm| vm.moves.is_under_way() || vm.prefetch.staging.is_some());
        let to_swap = self.allowance().get(usize::from(first.0)).copied().unwrap_or(0);
        let room = (self.room_bytes(first) / PAGE_BYTES).min(to_swap).min(by_brakes.unwrap_or(0));
        let demote_after = self.config.policy.demote_after.0;

        let host = &mut self.host_reclaim;
        host.reclaim.set_limits(budget, demote_after);
        // What the agent reads meanwhile is known when that is done.
        if !reading || now.since(host.counted_at) >= COUNT_LATEST {
            host.counted_at = now;
            let reads = host.asked.refaults(self.facts.refaults_total, now);
            host.reclaim.read_back(reads, read_wait, now);
        }
        let known = host.asked.known_for(now) >= demote_after;
        let idle = host.asked.under_way().is_none() && host.asked.rests(now).is_none();
        if !known || !idle || staged || freeing {
            return;
        }
        let ask = room.min(host.reclaim.may_reclaim(pages, read_wait, now));
        if ask == 0 {
            return;
        }
        host.asked.begin(ask * PAGE_BYTES, Vec::new());
        let vms = self.vms.values().map(|vm| vm.info.clone()).collect();
        self.commands.push(Command::ReclaimNodes(vms, ask * PAGE_BYTES));
    }

    /// The kernel has reclaimed what it could.
    pub(super) fn on_host_reclaimed(&mut self, reclaimed: Result<Reclaimed, NoReclaim>) {
        let now = self.clock.now;
        tracing::debug!(?reclaimed, asked = self.host_reclaim.asked.under_way(), "reclaimed of the host");
        if let Err(NoReclaim::NotThere(why)) = &reclaimed
            && self.host_reclaim.asked.refused(now) != Some(why)
        {
            tracing::warn!(why, "the kernel cannot be asked for memory of the host, the agent chooses pages");
        }
        self.host_reclaim.asked.end();
        let Reclaimed { memory_bytes, .. } = self.host_reclaim.asked.note(reclaimed, "the host", now);
        self.host_reclaim.reclaim.reclaimed(memory_bytes / PAGE_BYTES, now);
        if memory_bytes == 0 {
            return;
        }
        for vm in self.vms.values_mut() {
            vm.asked.reclaimed_at = Some(now);
            vm.braking.stalls.demoted(now);
        }
        let first = self.ladder.node_tiers().0;
        if let Some(budget) = self.budgets.get_mut(usize::from(first)) {
            budget.spend(memory_bytes);
        }
    }

    fn why_host_is_not_asked(&self) -> Option<String> {
        if !self.facts.reclaims_nodes {
            return Some("this kernel does not reclaim by node (Linux 6.17 and later do)".to_owned());
        }
        let mut others = self.vms.values().filter(|vm| !is_bound(vm));
        let keeps_huge = |vm: &ManagedVm| vm.info.keep_huge.then(|| "its huge pages are kept".to_owned());
        let managed =
            others.find_map(|vm| Some((&vm.info.vm.name, vm.never_to_swap().or_else(|| keeps_huge(vm))?)));
        let left_out = || self.facts.left_out.as_ref().map(|(name, why)| (name, why.clone()));
        let (name, why) = managed.or_else(|| self.bystanders.first()).or_else(left_out)?;
        Some(format!("the kernel would take memory of {name} too, and must not: {why}"))
    }
}

/// Of whose memory the kernel, too, can take nothing.
fn is_bound(vm: &ManagedVm) -> bool {
    vm.info.vm.refusal.as_ref().is_some_and(Refusal::binds_the_kernel)
}
