//! Gathers what the estimate of savings is made from.
//!
//! In, once a second: what is free of each VM; once a minute, where a VM has a control group of its own: the kernel's
//! page ages, which a helper reads. Out: for the status, what is lasting and what more can be freed. The rules are in
//! [`crate::reclaim::savings`].
//!
//! # Limits
//! What was free before the agent started is not known.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Engine;
use super::asking::ChosenBy;
use super::command::Command;
use super::managed::ManagedVm;
use crate::reclaim::savings::{self, Chooser, Estimate, Facts, REUSABLE_AFTER, STALE, Source, Tried};
use crate::sys::{Monotonic, PAGE_BYTES};
use crate::telemetry::savings::{CanFreeStatus, SavingsSource, SavingsStatus};
use crate::tiermap::Place;
use crate::tiers::TierId;
use crate::track::VmId;
use crate::vm::{Accel, Idle, NoAges, PageAges};

/// How often page ages are read.
const READ_EVERY: Duration = Duration::from_mins(1);
/// Ages that were read so long ago are not used.
const READ_LATELY: Duration = Duration::from_mins(3);
/// How often an estimate is made.
const ESTIMATE_EVERY: Duration = Duration::from_secs(10);
/// Each second of so many VMs one, and one more.
const EACH_SECOND_DIVISOR: usize = 8;

/// The kernel's page ages, as they were last read.
#[derive(Debug, Default)]
pub(super) struct HostAges {
    /// When a helper was last asked, and whether it is still at it.
    asked: Option<Monotonic>,
    reading: bool,
    read: Option<(Monotonic, Result<PageAges, NoAges>)>,
}

impl Engine {
    /// Takes in what is free, and estimates what can still be freed.
    pub(super) fn look_at_savings(&mut self) {
        let now = self.clock.now;
        self.ask_for_ages(now);
        for vm in self.vms.values_mut().filter(|vm| vm.sweeps.have_held()) {
            let free = vm.freed_bytes();
            vm.savings.free.note(free, now);
        }
        let made = |vm: &ManagedVm| vm.savings.estimated.as_ref().map(|(at, _)| *at);
        let is_due = |at: Option<Monotonic>| at.is_none_or(|at| now.since(at) >= ESTIMATE_EVERY);
        let all = self.vms.values().map(|vm| (made(vm), vm.info.id));
        let mut due: Vec<(Option<Monotonic>, VmId)> = all.filter(|(at, _)| is_due(*at)).collect();
        due.sort_unstable();
        // Not all in one second: an estimate goes through the blocks of which pages went out.
        due.truncate(self.vms.len() / EACH_SECOND_DIVISOR + 1);
        for (_, id) in due {
            let estimate = self.vms.get(&id).map(|vm| self.estimate(vm, now));
            if let Some(vm) = self.vms.get_mut(&id) {
                vm.savings.estimated = estimate.map(|estimate| (now, estimate));
            }
        }
    }

    /// Has page ages read, if it is time and somebody has a group of his own.
    fn ask_for_ages(&mut self, now: Monotonic) {
        let ages = &mut self.savings;
        if ages.reading || ages.asked.is_some_and(|at| now.since(at) < READ_EVERY) {
            return;
        }
        let groups: BTreeSet<String> =
            self.vms.values().filter_map(|vm| vm.own_group().map(str::to_owned)).collect();
        if groups.is_empty() {
            return;
        }
        (ages.asked, ages.reading) = (Some(now), true);
        self.commands.push(Command::ReadPageAges(groups));
    }

    /// Page ages were read.
    pub(super) fn on_page_ages(&mut self, read: Result<PageAges, NoAges>) {
        self.savings.reading = false;
        self.savings.read = Some((self.clock.now, read));
    }

    fn estimate(&self, vm: &ManagedVm, now: Monotonic) -> Result<Estimate, String> {
        let no_swap = || {
            let none = self.ladder.swap_tiers().next().is_none();
            none.then(|| "there is no swap tier".to_owned())
        };
        let not_moved = vm.never_to_swap().or_else(no_swap);
        if not_moved.is_none() && !vm.sweeps.have_held() {
            return Err("its page tables were not read yet, which takes seconds".to_owned());
        }
        let counts = vm.pages.counts();
        let levels = 0..vm.pages.node_tiers().0;
        let chooser = match self.chosen_by(vm, now) {
            _ if self.dry_run => Chooser::DryRun,
            ChosenBy::Agent(_) => Chooser::Agent,
            ChosenBy::Group => Chooser::Kernel { found_no_cold: vm.reclaim.has_found_no_cold() },
            ChosenBy::Host => Chooser::Kernel { found_no_cold: self.host_reclaim.has_found_no_cold() },
        };
        let ages = self.page_ages(vm, now);
        let needs_tried = chooser == Chooser::Agent && !ages.as_ref().is_ok_and(|idle| idle.is_known);
        savings::estimate(&Facts {
            in_memory_pages: levels.map(|level| counts.get(Place::In(TierId(level)))).sum(),
            touched_pages: vm.touched_pages(),
            in_use_pages: vm.working_set_pages,
            copied_pages: vm.swap_cached_bytes() / PAGE_BYTES,
            not_moved,
            ages,
            chooser,
            tried: if needs_tried { vm.reclaim.tried(now) } else { Tried::default() },
        })
    }

    /// What the kernel says of the ages of a VM's pages, or why it says nothing.
    fn page_ages(&self, vm: &ManagedVm, now: Monotonic) -> Result<Idle, String> {
        let Some(group) = vm.own_group() else {
            return Err("page ages are known only of a VM with a control group (v2) of its own".to_owned());
        };
        let read = self.savings.read.as_ref().filter(|(at, _)| now.since(*at) <= READ_LATELY);
        let Some((_, read)) = read else { return Err("page ages were not read yet".to_owned()) };
        let ages = read.as_ref().map_err(ToString::to_string)?;
        if vm.info.vm.accel == Accel::Kvm && !ages.sees_kvm {
            return Err("page ages leave out what KVM guests access before Linux 6.12".to_owned());
        }
        let group = ages.of(group).ok_or_else(|| format!("the kernel tells no page ages of {group}"))?;
        Ok(group.idle(vm.rules(self.config.policy.demote_after.0).demote_after, STALE))
    }

    /// For the status, and for who asks why.
    pub(super) fn can_free(&self, id: VmId) -> CanFreeStatus {
        let estimated = self.vms.get(&id).and_then(|vm| vm.savings.estimated.as_ref());
        match estimated {
            None => CanFreeStatus::default(),
            Some((_, Ok(estimate))) => CanFreeStatus {
                source: Some(source(estimate.source)),
                expected_bytes: Some(estimate.expected_pages * PAGE_BYTES),
                lower_bytes: estimate.lower_pages.map(|pages| pages * PAGE_BYTES),
                upper_bytes: estimate.upper_pages.map(|pages| pages * PAGE_BYTES),
                detail: Some(estimate.detail.clone()),
            },
            Some((_, Err(why))) => CanFreeStatus { detail: Some(why.clone()), ..CanFreeStatus::default() },
        }
    }

    pub(super) fn savings_status(&self, vm: &ManagedVm) -> SavingsStatus {
        let now = self.clock.now;
        let can_free = self.can_free(vm.info.id);
        let free = &vm.savings.free;
        let reusable_bytes = free.through(REUSABLE_AFTER, now).min(vm.freed_bytes());
        let touched = vm.touched_pages() * PAGE_BYTES;
        let counts = vm.pages.counts();
        let levels = 0..vm.pages.node_tiers().0;
        let in_memory: u64 = levels.map(|level| counts.get(Place::In(TierId(level)))).sum();
        let is_moved = can_free.source.is_some_and(|source| source != SavingsSource::NotMoved);
        let expected = can_free.expected_bytes.filter(|_| is_moved);
        let working_set_bytes = expected.map(|bytes| (in_memory * PAGE_BYTES).saturating_sub(bytes));
        SavingsStatus {
            reusable_bytes,
            over_s: free.known(now).as_secs(),
            free_for_1h_bytes: free.through(Duration::from_hours(1), now).min(vm.freed_bytes()),
            opportunistic_bytes: vm.freed_bytes().saturating_sub(reusable_bytes),
            can_free,
            working_set_bytes,
            cold_share: working_set_bytes
                .filter(|_| touched > 0)
                .map(|bytes| (1.0 - bytes as f64 / touched as f64).clamp(0.0, 1.0)),
        }
    }
}

fn source(source: Source) -> SavingsSource {
    match source {
        Source::PageAges => SavingsSource::PageAges,
        Source::Tried => SavingsSource::Tried,
        Source::ReadBack => SavingsSource::ReadBack,
        Source::NotMoved => SavingsSource::NotMoved,
    }
}

impl ManagedVm {
    /// The control group that holds this VM and small helpers alone.
    fn own_group(&self) -> Option<&str> {
        self.braking
            .gauge
            .as_ref()
            .map(|gauge| &gauge.memory)
            .filter(|memory| memory.is_vms_own)?
            .group
            .as_deref()
    }
}
