//! Frees copies that page-outs left in the swap cache.
//!
//! In, once a second for each machine: what is due (`reclaim`). Out: a step or an order for the lanes, and what came of
//! it. One at a time for a machine.
//!
//! | memory | how |
//! |---|---|
//! | private, while swap is less than half full | each page is mapped, which costs no read, and paged out again, which costs no write: its slot still stands |
//! | of a machine alone in its control group (v2) | the group's `memory.reclaim` |
//! | any other | the kernel frees it when somebody wants the memory |
//!
//! # Limits
//! Where swap is more than half full the kernel takes a page's slot away as it is mapped: to page it out again would
//! write it again (`mem_cgroup_swap_full`, mm/swapfile.c, mm/memcontrol.c). `memory.reclaim` is told how much, not
//! which.

use std::time::Duration;

use super::machine::Machine;
use super::state::State;
use crate::actuate::{Job, Outcome};
use crate::policy::{Action, Reason, Step, TierLoad};
use crate::reclaim::Budget;
use crate::sys::{Monotonic, PAGE_BYTES};
use crate::tiermap::{PageIndex, Place};
use crate::tiers::TierId;
use crate::track::VmId;
use crate::vm::Headroom;

/// Most pages at a time: 64 MiB, some 50 ms of the lane.
const MOST: u64 = 16_384;
/// How often it is looked what is due.
const EVERY: Duration = Duration::from_secs(2);
/// Of what is thought to be in the swap cache, so much must be: else the kernel has freed it.
const THERE_DIVISOR: u64 = 2;
/// A read, before the tier's disk was seen to read.
const READ_WAIT: Duration = Duration::from_micros(100);

impl State {
    /// Where memory was short the kernel has freed copies by itself: nothing is left to be freed then.
    pub(super) fn look_at_copies(&mut self) {
        let known: u64 = self.machines.values().map(|machine| machine.reclaim.copies()).sum();
        if self.braking.swap_cached_bytes < known * PAGE_BYTES / THERE_DIVISOR {
            self.machines.values_mut().for_each(|machine| machine.reclaim.all_freed());
        }
    }

    /// What a machine may wait for in a minute.
    pub(super) fn set_budget(&mut self, id: VmId) {
        let limit = self.config.policy.refault_limit.0;
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let touched = machine.touched_pages();
        let load = self.braking.tier_loads.get(&TierId(machine.pages.node_tiers().0));
        machine.read_wait = load.map_or(READ_WAIT, read_wait);
        machine.reclaim.set_budget(Budget::new(machine.target.vm.vcpus, touched, limit, machine.read_wait));
    }

    /// Has copies freed that are due.
    pub(super) fn free_copies(&mut self, id: VmId, now: Monotonic) {
        let (short_bytes, half_full) = (self.braking.short_bytes, self.braking.swap_half_full);
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let too_early = machine.freed_at.is_some_and(|at| now.since(at) < EVERY);
        let nothing = machine.reclaim.copies() == 0 || machine.unmovable().is_some();
        if self.dry_run || machine.freeing || too_early || nothing {
            return;
        }
        machine.freed_at = Some(now);
        let due = match short_bytes.div_ceil(PAGE_BYTES) {
            0 => machine.reclaim.due(MOST, now),
            short => machine.reclaim.due_at_once(short.min(MOST), now),
        };
        // What a sweep found in memory came back unseen.
        let (away, back): (Vec<_>, Vec<_>) =
            due.into_iter().partition(|page| machine.pages.in_swap(machine.pages.get(*page).place()));
        back.into_iter().for_each(|page| machine.reclaim.is_back(page));
        if away.is_empty() {
            return;
        }
        let job = if half_full || machine.group_swap_half_full() || machine.has_shared(&away) {
            machine.by_group(&away).map(|bytes| Job::FreeSwapCache(machine.target.clone(), bytes))
        } else {
            let action = Action::Free;
            let step = Step { vm: id, action, pages: away.clone(), reason: Reason::StayedAway };
            Some(Job::Step(machine.target.clone(), step))
        };
        let Some(job) = job else { return };
        if let Job::FreeSwapCache(..) = job {
            machine.reclaim.freed(&away);
        }
        machine.freeing = true;
        self.braking.short_bytes = short_bytes.saturating_sub(away.len() as u64 * PAGE_BYTES);
        self.lanes.send(job);
    }

    /// The kernel has freed what it could.
    pub(super) fn on_freed(&mut self, id: VmId, bytes: u64) {
        if let Some(machine) = self.machines.get_mut(&id) {
            tracing::debug!(vm = machine.target.vm.name, bytes, "freed from the swap cache");
            machine.freeing = false;
        }
    }
}

impl Machine {
    /// Of so many pages that may go to the first swap tier, how many go now. What others lack goes at once.
    pub(super) fn may_send(&mut self, allowed: u64, demote_after: Duration, now: Monotonic) -> u64 {
        let touched = self.touched_pages();
        let step = self.reclaim.may_send(touched, demote_after, now);
        allowed.min(step.max(self.braking.relief_pages(self.excess_pages)))
    }

    /// Pages that exist.
    fn touched_pages(&self) -> u64 {
        u64::from(self.pages.layout().pages()) - self.pages.counts().get(Place::Untouched)
    }

    /// Copies that page-outs left in the swap cache: as its own control group says, else as is known.
    pub(super) fn swap_cached_bytes(&self) -> u64 {
        self.braking.swap_cached_bytes().unwrap_or(self.reclaim.copies() * PAGE_BYTES)
    }

    fn has_shared(&self, pages: &[PageIndex]) -> bool {
        let layout = self.pages.layout();
        pages.iter().any(|page| layout.locate(*page).is_some_and(|(_, shared)| shared))
    }

    /// How many bytes the machine's control group can be told to free for these pages, if it can.
    fn by_group(&self, pages: &[PageIndex]) -> Option<u64> {
        let memory = &self.braking.gauge.as_ref()?.memory;
        let bytes = (pages.len() as u64 * PAGE_BYTES).min(memory.swap_cached_bytes?);
        (memory.is_vms_own && bytes > 0).then_some(bytes)
    }

    /// Whether the swap of its control group is more than half used.
    pub(super) fn group_swap_half_full(&self) -> bool {
        let swap = self.braking.gauge.as_ref().map(|gauge| &gauge.memory.swap);
        match swap {
            Some(Headroom::Left { left_bytes, limit_bytes, .. }) => left_bytes * 2 < *limit_bytes,
            Some(Headroom::Unreadable { .. }) => true,
            Some(Headroom::Unlimited) | None => false,
        }
    }

    /// Takes over what became of copies that were to be freed, or of pages that went out.
    pub(super) fn note_for_reclaim(&mut self, outcome: &Outcome) {
        let in_swap = |place: Place| self.pages.in_swap(place);
        let there = outcome.found.iter().filter(|(_, place)| in_swap(*place));
        let pages: Vec<PageIndex> = there.flat_map(|(run, _)| run.pages()).collect();
        match outcome.action {
            Action::Place { to } if !self.pages.node_tiers().contains(to) => {
                self.reclaim.sent(&pages, outcome.finished);
            }
            Action::Place { .. } | Action::MapStaged => {
                let up = outcome.found.iter().filter(|(_, place)| !in_swap(*place));
                let up: Vec<PageIndex> = up.flat_map(|(run, _)| run.pages()).collect();
                up.into_iter().for_each(|page| self.reclaim.is_back(page));
            }
            Action::Free => {
                self.freeing = false;
                self.reclaim.freed(&pages);
                let up = outcome.found.iter().filter(|(_, place)| !in_swap(*place));
                let up: Vec<PageIndex> = up.flat_map(|(run, _)| run.pages()).collect();
                up.into_iter().for_each(|page| self.reclaim.is_back(page));
            }
            Action::Collapse | Action::Stage { .. } | Action::DropStage { .. } => {}
        }
    }
}

fn read_wait(load: &TierLoad) -> Duration {
    let ns = load.read_latency_ns.or(load.read_latency_at_rest_ns);
    ns.map_or(READ_WAIT, Duration::from_nanos)
}
