//! Answers to requests: the map, an operator's move, the drain of a tier.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use super::Engine;
use super::command::Command;
use super::managed::{ManagedVm, Why, is_meant};
use crate::actuate::Outcome;
use crate::policy::{Action, Reason, Step};
use crate::sys::{Monotonic, PAGE_BYTES};
use crate::telemetry::request::{ApiError, DrainOutcome, MapRun, MoveOutcome, Pages, Reply, Request, VmMap};
use crate::tiermap::{PageEntry, PageIndex, Place};
use crate::tiers::{SwapError, TierId, TierKind};
use crate::track::VmId;
use crate::vm::Hva;

/// Tries to sweep a VM for a map while moves keep making the sweep out of date.
const MAP_TRIES: u32 = 50;
/// The same for a move, which need not know every page: what it does not know, it tells.
const MOVE_TRIES: u32 = 3;

/// A request that waits for a sweep which began after it came: what the VM touched since the last one counts.
pub(super) struct Pending {
    vm: VmId,
    asked: Monotonic,
    tries: u32,
    request: AfterSweep,
}

/// What is answered after a sweep.
enum AfterSweep {
    Map { pages: Pages, reply: Reply<VmMap> },
    Move { to: String, hva: Option<Range<u64>>, reply: Reply<MoveOutcome> },
}

impl AfterSweep {
    fn tries(&self) -> u32 {
        match self {
            Self::Map { .. } => MAP_TRIES,
            Self::Move { .. } => MOVE_TRIES,
        }
    }

    /// Whoever asked has gone.
    fn is_closed(&self) -> bool {
        match self {
            Self::Map { reply, .. } => reply.is_closed(),
            Self::Move { reply, .. } => reply.is_closed(),
        }
    }

    fn fail(self, error: ApiError) {
        // The client may have gone.
        match self {
            Self::Map { reply, .. } => drop(reply.send(Err(error))),
            Self::Move { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}

/// An operator's move, as far as it has come.
pub(super) struct Ticket {
    to: TierId,
    batches: usize,
    /// When it was asked for.
    began: Monotonic,
    outcome: MoveOutcome,
    reply: Reply<MoveOutcome>,
}

impl Ticket {
    pub(super) fn fail(self, error: ApiError) {
        // The client may have gone.
        self.reply.send(Err(error)).ok();
    }
}

impl Engine {
    pub(super) fn on_request(&mut self, request: Request) {
        match request {
            Request::Record { vms, sink, reply } => drop(reply.send(self.record(vms, sink))),
            Request::Map { vm, pages, reply } => {
                match self.vm(&vm).and_then(|vm| vm.check(&pages).map(|()| vm.info.id)) {
                    Ok(id) => self.after_a_sweep(id, AfterSweep::Map { pages, reply }),
                    Err(error) => drop(reply.send(Err(error))),
                }
            }
            Request::FindFrame { vm, pfn, reply } => match self.vm(&vm).map(|vm| vm.info.clone()) {
                Ok(vm) => self.commands.push(Command::FindFrame { vm, pfn, reply }),
                Err(error) => drop(reply.send(Err(error))),
            },
            Request::Explain { vm, at, reply } => {
                let explained =
                    self.vm(&vm).and_then(|known| Ok((known.info.clone(), Box::new(self.explain(&vm, at)?))));
                match explained {
                    Ok((vm, explanation)) => {
                        self.commands.push(Command::TellExplanation { vm, explanation, reply });
                    }
                    Err(error) => drop(reply.send(Err(error))),
                }
            }
            Request::Similar { vm, reply } => drop(reply.send(self.similar(vm.as_deref()))),
            Request::Move { vm, to, hva, reply } => {
                match self.find(&vm).and_then(|id| self.may_move(id, &to).map(|_| id)) {
                    Ok(id) => self.after_a_sweep(id, AfterSweep::Move { to, hva, reply }),
                    Err(error) => drop(reply.send(Err(error))),
                }
            }
            Request::Drain { tier, reply } => self.begin_drain(&tier, reply),
        }
    }

    fn find(&self, id: &str) -> Result<VmId, ApiError> {
        let vm = self.vms.values().find(|vm| vm.id == id);
        let missing = || self.bystanders.refusal(id).unwrap_or_else(|| no_such_vm(id));
        vm.map(|vm| vm.info.id).ok_or_else(missing)
    }

    /// The VM of this id.
    pub(super) fn vm(&self, id: &str) -> Result<&ManagedVm, ApiError> {
        self.find(id).map(|id| &self.vms[&id])
    }

    fn after_a_sweep(&mut self, vm: VmId, request: AfterSweep) {
        self.pending.push(Pending { vm, asked: self.clock.now, tries: 0, request });
        self.start_sweep(vm, Why::Asked);
    }

    /// A sweep of `vm` that began at `began` is in: requests that waited for one are answered if it is up to date,
    /// else wait for the next.
    pub(super) fn answer_swept(&mut self, vm: VmId, began: Monotonic, fresh: bool) {
        let of_vm = |pending: &mut Pending| pending.vm == vm;
        for mut pending in self.pending.extract_if(.., of_vm).collect::<Vec<_>>() {
            if pending.request.is_closed() {
                continue;
            }
            if began < pending.asked || (!fresh && pending.tries < pending.request.tries()) {
                pending.tries += 1;
                self.pending.push(pending);
                continue;
            }
            match pending.request {
                AfterSweep::Map { pages, reply } => {
                    let Some(vm) = self.vms.get(&vm) else { continue };
                    let (vm, map) = (vm.info.clone(), self.map(vm, &pages));
                    self.commands.push(Command::TellMap { vm, map, reply });
                }
                AfterSweep::Move { to, hva, reply } => {
                    if !fresh {
                        tracing::info!("a move begins while other moves of the VM are under way");
                    }
                    self.begin_move(vm, &to, hva.as_ref(), pending.asked, reply);
                }
            }
        }
        if self.pending.iter().any(|pending| pending.vm == vm) {
            self.start_sweep(vm, Why::Asked);
        }
    }

    /// The VM has ended, or its page tables cannot be read: nobody waits any longer.
    pub(super) fn fail_pending(&mut self, vm: VmId) {
        let error = ApiError::Unavailable("the VM's page tables cannot be read: has it ended?".into());
        for pending in self.pending.extract_if(.., |pending| pending.vm == vm) {
            pending.request.fail(error.clone());
        }
    }

    fn map(&self, vm: &ManagedVm, pages: &Pages) -> VmMap {
        let now = self.clock.seconds();
        let mut runs: Vec<MapRun> = Vec::new();
        for (region, start, _) in vm.pages.layout().regions() {
            let mut open: Option<(PageEntry, PageIndex)> = None;
            for page in region.pages() {
                let address = start.0 + u64::from(page - region.first) * PAGE_BYTES;
                let gpa = vm.gpa(Hva(address));
                if !is_meant(pages, address, gpa) {
                    open = None;
                    continue;
                }
                let entry = vm.pages.get(page);
                match (&open, runs.last_mut()) {
                    (Some((first, _)), Some(run))
                        if alike(*first, entry, now)
                            && gpa.map(|gpa| gpa.0) == run.gpa.map(|gpa| gpa + run.pages * PAGE_BYTES) =>
                    {
                        run.pages += 1;
                    }
                    _ => {
                        open = Some((entry, page));
                        let touched = entry.place() != Place::Untouched;
                        runs.push(MapRun {
                            hva: address,
                            pages: 1,
                            gpa: gpa.map(|gpa| gpa.0),
                            tier: self.place_name(entry.place()),
                            // The lookup fills it in.
                            frame_or_slot: None,
                            heat: entry.heat().into(),
                            idle_ms: touched.then(|| u64::from(entry.idle(now)) * 1000),
                            staged: entry.staged(),
                            written: entry.written(),
                        });
                    }
                }
            }
        }
        VmMap { vm: vm.id.clone(), page_bytes: PAGE_BYTES, runs }
    }

    /// How a place is called in answers.
    pub(super) fn place_name(&self, place: Place) -> String {
        match place {
            Place::Untouched => "untouched".to_owned(),
            Place::OtherSwap => "swap".to_owned(),
            Place::In(id) => self.ladder.get(id).map_or("swap", |tier| tier.name.as_str()).to_owned(),
        }
    }

    fn begin_move(
        &mut self,
        id: VmId,
        to: &str,
        hva: Option<&Range<u64>>,
        began: Monotonic,
        reply: Reply<MoveOutcome>,
    ) {
        // It may have become one that must not be moved since this was asked for.
        let to = match self.may_move(id, to) {
            Ok(to) => to,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let now = self.clock.seconds();
        let Some(vm) = self.vms.get_mut(&id) else { return };
        let mut pages: Vec<PageIndex> = Vec::new();
        vm.pages.for_each(|page, entry| {
            let address = vm.pages.layout().locate(page).map_or(0, |(hva, _)| hva.0);
            if entry.place() != Place::In(to) && hva.is_none_or(|range| range.contains(&address)) {
                pages.push(page);
            }
        });
        let step = Step { vm: id, action: Action::Place { to }, pages, reason: Reason::Operator };
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let outcome = MoveOutcome { asked_pages: step.pages.len() as u64, ..MoveOutcome::default() };
        let batches = vm.enqueue(&step, now, Some(ticket));
        if batches == 0 {
            reply.send(Ok(outcome)).ok();
            return;
        }
        self.tickets.insert(ticket, Ticket { to, batches, began, outcome, reply });
        self.send_next(id);
    }

    /// The tier of this name, where an operator may move the VM there.
    fn may_move(&self, id: VmId, to: &str) -> Result<TierId, ApiError> {
        let vm = &self.vms[&id];
        let names =
            || self.ladder.tiers().iter().map(|tier| tier.name.as_str()).collect::<Vec<_>>().join(", ");
        let tier = self
            .ladder
            .by_name(to)
            .ok_or_else(|| ApiError::NotFound(format!("no tier is called `{to}`: there are {}", names())))?;
        if let Some(reason) = vm.refuses(tier.id) {
            return Err(ApiError::Refused(format!("{} is not moved: {reason}", vm.info.vm.name)));
        }
        if self.drained.contains(&tier.id) {
            return Err(ApiError::Refused(format!(
                "tier `{to}` was drained: restart the agent to use it again"
            )));
        }
        Ok(tier.id)
    }

    /// One batch of an operator's move is done.
    pub(super) fn on_ticket(&mut self, id: u64, outcome: &Outcome) {
        let Some(ticket) = self.tickets.get_mut(&id) else { return };
        let total = &mut ticket.outcome;
        total.moved_pages += outcome.moved_pages;
        total.moved_bytes += outcome.moved_pages * PAGE_BYTES;
        total.huge_split_bytes += outcome.huge_split_pages * PAGE_BYTES;
        total.in_tier_pages += outcome.in_place(Place::In(ticket.to));
        for (skip, pages) in &outcome.skipped {
            *total.skipped.entry(skip.to_string()).or_default() += pages;
        }
        ticket.batches -= 1;
        if ticket.batches == 0
            && let Some(mut ticket) = self.tickets.remove(&id)
        {
            self.status_due = true;
            ticket.outcome.elapsed_ms = millis(self.clock.now.since(ticket.began));
            ticket.reply.send(Ok(ticket.outcome)).ok();
        }
    }

    fn begin_drain(&mut self, name: &str, reply: Reply<DrainOutcome>) {
        let error = match self.ladder.by_name(name) {
            None => ApiError::NotFound(format!("no tier is called `{name}`")),
            Some(tier) if matches!(tier.kind, TierKind::Node { .. }) => ApiError::Refused(format!(
                "tier `{name}` is memory and cannot be drained: move its VMs with `tiering move VM --to TIER`"
            )),
            Some(_) if self.dry_run => {
                ApiError::Refused("this is a dry run: there is nothing to drain".into())
            }
            Some(tier) => {
                let id = tier.id;
                self.drained.insert(id);
                for vm in self.vms.values_mut() {
                    vm.moves.forget_plans();
                }
                self.drains.push((id, reply));
                let vms = self.vms.values().map(|vm| vm.info.clone()).collect();
                self.commands.push(Command::Drain(id, vms));
                return;
            }
        };
        reply.send(Err(error)).ok();
    }

    pub(super) fn on_drained(&mut self, tier: TierId, result: Result<u64, SwapError>, elapsed: Duration) {
        let answer = match result {
            Ok(brought_up_pages) => Ok(DrainOutcome {
                tier: self.place_name(Place::In(tier)),
                brought_up_pages,
                elapsed_ms: millis(elapsed),
            }),
            Err(error) => {
                self.drained.remove(&tier);
                Err(ApiError::Unavailable(error.to_string()))
            }
        };
        for id in self.vms.keys().copied().collect::<Vec<_>>() {
            if let Some(vm) = self.vms.get_mut(&id) {
                vm.sweeps.disturb();
            }
            self.sweep_if_moved(id);
        }
        self.status_due = true;
        let waiting = std::mem::take(&mut self.drains);
        for (waits_for, reply) in waiting {
            if waits_for == tier {
                reply.send(answer.clone()).ok();
            } else {
                self.drains.push((waits_for, reply));
            }
        }
    }

    /// Guest RAM by place, bytes, under the names of the status.
    pub(super) fn bytes_by_name(&self, pages: &BTreeMap<Place, u64>) -> BTreeMap<String, u64> {
        let mut bytes: BTreeMap<String, u64> =
            self.ladder.tiers().iter().map(|tier| (tier.name.clone(), 0)).collect();
        for (place, count) in pages.iter().filter(|(place, count)| **place != Place::Untouched && **count > 0)
        {
            *bytes.entry(self.place_name(*place)).or_default() += count * PAGE_BYTES;
        }
        bytes
    }
}

fn no_such_vm(vm: &str) -> ApiError {
    ApiError::NotFound(format!("no VM is called `{vm}`: see `tiering vm list`"))
}

/// Whether two pages go into one row of the map. Idle time is told to the second, which would split any run that
/// was not touched at once: a factor of two is alike enough.
fn alike(a: PageEntry, b: PageEntry, now: crate::tiermap::Seconds) -> bool {
    let shape = |entry: PageEntry| {
        (entry.place(), entry.heat(), entry.staged(), entry.written(), entry.idle(now).checked_ilog2())
    };
    shape(a) == shape(b)
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
