//! What became of jobs.
//!
//! In: outcomes. Out: the next batches for the lanes; the table holds what was read back, and not what was asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Engine;
use super::command::Command;
use super::managed::{ManagedVm, Queued, Urgency};
use crate::actuate::{Done, Outcome, Skip};
use crate::policy::{Action, Reason};
use crate::sys::{Monotonic, PAGE_BYTES};
use crate::tiermap::Place;
use crate::tiers::TierId;
use crate::track::VmId;

/// Pages of a batch that may land in another area than the one meant before the VM is given a rest.
const ASTRAY_MOST: u64 = 512;
/// What others have touched waits so long while anything is staged that is needed sooner.
const LATER_WAITS: Duration = Duration::from_millis(50);

impl Engine {
    /// Hands the stager what waits to be staged: what a VM is on its way to for each at once, and what others have
    /// touched step by step while there is nothing of the former. Else a VM that runs would wait for those that
    /// sleep.
    pub(super) fn send_stages(&mut self) {
        if !self.may_stage {
            return;
        }
        let (tier0_threshold, now) = (self.config.prefetch.tier0_threshold, self.clock.now);
        let (commands, budget) = (&mut self.commands, &mut self.read_budget);
        let mut send = |vm: &mut ManagedVm, urgency| {
            let most = usize::try_from(budget.available(now) / PAGE_BYTES).unwrap_or(usize::MAX);
            if let Some(step) = vm.next_stage(urgency, most, tier0_threshold, now) {
                budget.spend(step.pages.len() as u64 * PAGE_BYTES);
                commands.push(Command::Step(vm.info.clone(), step));
            }
        };
        let mut later: Option<(Monotonic, VmId)> = None;
        let mut busy = false;
        self.stages.retain(|id| {
            let Some(vm) = self.vms.get_mut(id) else { return false };
            send(vm, Urgency::Now);
            busy |= vm.prefetch.staging.is_some();
            if vm.prefetch.staging.is_none() && vm.braking.may_stage() {
                let since = vm.prefetch.to_stage.since(Urgency::Later).map(|since| (since, *id));
                later = later.into_iter().chain(since).min();
            }
            vm.prefetch.staging.is_some() || !vm.prefetch.to_stage.is_empty()
        });
        // Who stages for itself all the time must not keep all others waiting.
        let least = if busy { LATER_WAITS } else { Duration::ZERO };
        if let Some((since, id)) = later
            && now.since(since) >= least
            && let Some(vm) = self.vms.get_mut(&id)
        {
            send(vm, Urgency::Later);
        }
    }

    /// A lane has finished something.
    pub(super) fn on_done(&mut self, done: Done, act: &mut dyn FnMut(Command)) {
        match done {
            Done::Step(outcome) => {
                let done = self.take_in_flight(&outcome);
                // The mover is at its next batch while the outcome of this one is taken in.
                self.commands.drain(..).for_each(act);
                self.on_outcome(&outcome, done.as_ref());
            }
            Done::Drain(tier, result, elapsed) => self.on_drained(tier, result, elapsed),
            Done::Reclaim(id, reclaimed) => self.on_reclaimed(id, reclaimed),
            Done::ReclaimNodes(reclaimed) => self.on_host_reclaimed(reclaimed),
            Done::Hindered(tiers) => self.on_hindered(tiers),
        }
    }

    /// A step is done: where it was the mover's, that gets the next one. Returns the batch that it was.
    fn take_in_flight(&mut self, outcome: &Outcome) -> Option<Queued> {
        // Before the next batch goes: one for a tier that failed is not sent.
        self.note_trouble(outcome);
        let vm = self.vms.get_mut(&outcome.vm).filter(|_| is_of_mover(outcome))?;
        let done = vm.moves.end(self.clock.now);
        self.send_next(outcome.vm);
        done
    }

    /// Takes over what became of a step, and of the batch that it was.
    fn on_outcome(&mut self, outcome: &Outcome, done: Option<&Queued>) {
        let now = self.clock.seconds();
        tracing::debug!(
            vm = outcome.vm.0, action = ?outcome.action, reason = %outcome.reason, asked = outcome.asked.len(),
            moved_bytes = outcome.moved_pages * PAGE_BYTES, skipped = ?outcome.skipped, "step done"
        );
        if let Action::Place { to } = outcome.action
            && !self.ladder.node_tiers().contains(to)
            && let Some(written) = self.written_bytes.get_mut(usize::from(to.0))
        {
            *written += outcome.moved_pages * PAGE_BYTES;
            // A plan was taken out as a whole when it was made; nobody took out what an operator asked for.
            if let Some(budget) = self.budgets.get_mut(usize::from(to.0)) {
                let planned = (outcome.asked.len() + outcome.left_out.len()) as u64;
                match outcome.reason {
                    Reason::Operator => budget.spend(outcome.moved_pages * PAGE_BYTES),
                    _ => budget.refund(planned.saturating_sub(outcome.moved_pages) * PAGE_BYTES),
                }
            }
        }
        self.record_move(outcome);
        let Some(vm) = self.vms.get_mut(&outcome.vm) else { return };
        let own_reads = vm.note_own_reads(outcome);
        self.host_reclaim.note_own_read(own_reads, outcome.finished);
        vm.on_outcome(outcome, now);
        vm.note_for_brakes(outcome, self.clock.now);
        vm.note_for_reclaim(outcome, self.clock.now);
        if !is_of_mover(outcome) {
            if matches!(outcome.action, Action::Stage { .. })
                && self.may_map_stages
                && vm.braking.may_stage()
                && let Some(step) = vm.next_mapping(outcome, self.clock.now)
            {
                self.commands.push(Command::Step(vm.info.clone(), step));
            }
            self.tenants.take_tags(vm, outcome);
            return;
        }
        let (mut refused, time) = (None, self.clock.now);
        for (skip, pages) in &outcome.skipped {
            match skip {
                Skip::DryRun => {
                    tracing::info!(
                        vm = vm.info.vm.name, action = ?outcome.action, reason = %outcome.reason,
                        bytes = pages * PAGE_BYTES, "dry run: would move"
                    );
                    vm.rest(10, time);
                }
                Skip::Refused(reason) => {
                    refused = Some(reason.clone());
                    vm.rest(10, time);
                }
                Skip::Failed(reason) => {
                    tracing::warn!(vm = vm.info.vm.name, pages, reason, "not moved");
                    vm.rest(10, time);
                }
                Skip::TierFull | Skip::NoRoom(_) | Skip::NoSwap => vm.rest(10, time),
                // A few go astray now and then.
                Skip::ElsewhereInSwap if *pages > ASTRAY_MOST => vm.rest(10, time),
                Skip::ElsewhereInSwap
                | Skip::Stayed
                | Skip::Merged
                | Skip::Locked
                | Skip::Shared
                | Skip::TierFailed(_)
                | Skip::KeptHuge
                | Skip::Hugetlb
                | Skip::MappedElsewhere
                | Skip::Bound
                | Skip::Absent
                | Skip::Zero
                | Skip::NotCollapsed
                | Skip::Gone => {}
            }
        }
        if vm.moves.refuse(refused) {
            match vm.moves.refused_now() {
                Some(reason) => tracing::info!(vm = vm.info.vm.name, reason, "not moved for now"),
                None => tracing::info!(vm = vm.info.vm.name, "moved again"),
            }
        }
        if let Some(ticket) = done.and_then(|done| done.ticket) {
            self.on_ticket(ticket, outcome);
        }
        if let Some(vm) = self.vms.get(&outcome.vm) {
            self.tenants.take_tags(vm, outcome);
        }
    }

    /// Whether the tier of a step takes what is sent to it.
    fn note_trouble(&mut self, outcome: &Outcome) {
        let Action::Place { to } = outcome.action else { return };
        let tier = self.place_name(Place::In(to));
        let failed = outcome.skipped.keys().find_map(|skip| match skip {
            Skip::TierFailed(reason) => Some(reason),
            _ => None,
        });
        match failed {
            Some(reason) => {
                if self.tier_health.note(to, reason, self.clock.now) {
                    tracing::warn!(tier, reason, "the tier takes nothing for a while");
                }
                for vm in self.vms.values_mut() {
                    vm.forget_plans_for(to);
                }
            }
            None if outcome.moved_pages > 0 && self.tier_health.clear(to) => {
                tracing::info!(tier, "the tier works again");
            }
            None => {}
        }
    }

    /// Areas of others are in the way of these tiers now.
    fn on_hindered(&mut self, tiers: BTreeMap<TierId, String>) {
        for (tier, reason) in &tiers {
            let name = self.place_name(Place::In(*tier));
            tracing::warn!(tier = name, reason, "the tier takes nothing until that area is gone");
            for vm in self.vms.values_mut() {
                vm.forget_plans_for(*tier);
            }
        }
        for tier in self.tier_health.hinder(tiers) {
            tracing::info!(
                tier = self.place_name(Place::In(tier)),
                "no other swap area is in the way any more"
            );
        }
        self.status_due = true;
    }

    /// Hands the VM's next batch to the mover.
    pub(super) fn send_next(&mut self, id: VmId) {
        let now = self.clock.seconds();
        if let Some(vm) = self.vms.get_mut(&id)
            && let Some(step) = vm.next_batch(now)
        {
            vm.moves.note_moving(self.clock.now);
            self.commands.push(Command::Step(vm.info.clone(), step));
        }
    }
}

/// Something of this VM waits to be staged now, or may: [`Engine::send_stages`] looks at it.
pub(super) fn note_waiting(stages: &mut BTreeSet<VmId>, vm: &ManagedVm) {
    if !vm.prefetch.to_stage.is_empty() {
        stages.insert(vm.info.id);
    }
}

fn is_of_mover(outcome: &Outcome) -> bool {
    matches!(outcome.action, Action::Place { .. } | Action::Collapse)
}
