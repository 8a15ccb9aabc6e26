//! Rounds of watching: the mapped pages of KVM guests are armed anew, so that they show their accesses.
//!
//! In: what is known of a machine, what re-arming cost. Out: machines sent to the sweeper to be armed; since when all that a machine accesses
//! shows, for the policy.

use std::time::Duration;

use super::machine::Machine;
use super::state::State;
use super::watch::{Look, Rearmed};
use crate::bpf::{Delivery, Faults, Source};
use crate::sys::{self, PAGE_BYTES};
use crate::telemetry::status::RearmStatus;
use crate::tiermap::{BLOCK_PAGES, PageEntry, Place, Seconds};
use crate::tiers::TierId;
use crate::track::{Limits, Turn, VmId};
use crate::vm::Accel;

/// How many rounds there are in the time after which an idle page goes down, if they cost little enough.
const ROUNDS_PER_IDLE_TIME: u32 = 8;
const EVERY_LEAST: Duration = Duration::from_secs(1);
const EVERY_MOST: Duration = Duration::from_mins(1);

impl State {
    /// Has a machine armed anew where that is due.
    pub(super) fn rearm(&mut self, id: VmId) {
        let (limits, now) = (self.rearm_limits(), sys::now());
        let ends = self.machines.get(&id).is_some_and(|machine| self.why_not_rearmed(machine).is_some());
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let missed = machine.rounds.began().is_some_and(|began| began < machine.unseen_until);
        if ends || missed {
            machine.disarmed();
        }
        if machine.excess_pages > 0 {
            machine.rounds.hurry();
        }
        // What comes while accesses are missed would not be seen.
        let waits = ends || machine.rearm_running || now < machine.unseen_until;
        if waits || machine.rounds.turn(machine.entries(), &limits, now) != Turn::Due {
            return;
        }
        machine.rearm_running = true;
        self.sweeper.send(machine.target.clone(), Look::Rearm);
    }

    pub(super) fn on_rearmed(&mut self, rearmed: Rearmed) {
        let (now, limits) = (self.clock.seconds(), self.rearm_limits());
        let clock = self.clock;
        let Some(machine) = self.machines.get_mut(&rearmed.vm) else { return };
        machine.rearm_running = false;
        match rearmed.took {
            Ok(took) => {
                let again = clock.seconds_at(rearmed.began);
                let ended = machine.armed_at.map(|began| machine.pages.end_round(began, again, now));
                let entries = machine.entries();
                machine.rounds.begin(rearmed.began, took, entries, ended.unwrap_or_default(), &limits);
                // Until it is proved where its RAM lies no access counts; re-arming has KVM map what proves it.
                machine.armed_at = (!machine.layout.is_open()).then_some(again);
            }
            Err(error) => {
                let vm = machine.target.vm.name.as_str();
                tracing::debug!(vm, %error, "its pages cannot be armed anew");
                machine.rounds.failed(sys::now());
                machine.armed_at = None;
            }
        }
    }

    /// Whether accesses to mapped pages can be made to show, as far as that does not depend on the machine.
    pub(super) fn look_whether_to_rearm(&mut self, faults: &Faults) {
        self.may_rearm = matches!(faults.rearming().delivery(), Delivery::Active(_));
    }

    /// Why a machine's mapped pages do not show their accesses in rounds.
    pub(super) fn why_not_rearmed(&self, machine: &Machine) -> Option<String> {
        let too_long = |pause: Duration| {
            let ms = pause.as_secs_f64() * 1e3;
            format!("it would hold up page faults for {ms:.0} ms (tracking.rearm_pause)")
        };
        match machine.rounds.turn(machine.entries(), &self.rearm_limits(), sys::now()) {
            _ if !self.config.tracking.rearm => Some("switched off (tracking.rearm)".to_owned()),
            _ if !self.may_rearm => Some("see the source `rearming`".to_owned()),
            _ if machine.why_not_armed().is_some() => machine.why_not_armed().map(str::to_owned),
            Turn::TooLong(pause) => Some(too_long(pause)),
            Turn::Due | Turn::NotYet => None,
        }
    }

    /// What `status` says of a machine's rounds.
    pub(super) fn rearm_status(&self, machine: &Machine) -> RearmStatus {
        let every = machine.rounds.every(machine.entries(), &self.rearm_limits());
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        RearmStatus {
            why_not: self.why_not_rearmed(machine),
            rounds_total: machine.rounds.count(),
            every_ns: nanos(every),
            pause_ns: machine.rounds.took().map(nanos),
            used_bytes: machine.rounds.last().used * PAGE_BYTES,
        }
    }

    fn rearm_limits(&self) -> Limits {
        let tracking = &self.config.tracking;
        let every = self.config.policy.demote_after.0 / ROUNDS_PER_IDLE_TIME;
        Limits {
            every: every.clamp(EVERY_LEAST, EVERY_MOST),
            pause: tracking.rearm_pause.0,
            overhead: tracking.rearm_cost.0 / 100.0,
        }
    }
}

/// Accesses of a machine, by what told of them.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SeenBy {
    /// Faults of QEMU itself, or of a guest that it emulates.
    pub faults: u64,
    /// Faults of a KVM guest.
    pub kvm: u64,
    /// The same, of pages in memory that were armed for it.
    pub armed: u64,
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

impl Machine {
    /// How long a page was certainly not accessed, seconds.
    pub(super) fn surely_idle(&self, entry: PageEntry, now: Seconds) -> u16 {
        let idle = entry.idle(now);
        let shows_since = match self.armed_at {
            _ if self.pages.in_swap(entry.place()) => idle,
            Some(armed_at) => now.0.wrapping_sub(armed_at.0),
            None => return 0,
        };
        // What was accessed since it was armed shows nothing more.
        if idle <= shows_since && !self.pages.in_swap(entry.place()) { 0 } else { idle.min(shows_since) }
    }

    /// A mapped page was accessed, of which `before` was known.
    pub(super) fn note_shown(&mut self, before: PageEntry, now: Seconds) {
        let Some(armed_at) = self.armed_at else { return };
        let round = now.0.wrapping_sub(armed_at.0);
        // What the last round showed was said to be in use until a second before it ended.
        if before.idle(now) > round.saturating_add(1) {
            self.rounds.note_new();
        }
    }

    /// Why re-arming would show nothing of it.
    fn why_not_armed(&self) -> Option<&'static str> {
        if self.target.vm.accel != Accel::Kvm {
            return Some("it does not run under KVM");
        }
        if self.unmovable().is_some() {
            return Some("nothing of it is moved anyway");
        }
        self.layout.is_wrong().then_some("its RAM is not where its machine type puts it")
    }

    /// Accesses were missed: what it has mapped may be in use.
    fn disarmed(&mut self) {
        self.rounds.forget();
        self.armed_at = None;
    }

    /// Entries of its page tables that map guest RAM.
    fn entries(&self) -> u64 {
        let levels = 0..self.pages.node_tiers().0;
        let mapped: u64 = levels.map(|level| self.pages.counts().get(Place::In(TierId(level)))).sum();
        let huge_pages = self.huge_bytes / PAGE_BYTES;
        mapped.saturating_sub(huge_pages) + huge_pages / u64::from(BLOCK_PAGES)
    }
}
