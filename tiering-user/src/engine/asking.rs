//! Has the kernel reclaim memory of VMs that have a control group (v2) of their own: it knows best which of their
//! pages are old.
//!
//! In: a VM, what may go to the first swap tier, what its group says. Out: orders for the lane, and what came of
//! them. How much it is asked for, and when, is decided in `reclaim`. One order at a time for a VM.
//!
//! What went is found by sweeps. What a VM waits for is taken from its group (`workingset_refault_*`): a page that
//! went since the last sweep counts too; what the agent itself read does not.
//!
//! # Limits
//! On a ladder with several memory tiers only while the kernel demotes: else `memory.reclaim` would pass over the lower
//! ones. How much goes to them and how much from there to swap is the kernel's choice.

use std::time::Duration;

use super::Engine;
use super::command::Command;
use super::managed::ManagedVm;
use crate::actuate::{NoReclaim, Outcome, Reclaimed};
use crate::config::ReclaimBy;
use crate::policy::Action;
use crate::sys::{Monotonic, PAGE_BYTES};
use crate::tiermap::PageIndex;
use crate::tiers::TierId;
use crate::track::VmId;
use crate::vm::GroupMemory;

/// Of what is free in the first swap tier, so much is asked for at a time, of all VMs.
const ROOM_DIVISOR: u64 = 2;
/// More of a VM than 1 / this, merged by KSM, may be in use by others.
const KSM_DIVISOR: u64 = 100;

/// Who chooses which pages of a VM leave the first tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ChosenBy {
    /// And why.
    Agent(String),
    /// The kernel, of the VM's control group.
    Group,
    /// The kernel, of the whole host.
    Host,
}

impl Engine {
    pub(super) fn chosen_by(&self, vm: &ManagedVm, now: Monotonic) -> ChosenBy {
        if self.config.policy.reclaim == ReclaimBy::Off {
            return ChosenBy::Agent("policy.reclaim is off".to_owned());
        }
        if self.dry_run {
            return ChosenBy::Agent("dry run".to_owned());
        }
        if vm.info.keep_huge {
            let why = "its huge pages are kept (huge = \"keep\"), and the kernel would split them";
            return ChosenBy::Agent(why.to_owned());
        }
        if self.ladder.node_tiers().0 > 1 {
            return match self.why_not_to_lower_memory(vm).or_else(|| Self::why_not_by_group(vm, now)) {
                None => ChosenBy::Group,
                Some(why) => ChosenBy::Agent(why),
            };
        }
        let by_host = self.config.policy.reclaim == ReclaimBy::Host;
        match Self::why_not_by_group(vm, now) {
            None => ChosenBy::Group,
            Some(why) if !by_host => ChosenBy::Agent(why),
            Some(_) => match self.host_reclaim.not_asked(now) {
                Some(why) => ChosenBy::Agent(why.to_owned()),
                None => ChosenBy::Host,
            },
        }
    }

    /// Why the kernel cannot be asked for memory of this VM's control group.
    fn why_not_by_group(vm: &ManagedVm, now: Monotonic) -> Option<String> {
        let memory = vm.braking.gauge.as_ref().map(|gauge| &gauge.memory);
        let has_group = |memory: &&GroupMemory| memory.is_vms_own && memory.refaults_total.is_some();
        let Some(memory) = memory.filter(has_group) else {
            return Some("it has no control group (v2) of its own that counts memory".to_owned());
        };
        if !memory.can_reclaim {
            return Some("its control group has no memory.reclaim".to_owned());
        }
        let ksm_bytes = vm.braking.ksm_bytes().unwrap_or(0);
        if ksm_bytes * KSM_DIVISOR > vm.info.vm.ram_bytes() {
            return Some(
                "some of it is merged by KSM, and the kernel would not see who else uses it".to_owned(),
            );
        }
        vm.asked.refused(now).map(str::to_owned)
    }

    /// Has the kernel reclaim what may go now of at most `allowed` pages.
    pub(super) fn ask_kernel(&mut self, id: VmId, allowed: u64, demote_after: Duration) {
        let now = self.clock.now;
        let under_way: u64 = self.vms.values().filter_map(|vm| vm.asked.under_way()).sum();
        let Some(vm) = self.vms.get(&id) else { return };
        // What the kernel finds no room for in the first swap tier goes to the next one.
        let first = TierId(vm.pages.node_tiers().0);
        let room = self.room_bytes(first).saturating_sub(under_way).min(allowed * PAGE_BYTES) / PAGE_BYTES;
        let Some(vm) = self.vms.get_mut(&id) else { return };
        let relief = vm.share.excess_pages;
        // Nobody knows before how old its pages are.
        let known = vm.asked.known_for(now) >= demote_after;
        let staged = vm.prefetch.stages.up_unmapped().next().is_some();
        let idle = vm.asked.under_way().is_none() && !vm.freeing;
        let calm = known && vm.asked.rests(now).is_none();
        // What others lack does not wait.
        if staged || !idle || !calm && relief == 0 {
            return;
        }
        let touched = vm.touched_pages();
        let step = vm.reclaim.may_reclaim(touched, vm.read_wait, now);
        let pages = room.min(step.max(relief));
        if pages > 0 {
            self.order(id, pages * PAGE_BYTES, Vec::new());
        }
    }

    /// Bytes that may be asked for at a time, of all VMs, of what is free in the first swap tier.
    pub(super) fn room_bytes(&self, first: TierId) -> u64 {
        let made: u64 =
            self.facts.swap.areas.iter().filter(|area| area.tier == first).map(|area| area.bytes).sum();
        made.saturating_sub(self.swap_used.get(&first).copied().unwrap_or(0)) / ROOM_DIVISOR
    }

    /// Orders so many bytes, with which these copies go.
    pub(super) fn order(&mut self, id: VmId, bytes: u64, copies: Vec<PageIndex>) {
        let Some(vm) = self.vms.get_mut(&id) else { return };
        vm.asked.begin(bytes, copies);
        self.commands.push(Command::Reclaim(vm.info.clone(), bytes));
    }

    /// The kernel has reclaimed what it could.
    pub(super) fn on_reclaimed(&mut self, id: VmId, reclaimed: Result<Reclaimed, NoReclaim>) {
        let now = self.clock.now;
        let Some(vm) = self.vms.get_mut(&id) else { return };
        let name = &vm.info.vm.name;
        tracing::debug!(vm = name, ?reclaimed, asked = vm.asked.under_way(), "reclaimed by the kernel");
        if let Err(NoReclaim::NotThere(why)) = &reclaimed
            && vm.asked.refused(now) != Some(why)
        {
            tracing::info!(vm = name, why, "the kernel cannot be asked for pages, the agent chooses them");
        }
        let mut copies = vm.asked.end();
        let reclaimed = vm.asked.note(reclaimed, "its control group", now);
        let Reclaimed { memory_bytes, file_bytes, copies_bytes, huge_bytes, .. } = reclaimed;
        vm.moves.totals.huge_split += huge_bytes / PAGE_BYTES;
        copies.truncate(usize::try_from(copies_bytes / PAGE_BYTES).unwrap_or(usize::MAX));
        vm.reclaim.freed(&copies);
        vm.freeing = false;
        // What went to a lower memory tier costs no read.
        let to_memory = reclaimed.moved_bytes().saturating_sub(memory_bytes);
        vm.reclaim.demoted(to_memory / PAGE_BYTES);
        vm.reclaim.reclaimed((memory_bytes + file_bytes) / PAGE_BYTES, now);
        let pages = reclaimed.moved_bytes() / PAGE_BYTES;
        if pages == 0 {
            return;
        }
        vm.asked.reclaimed_at = Some(now);
        vm.reclaimed_lately.add(memory_bytes / PAGE_BYTES, now);
        vm.braking.stalls.demoted(now);
        vm.moves.totals.demoted += pages;
        let to = vm.pages.node_tiers().0;
        if let Some(budget) = self.budgets.get_mut(usize::from(to)) {
            budget.spend(memory_bytes);
        }
    }
}

impl ManagedVm {
    /// Whether an order may be given: the kernel did not refuse the last one.
    pub(super) fn may_be_asked(&self, now: Monotonic) -> bool {
        self.asked.refused(now).is_none() && self.asked.rests(now).is_none()
    }

    /// Whether an order is with the lane.
    pub(super) fn is_asked(&self) -> bool {
        self.asked.under_way().is_some()
    }

    /// So many pages of its group were read back so far.
    pub(super) fn note_refaults(&mut self, total: Option<u64>, now: Monotonic) {
        // What the agent reads meanwhile is known when that is done.
        if !self.moves.is_under_way() && self.prefetch.staging.is_none() {
            let reads = self.asked.refaults(total, now);
            self.reclaim.read_back(reads, self.read_wait, now);
        }
    }

    /// A step is done, and not yet in the table: what it read is none of the VM's waits. Returns how much.
    pub(super) fn note_own_reads(&mut self, outcome: &Outcome) -> u64 {
        if !matches!(outcome.action, Action::Place { .. } | Action::Stage { .. }) {
            return 0;
        }
        let was_in_swap = |page: &&PageIndex| self.pages.in_swap(self.pages.get(**page).place());
        let left = outcome.skipped.values().sum::<u64>().min(outcome.asked.len() as u64);
        let read = outcome.asked.iter().filter(was_in_swap).count() as u64;
        let read = read.min(outcome.asked.len() as u64 - left);
        self.asked.note_own_read(read, outcome.finished);
        read
    }

    /// Why the kernel is asked for nothing now, where it chooses.
    pub(super) fn asks_nothing(&self, now: Monotonic) -> Option<String> {
        match self.asked.rests(now) {
            Some(why) => Some(why.to_owned()),
            None => self.reclaim.rests(now),
        }
    }
}
