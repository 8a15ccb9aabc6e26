//! Tells the [`Engine`] what happens, and has done what it decides.
//!
//! In: what the channels and the kernel side bring. Out: events, each with its time, and the commands that they lead
//! to. VMs are tracked here before they are told of: their processes are held by pidfd, and by nobody else.

use std::sync::Arc;
use std::time::Duration;

use tiering_common::{SAMPLE_KVM, Sample};

use super::aside::Found;
use super::descriptors::{HoldError, check_room, take_hold};
use super::left_out::LeftOut;
use super::perform::Hands;
use super::survey::Survey;
use crate::bpf::{Counters, Delivery, KVM_ATTACH_KINDS, Source, Watching};
use crate::config::ReclaimBy;
use crate::engine::{Engine, Event, Readings, Scanned};
use crate::sys;
use crate::telemetry::status::{BlockCounts, SourceState, SourceStatus, Status};
use crate::track::VmId;
use crate::vm::{Accel, Changes, ProcessKey, Refusal, Vm, VmError};

/// Samples of one drain; between two, the other channels get their turn.
const DRAIN_SAMPLES: usize = 16_384;
/// Reads of images that are taken out of the ring in one go.
const MOST_READS: usize = 4096;
/// Regions thrown away at a time.
const MOST_REGIONS: usize = 4096;
/// A lane may be at one job for so long.
const JOB_DEADLINE: Duration = Duration::from_mins(1);

pub(super) struct Shell {
    pub engine: Engine,
    pub hands: Hands,
    pub survey: Survey,
    left_out: LeftOut,
    next_id: u32,
    batch: Vec<Sample>,
}

impl Shell {
    pub(super) fn new(engine: Engine, hands: Hands, survey: Survey) -> Self {
        Self { engine, hands, survey, left_out: LeftOut::default(), next_id: 1, batch: Vec::new() }
    }

    pub(super) fn tell(&mut self, event: Event<'_>) {
        let hands = &mut self.hands;
        self.engine.handle(sys::now(), event, &mut |command| hands.perform(command));
    }

    /// Takes out of the rings what is there. Returns how much that was.
    pub(super) fn drain(&mut self) -> usize {
        let samples = self.drain_samples();
        if self.engine.wants_counters(sys::now()) {
            let counters = self.counters();
            self.tell(Event::Counters(&counters));
        }
        let reads = self.hands.faults.reads.drain(MOST_READS);
        let mut taken = samples + reads.len();
        if !reads.is_empty() {
            self.tell(Event::Reads(reads));
        }
        // What is not taken now stays in the ring.
        let regions = &mut self.hands.faults.regions;
        let mut found = std::iter::from_fn(|| regions.drain(1).pop()).inspect(|_| taken += 1);
        let mut commands = Vec::new();
        self.engine.handle(sys::now(), Event::Regions(&mut found), &mut |command| commands.push(command));
        commands.into_iter().for_each(|command| self.hands.perform(command));
        taken
    }

    /// Takes samples out of the ring. Returns how many.
    pub(super) fn drain_samples(&mut self) -> usize {
        let mut batch = std::mem::take(&mut self.batch);
        let taken = self.hands.faults.drain(&mut batch, DRAIN_SAMPLES);
        if batch.iter().any(|sample| sample.flags & SAMPLE_KVM != 0) {
            for id in self.engine.wants_frames() {
                let frames = self.hands.faults.take_frames(id);
                self.tell(Event::Frames(id, frames));
            }
        }
        self.tell(Event::Samples(&batch));
        batch.clear();
        self.batch = batch;
        taken
    }

    fn counters(&self) -> Vec<(VmId, Counters)> {
        self.hands.tracked().map(|id| (id, self.hands.faults.counters(id))).collect()
    }

    /// A second has passed.
    pub(super) fn every_second(&mut self) {
        self.hands.aside.tend();
        self.try_again();
        let left_out = self.left_out.first().map(|(name, why)| (name.clone(), why));
        let reclaims_host = self.engine.config().policy.reclaim == ReclaimBy::Host;
        let facts = self.hands.facts(&self.survey, left_out, reclaims_host);
        self.tell(Event::Second(facts));
    }

    /// DAMON watches something else from now on, or nothing.
    pub(super) fn on_watching(&mut self, watching: Watching) {
        let regions = &mut self.hands.faults.regions;
        if let Err(error) = regions.follow(&watching) {
            tracing::warn!(%error, "what DAMON finds is not seen");
        }
        // What is still in the ring is of other targets.
        while regions.drain(MOST_REGIONS).len() == MOST_REGIONS {}
        self.tell(Event::Watching(watching));
    }

    pub(super) fn on_found(&mut self, found: Found) {
        match found {
            Found::Image(vm, id, opened) => self.tell(Event::Image(vm, id, opened)),
            Found::Labels(vm, labels) => self.tell(Event::Labels(vm, labels)),
            Found::ReadAhead { device, bytes } => self.tell(Event::ReadAhead { device, bytes }),
            Found::PageAges(read) => self.tell(Event::PageAges(read)),
            Found::Reported(result) => {
                self.hands.aside.reporting = false;
                if let Err(error) = result {
                    tracing::warn!(%error, "trying again in {} s", super::REPORT_EVERY.as_secs());
                }
            }
        }
    }

    /// VMs came or went.
    pub(super) fn on_changes(&mut self, changes: Result<Changes, VmError>) {
        let changes = match changes {
            Ok(changes) => changes,
            Err(error) => {
                let line = format!("cannot look for VMs: {error}");
                if !self.engine.not_looked_at().contains(&line) {
                    tracing::error!("{line}");
                }
                return self.tell(Event::Scanned(Scanned { troubles: vec![line], ..Scanned::default() }));
            }
        };
        for error in &changes.errors {
            tracing::warn!(%error, "a process was left out");
        }
        let manages = self.engine.config().discover.qemu;
        self.tell(Event::Scanned(Scanned {
            troubles: changes.troubles,
            all: changes.settling == 0,
            unlisted: manages.then_some(changes.unlisted),
        }));
        for key in changes.gone {
            self.left_out.forget(key);
            self.release(key, "has ended");
            self.tell(Event::BystanderGone(key));
        }
        for vm in changes.appeared.into_iter().chain(changes.changed).filter(|_| manages) {
            match vm.refusal {
                Some(Refusal::Untrusted { .. }) => self.tell(Event::Bystander(vm)),
                _ => self.admit(vm),
            }
        }
    }

    /// Begins to track a VM. What cannot be now is tried again.
    fn admit(&mut self, vm: Vm) {
        // One that has changed is taken in anew: its pages have other numbers.
        self.release(vm.key, "has changed, ask again");
        let process = match take_hold(vm.key) {
            Ok(process) => process,
            // It ended between the scan and now: the next scan says so.
            Err(HoldError::Ended) => {
                tracing::debug!(pid = vm.key.pid, "gone before it could be tracked");
                return self.left_out.forget(vm.key);
            }
            Err(error) => return self.leave_out(vm, &error.to_string()),
        };
        let id = VmId(self.next_id);
        if let Err(error) = self.hands.track(id, &vm, process) {
            return self.leave_out(vm, &error.to_string());
        }
        self.next_id += 1;
        self.left_out.forget(vm.key);
        if vm.accel == Accel::Kvm {
            self.hands.faults.attach_kvm(&KVM_ATTACH_KINDS);
        }
        self.tell(Event::Appeared(id, vm));
    }

    fn release(&mut self, key: ProcessKey, why: &'static str) {
        if let Some((id, last)) = self.hands.untrack(key) {
            self.tell(Event::Gone(id, why, last));
        }
    }

    fn leave_out(&mut self, vm: Vm, why: &str) {
        let (name, pid) = (vm.name.clone(), vm.key.pid);
        if self.left_out.note(vm, why) {
            tracing::warn!(vm = name, pid, why, "left alone: trying again every second");
        }
    }

    /// Takes in what could not be before.
    fn try_again(&mut self) {
        for vm in self.left_out.vms() {
            let key = vm.key;
            self.admit(vm);
            // What the first one lacks the others lack too.
            if self.left_out.has(key) && check_room().is_err() {
                break;
            }
        }
    }

    /// The status now; `saved_unix_s`: when the state was last written to disk.
    pub(super) fn status(&mut self, saved_unix_s: Option<u64>) -> Arc<Status> {
        let faults = &self.hands.faults;
        let (shown, left_out_total) = faults.blocks();
        let readings = Readings {
            counters: self.counters().into_iter().collect(),
            moves: faults.kernel_moves.totals(),
            consumed: faults.consumed(),
            sources: self.sources(),
            blocks: BlockCounts { shown, left_out_total },
            image_reads_lost: faults.reads.dropped(),
            swap: self.hands.swap(),
            saved_unix_s,
            warnings: self.warnings(),
        };
        let mut status = self.engine.status(readings);
        for (level, tier) in (0..).zip(&mut status.tiers) {
            self.survey.tell(crate::tiers::TierId(level), tier);
        }
        Arc::new(status)
    }

    fn sources(&self) -> Vec<SourceStatus> {
        let faults = &self.hands.faults;
        let status = |source: &dyn Source| {
            let (state, mut detail) = match source.delivery() {
                Delivery::Active(how) | Delivery::Partly(how) => (SourceState::Active, how),
                Delivery::Idle(why) => (SourceState::Idle, why),
                Delivery::Unavailable(why) => (SourceState::Unavailable, why),
            };
            if source.name() == faults.kvm().name() && state == SourceState::Active {
                detail += &format!("; {}", self.engine.proved_layouts());
            }
            SourceStatus { name: source.name().to_owned(), state, detail }
        };
        faults.sources().map(status).into()
    }

    /// What keeps the agent from a part of its work now, each in a line.
    fn warnings(&self) -> Vec<String> {
        let now = sys::now();
        let busy = self.hands.busy().filter(|job| now.since(job.since) > JOB_DEADLINE).map(|job| {
            let seconds = now.since(job.since).as_secs();
            format!("{} takes {seconds} s so far: meanwhile nothing else of that kind is done", job.what)
        });
        let survey = self.survey.warnings().iter().cloned();
        let not_looked_at = self.engine.not_looked_at().iter().cloned();
        let hanging = self.hands.aside.warnings();
        survey.chain(hanging).chain(not_looked_at).chain(self.left_out.warnings()).chain(busy).collect()
    }
}
