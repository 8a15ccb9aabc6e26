//! Everything the agent knows, and what it does with each thing that arrives.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use procfs::Current as _;
use tiering_common::{SAMPLE_KVM, Sample};
use tokio::sync::mpsc;

use super::Clock;
use super::answers::{Pending, Ticket};
use super::aside::Aside;
use super::asking_host::HostReclaim;
use super::braking::HostBrakes;
use super::bystanders::Bystanders;
use super::ceiling::Ceiling;
use super::classes::Classes;
use super::images::Images;
use super::knowledge::Memory;
use super::left_out::LeftOut;
use super::machine::Machine;
use super::recording::Recording;
use super::regions::RegionWatch;
use super::savings::HostAges;
use super::survey::Survey;
use super::tenants::Tenants;
use super::troubles::Troubles;
use super::waiting::Haste;
use super::watch::Sweeping;
use crate::actuate::{Done, Job, Lanes, Outcome, Skip};
use crate::bpf::{Counters, Faults, Worker};
use crate::config::Config;
use crate::policy::{Action, FreeSpace, Reason, SharedGroups};
use crate::sys::{self, Monotonic, PAGE_BYTES};
use crate::telemetry::request::{DrainOutcome, Reply};
use crate::tiermap::{Place, Places};
use crate::tiers::{Budget, Demotion, Ladder, TierId, TierKind};
use crate::track::{Access, Budgets, Sampling, VmId};

/// Pages of a batch that may land in another area than the one meant before the machine is given a rest.
const ASTRAY_MOST: u64 = 512;
/// What others have touched waits so long while anything is staged that is needed sooner.
const LATER_WAITS: Duration = Duration::from_millis(50);

pub(super) struct State {
    pub config: Config,
    pub ladder: Ladder,
    pub places: Places,
    pub lanes: Lanes,
    pub sweeper: Sweeping,
    pub dry_run: bool,
    pub clock: Clock,
    pub machines: BTreeMap<VmId, Machine>,
    pub bystanders: Bystanders,
    pub next_id: u32,
    pub tenants: Tenants,
    pub images: Images,
    /// What may hang is done there; replaced at start by one whose results arrive.
    pub aside: Aside,
    /// Machines that could not be taken in.
    pub left_out: LeftOut,
    pub classes: Classes,
    /// Counters of machines that have gone.
    pub gone: Counters,
    /// Bytes that moves wrote, by level.
    pub written_bytes: Vec<u64>,
    /// Bytes that came up, by the level they came from; machines add what they counted when the status is made.
    pub read_bytes: Vec<u64>,
    /// How fast the tiers are; set once, at start.
    pub survey: Survey,
    pub budgets: Vec<Budget>,
    /// Of what is read ahead of need.
    pub read_budget: Budget,
    pub troubles: Troubles,
    /// Tiers that take nothing any more.
    pub drained: BTreeSet<TierId>,
    pub drains: Vec<(TierId, Reply<DrainOutcome>)>,
    pub tickets: BTreeMap<u64, Ticket>,
    pub next_ticket: u64,
    pub pending: Vec<Pending>,
    /// How much the first tier should have free.
    pub free_space: FreeSpace,
    pub shared_groups: SharedGroups,
    pub braking: HostBrakes,
    pub host_reclaim: HostReclaim,
    /// The kernel's setting; replaced at start by that of the host.
    pub demotion: Demotion,
    /// VMs were looked for, and none is still starting.
    pub all_scanned: bool,
    /// Staging stops when memory is really short.
    pub may_stage: bool,
    /// What is staged may be mapped at once.
    pub may_map_stages: bool,
    /// Has DAMON watch machines, and what it watches now.
    pub damon: Worker,
    pub region_watch: RegionWatch,
    /// What it costs a machine that an access to a mapped page shows; none where none can be made to.
    pub shown_access: Option<Duration>,
    /// Bytes in use in each swap tier; written once a second, for the plans of all machines.
    pub swap_used: BTreeMap<TierId, u64>,
    /// What may still come up to the first tier in this second.
    pub promotable_pages: u64,
    /// Something was done that somebody waits for: the status is published at once.
    pub status_due: bool,
    /// What is known of machines that are not there.
    pub memory: Memory,
    /// How much memory the agent itself may take.
    pub ceiling: Ceiling,
    /// When the state was last written to disk; written by the keeper.
    pub kept_unix_s: Option<u64>,
    /// Of how many accesses of each machine one is sampled, and how many samples came since that was looked at.
    pub sampling: Sampling,
    pub samples_since_look: u64,
    /// Pages that others than the agent had moved when that was looked at, and when there were many more.
    pub kernel_moved: u64,
    pub kernel_moved_at: Monotonic,
    /// When pages of any VM were last sent to a lower swap tier.
    pub opened_at: Monotonic,
    batch: Vec<Sample>,
    pub recording: Option<Recording>,
    /// What the kernel says of page ages.
    pub savings: HostAges,
}

impl State {
    pub(super) fn new(
        config: Config,
        ladder: Ladder,
        places: Places,
        lanes: Lanes,
        sweeper: Sweeping,
        damon: Worker,
        dry_run: bool,
    ) -> Self {
        let now = sys::now();
        let budgets = ladder.tiers().iter().map(|tier| match &tier.kind {
            TierKind::Node { .. } => Budget::new(None, None, now),
            TierKind::Swap { write_limit, daily_writes, .. } => Budget::new(*write_limit, *daily_writes, now),
        });
        let tracking = Budgets { each: config.tracking.vm_events, all: config.tracking.events };
        let ram_bytes = procfs::Meminfo::current().map_or(0, |memory| memory.mem_total);
        let ceiling = Ceiling::new(config.agent.memory_limit, ram_bytes);
        let read_limit = config.prefetch.read_limit.map(|rate| rate.0);
        Self {
            budgets: budgets.collect(),
            read_budget: Budget::new(read_limit, None, now),
            written_bytes: vec![0; ladder.tiers().len()],
            read_bytes: vec![0; ladder.tiers().len()],
            survey: Survey::default(),
            config,
            ladder,
            places,
            lanes,
            sweeper,
            dry_run,
            clock: Clock::start(),
            machines: BTreeMap::new(),
            bystanders: Bystanders::default(),
            tenants: Tenants::default(),
            images: Images::default(),
            aside: Aside::new(mpsc::unbounded_channel().0),
            left_out: LeftOut::default(),
            classes: Classes::load(|_| None),
            next_id: 1,
            gone: Counters::default(),
            troubles: Troubles::default(),
            drained: BTreeSet::new(),
            drains: Vec::new(),
            tickets: BTreeMap::new(),
            next_ticket: 0,
            pending: Vec::new(),
            free_space: FreeSpace::default(),
            shared_groups: SharedGroups::default(),
            braking: HostBrakes::default(),
            host_reclaim: HostReclaim::default(),
            demotion: Demotion::default(),
            all_scanned: false,
            may_stage: true,
            may_map_stages: false,
            damon,
            region_watch: RegionWatch::default(),
            shown_access: None,
            swap_used: BTreeMap::new(),
            promotable_pages: 0,
            status_due: false,
            memory: Memory::default(),
            ceiling,
            kept_unix_s: None,
            sampling: Sampling::new(tracking, now),
            samples_since_look: 0,
            kernel_moved: 0,
            kernel_moved_at: Monotonic::default(),
            opened_at: Monotonic::default(),
            batch: Vec::new(),
            recording: None,
            savings: HostAges::default(),
        }
    }

    /// Whether anything is to be staged now.
    pub(super) fn may_foretell(&self) -> bool {
        self.config.prefetch.enabled && self.may_stage && !self.dry_run
    }

    /// Takes samples out of the ring and follows them up. Returns how many there were.
    pub(super) fn drain(&mut self, faults: &mut Faults, most: usize) -> usize {
        let mut batch = std::mem::take(&mut self.batch);
        let taken = faults.drain(&mut batch, most);
        if batch.iter().any(|sample| sample.flags & SAMPLE_KVM != 0) {
            self.prove_layouts(faults);
        }
        let mut touched = Vec::new();
        for access in batch.drain(..).map(Access::from) {
            let Some(machine) = self.machines.get_mut(&access.vm) else { continue };
            let rules = machine.rules(self.config.policy.demote_after.0);
            if access.kvm && !machine.layout.trusts(access.hva) {
                continue;
            }
            self.record_access(&access);
            let Some(machine) = self.machines.get_mut(&access.vm) else { continue };
            let came_up = machine.on_access(&access, &rules, self.clock.seconds_at(access.time));
            touched.extend(came_up.and_then(|page| self.note_touch(access.vm, page, access.time)));
        }
        if self.may_foretell() {
            self.foretell(&touched);
        }
        self.batch = batch;
        self.send_stages();
        taken
    }

    /// Hands the stager what waits to be staged: what a machine is on its way to for each at once, and what others have
    /// touched step by step while there is nothing of the former. Else a machine that runs would wait for those that
    /// sleep.
    fn send_stages(&mut self) {
        if !self.may_stage {
            return;
        }
        let (tier0_threshold, now) = (self.config.prefetch.tier0_threshold, sys::now());
        let (lanes, budget) = (&self.lanes, &mut self.read_budget);
        let mut send = |machine: &mut Machine, haste| {
            let most = usize::try_from(budget.available(now) / PAGE_BYTES).unwrap_or(usize::MAX);
            if let Some(step) = machine.next_stage(haste, most, tier0_threshold, now) {
                budget.spend(step.pages.len() as u64 * PAGE_BYTES);
                lanes.send(Job::Step(machine.target.clone(), step));
            }
        };
        self.machines.values_mut().for_each(|machine| send(machine, Haste::Now));
        let busy = self.machines.values().any(|machine| machine.staging.is_some());
        // Who stages for itself all the time must not keep all others waiting.
        let least = if busy { LATER_WAITS } else { Duration::ZERO };
        let since = |machine: &Machine| {
            machine.to_stage.since(Haste::Later).filter(|since| now.since(*since) >= least)
        };
        let first = self
            .machines
            .values_mut()
            .filter(|machine| machine.staging.is_none() && machine.braking.may_stage())
            .filter(|machine| since(machine).is_some());
        if let Some(machine) = first.min_by_key(|machine| since(machine)) {
            send(machine, Haste::Later);
        }
    }

    /// A lane has finished something.
    pub(super) fn on_done(&mut self, done: Done) {
        match done {
            Done::Step(outcome) => self.on_outcome(&outcome),
            Done::Drain(tier, result, elapsed) => self.on_drained(tier, result, elapsed),
            Done::Reclaim(id, reclaimed) => self.on_reclaimed(id, reclaimed),
            Done::ReclaimNodes(reclaimed) => self.on_host_reclaimed(reclaimed),
            Done::Hindered(tiers) => self.on_hindered(tiers),
        }
    }

    fn on_outcome(&mut self, outcome: &Outcome) {
        let now = self.clock.seconds();
        tracing::debug!(
            vm = outcome.vm.0, action = ?outcome.action, reason = %outcome.reason, asked = outcome.asked.len(),
            moved_bytes = outcome.moved_pages * PAGE_BYTES, skipped = ?outcome.skipped, "step done"
        );
        if let Action::Place { to } = outcome.action
            && !self.ladder.node_tiers().contains(to)
            && let Some(written) = self.written_bytes.get_mut(usize::from(to.0))
        {
            *written += outcome.moved_pages * PAGE_BYTES;
            // A plan was taken out as a whole when it was made; nobody took out what an operator asked for.
            if let Some(budget) = self.budgets.get_mut(usize::from(to.0)) {
                let planned = (outcome.asked.len() + outcome.left_out.len()) as u64;
                match outcome.reason {
                    Reason::Operator => budget.spend(outcome.moved_pages * PAGE_BYTES),
                    _ => budget.refund(planned.saturating_sub(outcome.moved_pages) * PAGE_BYTES),
                }
            }
        }
        self.note_trouble(outcome);
        let by_mover = matches!(outcome.action, Action::Place { .. } | Action::Collapse);
        let mut done = None;
        if by_mover && let Some(machine) = self.machines.get_mut(&outcome.vm) {
            machine.moved_at = sys::now();
            done = machine.in_flight.take();
            // First of all, so that the mover is at work meanwhile.
            self.send_next(outcome.vm);
        }
        self.record_move(outcome);
        let Some(machine) = self.machines.get_mut(&outcome.vm) else { return };
        let own_reads = machine.note_own_reads(outcome);
        self.host_reclaim.note_own_read(own_reads, outcome.finished);
        machine.on_outcome(outcome, now);
        let window = machine.rules(self.config.policy.demote_after.0).window();
        if let Some(done) = &done {
            machine.note_trial(outcome, done.planned, window, now);
        }
        machine.note_for_brakes(outcome);
        machine.note_for_reclaim(outcome);
        if !by_mover {
            if matches!(outcome.action, Action::Stage { .. })
                && self.may_map_stages
                && machine.braking.may_stage()
                && let Some(step) = machine.next_mapping(outcome, sys::now())
            {
                self.lanes.send(Job::Step(machine.target.clone(), step));
            }
            self.tenants.take_tags(machine, outcome);
            return;
        }
        let mut refused = None;
        for (skip, pages) in &outcome.skipped {
            match skip {
                Skip::DryRun => {
                    tracing::info!(
                        vm = machine.target.vm.name, action = ?outcome.action, reason = %outcome.reason,
                        bytes = pages * PAGE_BYTES, "dry run: would move"
                    );
                    machine.rest(10);
                }
                Skip::Refused(reason) => {
                    refused = Some(reason.clone());
                    machine.rest(10);
                }
                Skip::Failed(reason) => {
                    tracing::warn!(vm = machine.target.vm.name, pages, reason, "not moved");
                    machine.rest(10);
                }
                Skip::TierFull | Skip::NoRoom(_) | Skip::NoSwap => machine.rest(10),
                // A few go astray now and then.
                Skip::ElsewhereInSwap if *pages > ASTRAY_MOST => machine.rest(10),
                Skip::ElsewhereInSwap
                | Skip::Stayed
                | Skip::Merged
                | Skip::Locked
                | Skip::Shared
                | Skip::TierFailed(_)
                | Skip::KeptHuge
                | Skip::Hugetlb
                | Skip::MappedElsewhere
                | Skip::Bound
                | Skip::Absent
                | Skip::Zero
                | Skip::NotCollapsed
                | Skip::Gone => {}
            }
        }
        if refused != machine.refused_now {
            match &refused {
                Some(reason) => tracing::info!(vm = machine.target.vm.name, reason, "not moved for now"),
                None => tracing::info!(vm = machine.target.vm.name, "moved again"),
            }
            machine.refused_now = refused;
        }
        if let Some(ticket) = done.and_then(|done| done.ticket) {
            self.on_ticket(ticket, outcome);
        }
        if let Some(machine) = self.machines.get(&outcome.vm) {
            self.tenants.take_tags(machine, outcome);
        }
    }

    /// Whether the tier of a step takes what is sent to it.
    fn note_trouble(&mut self, outcome: &Outcome) {
        let Action::Place { to } = outcome.action else { return };
        let tier = self.place_name(Place::In(to));
        let failed = outcome.skipped.keys().find_map(|skip| match skip {
            Skip::TierFailed(reason) => Some(reason),
            _ => None,
        });
        match failed {
            Some(reason) => {
                if self.troubles.note(to, reason, sys::now()) {
                    tracing::warn!(tier, reason, "the tier takes nothing for a while");
                }
                for machine in self.machines.values_mut() {
                    machine.forget_plans_for(to);
                }
            }
            None if outcome.moved_pages > 0 && self.troubles.clear(to) => {
                tracing::info!(tier, "the tier works again");
            }
            None => {}
        }
    }

    /// Areas of others are in the way of these tiers now.
    fn on_hindered(&mut self, tiers: BTreeMap<TierId, String>) {
        for (tier, reason) in &tiers {
            let name = self.place_name(Place::In(*tier));
            tracing::warn!(tier = name, reason, "the tier takes nothing until that area is gone");
            for machine in self.machines.values_mut() {
                machine.forget_plans_for(*tier);
            }
        }
        for tier in self.troubles.hinder(tiers) {
            tracing::info!(
                tier = self.place_name(Place::In(tier)),
                "no other swap area is in the way any more"
            );
        }
        self.status_due = true;
    }

    /// Hands the machine's next batch to the mover.
    pub(super) fn send_next(&mut self, id: VmId) {
        let now = self.clock.seconds();
        if let Some(machine) = self.machines.get_mut(&id)
            && let Some(step) = machine.next_batch(now)
        {
            machine.moved_at = sys::now();
            self.lanes.send(Job::Step(machine.target.clone(), step));
        }
    }
}
