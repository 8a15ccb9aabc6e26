//! Images that machines read are watched, and what comes next is read ahead.
//!
//! In: machines that come and go; reads from the ring. Out: reads of images into the page cache, by helper threads,
//! since the server that an image is on may be down.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use super::aside::Found;
use super::helpers::{Spot, Subject};
use super::images::{Ahead, Opened, open};
use super::knowledge::identity;
use super::machine::Machine;
use super::state::State;
use crate::actuate::read_ahead;
use crate::bpf::Faults;
use crate::sys::{self, unix_seconds};
use crate::track::VmId;
use crate::vm::FileId;

/// Reads that are taken out of the ring in one go.
const MOST_READS: usize = 4096;

impl State {
    /// A machine has come: its images are watched, if reads of images are of use.
    pub(super) fn admit_images(&mut self, machine: &Machine, faults: &mut Faults) {
        let rules = self.config.prefetch;
        if !(rules.enabled && rules.pull && rules.by_file) {
            return;
        }
        let vm = &machine.target.vm;
        let owner = match &machine.settings.tenant {
            Some(tenant) => format!("tenant/{tenant}"),
            // Whoever starts a machine chooses its identity: it is not another one's that is there.
            None if self.machines.values().any(|other| {
                other.target.id != machine.target.id && identity(&other.target.vm) == identity(vm)
            }) =>
            {
                format!("process/{}/{}", vm.key.pid, vm.key.start_time_ticks)
            }
            None => identity(vm),
        };
        let number = machine.target.id;
        self.images.enter(owner, number);
        for (id, fd) in &vm.images {
            if self.images.is_open(number, *id) {
                self.join_image(number, *id, None, faults);
                continue;
            }
            let path = Path::new("/proc").join(vm.key.pid.to_string()).join("fd").join(fd.to_string());
            // What the link says is known without a look at the file.
            let name = std::fs::read_link(&path).unwrap_or_default();
            let subject = Subject {
                what: format!("opening the image {} of {}", name.display(), vm.name),
                without: "nothing of it is read ahead",
            };
            let (id, found) = (*id, self.aside.found.clone());
            self.aside.files.look(Spot::FileSystem(id.device), subject, move || {
                // Who has just ended has none.
                if let Some(opened) = open(&path, id) {
                    found.send(Found::Image(number, id, opened)).ok();
                }
            });
        }
    }

    /// A machine has this image open, which was opened for its owner if it was not before.
    pub(super) fn join_image(&mut self, vm: VmId, id: FileId, opened: Option<Opened>, faults: &mut Faults) {
        // The machine may have ended meanwhile, or another one have had the image opened.
        let opened = match opened {
            Some(opened) if !self.images.is_here(vm) || self.images.is_open(vm, id) => {
                let name = opened.name().to_owned();
                self.close(&name, id, opened.file);
                None
            }
            opened => opened,
        };
        if let Some((key, number)) = self.images.join(vm, id, opened)
            && let Err(error) = faults.watch_image(key, number)
        {
            tracing::warn!(inode = id.inode, %error, "an image is not watched");
        }
    }

    /// A machine has gone.
    pub(super) fn leave_images(&mut self, vm: VmId, faults: &mut Faults) {
        let (unwatched, closed) = self.images.leave(vm, unix_seconds());
        for key in unwatched {
            faults.reads.unwatch(key);
        }
        for image in closed {
            let name = image.name().to_owned();
            self.close(&name, image.id, image.file);
        }
    }

    /// Closes an image. A server that is down may be asked.
    fn close(&self, name: &str, id: FileId, file: Arc<File>) {
        let subject =
            Subject { what: format!("closing the image {name}"), without: "its descriptor stays in use" };
        self.aside.files.look(Spot::FileSystem(id.device), subject, move || drop(file));
    }

    /// Takes what machines had read from images, and has read ahead what comes next.
    pub(super) fn drain_reads(&mut self, faults: &mut Faults) -> usize {
        let reads = faults.reads.drain(MOST_READS);
        let staging = self.may_stage && !self.dry_run;
        let count = reads.len();
        for read in reads {
            let room = if staging { self.read_budget.available(sys::now()) } else { 0 };
            let ahead = self.images.read(read, self.config.prefetch.threshold, room);
            if let Some(Ahead { device, name, file, parts }) = ahead {
                let bytes = parts.iter().map(|part| part.end - part.start).sum();
                self.read_budget.spend(bytes);
                let subject = Subject {
                    what: format!("reading ahead in the image {name}"),
                    without: "nothing more of its file system is read ahead",
                };
                let found = self.aside.found.clone();
                self.aside.readers.look(Spot::FileSystem(device), subject, move || {
                    read_ahead(&file, &parts);
                    found.send(Found::ReadAhead { device, bytes }).ok();
                });
            }
        }
        count
    }
}
