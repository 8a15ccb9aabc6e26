//! What the agent decides.
//!
//! In: [`Event`]s, each with its time, and [`Facts`] about the host once a second. Out: [`Command`]s, and what is told
//! of it all (`report`, `explain`, `records`). Nothing here acts, waits, or reads a clock or a file: `agent` tells what
//! happens and has done what is decided, and a test does the same.
//!
//! | event | what follows | where |
//! |---|---|---|
//! | accesses | the table and the tape take them in, what comes next is staged | `managed`, `predicting` |
//! | a look at page tables | the table takes over what was read | `sweeping`, `rearming` |
//! | a job is done | the table takes over what was read back, the next batch goes | `outcomes` |
//! | a VM comes or goes | it is managed, or what was learned of it is kept | `arrivals`, `records` |
//! | a second | brakes, demotions, what stays staged, sweeps that are due | `planning`, `braking`, `asking` |
//! | a request | an answer, or a command | `answers` |

mod answers;
mod arrivals;
mod asking;
mod asking_host;
mod blocks;
mod brakes;
mod braking;
mod bystanders;
mod ceiling;
mod classes;
mod clock;
mod command;
mod demoting;
mod event;
mod facts;
mod freeing;
mod images;
mod looks;
mod managed;
mod outcomes;
mod planning;
mod predicting;
mod rates;
mod reading_ahead;
mod rearming;
mod recording;
mod records;
mod regions;
mod remembered;
mod report;
mod savings;
mod shared_groups;
mod sweeping;
mod tenants;
mod tier_health;

#[cfg(test)]
mod decision_tests;
#[cfg(test)]
mod real_work_tests;
#[cfg(test)]
mod testing;

use std::collections::{BTreeMap, BTreeSet};

use tiering_common::Sample;

use answers::{Pending, Ticket};
use asking_host::HostReclaim;
pub use brakes::Gauge;
use brakes::HostBrakes;
use bystanders::Bystanders;
use ceiling::Ceiling;
use classes::Classes;
use clock::Clock;
pub use command::{Command, Demote};
pub use event::{Event, Scanned};
pub use facts::{DemotionFacts, Facts, SwapFacts};
use images::Images;
pub use images::{Ahead, ImageFacts, Opened};
pub use looks::{Compared, Look, Looked, Rearmed, Swept};
use managed::ManagedVm;
use recording::Recording;
use records::Memory;
use regions::RegionWatch;
pub use report::Readings;
use savings::HostAges;
use tenants::Tenants;
use tier_health::TierHealth;

use crate::bpf::{Counters, Watching};
use crate::config::Config;
use crate::policy::{FreeSpace, SharedGroups};
use crate::profile::Profile;
use crate::sys::Monotonic;
use crate::telemetry::request::{DrainOutcome, Reply};
use crate::tiers::{Budget, Ladder, TierId, TierKind};
use crate::track::{Access, Budgets, Sampling, VmId};

/// All that is known, and the rules.
pub struct Engine {
    config: Config,
    ladder: Ladder,
    dry_run: bool,
    clock: Clock,
    /// What was decided since the last event.
    commands: Vec<Command>,
    /// Of the last second.
    facts: Facts,
    boot_id: String,
    vms: BTreeMap<VmId, ManagedVm>,
    bystanders: Bystanders,
    tenants: Tenants,
    images: Images,
    /// Why processes could not be looked at, as the scanner says.
    not_looked_at: Vec<String>,
    classes: Classes,
    /// Counters of VMs that have gone.
    gone: Counters,
    /// Bytes that moves wrote, by level.
    written_bytes: Vec<u64>,
    /// Bytes that came up, by the level they came from; VMs add what they counted when the status is made.
    read_bytes: Vec<u64>,
    budgets: Vec<Budget>,
    /// Of what is read ahead of need.
    read_budget: Budget,
    tier_health: TierHealth,
    /// Tiers that take nothing any more.
    drained: BTreeSet<TierId>,
    drains: Vec<(TierId, Reply<DrainOutcome>)>,
    tickets: BTreeMap<u64, Ticket>,
    next_ticket: u64,
    pending: Vec<Pending>,
    /// How much the first tier should have free.
    free_space: FreeSpace,
    shared_groups: SharedGroups,
    braking: HostBrakes,
    host_reclaim: HostReclaim,
    /// Reclaim may demote to lower memory nodes.
    may_demote: bool,
    /// VMs were looked for, and none is still starting.
    all_scanned: bool,
    /// Staging stops when memory is really short.
    may_stage: bool,
    /// VMs of which something waits to be staged, or is being staged; see `outcomes::note_waiting`.
    stages: BTreeSet<VmId>,
    /// What is staged may be mapped at once.
    may_map_stages: bool,
    /// What DAMON watches now.
    region_watch: RegionWatch,
    /// Bytes in use in each swap tier; written once a second, for the plans of all VMs.
    swap_used: BTreeMap<TierId, u64>,
    /// What may still come up to the first tier in this second.
    promotable_pages: u64,
    /// Something was done that somebody waits for: the status is published at once.
    status_due: bool,
    /// What is known of VMs that are not there.
    memory: Memory,
    /// How much memory the agent itself may take.
    ceiling: Ceiling,
    /// Of how many accesses of each VM one is sampled, and how many samples came since that was looked at.
    sampling: Sampling,
    samples_since_look: u64,
    /// Pages that others than the agent had moved when that was looked at, and when there were many more.
    kernel_moved: u64,
    kernel_moved_at: Monotonic,
    /// When pages of any VM were last sent to a lower swap tier.
    opened_at: Monotonic,
    recording: Option<Recording>,
    /// What the kernel says of page ages.
    savings: HostAges,
}

impl Engine {
    /// One that knows nothing yet, on a host of so much RAM.
    pub fn new(config: Config, ladder: Ladder, ram_bytes: u64, dry_run: bool, now: Monotonic) -> Self {
        let budgets = ladder.tiers().iter().map(|tier| match &tier.kind {
            TierKind::Node { .. } => Budget::new(None, None, now),
            TierKind::Swap { write_limit, daily_writes, .. } => Budget::new(*write_limit, *daily_writes, now),
        });
        let tracking = Budgets { each: config.tracking.vm_events, all: config.tracking.events };
        let ceiling = Ceiling::new(config.agent.memory_limit, ram_bytes);
        let read_limit = config.prefetch.read_limit.map(|rate| rate.0);
        Self {
            budgets: budgets.collect(),
            read_budget: Budget::new(read_limit, None, now),
            written_bytes: vec![0; ladder.tiers().len()],
            read_bytes: vec![0; ladder.tiers().len()],
            config,
            ladder,
            dry_run,
            clock: Clock::start(now),
            commands: Vec::new(),
            facts: Facts::default(),
            boot_id: String::new(),
            vms: BTreeMap::new(),
            bystanders: Bystanders::default(),
            tenants: Tenants::default(),
            images: Images::default(),
            not_looked_at: Vec::new(),
            classes: Classes::load(|_| None, now),
            gone: Counters::default(),
            tier_health: TierHealth::default(),
            drained: BTreeSet::new(),
            drains: Vec::new(),
            tickets: BTreeMap::new(),
            next_ticket: 0,
            pending: Vec::new(),
            free_space: FreeSpace::default(),
            shared_groups: SharedGroups::default(),
            braking: HostBrakes::default(),
            host_reclaim: HostReclaim::default(),
            may_demote: false,
            all_scanned: false,
            may_stage: true,
            stages: BTreeSet::new(),
            may_map_stages: false,
            region_watch: RegionWatch::default(),
            swap_used: BTreeMap::new(),
            promotable_pages: 0,
            status_due: false,
            memory: Memory::default(),
            ceiling,
            sampling: Sampling::new(tracking, now),
            samples_since_look: 0,
            kernel_moved: 0,
            kernel_moved_at: Monotonic::default(),
            opened_at: Monotonic::default(),
            recording: None,
            savings: HostAges::default(),
        }
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What is known of how a VM uses its memory.
    pub fn profile(&self, vm: VmId) -> Option<&Profile> {
        self.vms.get(&vm).map(|vm| &vm.profile)
    }

    /// Why processes could not be looked at.
    pub fn not_looked_at(&self) -> &[String] {
        &self.not_looked_at
    }

    /// Whether something was done that somebody waits for: the status is to be published at once.
    pub fn take_status_due(&mut self) -> bool {
        std::mem::take(&mut self.status_due)
    }

    /// Whether something waits that no event tells of: a stage for its turn, a VM that all accesses of are looked at
    /// again, what DAMON finds.
    pub fn waits_for_time(&self) -> bool {
        let of_stages = self.stages.iter().filter_map(|id| self.vms.get(id));
        let stages = of_stages.map(|vm| &vm.prefetch.to_stage).any(|to_stage| !to_stage.is_empty());
        stages || self.sampling.is_reduced() || matches!(self.region_watch.watching, Watching::Vms { .. })
    }

    /// Whether anything is to be staged now.
    fn may_predict(&self) -> bool {
        self.config.prefetch.enabled && self.may_stage && !self.dry_run
    }

    /// Something has happened. `act` is told what is to be done about it, in that order.
    pub fn handle(&mut self, now: Monotonic, event: Event<'_>, act: &mut dyn FnMut(Command)) {
        self.clock.now = now;
        match event {
            Event::Samples(samples) => self.on_samples(samples),
            Event::Frames(id, frames) => self.on_frames(id, &frames),
            Event::Counters(counters) => self.on_counters(counters),
            Event::Reads(reads) => self.on_reads(reads),
            Event::Regions(regions) => self.on_regions(regions),
            Event::Watching(watching) => self.on_watching(watching),
            Event::Scanned(scanned) => self.on_scanned(scanned),
            Event::Appeared(id, vm) => self.on_appeared(id, vm),
            Event::Gone(id, why, last) => self.on_gone(id, why, last),
            Event::Bystander(vm) => self.bystanders.insert(vm),
            Event::BystanderGone(key) => self.bystanders.remove(key),
            Event::Gauges(gauges) => self.on_gauges(gauges),
            Event::Looked(looked) => self.on_looked(looked),
            Event::Done(done) => self.on_done(done, act),
            Event::Image(vm, id, opened) => self.join_image(vm, id, Some(opened)),
            Event::Labels(vm, labels) => self.on_labels(vm, labels),
            Event::ReadAhead { device, bytes } => self.images.done(device, bytes),
            Event::PageAges(read) => self.on_page_ages(read),
            Event::Request(request) => self.on_request(request),
            Event::Second(facts) => self.every_second(facts, act),
        }
        self.commands.drain(..).for_each(act);
    }

    /// Follows samples up.
    fn on_samples(&mut self, samples: &[Sample]) {
        self.samples_since_look += samples.len() as u64;
        let mut touched = Vec::new();
        for access in samples.iter().copied().map(Access::from) {
            let Some(vm) = self.vms.get_mut(&access.vm) else { continue };
            let rules = vm.rules(self.config.policy.demote_after.0);
            if access.kvm && !vm.gpa_proof.trusts(access.hva) {
                continue;
            }
            self.record_access(&access);
            let Some(vm) = self.vms.get_mut(&access.vm) else { continue };
            let returned = vm.on_access(&access, &rules, self.clock.seconds_at(access.time));
            touched.extend(returned.and_then(|returned| self.note_touch(access.vm, returned, access.time)));
        }
        if self.may_predict() {
            self.predict(&touched);
        }
        self.send_stages();
    }
}
