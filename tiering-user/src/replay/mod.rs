//! What the agent would have done to VMs whose accesses were recorded.
//!
//! In: the events of a trace, and a configuration. Out: decisions and profiles, one after another, and for each VM how
//! much was read back, beside what would have been with as much memory at each moment if the least recently used had
//! gone first, and at best. The decisions are those of the agent's own [`Engine`](crate::engine::Engine), on a
//! [`SimulatedHost`]. Pure: time is the trace's.
//!
//! # Limits
//! A recorded access is one that showed: of a page that stays mapped one a round. A page that goes down in the replay
//! and had stayed in memory when this was recorded comes back at its next access that showed. The host has memory to
//! spare, its disks are idle, and no VM has a control group of its own. Huge pages are not told apart. A VM has one
//! processor.

mod cache;
mod simulated;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use thiserror::Error;

use crate::config::{Backing, Config};
use crate::engine::{Command, Event as Happened, Gauge, Looked, Rearmed};
use crate::policy::{Action, Reason, Step};
use crate::profile::Profile;
use crate::sys::{Monotonic, PAGE_BYTES};
use crate::tiermap::{PageIndex, PageRun, Place, into_runs};
use crate::tiers::TierId;
use crate::trace::{Appeared, Event, Timed};
use crate::track::VmId;
use crate::vm::{Accel, GroupMemory, Usage};

pub use cache::{AccessAt, lru, min};
pub use simulated::{Guest, SimulatedHost, Took, Wait, guest};

/// The largest VM that is replayed, and all VMs at a time: 1 and 2 TiB.
const PAGES_MOST: u32 = 1 << 28;
const ALL_PAGES_MOST: u64 = 1 << 29;
const VMS_MOST: usize = 4096;
/// While a VM is there, each ten seconds an epoch of its profile ends. After so long it is taken for gone, and what
/// told of that for lost.
const GAP_MOST: Duration = Duration::from_mins(10);
/// What it costs a VM that an access to an armed page shows.
const SHOWN_ACCESS: Duration = Duration::from_micros(5);
/// Where the configuration names no tier for what leaves memory.
const LADDER: &str = r#"
[[tier]]
name = "dram"
nodes = [0]
[[tier]]
name = "disk"
swap = { path = "/disk", size = "16TiB" }
"#;

/// More than is replayed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TooLarge {
    #[error(
        "the VM {0} has {1} pages: at most {PAGES_MOST} are replayed, of all VMs at a time {ALL_PAGES_MOST}"
    )]
    Pages(String, u32),
    #[error("there are more than {VMS_MOST} VMs at a time")]
    Vms,
}

/// Pages that were sent somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Since the trace began.
    pub second: u64,
    pub vm: String,
    pub run: PageRun,
    pub action: Action,
    pub reason: Reason,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { second, vm, run: PageRun { first, count }, action, reason } = self;
        let what = match action {
            Action::Place { to: TierId(level) } => format!("to tier {level}"),
            Action::Stage { to: TierId(level) } => format!("staged into tier {level}"),
            Action::MapStaged => "mapped".to_owned(),
            Action::DropStage { .. } => "not staged any more".to_owned(),
            Action::Free => "copies freed".to_owned(),
            Action::Collapse => "made huge".to_owned(),
        };
        write!(f, "{second} s: {vm}: pages {first} to {} {what}: {reason}", first + count - 1)
    }
}

/// What a replay tells while it goes on.
#[derive(Debug)]
pub enum Told<'a> {
    Decision(Decision),
    /// An epoch of a VM has ended, so many seconds after the trace began.
    Epoch {
        second: u64,
        vm: &'a str,
        profile: &'a Profile,
    },
}

/// What became of one VM.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Outcome {
    #[serde(rename = "machine")]
    pub vm: String,
    pub accesses: u64,
    /// Pages that were accessed.
    pub accessed_pages: u64,
    pub demoted_bytes: u64,
    /// Pages read ahead of need.
    pub staged_pages: u64,
    /// Pages in memory, copies among them, the mean over the seconds.
    pub mean_bytes: u64,
    /// Accesses to pages that had been in memory, and neither were there any more nor had a copy there.
    pub came_back: u64,
    /// Accesses to pages that had gone out and had a copy in memory, or were staged.
    pub came_back_without_read: u64,
    /// What was read, with as much memory at each moment, the least recently used going first, and at best.
    pub came_back_lru: u64,
    pub came_back_best: u64,
    /// How much of what the best has ahead of the least recently used is reached: 1 is all; below 0 is worse than that.
    /// None where both are alike.
    pub gap_closed: Option<f64>,
}

fn simulated_host(config: &Config, now: Monotonic) -> SimulatedHost {
    let mut host = SimulatedHost::new(config.clone(), now);
    host.rearms = false;
    host.facts.shown_access = Some(SHOWN_ACCESS);
    host
}

/// A replay, as far as it has come.
pub struct Replay {
    config: Config,
    /// Since the first event.
    host: Option<SimulatedHost>,
    /// VMs whose pages are armed anew in the trace: only of KVM guests that is done.
    armed: BTreeSet<VmId>,
    began: Option<Monotonic>,
    second: u64,
    tracked: BTreeMap<VmId, Tracked>,
    /// Have appeared, and nothing happened to them yet.
    waiting: BTreeMap<VmId, Waiting>,
    over: Vec<Outcome>,
    /// Accesses that were not recorded.
    pub lost: u64,
}

/// A VM of which it is told where its pages were.
#[derive(Debug)]
struct Waiting {
    appeared: Appeared,
    runs: Vec<(PageRun, Place)>,
    /// In these runs.
    pages: u64,
}

impl Waiting {
    fn found(&mut self, run: PageRun, place: Place) {
        let pages = u64::from(self.appeared.pages);
        // No page is found twice.
        let fits = u64::from(run.first) + u64::from(run.count) <= pages
            && self.pages + u64::from(run.count) <= pages;
        if fits && run.count > 0 {
            self.pages += u64::from(run.count);
            self.runs.push((run, place));
        }
    }
}

/// What is counted of one VM.
#[derive(Debug)]
struct Tracked {
    appeared: Appeared,
    /// When something was told of it last.
    told: u64,
    epochs: u64,
    /// In memory when its recording began, and accesses since.
    first: Vec<PageIndex>,
    /// Were in memory at some time. Before that none of it can come back.
    seen: HashSet<PageIndex>,
    accesses: Vec<AccessAt>,
    came_back: u64,
    came_back_without_read: u64,
    demoted: u64,
    staged: u64,
    /// Sum over seconds of pages in memory, and how many seconds.
    in_memory: (u64, u64),
}

impl Replay {
    /// Under this configuration. `armed` are the VMs whose pages are armed anew in the trace.
    pub fn new(config: &Config, armed: BTreeSet<VmId>) -> Self {
        let mut config = config.clone();
        if config.tiers.iter().all(|tier| matches!(tier.backing, Backing::Nodes(_))) {
            let ladder = Config::parse(LADDER, "").map(|ladder| ladder.tiers).unwrap_or_default();
            config.tiers.extend(ladder.into_iter().skip(usize::from(!config.tiers.is_empty())));
        }
        Self {
            config,
            host: None,
            armed,
            began: None,
            second: 0,
            tracked: BTreeMap::new(),
            waiting: BTreeMap::new(),
            over: Vec::new(),
            lost: 0,
        }
    }

    /// Takes in an event, after all that is due until then; `tell` is told what is decided meanwhile, and of epochs
    /// that end.
    ///
    /// # Errors
    /// [`TooLarge`].
    pub fn take(&mut self, timed: &Timed, mut tell: impl FnMut(Told<'_>)) -> Result<(), TooLarge> {
        let tell = &mut tell;
        // A time of zero stands for none, in places: a trace may begin there.
        let time = timed.time.after(Duration::from_secs(1));
        let began = *self.began.get_or_insert(time);
        let second = time.since(began).as_secs();
        if second.saturating_sub(self.second) > GAP_MOST.as_secs() {
            self.silent_gone(second, tell);
        }
        if self.tracked.is_empty() {
            self.second = second.max(self.second);
        }
        while self.second < second {
            self.begin_all(tell);
            self.next_second(tell);
        }
        if let Some(tracked) = timed.event.vm().and_then(|vm| self.tracked.get_mut(&vm)) {
            tracked.told = second;
        }
        let host = self.host.get_or_insert_with(|| simulated_host(&self.config, time));
        // Events of several threads are not quite in order.
        host.set_now(time.max(host.now()));
        match &timed.event {
            Event::Appeared(appeared) => self.appeared(appeared, tell)?,
            Event::Found { vm, run, place } => {
                if let Some(waiting) = self.waiting.get_mut(vm) {
                    waiting.found(*run, *place);
                }
            }
            Event::Lost(accesses) => self.lost += accesses,
            Event::Gone(vm) => {
                self.begin(*vm, tell);
                self.gone(*vm, tell);
            }
            Event::Accessed { vm, page, write, weight_log2 } => {
                self.begin(*vm, tell);
                self.accessed(*vm, *page, (*write, (*weight_log2).min(31)), tell);
            }
            Event::Armed(vm) => {
                self.begin(*vm, tell);
                self.armed(*vm, tell);
            }
            Event::Used { vm, usage } => {
                self.begin(*vm, tell);
                self.used(*vm, *usage);
            }
            // What was done then is not what is done now.
            Event::Moved { .. } => {}
        }
        Ok(())
    }

    fn next_second(&mut self, tell: &mut impl FnMut(Told<'_>)) {
        let Some(began) = self.began else { return };
        self.second += 1;
        let now = began.after(Duration::from_secs(self.second));
        if let Some(host) = &mut self.host {
            host.set_now(now.max(host.now()));
        }
        self.act(|host, told| host.second(told), tell);
        self.count(tell);
        self.silent_gone(self.second, tell);
    }

    /// The trace is over. Returns all VMs, in the order in which they went, then those that were there to the end.
    pub fn end(mut self, mut tell: impl FnMut(Told<'_>)) -> Vec<Outcome> {
        self.begin_all(&mut tell);
        if !self.tracked.is_empty() {
            self.next_second(&mut tell);
        }
        self.over.into_iter().chain(self.tracked.into_values().map(Tracked::outcome)).collect()
    }

    fn appeared(&mut self, appeared: &Appeared, tell: &mut impl FnMut(Told<'_>)) -> Result<(), TooLarge> {
        let vm = appeared.vm;
        // Told of again after blocks were lost.
        if self.tracked.get(&vm).is_some_and(|tracked| tracked.appeared == *appeared) {
            return Ok(());
        }
        self.gone(vm, tell);
        self.waiting.remove(&vm);
        let there = self.tracked.values().map(|tracked| &tracked.appeared);
        let all = there.chain(self.waiting.values().map(|waiting| &waiting.appeared));
        let pages: u64 = all.chain([appeared]).map(|appeared| u64::from(appeared.pages)).sum();
        if appeared.pages > PAGES_MOST || pages > ALL_PAGES_MOST {
            return Err(TooLarge::Pages(appeared.name.clone(), appeared.pages));
        }
        if self.tracked.len() + self.waiting.len() >= VMS_MOST {
            return Err(TooLarge::Vms);
        }
        self.waiting.insert(vm, Waiting { appeared: appeared.clone(), runs: Vec::new(), pages: 0 });
        Ok(())
    }

    /// VMs of which nothing was told for long are gone.
    fn silent_gone(&mut self, second: u64, tell: &mut impl FnMut(Told<'_>)) {
        let is_silent = |tracked: &Tracked| second.saturating_sub(tracked.told) > GAP_MOST.as_secs();
        let silent: Vec<VmId> =
            self.tracked.iter().filter(|(_, tracked)| is_silent(tracked)).map(|(vm, _)| *vm).collect();
        silent.into_iter().for_each(|vm| self.gone(vm, tell));
    }

    fn begin_all(&mut self, tell: &mut impl FnMut(Told<'_>)) {
        while let Some(vm) = self.waiting.keys().next().copied() {
            self.begin(vm, tell);
        }
    }

    /// All is told of where the pages of a VM were when its recording began.
    fn begin(&mut self, vm: VmId, tell: &mut impl FnMut(Told<'_>)) {
        let Some(Waiting { appeared, runs, .. }) = self.waiting.remove(&vm) else { return };
        let mut guest = guest(vm, &appeared.name, appeared.pages);
        if self.armed.contains(&vm) {
            guest.accel = Accel::Kvm;
        }
        let recorded = appeared.node_tiers;
        self.tracked.insert(vm, Tracked::new(appeared, self.second));
        let Some(host) = &self.host else { return };
        let runs: Vec<_> =
            runs.into_iter().map(|(run, place)| (run, host.place_of(place, recorded))).collect();
        self.act(|host, told| host.start(vm, guest, &runs, told), tell);
        if let (Some(host), Some(tracked)) = (&self.host, self.tracked.get_mut(&vm)) {
            tracked.first = host.mapped_pages(vm);
            tracked.seen = tracked.first.iter().copied().collect();
        }
    }

    /// What the VM accesses shows again from now on.
    fn armed(&mut self, vm: VmId, tell: &mut impl FnMut(Told<'_>)) {
        let now = self.host.as_ref().map(SimulatedHost::now);
        if let Some(began) = now.filter(|_| self.tracked.contains_key(&vm)) {
            let took = Ok(Duration::from_millis(1));
            let rearmed = Rearmed { vm, began, took, written: Ok(Vec::new()) };
            self.act(|host, told| host.tell(Happened::Looked(Looked::Rearmed(rearmed)), told), tell);
        }
    }

    fn gone(&mut self, vm: VmId, tell: &mut impl FnMut(Told<'_>)) {
        if let Some(tracked) = self.tracked.remove(&vm) {
            self.over.push(tracked.outcome());
            self.act(|host, told| host.end(vm, told), tell);
        }
    }

    fn accessed(&mut self, vm: VmId, page: PageIndex, how: (bool, u8), tell: &mut impl FnMut(Told<'_>)) {
        if self.tracked.get(&vm).is_none_or(|tracked| page >= tracked.appeared.pages) {
            return;
        }
        let Some(host) = &mut self.host else { return };
        let wait = host.touch(vm, page);
        let in_memory = host.guest(vm).in_memory();
        self.act(|host, told| host.show(vm, page, how, told), tell);
        let Some(tracked) = self.tracked.get_mut(&vm) else { return };
        let is_new = tracked.seen.insert(page);
        tracked.came_back += u64::from(!is_new && wait == Wait::Read);
        tracked.came_back_without_read += u64::from(!is_new && wait == Wait::Copy);
        let capacity = u32::try_from(in_memory).unwrap_or(u32::MAX);
        tracked.accesses.push(AccessAt { page, capacity });
    }

    /// So much its process had used of the host by then.
    fn used(&mut self, vm: VmId, usage: Option<Usage>) {
        let Some(host) = &mut self.host else { return };
        let at = host.now();
        if let Some(guest) = host.guest_mut(vm) {
            let (key, memory) = (guest.vm.key, GroupMemory::default());
            guest.gauge = Some(Gauge { key, memory, ksm_bytes: None, usage, bindings: None, at });
        }
    }

    /// Has something happen on the host, and tells what is decided by it.
    fn act(
        &mut self,
        act: impl FnOnce(&mut SimulatedHost, &mut dyn FnMut(&Command)),
        tell: &mut impl FnMut(Told<'_>),
    ) {
        let (second, tracked) = (self.second, &mut self.tracked);
        let Some(host) = &mut self.host else { return };
        act(host, &mut |command| {
            let Command::Step(_, Step { vm, action, pages, reason }) = command else { return };
            let Some(tracked) = tracked.get_mut(vm) else { return };
            match action {
                // From a slower swap tier to a faster one.
                Action::Place { .. } if *reason == Reason::MayBeTouched => {}
                Action::Place { to } if *to > TierId(0) => tracked.demoted += pages.len() as u64,
                Action::Stage { .. } => tracked.staged += pages.len() as u64,
                _ => {}
            }
            for run in into_runs(pages, u32::MAX) {
                let (vm, action, reason) = (tracked.appeared.name.clone(), *action, *reason);
                tell(Told::Decision(Decision { second, vm, run, action, reason }));
            }
        });
    }

    /// A second is over.
    fn count(&mut self, tell: &mut impl FnMut(Told<'_>)) {
        let Some(host) = &self.host else { return };
        for (vm, tracked) in &mut self.tracked {
            tracked.in_memory.0 += host.guest(*vm).in_memory();
            tracked.in_memory.1 += 1;
            let Some(profile) = host.engine().profile(*vm) else { continue };
            if profile.epochs() > tracked.epochs {
                tracked.epochs = profile.epochs();
                tell(Told::Epoch { second: self.second, vm: &tracked.appeared.name, profile });
            }
        }
    }
}

impl Tracked {
    fn new(appeared: Appeared, second: u64) -> Self {
        Self {
            appeared,
            told: second,
            epochs: 0,
            first: Vec::new(),
            seen: HashSet::new(),
            accesses: Vec::new(),
            came_back: 0,
            came_back_without_read: 0,
            demoted: 0,
            staged: 0,
            in_memory: (0, 0),
        }
    }

    fn outcome(self) -> Outcome {
        let (sum, seconds) = self.in_memory;
        let mean = sum.checked_div(seconds).unwrap_or(0);
        let came_back_lru = lru(&self.first, &self.accesses);
        let came_back_best = min(&self.first, &self.accesses);
        let ahead = came_back_lru as f64 - came_back_best as f64;
        let reached = came_back_lru as f64 - self.came_back as f64;
        let mut accessed: Vec<_> = self.accesses.iter().map(|access| access.page).collect();
        accessed.sort_unstable();
        accessed.dedup();
        Outcome {
            vm: self.appeared.name,
            accesses: self.accesses.len() as u64,
            accessed_pages: accessed.len() as u64,
            demoted_bytes: self.demoted * PAGE_BYTES,
            staged_pages: self.staged,
            mean_bytes: mean * PAGE_BYTES,
            came_back: self.came_back,
            came_back_without_read: self.came_back_without_read,
            came_back_lru,
            came_back_best,
            gap_closed: (ahead > 0.0).then(|| reached / ahead),
        }
    }
}

#[cfg(test)]
mod tests;
