//! Rounds of watching: the mapped pages of KVM guests are armed anew, so that they show their accesses.
//!
//! In: what is known of a VM, what re-arming cost. Out: VMs sent to the sweeper to be armed; since when all
//! that a VM accesses shows, for the policy.

use std::time::Duration;

use super::Engine;
use super::command::Command;
use super::looks::{Look, Rearmed};
use super::managed::ManagedVm;
use crate::sys::PAGE_BYTES;
use crate::telemetry::status::RearmStatus;
use crate::trace::Event;
use crate::track::{Limits, Turn, VmId};

/// How many rounds there are in the time after which an idle page goes down, if they cost little enough.
const ROUNDS_PER_IDLE_TIME: u32 = 8;
const EVERY_LEAST: Duration = Duration::from_secs(1);
const EVERY_MOST: Duration = Duration::from_mins(1);

impl Engine {
    /// Ends the round of a VM of which accesses were missed, or that is not watched in rounds any more.
    pub(super) fn look_at_round(&mut self, id: VmId) {
        let (now, clock) = (self.clock.now, self.clock.seconds());
        let ends = self.vms.get(&id).is_some_and(|vm| self.why_not_rearmed(vm).is_some());
        let Some(vm) = self.vms.get_mut(&id) else { return };
        if vm.watch.rounds.began().is_some_and(|began| vm.watch.may_have_missed(began)) {
            vm.watch.rounds.missed(now);
            vm.disarmed(clock);
        } else if ends && vm.watch.armed_at().is_some() {
            vm.watch.rounds.forget();
            vm.disarmed(clock);
        }
        if vm.share.excess_pages > 0 {
            vm.watch.rounds.hurry();
        }
    }

    /// Has a VM armed anew, if that is due for any: the one that waits longest. All at once would show more
    /// accesses than are looked at.
    pub(super) fn rearm_one(&mut self) {
        let (limits, now) = (self.rearm_limits(), self.clock.now);
        let is_due = |vm: &&ManagedVm| {
            // Its page tables are locked while it is moved. What comes while accesses are missed would not be seen.
            let busy =
                vm.moves.is_under_way() || vm.prefetch.staging.is_some() || vm.watch.may_have_missed(now);
            !busy
                && self.why_not_rearmed(vm).is_none()
                && vm
                    .entries()
                    .is_some_and(|entries| vm.watch.rounds.turn(entries, &limits, now) == Turn::Due)
        };
        if self.vms.values().any(|vm| vm.watch.is_being_armed()) {
            return;
        }
        let longest = self.vms.values().filter(is_due).min_by_key(|vm| vm.watch.rounds.last_began());
        let Some(id) = longest.map(|vm| vm.info.id) else { return };
        if let Some(vm) = self.vms.get_mut(&id) {
            vm.watch.begin_arming();
            self.commands.push(Command::Look(vm.info.clone(), Look::Rearm));
        }
    }

    pub(super) fn on_rearmed(&mut self, rearmed: Rearmed) {
        let (now, limits) = (self.clock.seconds(), self.rearm_limits());
        let clock = self.clock;
        let Some(vm) = self.vms.get_mut(&rearmed.vm) else { return };
        match rearmed.took {
            Ok(took) => {
                let again = clock.seconds_at(rearmed.began);
                let written = rearmed.written.unwrap_or_default();
                let ended = vm.watch.armed_at().map(|began| {
                    vm.watch.seen_by.written += vm.pages.written(&written, began, again);
                    vm.pages.end_round(began, again, now)
                });
                let entries = vm.entries().unwrap_or(0);
                vm.watch.rounds.begin(rearmed.began, took, entries, ended.unwrap_or_default(), &limits);
                // Until it is proved where its RAM lies no access counts; re-arming has KVM map what proves it.
                vm.watch.end_arming(vm.gpa_proof.is_complete().then_some(again));
                if vm.watch.armed_at().is_some() {
                    self.record_event(rearmed.began, &Event::Armed(rearmed.vm));
                }
            }
            Err(error) => {
                tracing::debug!(vm = vm.info.vm.name, %error, "its pages cannot be armed anew");
                vm.watch.rounds.failed(clock.now);
                vm.disarmed(now);
                vm.watch.end_arming(None);
            }
        }
    }

    /// Why a VM's mapped pages do not show their accesses in rounds.
    pub(super) fn why_not_rearmed(&self, vm: &ManagedVm) -> Option<String> {
        let too_long = |pause: Duration| {
            let ms = pause.as_secs_f64() * 1e3;
            format!("it would hold up page faults for {ms:.0} ms (tracking.rearm_pause)")
        };
        if !self.config.tracking.rearm {
            return Some("switched off (tracking.rearm)".to_owned());
        }
        if self.facts.shown_access.is_none() {
            return Some("see the source `rearming`".to_owned());
        }
        if let Some(why_not) = vm.why_not_armed() {
            return Some(why_not.to_owned());
        }
        match vm.watch.rounds.turn(vm.entries()?, &self.rearm_limits(), self.clock.now) {
            Turn::TooLong(pause) => Some(too_long(pause)),
            Turn::Resting => {
                Some("it rests: accesses of the last rounds were missed, or arming took too long".to_owned())
            }
            Turn::Due | Turn::NotYet => None,
        }
    }

    /// What `status` says of a VM's rounds.
    pub(super) fn rearm_status(&self, vm: &ManagedVm) -> RearmStatus {
        let entries = vm.entries().unwrap_or(0);
        let every = vm.watch.rounds.every(entries, &self.rearm_limits(), self.clock.now);
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        RearmStatus {
            why_not: self.why_not_rearmed(vm),
            rounds_total: vm.watch.rounds.count(),
            every_ns: nanos(every),
            pause_ns: vm.watch.rounds.took().map(nanos),
            used_bytes: vm.watch.rounds.last().used * PAGE_BYTES,
        }
    }

    fn rearm_limits(&self) -> Limits {
        let tracking = &self.config.tracking;
        let every = self.config.policy.demote_after.0 / ROUNDS_PER_IDLE_TIME;
        Limits {
            every: every.clamp(EVERY_LEAST, EVERY_MOST),
            pause: tracking.rearm_pause.0,
            overhead: tracking.rearm_cost.0 / 100.0,
            // Where none can be made to show there are no rounds.
            access: self.facts.shown_access.unwrap_or_default(),
        }
    }
}
