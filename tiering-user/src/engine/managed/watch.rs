//! Which accesses of a VM are seen, and what that says of its pages.

use std::time::Duration;

use super::ManagedVm;
use crate::predict::PATIENCE;
use crate::sys::{Monotonic, PAGE_BYTES};
use crate::tiermap::{BLOCK_PAGES, PageEntry, PageIndex, PageRun, Place, Seconds};
use crate::track::{LOOK_AT_LEAST_EVERY, Rounds};
use crate::vm::Accel;

/// Rounds after which KVM has mapped anew what could prove where a VM's RAM lies.
const ROUNDS_TO_PROVE: u64 = 8;

/// What was staged while not all touches were seen is not staged any more after that, as a rule.
const BLIND: Duration = PATIENCE.saturating_add(LOOK_AT_LEAST_EVERY);

/// Which accesses of a VM are seen.
#[derive(Debug, Default)]
pub struct Watch {
    /// When its mapped pages are armed anew.
    pub rounds: Rounds,
    pub seen_by: SeenBy,
    armed_at: Option<Seconds>,
    arming: bool,
    seen_since: Monotonic,
    /// Until then touches may not have been seen: it is sampled, or the ring was full.
    unseen_until: Monotonic,
    dropped_samples: u64,
}

impl Watch {
    /// Since when its mapped pages show their accesses.
    pub fn armed_at(&self) -> Option<Seconds> {
        self.armed_at
    }

    /// It is sent to be armed.
    pub fn begin_arming(&mut self) {
        self.arming = true;
    }

    pub fn is_being_armed(&self) -> bool {
        self.arming
    }

    /// It was armed, or could not be.
    pub fn end_arming(&mut self, armed_at: Option<Seconds>) {
        self.arming = false;
        self.armed_at = armed_at;
    }

    /// Of its accesses so many samples were dropped so far, and only some are looked at if it is `sampled`. Returns
    /// whether accesses were not seen lately.
    pub fn note_dropped(&mut self, dropped: u64, sampled: bool, now: Monotonic) -> bool {
        let unseen = dropped > std::mem::replace(&mut self.dropped_samples, dropped) || sampled;
        if unseen {
            self.note_unseen(now);
        }
        unseen
    }

    /// Until now not all of its touches were seen; they are from the next look on, at best.
    pub fn note_unseen(&mut self, now: Monotonic) {
        self.seen_since = now.after(LOOK_AT_LEAST_EVERY);
        self.unseen_until = now.after(BLIND);
    }

    /// Since when all of its touches were seen.
    pub fn seen_since(&self) -> Monotonic {
        self.seen_since
    }

    /// Whether touches at this time, or after it, may not have been seen.
    pub fn may_have_missed(&self, time: Monotonic) -> bool {
        time < self.unseen_until
    }
}

/// Accesses of a VM, by what told of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct SeenBy {
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
    pub fn note(&mut self, kvm: bool, armed: bool, weight: u32) {
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
    pub fn surely_idle(&self, entry: PageEntry, now: Seconds) -> u16 {
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
    pub fn note_shown(&mut self, page: PageIndex, before: PageEntry, now: Seconds) {
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
    pub fn why_not_armed(&self) -> Option<&'static str> {
        if self.info.vm.accel != Accel::Kvm {
            return Some("it does not run under KVM");
        }
        if self.unmovable().is_some() {
            return Some("nothing of it is moved anyway");
        }
        if self.gpa_proof.is_wrong() {
            return Some("its RAM is not where its machine type puts it");
        }
        if self.sweeps.shared_huge_bytes() > 0 {
            return Some("it has shared memory in huge pages, of which KVM shows one access each");
        }
        let given_up = self.watch.rounds.count() >= ROUNDS_TO_PROVE && self.gpa_proof.is_open();
        (given_up || self.gpa_proof.has_unknown())
            .then_some("of some of its RAM it is not proved where the guest sees it")
    }

    /// What it has mapped shows no accesses any more, and may be in use up to now.
    pub fn disarmed(&mut self, now: Seconds) {
        if let Some(armed_at) = self.watch.armed_at.take() {
            self.pages.end_round(armed_at, now, now);
        }
    }

    /// Entries of its page tables for guest RAM, in memory or in swap; none before they were looked at.
    pub fn entries(&self) -> Option<u64> {
        let counts = self.pages.counts();
        let pages = u64::from(self.pages.layout().pages()) - counts.get(Place::Untouched);
        let huge_pages = self.sweeps.huge_bytes() / PAGE_BYTES;
        self.sweeps
            .have_held()
            .then(|| pages.saturating_sub(huge_pages) + huge_pages / u64::from(BLOCK_PAGES))
    }
}
