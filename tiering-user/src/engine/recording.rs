//! Tells whoever records it what happens to the memory of VMs.
//!
//! In: accesses, moves, VMs that come and go. Out: blocks of a trace, into a bounded channel. Who reads them too
//! slowly loses whole blocks, and is told how many accesses were in them. While nobody records it costs nothing.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::Engine;
use super::managed::ManagedVm;
use crate::actuate::Outcome;
use crate::policy::Action;
use crate::sys::Monotonic;
use crate::telemetry::request::ApiError;
use crate::tiermap::{PageRun, Place};
use crate::trace::{Appeared, Block, Event, MAGIC};
use crate::track::{Access, VmId};

/// One recording, to one reader.
#[derive(Debug)]
pub(super) struct Recording {
    sink: mpsc::Sender<Vec<u8>>,
    /// Ids in the status of the VMs that are recorded; none for all of them.
    only: BTreeSet<String>,
    /// VMs that the reader was told of, and whether it knows them now: what told of them may have been lost.
    told: BTreeMap<VmId, bool>,
    block: Block,
    lost: u64,
}

impl Recording {
    pub(super) fn push(&mut self, time: Monotonic, event: &Event) {
        match event.vm().and_then(|vm| self.told.get(&vm)) {
            Some(true) => self.block.push(time, event),
            Some(false) => self.lost += u64::from(matches!(event, Event::Accessed { .. })),
            None => {}
        }
        if self.block.is_full() {
            self.send(time);
        }
    }

    fn knows(&self, vm: VmId) -> bool {
        self.told.get(&vm) == Some(&true)
    }

    fn send(&mut self, time: Monotonic) {
        if self.lost > 0 && !self.sink.is_closed() && self.sink.capacity() > 0 {
            self.block.push(time, &Event::Lost(std::mem::take(&mut self.lost)));
        }
        let accesses = self.block.accesses();
        if let Err(TrySendError::Full(_)) = self.sink.try_send(self.block.take()) {
            self.lost += accesses;
            self.told.values_mut().for_each(|knows| *knows = false);
        }
    }

    /// The VM as it is now.
    fn tell(&mut self, vm: &ManagedVm, now: Monotonic) {
        let pages = &vm.pages;
        let appeared = Appeared {
            vm: vm.info.id,
            name: vm.info.vm.name.clone(),
            pages: pages.layout().pages(),
            priority: vm.priority(),
            node_tiers: pages.node_tiers().0,
        };
        self.told.insert(vm.info.id, true);
        self.push(now, &Event::Appeared(appeared));
        let mut found: Option<(PageRun, Place)> = None;
        let mut runs = Vec::new();
        pages.for_each(|page, entry| match &mut found {
            Some((run, place)) if *place == entry.place() && run.first + run.count == page => run.count += 1,
            _ => runs.extend(found.replace((PageRun { first: page, count: 1 }, entry.place()))),
        });
        for (run, place) in runs.into_iter().chain(found) {
            // A block of them may be lost, and with it all that it told.
            if self.knows(vm.info.id) {
                self.push(now, &Event::Found { vm: vm.info.id, run, place });
            }
        }
        // Usage is told as totals: without a first one the next says nothing of the time between.
        if let Some(usage) = vm.braking.usage() {
            self.push(now, &Event::Used { vm: vm.info.id, usage: Some(usage) });
        }
    }
}

impl Engine {
    /// Begins a recording. It ends when nobody reads it any more.
    pub(super) fn record(
        &mut self,
        only: BTreeSet<String>,
        sink: mpsc::Sender<Vec<u8>>,
    ) -> Result<(), ApiError> {
        if self.recording.as_ref().is_some_and(|recording| !recording.sink.is_closed()) {
            let text = "somebody else records already: one `tiering record` at a time";
            return Err(ApiError::Refused(text.to_owned()));
        }
        sink.try_send(MAGIC.to_vec()).ok();
        let told = BTreeMap::new();
        self.recording = Some(Recording { sink, only, told, block: Block::default(), lost: 0 });
        Ok(())
    }

    /// Once a second: VMs that the reader does not know yet, and what was not sent yet.
    pub(super) fn go_on_recording(&mut self) {
        let now = self.clock.now;
        self.recording.take_if(|recording| recording.sink.is_closed());
        let Some(recording) = &mut self.recording else { return };
        let wanted = |vm: &&ManagedVm, only: &BTreeSet<String>| only.is_empty() || only.contains(&vm.id);
        // A VM that is not moved is not swept: what its accesses have told of it is all that is known.
        let told = |vm: &&ManagedVm| vm.sweeps.have_held() || vm.unmovable().is_some();
        for vm in self.vms.values().filter(told) {
            let room = recording.sink.capacity() > 0;
            if room && wanted(&vm, &recording.only) && !recording.knows(vm.info.id) {
                recording.tell(vm, now);
            }
        }
        if !recording.block.is_empty() || recording.lost > 0 {
            recording.send(now);
        }
    }

    /// Something happened to a VM.
    pub(super) fn record_event(&mut self, time: Monotonic, event: &Event) {
        if let Some(recording) = &mut self.recording {
            recording.push(time, event);
        }
    }

    pub(super) fn record_access(&mut self, access: &Access) {
        if let Some(recording) = &mut self.recording
            && let Some(vm) = self.vms.get(&access.vm)
            && let Some(page) = vm.pages.layout().page(access.hva)
        {
            let Access { vm, write, weight, time, .. } = *access;
            let weight_log2 = u8::try_from(weight.checked_ilog2().unwrap_or(0)).unwrap_or(0);
            recording.push(time, &Event::Accessed { vm, page, write, weight_log2 });
        }
    }

    pub(super) fn record_move(&mut self, outcome: &Outcome) {
        if let (Some(recording), Action::Place { .. }) = (&mut self.recording, outcome.action) {
            for (run, place) in &outcome.found {
                recording.push(self.clock.now, &Event::Moved { vm: outcome.vm, run: *run, place: *place });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{Reader, Timed};

    const VM: VmId = VmId(1);

    fn access(number: u64) -> (Monotonic, Event) {
        let page = (number * 7919 % 65_536) as u32;
        (Monotonic(number * 100_000), Event::Accessed { vm: VM, page, write: false, weight_log2: 0 })
    }

    #[test]
    fn a_slow_reader_loses_blocks_and_is_told_how_much() {
        let (sink, mut blocks) = mpsc::channel(4);
        let (only, told) = (BTreeSet::new(), [(VM, true)].into());
        let mut recording = Recording { sink, only, told, block: Block::default(), lost: 0 };
        let push = |recording: &mut Recording, numbers: std::ops::Range<u64>| {
            numbers.map(access).for_each(|(time, event)| recording.push(time, &event));
        };
        push(&mut recording, 0..200_000);
        assert!(!recording.knows(VM) && recording.lost > 100_000, "{}", recording.lost);
        let mut trace = MAGIC.to_vec();
        while let Ok(block) = blocks.try_recv() {
            trace.extend(block);
        }
        // It is told of the VM again.
        recording.told.insert(VM, true);
        push(&mut recording, 200_000..200_010);
        recording.send(Monotonic(1 << 40));
        trace.extend(blocks.try_recv().unwrap());

        let (mut came, mut lost) = (0, 0);
        let mut reader = Reader::new(&trace[..]).unwrap();
        reader
            .for_each(|Timed { event, .. }| match event {
                Event::Lost(accesses) => lost += accesses,
                _ => came += 1,
            })
            .unwrap();
        assert_eq!(came + lost, 200_010);
        assert!(came > 10 && lost > 100_000, "{came} {lost}");
    }

    #[test]
    fn a_vm_of_which_nothing_was_told_is_not_recorded() {
        let (sink, mut blocks) = mpsc::channel(4);
        let (only, told) = (BTreeSet::new(), BTreeMap::new());
        let mut recording = Recording { sink, only, told, block: Block::default(), lost: 0 };
        let (time, event) = access(1);
        recording.push(time, &event);
        assert!(recording.block.is_empty() && recording.lost == 0 && blocks.try_recv().is_err());
    }
}
