//! Rounds of watching: the mapped pages of KVM guests are armed anew, so that they show their accesses.
//!
//! In: what is known of a VM, what re-arming cost. Out: VMs sent to the sweeper to be armed; since when all
//! that a VM accesses shows, for the policy.

use std::time::Duration;

use super::Engine;
use super::command::Command;
use super::looks::{Look, Rearmed};
use super::managed_vm::ManagedVm;
use crate::sys::{Monotonic, PAGE_BYTES};
use crate::telemetry::status::RearmStatus;
use crate::tiermap::{BLOCK_PAGES, PageEntry, PageIndex, PageRun, Place, Seconds};
use crate::trace::Event;
use crate::track::{Limits, Rounds, Turn, VmId};
use crate::vm::Accel;

/// How many rounds there are in the time after which an idle page goes down, if they cost little enough.
const ROUNDS_PER_IDLE_TIME: u32 = 8;
const EVERY_LEAST: Duration = Duration::from_secs(1);
const EVERY_MOST: Duration = Duration::from_mins(1);
/// Rounds after which KVM has mapped anew what could prove where a VM's RAM lies.
const ROUNDS_TO_PROVE: u64 = 8;

/// Which accesses of a VM are seen.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// When its mapped pages are armed anew, since when they are, and whether they are being armed now.
    pub rounds: Rounds,
    pub armed_at: Option<Seconds>,
    pub arming: bool,
    pub seen_by: SeenBy,
    /// All of its touches were seen since then.
    pub seen_since: Monotonic,
    /// Until then touches may not have been seen: it is sampled, or the ring was full.
    pub unseen_until: Monotonic,
    /// Samples of it that were dropped when that was looked at.
    pub dropped_samples: u64,
}

impl Engine {
    /// Ends the round of a VM of which accesses were missed, or that is not watched in rounds any more.
    pub(super) fn look_at_round(&mut self, id: VmId) {
        let (now, clock) = (self.clock.now, self.clock.seconds());
        let ends = self.vms.get(&id).is_some_and(|vm| self.why_not_rearmed(vm).is_some());
        let Some(vm) = self.vms.get_mut(&id) else { return };
        if vm.watch.rounds.began().is_some_and(|began| began < vm.watch.unseen_until) {
            vm.watch.rounds.missed(now);
            vm.disarmed(clock);
        } else if ends && vm.watch.armed_at.is_some() {
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
                vm.moves.in_flight.is_some() || vm.prefetch.staging.is_some() || now < vm.watch.unseen_until;
            !busy
                && self.why_not_rearmed(vm).is_none()
                && vm
                    .entries()
                    .is_some_and(|entries| vm.watch.rounds.turn(entries, &limits, now) == Turn::Due)
        };
        if self.vms.values().any(|vm| vm.watch.arming) {
            return;
        }
        let longest = self.vms.values().filter(is_due).min_by_key(|vm| vm.watch.rounds.last_began());
        let Some(id) = longest.map(|vm| vm.info.id) else { return };
        if let Some(vm) = self.vms.get_mut(&id) {
            vm.watch.arming = true;
            self.commands.push(Command::Look(vm.info.clone(), Look::Rearm));
        }
    }

    pub(super) fn on_rearmed(&mut self, rearmed: Rearmed) {
        let (now, limits) = (self.clock.seconds(), self.rearm_limits());
        let clock = self.clock;
        let Some(vm) = self.vms.get_mut(&rearmed.vm) else { return };
        vm.watch.arming = false;
        match rearmed.took {
            Ok(took) => {
                let again = clock.seconds_at(rearmed.began);
                let written = rearmed.written.unwrap_or_default();
                let ended = vm.watch.armed_at.map(|began| {
                    vm.watch.seen_by.written += vm.pages.written(&written, began, again);
                    vm.pages.end_round(began, again, now)
                });
                let entries = vm.entries().unwrap_or(0);
                vm.watch.rounds.begin(rearmed.began, took, entries, ended.unwrap_or_default(), &limits);
                // Until it is proved where its RAM lies no access counts; re-arming has KVM map what proves it.
                vm.watch.armed_at = vm.gpa_proof.is_complete().then_some(again);
                if vm.watch.armed_at.is_some() {
                    self.record_event(rearmed.began, &Event::Armed(rearmed.vm));
                }
            }
            Err(error) => {
                tracing::debug!(vm = vm.info.vm.name, %error, "its pages cannot be armed anew");
                vm.watch.rounds.failed(clock.now);
                vm.disarmed(now);
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

/// Accesses of a VM, by what told of them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SeenBy {
    /// Faults of QEMU itself, or of a guest that it emulates.
    pub faults: u64,
    /// Faults of a KVM guest.
    pub kvm: u64,
    /// The same, of pages in memory that were armed for it.
    pub armed: u64,
    /// Pages that were written in a round in which they had shown no access.
    pub written: u64,
    /// Pages of regions that DAMON found accessed.
    pub damon: u64,
    /// Pages that a sweep found back in memory.
    pub sweeps: u64,
}

impl SeenBy {
    pub(super) fn note(&mut self, kvm: bool, armed: bool, weight: u32) {
        let count = match (kvm, armed) {
            (false, _) => &mut self.faults,
            (true, false) => &mut self.kvm,
            (true, true) => &mut self.armed,
        };
        *count += u64::from(weight);
    }
}

impl ManagedVm {
    /// How long a page was certainly not accessed, seconds.
    pub(super) fn surely_idle(&self, entry: PageEntry, now: Seconds) -> u16 {
        let idle = entry.idle(now);
        let shows_since = match self.watch.armed_at {
            _ if self.pages.in_swap(entry.place()) => idle,
            Some(armed_at) => now.0.wrapping_sub(armed_at.0),
            None => return 0,
        };
        // What was accessed since it was armed shows nothing more.
        if idle <= shows_since && !self.pages.in_swap(entry.place()) { 0 } else { idle.min(shows_since) }
    }

    /// A mapped page was accessed, of which `before` was known.
    pub(super) fn note_shown(&mut self, page: PageIndex, before: PageEntry, now: Seconds) {
        let Some(armed_at) = self.watch.armed_at else { return };
        let round = now.0.wrapping_sub(armed_at.0);
        // What the last round showed was said to be in use until a second before it ended.
        self.watch.rounds.note(before.idle(now) > round.saturating_add(1));
        // KVM maps a huge page as one: the others show no access of their own.
        if self.pages.block_of(page).huge {
            let first = page - page % BLOCK_PAGES;
            for run in [first..page, page + 1..first + BLOCK_PAGES] {
                let count = run.end - run.start;
                self.pages.touch_region(PageRun { first: run.start, count }, now, 1);
            }
        }
    }

    /// Why re-arming would show nothing of it.
    fn why_not_armed(&self) -> Option<&'static str> {
        if self.info.vm.accel != Accel::Kvm {
            return Some("it does not run under KVM");
        }
        if self.unmovable().is_some() {
            return Some("nothing of it is moved anyway");
        }
        if self.gpa_proof.is_wrong() {
            return Some("its RAM is not where its machine type puts it");
        }
        if self.sweeps.shared_huge_bytes > 0 {
            return Some("it has shared memory in huge pages, of which KVM shows one access each");
        }
        let given_up = self.watch.rounds.count() >= ROUNDS_TO_PROVE && self.gpa_proof.is_open();
        (given_up || self.gpa_proof.has_unknown())
            .then_some("of some of its RAM it is not proved where the guest sees it")
    }

    /// What it has mapped shows no accesses any more, and may be in use up to now.
    fn disarmed(&mut self, now: Seconds) {
        if let Some(armed_at) = self.watch.armed_at.take() {
            self.pages.end_round(armed_at, now, now);
        }
    }

    /// Entries of its page tables for guest RAM, in memory or in swap; none before they were looked at.
    fn entries(&self) -> Option<u64> {
        let counts = self.pages.counts();
        let pages = u64::from(self.pages.layout().pages()) - counts.get(Place::Untouched);
        let huge_pages = self.sweeps.huge_bytes / PAGE_BYTES;
        self.sweeps.any.then(|| pages.saturating_sub(huge_pages) + huge_pages / u64::from(BLOCK_PAGES))
    }
}
