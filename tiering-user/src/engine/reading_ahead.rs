//! Images that VMs read are watched, and what comes next is read ahead.
//!
//! In: VMs that come and go; what they read. Out: commands to open, close and watch images, and to read parts of
//! them into the page cache.

use tiering_common::FileRead;

use super::Engine;
use super::command::Command;
use super::images::Opened;
use super::managed::ManagedVm;
use crate::track::VmId;
use crate::vm::FileId;

impl Engine {
    /// A VM has come: its images are watched, if reads of images are of use.
    pub(super) fn admit_images(&mut self, vm: &ManagedVm) {
        let rules = self.config.prefetch;
        if !(rules.enabled && rules.pull && rules.by_file) {
            return;
        }
        let process = &vm.info.vm;
        let owner = match &vm.settings.tenant {
            Some(tenant) => format!("tenant/{tenant}"),
            // Whoever starts a VM chooses its identity: it is not another one's that is there.
            None if self.vms.values().any(|other| other.info.id != vm.info.id && other.is_twin_of(vm)) => {
                format!("process/{}/{}", process.key.pid, process.key.start_time_ticks)
            }
            None => vm.identity.clone(),
        };
        let number = vm.info.id;
        self.images.enter(owner, number);
        for (id, fd) in &process.images {
            if self.images.is_open(number, *id) {
                self.join_image(number, *id, None);
                continue;
            }
            self.commands.push(Command::OpenImage { vm: vm.info.clone(), id: *id, fd: *fd });
        }
    }

    /// A VM has this image open, which was opened for its owner if it was not before.
    pub(super) fn join_image(&mut self, vm: VmId, id: FileId, opened: Option<Opened>) {
        // The VM may have ended meanwhile, or another one have had the image opened.
        let opened = match opened {
            Some(opened) if !self.images.is_here(vm) || self.images.is_open(vm, id) => {
                let name = opened.name().to_owned();
                self.commands.push(Command::CloseImage { name, id, file: opened.file });
                None
            }
            opened => opened,
        };
        if let Some((key, number)) = self.images.join(vm, id, opened) {
            self.commands.push(Command::WatchImage(key, number));
        }
    }

    /// A VM has gone.
    pub(super) fn leave_images(&mut self, vm: VmId) {
        let (unwatched, closed) = self.images.leave(vm, self.facts.unix_s);
        self.commands.extend(unwatched.into_iter().map(Command::UnwatchImage));
        for image in closed {
            let name = image.name().to_owned();
            self.commands.push(Command::CloseImage { name, id: image.id, file: image.file });
        }
    }

    /// Has read ahead what comes next in the images that VMs read.
    pub(super) fn on_reads(&mut self, reads: Vec<FileRead>) {
        let staging = self.may_stage && !self.dry_run;
        for read in reads {
            let room = if staging { self.read_budget.available(self.clock.now) } else { 0 };
            if let Some(ahead) = self.images.read(read, self.config.prefetch.threshold, room) {
                self.read_budget.spend(ahead.bytes());
                self.commands.push(Command::ReadAhead(ahead));
            }
        }
    }
}
