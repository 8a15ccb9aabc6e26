//! Sweeps: the page tables of a VM are read part by part, and each part is taken over as soon as it was read.
//!
//! The sweeper has one part of a VM at a time, so that a large VM does not keep others waiting, and the sweep
//! of one that ends is over with the part under way. A part tells of the time at which it was read: what was accessed
//! or moved since then is known better. While pages move, what a sweep finds is out of date. So that a VM whose pages
//! always move is seen all the same, nothing more is planned for it once the last sweep that held is too long ago.
//! A VM of which sweeps tell nothing new is swept less often.
//! VMs that are never moved are swept when somebody asks for their map, and else not at all.

use tiering_common::Frame;

use super::Engine;
use super::command::Command;
use super::looks::{Compared, Look, Looked, Swept};
use super::managed::{ManagedVm, Why};
use crate::track::VmId;

impl Engine {
    /// Sends a VM to the sweeper, if it is one that is moved.
    pub(super) fn sweep_if_moved(&mut self, id: VmId) {
        if self.vms.get(&id).is_some_and(|vm| vm.unmovable().is_none()) {
            self.start_sweep(id, Why::Due);
        }
    }

    /// Sends a VM to the sweeper, unless it is there already.
    pub(super) fn start_sweep(&mut self, id: VmId, why: Why) {
        let now = self.clock.now;
        if self.vms.get_mut(&id).is_some_and(|vm| vm.sweeps.begin(why, now)) {
            self.sweep_next_part(id);
        }
    }

    /// Returns false where no part is left.
    fn sweep_next_part(&mut self, id: VmId) -> bool {
        let Some(vm) = self.vms.get(&id) else { return false };
        let Some(part) = vm.sweeps.next_part(vm.pages.layout()) else { return false };
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
        if !vm.sweeps.are_under_way() {
            return;
        }
        match swept.sweep {
            Ok(sweep) => {
                let mut changed = 0;
                let fresh = !vm.freeing && vm.moves.moved_at(self.clock.now) < swept.began;
                if fresh {
                    let applied = vm.pages.apply(&sweep, began, now);
                    vm.watch.seen_by.sweeps += applied.unseen;
                    changed = applied.changed + vm.pages.set_huge(sweep.part, &sweep.huge);
                    let part = sweep.part.first..sweep.part.first + sweep.part.count;
                    let pages = &vm.pages;
                    vm.reclaim.keep(part, |page| pages.in_swap(pages.get(page).place()));
                }
                let part_pages = sweep.part.count;
                vm.sweeps.note(&sweep, fresh, changed, plugged_pages);
                // A VM without RAM has one part, without pages.
                if part_pages == 0 || !self.sweep_next_part(id) {
                    self.end_sweep(id);
                }
            }
            Err(error) => {
                tracing::debug!(vm = vm.info.vm.name, %error, "sweep failed");
                vm.sweeps.fail();
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
        vm.gpa_proof.answer(&compared.found, vm.moves.moved_at(now));
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
        let Some(ended) = vm.sweeps.end(self.clock.now) else { return };
        vm.note_plugged(ended.plugged_pages);
        if ended.fresh {
            vm.knowledge.recall(&mut vm.pages, &mut vm.reclaim, (self.clock.now, now));
        }
        self.answer_swept(id, ended.began, ended.fresh);
    }
}
