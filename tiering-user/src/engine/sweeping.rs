//! Sweeps: the page tables of a VM are read part by part, and each part is taken over as soon as it was read.
//!
//! The sweeper has one part of a VM at a time, so that a large VM does not keep others waiting, and the sweep
//! of one that ends is over with the part under way. A part tells of the time at which it was read: what was accessed
//! or moved since then is known better. While pages move, what a sweep finds is out of date. So that a VM whose pages
//! always move is seen all the same, nothing more is planned for it once the last sweep that held is too long ago.
//! VMs that are never moved are swept when somebody asks for their map, and else not at all.

use std::time::Duration;

use tiering_common::Frame;

use super::Engine;
use super::command::Command;
use super::looks::{Compared, Look, Looked, Swept};
use super::managed_vm::ManagedVm;
use crate::sys::Monotonic;
use crate::tiermap::{PageIndex, Sweep, part};
use crate::track::VmId;

/// A VM rests from being swept for so many times as long as that took.
const REST_FACTOR: u32 = 4;

/// A sweep that held is no longer ago, or so many times as long as one takes, before moves wait for one.
const HELD_WITHIN: Duration = Duration::from_mins(1);
const HELD_FACTOR: u32 = 8;

/// What sweeps say of a VM.
#[derive(Debug, Default)]
pub(super) struct Sweeps {
    /// Its page tables were looked at once.
    pub any: bool,
    pub under_way: Option<SweepUnderWay>,
    pub last: LastSweep,
    /// Anonymous huge pages of the process, bytes.
    pub huge_bytes: u64,
    /// Shared guest RAM in huge pages.
    pub shared_huge_bytes: u64,
    /// Room for RAM (virtio-mem) in which nothing was ever touched.
    pub unplugged_bytes: u64,
}

/// A sweep under way.
#[derive(Debug)]
pub(super) struct SweepUnderWay {
    began: Monotonic,
    /// Where the part begins that comes next.
    next: PageIndex,
    /// No part was out of date when it came.
    fresh: bool,
    huge_bytes: u64,
    shared_huge_bytes: u64,
    /// Of RAM that is plugged on demand.
    plugged_pages: u64,
}

impl SweepUnderWay {
    fn note(&mut self, sweep: &Sweep, fresh: bool) {
        self.next = sweep.part.first + sweep.part.count;
        self.fresh &= fresh;
        self.huge_bytes += sweep.huge_bytes;
        self.shared_huge_bytes += sweep.shared_huge_bytes;
    }
}

/// When a VM was swept last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LastSweep {
    pub began: Option<Monotonic>,
    took: Duration,
    /// When the last one began of which nothing was out of date.
    held: Option<Monotonic>,
}

impl LastSweep {
    /// Whether the next one is due, `every` so often.
    pub(super) fn is_over(self, every: Duration, now: Monotonic) -> bool {
        self.began.is_none_or(|began| now.since(began) >= every.max(self.took * REST_FACTOR))
    }

    /// Whether what is known of the page tables is so old that moves wait for a sweep.
    pub(super) fn is_overdue(self, now: Monotonic) -> bool {
        self.held.is_some_and(|held| now.since(held) > HELD_WITHIN.max(self.took * HELD_FACTOR))
    }
}

impl Engine {
    /// Sends a VM to the sweeper, if it is one that is moved.
    pub(super) fn sweep_if_moved(&mut self, id: VmId) {
        if self.vms.get(&id).is_some_and(|vm| vm.unmovable().is_none()) {
            self.start_sweep(id);
        }
    }

    /// Sends a VM to the sweeper, unless it is there already.
    pub(super) fn start_sweep(&mut self, id: VmId) {
        let Some(vm) = self.vms.get_mut(&id).filter(|vm| vm.sweeps.under_way.is_none()) else {
            return;
        };
        let began = self.clock.now;
        vm.sweeps.last.began = Some(began);
        let all = SweepUnderWay {
            began,
            next: 0,
            fresh: true,
            huge_bytes: 0,
            shared_huge_bytes: 0,
            plugged_pages: 0,
        };
        vm.sweeps.under_way = Some(all);
        self.sweep_next_part(id);
    }

    /// Returns false where no part is left.
    fn sweep_next_part(&mut self, id: VmId) -> bool {
        let Some(vm) = self.vms.get(&id) else { return false };
        let next = vm.sweeps.under_way.as_ref().and_then(|sweep| part(vm.pages.layout(), sweep.next));
        let Some(part) = next else { return false };
        self.commands.push(Command::Look(vm.info.clone(), Look::Sweep(part)));
        true
    }

    /// The sweeper has finished something.
    pub(super) fn on_looked(&mut self, looked: Looked) {
        match looked {
            Looked::Swept(swept) => self.on_swept(swept),
            Looked::Rearmed(rearmed) => self.on_rearmed(rearmed),
            Looked::Compared(compared) => self.on_compared(&compared),
        }
    }

    fn on_swept(&mut self, swept: Swept) {
        let (now, id) = (self.clock.seconds(), swept.vm);
        let began = self.clock.seconds_at(swept.began);
        let Some(vm) = self.vms.get_mut(&id) else { return };
        let plugged_pages = swept.sweep.as_ref().map_or(0, |sweep| vm.plugged_pages(sweep));
        let Some(under_way) = &mut vm.sweeps.under_way else { return };
        match swept.sweep {
            Ok(sweep) => {
                let fresh = vm.moves.in_flight.is_none() && !vm.freeing && vm.moves.moved_at < swept.began;
                if fresh {
                    vm.watch.seen_by.sweeps += vm.pages.apply(&sweep, began, now);
                    vm.pages.set_huge(sweep.part, &sweep.huge);
                    let part = sweep.part.first..sweep.part.first + sweep.part.count;
                    let pages = &vm.pages;
                    vm.reclaim.keep(part, |page| pages.in_swap(pages.get(page).place()));
                }
                let part_pages = sweep.part.count;
                under_way.note(&sweep, fresh);
                under_way.plugged_pages += plugged_pages;
                // A VM without RAM has one part, without pages.
                if part_pages == 0 || !self.sweep_next_part(id) {
                    self.end_sweep(id);
                }
            }
            Err(error) => {
                tracing::debug!(vm = vm.info.vm.name, %error, "sweep failed");
                vm.sweeps.under_way = None;
                self.fail_pending(id);
            }
        }
    }

    /// VMs of which frames that KVM maps are wanted now: more would tell where their RAM lies.
    pub fn wants_frames(&self) -> Vec<VmId> {
        let wants = |vm: &&ManagedVm| vm.gpa_proof.is_open() && !vm.gpa_proof.is_asked();
        self.vms.values().filter(wants).map(|vm| vm.info.id).collect()
    }

    /// Has what KVM has mapped lately compared with the page tables.
    pub(super) fn on_frames(&mut self, id: VmId, frames: &[Frame]) {
        let now = self.clock.now;
        let Some(vm) = self.vms.get_mut(&id).filter(|vm| vm.gpa_proof.is_open()) else {
            return;
        };
        if !frames.is_empty() && !vm.gpa_proof.is_asked() {
            let frames = vm.gpa_proof.ask(frames, now);
            self.commands.push(Command::Look(vm.info.clone(), Look::Compare(frames)));
        }
    }

    fn on_compared(&mut self, compared: &Compared) {
        let now = self.clock.now;
        let Some(vm) = self.vms.get_mut(&compared.vm).filter(|vm| vm.gpa_proof.is_open()) else {
            return;
        };
        let moved_at = if vm.moves.in_flight.is_some() { now } else { vm.moves.moved_at };
        vm.gpa_proof.answer(&compared.found, moved_at);
        if vm.gpa_proof.is_open() {
            return;
        }
        self.commands.push(Command::EnoughFrames(vm.info.id));
        let name = vm.info.vm.name.as_str();
        match vm.gpa_proof.is_wrong() {
            false => tracing::info!(vm = name, "guest-physical addresses proved"),
            true => tracing::warn!(vm = name, "{}", vm.unmovable().unwrap_or_default()),
        }
    }

    fn end_sweep(&mut self, id: VmId) {
        let now = self.clock.seconds();
        let Some(vm) = self.vms.get_mut(&id) else { return };
        let Some(ended) = vm.sweeps.under_way.take() else { return };
        vm.sweeps.last.took = self.clock.now.since(ended.began);
        vm.sweeps.huge_bytes = ended.huge_bytes;
        vm.sweeps.shared_huge_bytes = ended.shared_huge_bytes;
        vm.note_plugged(ended.plugged_pages);
        if ended.fresh {
            vm.sweeps.last.held = Some(ended.began);
            vm.sweeps.any = true;
            vm.knowledge.recall(&mut vm.pages, &mut vm.reclaim, (self.clock.now, now));
        }
        self.answer_swept(id, ended.began, ended.fresh);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_that_takes_long_to_sweep_is_swept_less_often() {
        let at = |seconds: u64| Monotonic(seconds * 1_000_000_000);
        let every = Duration::from_secs(30);
        assert!(LastSweep::default().is_over(every, at(0)));
        let last = |took| LastSweep {
            began: Some(at(100)),
            took: Duration::from_secs(took),
            ..LastSweep::default()
        };
        assert!(!last(2).is_over(every, at(129)) && last(2).is_over(every, at(130)));
        assert!(!last(20).is_over(every, at(179)) && last(20).is_over(every, at(180)));
    }

    #[test]
    fn moves_wait_for_a_sweep_where_the_last_one_that_held_is_long_ago() {
        let at = |seconds: u64| Monotonic(seconds * 1_000_000_000);
        assert!(!LastSweep::default().is_overdue(at(1000)), "the first one is waited for anyway");
        let held =
            |took| LastSweep { began: Some(at(190)), took: Duration::from_secs(took), held: Some(at(100)) };
        assert!(!held(1).is_overdue(at(160)) && held(1).is_overdue(at(161)));
        assert!(!held(10).is_overdue(at(180)) && held(10).is_overdue(at(181)), "of a large VM");
    }
}
