//! A host that does at once what an [`Engine`] asks for.
//!
//! In: VMs, what they touch, the seconds that pass. Out: where their pages are, what a touch waits for, and each
//! command, for whoever wants to know. Pages go where the steps put them, a stage is read at once, a sweep finds what
//! is so, the kernel reclaims what it is asked for.
//!
//! # Limits
//! Moves take no time and never fail, but where a test wants that. The kernel reclaims the pages with the highest
//! numbers. Files, DAMON, BPF maps and answers that need page tables are left out. Huge pages are small ones.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tiering_common::{Frame, SAMPLE_KVM, SAMPLE_WEIGHT_SHIFT, SAMPLE_WRITE, Sample};

use crate::actuate::{Done, NoReclaim, Outcome, Reclaimed, Skip};
use crate::config::Config;
use crate::engine::{Command, Compared, Engine, Event, Facts, Gauge, Look, Looked, Rearmed, Swept};
use crate::policy::{Action, Step};
use crate::sys::{Monotonic, PAGE_BYTES};
use crate::tiermap::{PageIndex, PageRun, Place, Sweep};
use crate::tiers::{Area, Ladder, NodeMemory, NodeTiers, SwapLine, TierId, TierKind};
use crate::track::VmId;
use crate::vm::{Accel, Hva, ProcessKey, Vm};

/// Where the RAM of each VM begins in its process.
const START: Hva = Hva(0x10_0000_0000);
/// The frame of the first page of each VM, and pages that are compared to prove where its RAM lies.
const FIRST_FRAME: u64 = 1 << 20;
const PROOFS: u64 = 16;
/// Memory of the host and of each memory tier: never short.
const PLENTY: u64 = 1 << 46;

/// What a VM waits for when it touches a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The page is mapped: nobody sees that.
    Nothing,
    /// The page is in memory and not mapped.
    Copy,
    /// A read from swap.
    Read,
}

pub struct SimulatedHost {
    engine: Engine,
    now: Monotonic,
    node_tiers: NodeTiers,
    /// Level of the last tier.
    last: u8,
    guests: BTreeMap<VmId, Guest>,
    /// What the engine is told in the next second.
    pub facts: Facts,
    /// Steps come to nothing for this reason.
    pub refuses: Option<Skip>,
    /// Why the kernel reclaims nothing, if it does not.
    pub no_reclaim: Option<NoReclaim>,
    /// Pages are armed anew as the engine asks for it.
    pub rearms: bool,
    /// CPU time that the engine took; none where it is not measured.
    took: Option<Took>,
}

/// CPU time that the engine took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Took {
    pub all: Duration,
    /// For one event: so long it answers nobody.
    pub longest: Duration,
}

/// A VM of it.
#[derive(Clone, Debug)]
pub struct Guest {
    pub vm: Vm,
    places: Vec<Place>,
    /// Pages in memory tiers, and in each tier.
    mapped: u64,
    in_tier: BTreeMap<TierId, u64>,
    /// Pages in swap that are in memory too.
    copies: HashSet<PageIndex>,
    /// Pages that were mapped ahead of need and not touched since, with where they were.
    ahead: HashMap<PageIndex, Place>,
    /// What its control groups say, each second.
    pub gauge: Option<Gauge>,
}

/// An emulated VM of so many pages.
pub fn guest(id: VmId, name: &str, pages: u32) -> Vm {
    let key = ProcessKey { pid: i32::try_from(id.0).unwrap_or(i32::MAX), start_time_ticks: 1 };
    Vm::plain(key, name, START, u64::from(pages) * PAGE_BYTES)
}

impl Guest {
    /// Pages in memory, copies of pages that are in swap among them.
    pub fn in_memory(&self) -> u64 {
        self.mapped + self.copies.len() as u64
    }

    /// A page is there from now on. Returns where it was; none where there is no such page.
    fn put(&mut self, page: PageIndex, to: Place, node_tiers: NodeTiers) -> Option<Place> {
        let before = std::mem::replace(self.places.get_mut(page as usize)?, to);
        let mapped = |place| u64::from(matches!(place, Place::In(tier) if node_tiers.contains(tier)));
        self.mapped = self.mapped + mapped(to) - mapped(before);
        if let Place::In(tier) = before {
            self.in_tier.entry(tier).and_modify(|pages| *pages -= 1);
        }
        if let Place::In(tier) = to {
            *self.in_tier.entry(tier).or_default() += 1;
        }
        Some(before)
    }
}

impl SimulatedHost {
    pub fn new(config: Config, now: Monotonic) -> Self {
        let ladder = Ladder::new(&config);
        let node_tiers = ladder.node_tiers();
        let last = ladder.tiers().last().map_or(0, |tier| tier.id.0);
        let memory = NodeMemory { total: PLENTY, free: PLENTY, available: PLENTY, copies: 0 };
        let mut facts = Facts { memory: Some(memory), moves_show: true, kvm_shows: true, ..Facts::default() };
        facts.tier_memory = (0..node_tiers.0).map(|level| (TierId(level), memory)).collect();
        facts.swap.areas = ladder.tiers().iter().filter_map(|tier| area(tier.id, &tier.kind)).collect();
        facts.swap.lines = facts.swap.areas.iter().map(line).collect();
        Self {
            engine: Engine::new(config, ladder, PLENTY, false, now),
            now,
            node_tiers,
            last,
            guests: BTreeMap::new(),
            facts,
            refuses: None,
            no_reclaim: None,
            rearms: true,
            took: None,
        }
    }

    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    pub fn engine_mut(&mut self) -> &mut Engine {
        &mut self.engine
    }

    pub fn now(&self) -> Monotonic {
        self.now
    }

    /// It is so late now.
    pub fn set_now(&mut self, now: Monotonic) {
        self.now = now;
    }

    /// CPU time that the engine took since this was called last. From the first call on it is measured.
    pub fn took(&mut self) -> Took {
        self.took.replace(Took::default()).unwrap_or_default()
    }

    /// A VM that has come and not gone.
    ///
    /// # Panics
    /// Where there is none.
    pub fn guest(&self, vm: VmId) -> &Guest {
        &self.guests[&vm]
    }

    pub fn guest_mut(&mut self, vm: VmId) -> Option<&mut Guest> {
        self.guests.get_mut(&vm)
    }

    /// A VM comes, whose pages are in these places; what is in none of these runs was never touched.
    pub fn start(&mut self, id: VmId, vm: Vm, found: &[(PageRun, Place)], told: &mut dyn FnMut(&Command)) {
        let pages = u32::try_from(vm.ram_bytes() / PAGE_BYTES).unwrap_or(u32::MAX);
        let places = vec![Place::Untouched; pages as usize];
        let mut guest = Guest {
            vm: vm.clone(),
            places,
            mapped: 0,
            in_tier: BTreeMap::new(),
            copies: HashSet::new(),
            ahead: HashMap::new(),
            gauge: None,
        };
        for (run, place) in found {
            for page in run.pages() {
                guest.put(page, *place, self.node_tiers);
            }
        }
        let by_kvm = vm.accel == Accel::Kvm;
        self.guests.insert(id, guest);
        self.tell(Event::Appeared(id, vm), told);
        if by_kvm {
            // Its addresses are where they should be.
            let frame = |number: u64| Frame {
                gfn: u64::from(pages) * number / PROOFS,
                spte: (FIRST_FRAME + u64::from(pages) * number / PROOFS) * PAGE_BYTES,
            };
            self.tell(Event::Frames(id, (0..PROOFS).map(frame).collect()), told);
        }
    }

    pub fn end(&mut self, id: VmId, told: &mut dyn FnMut(&Command)) {
        self.guests.remove(&id);
        self.tell(Event::Gone(id, "has ended", crate::bpf::Counters::default()), told);
    }

    /// A second has passed.
    pub fn second(&mut self, told: &mut dyn FnMut(&Command)) {
        let now = self.now;
        let gauges = self.guests.values().filter_map(|guest| Some(Gauge { at: now, ..guest.gauge.clone()? }));
        let gauges: Vec<Gauge> = gauges.collect();
        if !gauges.is_empty() {
            self.tell(Event::Gauges(gauges), told);
        }
        let mut facts = self.facts.clone();
        for line in &mut facts.swap.lines {
            let area = facts.swap.areas.iter().find(|area| area.path == line.path);
            line.used_bytes = area.map_or(0, |area| self.used_bytes(area.tier));
        }
        let (used, size) = facts
            .swap
            .lines
            .iter()
            .fold((0, 0), |(used, size), line| (used + line.used_bytes, size + line.size_bytes));
        facts.swap_half_full |= used * 2 > size;
        let copies: usize = self.guests.values().map(|guest| guest.copies.len()).sum();
        facts.memory = facts.memory.map(|memory| NodeMemory { copies: copies as u64 * PAGE_BYTES, ..memory });
        self.tell(Event::Second(facts), told);
    }

    /// A VM touches a page. What it waits for shows ([`SimulatedHost::show`]), all else only where pages are armed.
    pub fn touch(&mut self, vm: VmId, page: PageIndex) -> Wait {
        let node_tiers = self.node_tiers;
        let Some(guest) = self.guests.get_mut(&vm) else { return Wait::Nothing };
        let wait = match guest.places.get(page as usize) {
            None => return Wait::Nothing,
            Some(_) if guest.ahead.remove(&page).is_some() => Wait::Copy,
            Some(Place::In(tier)) if node_tiers.contains(*tier) => Wait::Nothing,
            Some(Place::Untouched) => Wait::Copy,
            Some(_) if guest.copies.remove(&page) => Wait::Copy,
            Some(_) => Wait::Read,
        };
        if wait != Wait::Nothing {
            guest.put(page, Place::In(TierId(0)), node_tiers);
        }
        wait
    }

    /// An access shows, wherever the page is.
    pub fn show(
        &mut self,
        vm: VmId,
        page: PageIndex,
        (write, weight_log2): (bool, u8),
        told: &mut dyn FnMut(&Command),
    ) {
        let kvm = self.guests.get(&vm).is_some_and(|guest| guest.vm.accel == Accel::Kvm);
        let write = if write { SAMPLE_WRITE } else { 0 } | if kvm { SAMPLE_KVM } else { 0 };
        let flags = write | u32::from(weight_log2) << SAMPLE_WEIGHT_SHIFT;
        let hva = START.0 + u64::from(page) * PAGE_BYTES;
        self.tell(Event::Samples(&[Sample { time_ns: self.now.0, hva, vm: vm.0, flags }]), told);
    }

    /// Pages of the VM in this place.
    pub fn pages_in(&self, vm: VmId, place: Place) -> u64 {
        let places = self.guests.get(&vm).map(|guest| guest.places.iter());
        places.into_iter().flatten().filter(|there| **there == place).count() as u64
    }

    /// Where pages are here that were in this place on a host with so many memory tiers.
    pub fn place_of(&self, place: Place, node_tiers: u8) -> Place {
        let Place::In(TierId(level)) = place else { return place };
        let (here, last) = (self.node_tiers.0, self.last);
        Place::In(TierId(match level.checked_sub(node_tiers) {
            Some(swap) => here.saturating_add(swap).min(last),
            None => level.min(here.saturating_sub(1)),
        }))
    }

    /// Pages of the VM that are in memory tiers.
    pub fn mapped_pages(&self, vm: VmId) -> Vec<PageIndex> {
        let guest = self.guests.get(&vm);
        let is_mapped = |place: Place| matches!(place, Place::In(tier) if self.node_tiers.contains(tier));
        let pages = guest.into_iter().flat_map(|guest| (0..).zip(&guest.places));
        pages.filter(|(_, place)| is_mapped(**place)).map(|(page, _)| page).collect()
    }

    /// Bytes of all VMs in this tier.
    fn used_bytes(&self, tier: TierId) -> u64 {
        let of = |guest: &Guest| guest.in_tier.get(&tier).copied().unwrap_or(0);
        self.guests.values().map(of).sum::<u64>() * PAGE_BYTES
    }

    /// The kernel has reclaimed these pages of the VM.
    pub fn reclaimed(&mut self, vm: VmId, run: PageRun, to: TierId) {
        self.facts.moved_by_others.reclaimed += u64::from(run.count);
        self.put(vm, run, Place::In(to));
    }

    /// These pages of the VM are there from now on; the engine finds out by its next sweep.
    pub fn put(&mut self, vm: VmId, run: PageRun, place: Place) {
        let Some(guest) = self.guests.get_mut(&vm) else { return };
        for page in run.pages() {
            guest.put(page, place, self.node_tiers);
        }
    }

    /// Tells the engine what happens, does what it asks for and tells it of that, until nothing more follows.
    pub fn tell(&mut self, event: Event<'_>, told: &mut dyn FnMut(&Command)) {
        let mut commands = self.handle(event);
        loop {
            while let Some(command) = commands.pop_front() {
                told(&command);
                if let Some(event) = self.perform(command) {
                    commands.extend(self.handle(event));
                }
            }
            // What waits to be staged goes on.
            if self.engine.waits_for_time() {
                commands = self.handle(Event::Samples(&[]));
            }
            if commands.is_empty() {
                return;
            }
        }
    }

    fn handle(&mut self, event: Event<'_>) -> VecDeque<Command> {
        let mut commands = VecDeque::new();
        let began = self.took.map(|_| cpu_time());
        self.engine.handle(self.now, event, &mut |command| commands.push_back(command));
        if let (Some(took), Some(began)) = (&mut self.took, began) {
            let for_it = cpu_time().saturating_sub(began);
            took.all += for_it;
            took.longest = took.longest.max(for_it);
        }
        commands
    }

    fn perform(&mut self, command: Command) -> Option<Event<'static>> {
        match command {
            Command::Step(vm, step) => {
                let outcome = self.carry_out(step)?;
                self.guests.contains_key(&vm.id).then_some(Event::Done(Done::Step(outcome)))
            }
            Command::Look(vm, Look::Sweep(part)) => {
                let sweep = self.sweep(vm.id, part)?;
                Some(Event::Looked(Looked::Swept(Swept { vm: vm.id, began: self.now, sweep: Ok(sweep) })))
            }
            Command::Look(vm, Look::Compare(frames)) => {
                let found =
                    frames.into_iter().map(|(frame, hva)| (frame, hva, Some(frame.spte / PAGE_BYTES)));
                let compared = Compared { vm: vm.id, found: found.collect() };
                Some(Event::Looked(Looked::Compared(compared)))
            }
            Command::Look(vm, Look::Rearm) if self.rearms => {
                let took = Ok(Duration::from_millis(1));
                let rearmed = Rearmed { vm: vm.id, began: self.now, took, written: Ok(Vec::new()) };
                Some(Event::Looked(Looked::Rearmed(rearmed)))
            }
            Command::Reclaim(vm, bytes) => {
                let reclaimed = match &self.no_reclaim {
                    Some(why) => Err(why.clone()),
                    None => Ok(self.reclaim(vm.id, bytes)?),
                };
                Some(Event::Done(Done::Reclaim(vm.id, reclaimed)))
            }
            _ => None,
        }
    }

    fn carry_out(&mut self, step: Step) -> Option<Outcome> {
        let used = match step.action {
            Action::Place { to } => self.used_bytes(to),
            _ => 0,
        };
        let guest = self.guests.get_mut(&step.vm)?;
        let mut asked = step.pages;
        asked.sort_unstable();
        let mut outcome = Outcome::new(step.vm, step.action, step.reason, asked);
        outcome.finished = self.now;
        let count = outcome.asked.len() as u64;
        if let Some(skip) = &self.refuses {
            outcome.skipped.insert(skip.clone(), count);
            return Some(outcome);
        }
        if let Action::Place { to } = step.action
            && let Some(area) = self.facts.swap.areas.iter().find(|area| area.tier == to)
            && used + count * PAGE_BYTES > area.bytes
        {
            outcome.skipped.insert(Skip::TierFull, count);
            return Some(outcome);
        }
        outcome.moved_pages = count;
        for page in &outcome.asked {
            let to = match step.action {
                Action::Place { to } => to,
                Action::MapStaged => TierId(0),
                Action::Stage { .. } => {
                    guest.copies.insert(*page);
                    continue;
                }
                Action::DropStage { .. } | Action::Free => {
                    guest.copies.remove(page);
                    if let Some(before) = guest.ahead.remove(page) {
                        guest.put(*page, before, self.node_tiers);
                    }
                    continue;
                }
                Action::Collapse => continue,
            };
            let before = guest.put(*page, Place::In(to), self.node_tiers);
            outcome.raised_pages += u64::from(before > Some(Place::In(to)));
            if step.action == Action::MapStaged {
                guest.ahead.extend(before.map(|before| (*page, before)));
            }
            // What is paged out has a copy until that is freed.
            match self.node_tiers.contains(to) {
                true => drop(guest.copies.remove(page)),
                false => drop(guest.copies.insert(*page)),
            }
        }
        if !matches!(step.action, Action::Stage { .. }) {
            outcome.found = runs(outcome.asked.iter().copied(), &guest.places);
        }
        Some(outcome)
    }

    fn sweep(&self, vm: VmId, part: PageRun) -> Option<Sweep> {
        let guest = self.guests.get(&vm)?;
        let there = part
            .pages()
            .filter(|page| guest.places.get(*page as usize).is_some_and(|place| *place != Place::Untouched));
        Some(Sweep { runs: runs(there, &guest.places), ..Sweep::of(part) })
    }

    fn reclaim(&mut self, vm: VmId, bytes: u64) -> Option<Reclaimed> {
        let to = Place::In(TierId(self.node_tiers.0));
        let guest = self.guests.get_mut(&vm)?;
        let most = usize::try_from(bytes / PAGE_BYTES).unwrap_or(usize::MAX);
        let last = u32::try_from(guest.places.len()).unwrap_or(u32::MAX);
        let in_first = |page: &PageIndex| guest.places[*page as usize] == Place::In(TierId(0));
        let pages: Vec<PageIndex> = (0..last).rev().filter(in_first).take(most).collect();
        for page in &pages {
            guest.put(*page, to, self.node_tiers);
        }
        let memory_bytes = pages.len() as u64 * PAGE_BYTES;
        Some(Reclaimed { asked_bytes: bytes, memory_bytes, ..Reclaimed::default() })
    }
}

fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

fn area(tier: TierId, kind: &TierKind) -> Option<Area> {
    let TierKind::Swap { capacity_bytes, .. } = kind else { return None };
    let path = format!("/swap/{}", tier.0).into();
    Some(Area { path, tier, number: tier.0, priority: 0, bytes: *capacity_bytes, covered_pages: 0 })
}

fn line(area: &Area) -> SwapLine {
    let Area { path, bytes, priority, .. } = area.clone();
    SwapLine { path, is_file: true, size_bytes: bytes, used_bytes: 0, priority }
}

/// Runs of these ascending pages that are in one place.
fn runs(pages: impl Iterator<Item = PageIndex>, places: &[Place]) -> Vec<(PageRun, Place)> {
    let mut runs: Vec<(PageRun, Place)> = Vec::new();
    for page in pages {
        let Some(place) = places.get(page as usize) else { continue };
        match runs.last_mut() {
            Some((run, last)) if last == place && run.first + run.count == page => run.count += 1,
            _ => runs.push((PageRun { first: page, count: 1 }, *place)),
        }
    }
    runs
}
