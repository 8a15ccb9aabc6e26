//! Frees copies that page-outs left in the swap cache.
//!
//! In, once a second for each VM: what is due (`reclaim`). Out: a step or an order for the lanes, and what came of
//! it. One at a time for a VM.
//!
//! | memory | how |
//! |---|---|
//! | private, while swap is less than half full | each page is mapped, which costs no read, and paged out again, which costs no write: its slot still stands |
//! | of a VM that has a control group (v2) of its own, without `huge = "keep"`, while the kernel does not demote | the group's `memory.reclaim` |
//! | any other | the kernel frees it when somebody wants the memory |
//!
//! # Limits
//! Where swap is more than half full the kernel takes a page's slot away as it is mapped: to page it out again would
//! write it again (`mem_cgroup_swap_full`, mm/swapfile.c, mm/memcontrol.c). `memory.reclaim` is told how much, not
//! which.

use std::time::Duration;

use super::Engine;
use super::command::Command;
use super::managed::ManagedVm;
use crate::actuate::Outcome;
use crate::policy::{Action, Reason, Step, TierLoad};
use crate::reclaim::Budget;
use crate::sys::{Monotonic, PAGE_BYTES};
use crate::tiermap::{BLOCK_PAGES, PageIndex, Place};
use crate::tiers::TierId;
use crate::track::VmId;

/// Most pages at a time: 64 MiB, some 50 ms of the lane.
const MOST: u64 = 16_384;
/// How often it is looked what is due.
const EVERY: Duration = Duration::from_secs(2);
/// Of what is thought to be in the swap cache, so much must be: else the kernel has freed it.
const THERE_DIVISOR: u64 = 2;
/// A read, before the tier's disk was seen to read.
const READ_WAIT: Duration = Duration::from_micros(100);

impl Engine {
    /// Where memory was short the kernel has freed copies by itself: nothing is left to be freed then.
    pub(super) fn look_at_copies(&mut self) {
        let gone = |known: u64, there: u64| there < known * PAGE_BYTES / THERE_DIVISOR;
        // What is being freed is on its way from one of these figures to the other.
        if self.vms.values().any(|vm| vm.freeing) {
            return;
        }
        let known: u64 = self.vms.values().map(|vm| vm.reclaim.copies()).sum();
        if known == 0 {
            return;
        }
        let all_gone = self.facts.memory.is_some_and(|memory| gone(known, memory.copies));
        for vm in self.vms.values_mut() {
            let in_group = vm.braking.swap_cached_bytes();
            if all_gone || in_group.is_some_and(|there| gone(vm.reclaim.copies(), there)) {
                vm.reclaim.all_freed();
            }
        }
    }

    /// What a VM may wait for in a minute, and how long its pages must be idle.
    pub(super) fn set_limits(&mut self, id: VmId) {
        let limit = self.config.policy.refault_limit.0;
        let Some(vm) = self.vms.get_mut(&id) else { return };
        let touched = vm.touched_pages();
        let load = self.braking.tier_loads.get(&TierId(vm.pages.node_tiers().0));
        vm.read_wait = load.map_or(READ_WAIT, read_wait);
        let budget = Budget::new(vm.info.vm.vcpus, touched, limit, vm.read_wait);
        let least_idle = vm.rules(self.config.policy.demote_after.0).least_idle(0, 0);
        vm.reclaim.set_limits(budget, least_idle);
    }

    /// Has copies freed that are due.
    pub(super) fn free_copies(&mut self, id: VmId, now: Monotonic) {
        let (short_bytes, half_full) = (self.braking.short_bytes, self.facts.swap_half_full);
        // Told to free copies, the kernel would demote other pages.
        let demotes = self.may_demote && self.ladder.node_tiers().0 > 1;
        let Some(vm) = self.vms.get_mut(&id) else { return };
        vm.reclaim.count(now);
        let too_early = vm.freed_at.is_some_and(|at| now.since(at) < EVERY);
        let nothing = vm.reclaim.copies() == 0 || vm.is_asked() || vm.unmovable().is_some();
        if self.dry_run || vm.freeing || too_early || nothing {
            return;
        }
        vm.freed_at = Some(now);
        let keeps_slots = !half_full && !vm.group_swap_half_full();
        let by_group = !demotes && vm.may_free_by_group() && vm.may_be_asked(now);
        let layout = vm.info.layout.clone();
        let is_private = |page: PageIndex| layout.locate(page).is_some_and(|(_, shared)| !shared);
        let can = |page| by_group || keeps_slots && is_private(page);
        let due = match short_bytes.div_ceil(PAGE_BYTES) {
            0 => vm.reclaim.due(MOST, now, can),
            short => vm.reclaim.due_at_once(short.clamp(BLOCK_PAGES.into(), MOST), now, can),
        };
        // What a sweep found in memory came back unseen.
        let (away, back): (Vec<_>, Vec<_>) =
            due.into_iter().partition(|page| vm.pages.in_swap(vm.pages.get(*page).place()));
        back.into_iter().for_each(|page| vm.reclaim.is_back(page));
        // What was staged meanwhile is to stay until it is used, or dropped.
        let away: Vec<_> = away.into_iter().filter(|page| !vm.pages.get(*page).staged()).collect();
        if away.is_empty() {
            return;
        }
        let private: Vec<_> = away.iter().copied().filter(|page| keeps_slots && is_private(*page)).collect();
        let (step, bytes) = if !private.is_empty() {
            let bytes = private.len() as u64 * PAGE_BYTES;
            // They are not staged before that is done.
            vm.prefetch.dropping.extend(&private);
            let step = Step { vm: id, action: Action::Free, pages: private, reason: Reason::StayedAway };
            (step, bytes)
        } else if by_group {
            let bytes = away.len() as u64 * PAGE_BYTES;
            vm.freeing = true;
            self.braking.short_bytes = short_bytes.saturating_sub(bytes);
            return self.order(id, bytes, away);
        } else {
            return;
        };
        vm.freeing = true;
        self.braking.short_bytes = short_bytes.saturating_sub(bytes);
        self.commands.push(Command::Step(vm.info.clone(), step));
    }
}

impl ManagedVm {
    /// Of so many pages that may go to the first swap tier, how many go now. What others lack goes at once.
    pub(super) fn may_send(&mut self, allowed: u64, now: Monotonic) -> u64 {
        let touched = self.touched_pages();
        let step = self.reclaim.may_send(touched, now);
        allowed.min(step.max(self.share.excess_pages))
    }

    /// Pages that exist.
    pub(super) fn touched_pages(&self) -> u64 {
        u64::from(self.pages.layout().pages()) - self.pages.counts().get(Place::Untouched)
    }

    /// Copies that page-outs left in the swap cache: as its own control group says, else as is known.
    pub(super) fn swap_cached_bytes(&self) -> u64 {
        self.braking.swap_cached_bytes().unwrap_or(self.reclaim.copies() * PAGE_BYTES)
    }

    /// What is in swap and has no copy in memory.
    pub(super) fn freed_bytes(&self) -> u64 {
        let layout = u64::from(self.pages.layout().pages());
        let counts = self.pages.counts();
        let in_memory = |level| counts.get(Place::In(TierId(level)));
        let there: u64 = (0..self.pages.node_tiers().0).map(in_memory).sum();
        let in_swap = layout - counts.get(Place::Untouched) - there;
        (in_swap * PAGE_BYTES).saturating_sub(self.swap_cached_bytes())
    }

    /// Whether its control group can be told to free copies. Staged pages are what the kernel would take first, and it
    /// would split huge pages on its way.
    fn may_free_by_group(&self) -> bool {
        let copies = self.braking.swap_cached_bytes().unwrap_or(0);
        copies > 0 && !self.info.keep_huge && self.prefetch.stages.up_unmapped().next().is_none()
    }

    /// Whether more than half of the swap is used that one of its control groups may use.
    fn group_swap_half_full(&self) -> bool {
        self.braking.gauge.as_ref().is_some_and(|gauge| gauge.memory.swap_half_full)
    }

    /// Takes over what became of copies that were to be freed, or of pages that went out.
    pub(super) fn note_for_reclaim(&mut self, outcome: &Outcome, now: Monotonic) {
        let found = |swapped: bool| -> Vec<PageIndex> {
            let there = outcome.found.iter().filter(|(_, place)| self.pages.in_swap(*place) == swapped);
            there.flat_map(|(run, _)| run.pages()).collect()
        };
        let (away, back) = (found(true), found(false));
        match outcome.action {
            Action::Place { to } if !self.pages.node_tiers().contains(to) => {
                // From one swap tier to the next nothing leaves memory.
                let from_memory = to == TierId(self.pages.node_tiers().0);
                let were_idle = from_memory && matches!(outcome.reason, Reason::Idle(_));
                self.reclaim.sent(&away, were_idle, outcome.finished);
                let left = outcome.moved_pages.saturating_sub(outcome.raised_pages);
                self.moves.note_left(left, outcome.finished);
            }
            Action::Place { .. } | Action::MapStaged => {
                back.into_iter().for_each(|page| self.reclaim.is_back(page));
            }
            Action::Free | Action::DropStage { .. } => {
                if outcome.action == Action::Free {
                    self.freeing = false;
                    self.moves.note_moving(now);
                }
                self.reclaim.freed(&away);
                back.into_iter().for_each(|page| self.reclaim.is_back(page));
            }
            Action::Collapse | Action::Stage { .. } => {}
        }
    }
}

fn read_wait(load: &TierLoad) -> Duration {
    let ns = load.read_latency_ns.or(load.read_latency_at_rest_ns);
    ns.map_or(READ_WAIT, Duration::from_nanos)
}
