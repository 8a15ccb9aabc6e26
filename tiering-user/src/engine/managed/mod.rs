//! One VM, as the agent keeps it.

mod asked;
mod came_up;
mod decisions;
mod gpa_proof;
mod knowledge;
mod lookup;
mod moves;
mod prefetch;
mod profiling;
mod savings;
mod seasons;
mod staging;
mod sweeps;
mod waiting;
mod watch;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

pub use asked::Asked;
use came_up::CameUp;
pub use decisions::Decision;
use gpa_proof::GpaProof;
pub use knowledge::Knowledge;
pub use lookup::is_meant;
pub use moves::{Moved, Moves, Queued};
pub use prefetch::{Earlier, Prefetch};
use savings::VmSavings;
use sweeps::Sweeps;
pub use sweeps::Why;
pub use waiting::Urgency;
use watch::Watch;

use super::brakes::VmBrakes;
use crate::actuate::{Homes, Outcome, Skip, VmInfo};
use crate::class::Belief;
use crate::config::{Huge, Priors, VmSettings};
use crate::policy::{Action, Bands, Reason, Rules, note_return};
use crate::predict::{TagKey, Used};
use crate::profile::Profile;
use crate::reclaim::{Recent, Reclaim};
use crate::sys::{Monotonic, PAGE_BYTES};
use crate::tiermap::{Layout, PageIndex, PageRun, Place, Seconds, Sweep, VmPages};
use crate::tiers::{NodeTiers, TierId};
use crate::track::{Access, VmId};
use crate::vm::{GuestRange, Hva, RamRegion, Refusal, Scope, Vm};

/// Sweeps and looks at control groups are hardly ever older, but for sweeps of VMs in which nothing happens.
pub const LATELY: Duration = Duration::from_secs(30);

/// What a VM may have of the first tier; written once a second.
#[derive(Debug)]
pub struct Share {
    /// What is hot and warm.
    pub bands: Bands,
    /// How much it may have, and how much more than that it has.
    pub room_pages: u64,
    pub excess_pages: u64,
    /// The control group that lacks these pages; none where the first tier does.
    pub excess_of: Option<String>,
}

/// A page that was in a lower tier until this touch, or had been staged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Returned {
    pub page: PageIndex,
    /// The VM waited for a read.
    pub missed: bool,
}

#[derive(Debug)]
pub struct ManagedVm {
    pub info: VmInfo,
    /// As the status shows it: that of the VM, with its process where two have the same.
    pub id: String,
    /// As it is known when its process is another one.
    pub identity: String,
    pub settings: VmSettings,
    /// What kind of work it does, and what that changes.
    pub class: Belief,
    pub priors: Priors,
    /// Its labels are being read.
    pub labels_asked: bool,
    /// Which addresses of a KVM guest can be believed.
    pub gpa_proof: GpaProof,
    pub pages: VmPages,
    pub sweeps: Sweeps,
    pub watch: Watch,
    pub profile: Profile,
    pub knowledge: Knowledge,
    pub prefetch: Prefetch,
    pub share: Share,
    pub braking: VmBrakes,
    pub moves: Moves,
    /// What leaves memory for swap, and is freed.
    pub reclaim: Reclaim,
    /// How long a read from the first swap tier takes.
    pub read_wait: Duration,
    /// Copies of it are being freed; and when it was last looked what is due.
    pub freeing: bool,
    pub freed_at: Option<Monotonic>,
    /// Of the kernel.
    pub asked: Asked,
    /// Pages that left memory for swap in the last seconds by the kernel at the agent's request.
    pub reclaimed_lately: Recent<u64>,
    pub savings: VmSavings,
    pub came_up: CameUp,
    /// When its last epoch of heat ended.
    pub cooled_at: Seconds,
    /// Accessed within `demote_after`, pages, and when that was counted.
    pub working_set_pages: u64,
    pub working_set_at: Option<Monotonic>,
    /// Highest number of pages seen in each place; written when the status is made.
    pub peaks: BTreeMap<Place, u64>,
}

impl ManagedVm {
    pub fn new(
        number: VmId,
        id: String,
        vm: Vm,
        settings: VmSettings,
        node_tiers: NodeTiers,
        tag_key: Option<Arc<TagKey>>,
        now: Monotonic,
    ) -> Self {
        let layout = Layout::new(&vm.ram);
        let proof = GpaProof::new(&vm, now);
        let unplugged_bytes = vm.on_demand.iter().map(|region| region.bytes).sum();
        let info = VmInfo {
            id: number,
            vm: Arc::new(vm),
            layout: Arc::new(layout.clone()),
            tag_key,
            keep_huge: settings.huge == Huge::Keep,
            homes: Arc::new(Homes::new(layout.pages())),
        };
        let pages = layout.pages();
        Self {
            identity: info.vm.identity(),
            info,
            id,
            class: Belief::of_operator(settings.class),
            priors: Priors::NEUTRAL,
            settings,
            labels_asked: false,
            gpa_proof: proof,
            pages: VmPages::new(layout, node_tiers),
            sweeps: Sweeps::new(unplugged_bytes),
            watch: Watch::default(),
            profile: Profile::new(pages, now),
            knowledge: Knowledge::default(),
            prefetch: Prefetch::new(pages),
            share: Share { bands: Bands::ROOMY, room_pages: 0, excess_pages: 0, excess_of: None },
            braking: VmBrakes::default(),
            moves: Moves::new(pages),
            reclaim: Reclaim::default(),
            read_wait: Duration::ZERO,
            freeing: false,
            freed_at: None,
            asked: Asked::default(),
            reclaimed_lately: Recent::new(LATELY),
            savings: VmSavings::default(),
            came_up: CameUp::default(),
            cooled_at: Seconds::default(),
            working_set_pages: 0,
            working_set_at: None,
            peaks: BTreeMap::new(),
        }
    }

    /// Whether both are known by the same identity, which whoever starts them has chosen.
    pub fn is_twin_of(&self, other: &Self) -> bool {
        self.identity == other.identity
    }

    /// 0 to 100: as the operator, else its class has it.
    pub fn priority(&self) -> u8 {
        self.settings.priority.unwrap_or(self.priors.priority)
    }

    /// What the policy goes by for it now.
    pub fn rules(&self, demote_after: Duration) -> Rules {
        Rules {
            demote_after: demote_after.mul_f64(self.priors.idle_age),
            priority: self.priority(),
            excess_pages: self.share.excess_pages,
            bands: self.share.bands,
            armed_at: self.watch.armed_at(),
            keep_huge: self.info.keep_huge,
        }
    }

    /// Why none of its pages is moved to the tier `to`, if so.
    pub fn refuses(&self, to: TierId) -> Option<String> {
        if !self.settings.managed {
            return Some("excluded by the configuration (managed = false)".to_owned());
        }
        if self.gpa_proof.is_wrong() {
            return Some(
                "its guest-physical addresses are not where its machine type puts them: it is only watched"
                    .to_owned(),
            );
        }
        let node_tiers = self.pages.node_tiers();
        if node_tiers.has_lower(to) && self.info.vm.numa_bound {
            return Some(Skip::Bound.to_string());
        }
        let applies = |refusal: &&Refusal| !node_tiers.contains(to) || refusal.scope() != Scope::NodesOnly;
        self.info.vm.refusal.as_ref().filter(applies).map(ToString::to_string)
    }

    /// The pages of this part of a sweep that lie in RAM which is plugged on demand, and are there.
    pub fn plugged_pages(&self, sweep: &Sweep) -> u64 {
        let layout = self.pages.layout();
        let pages = |region: &RamRegion| {
            let first = layout.page(region.start)?;
            Some(first..first + u32::try_from(region.bytes / PAGE_BYTES).ok()?)
        };
        let inside = |part: Range<u32>| {
            let of = |run: &PageRun| {
                (run.first + run.count).min(part.end).saturating_sub(run.first.max(part.start))
            };
            sweep.runs.iter().map(|(run, _)| u64::from(of(run))).sum::<u64>()
        };
        self.info.vm.on_demand.iter().filter_map(pages).map(inside).sum()
    }

    /// So many pages of the RAM that is plugged on demand are there.
    pub fn note_plugged(&mut self, pages: u64) {
        let room: u64 = self.info.vm.on_demand.iter().map(|region| region.bytes).sum();
        self.sweeps.set_unplugged_bytes(room.saturating_sub(pages * PAGE_BYTES));
    }

    /// Why nothing of it is moved to any tier below the first one, if so.
    pub fn unmovable(&self) -> Option<String> {
        // What is true for one lower tier of a kind is true for all.
        let has_lower_memory = self.pages.node_tiers().0 > 1;
        let may_go_there = has_lower_memory && self.refuses(TierId(1)).is_none();
        self.never_to_swap().filter(|_| !may_go_there)
    }

    /// Why none of its pages is moved to swap, if so.
    pub fn never_to_swap(&self) -> Option<String> {
        self.refuses(TierId(self.pages.node_tiers().0))
    }

    /// Notes an access. Returns the page, if the guest waited for it or would have but for a stage.
    pub fn on_access(&mut self, access: &Access, rules: &Rules, now: Seconds) -> Option<Returned> {
        let page = self.pages.layout().page(access.hva)?;
        self.profile.access(page, access.write, access.time, access.weight);
        let touch = self.pages.touch(page, now, access.write);
        let mapped = self.pages.in_memory(touch.before.place());
        self.watch.seen_by.note(access.kvm, mapped && self.watch.armed_at().is_some(), access.weight);
        if access.kvm && mapped {
            self.note_shown(page, touch.before, now);
        }
        // A page that is in memory raises a fault of an emulated guest where the table is wrong about it.
        if !mapped || !access.kvm {
            self.sweeps.disturb();
        }
        // Where only some accesses are looked at, each stands for others that were alike.
        let weight = u64::from(access.weight);
        if touch.was_lower {
            self.came_up.note(touch.before.place(), weight);
        }
        if let Some(predicted) = self.prefetch.to_stage.remove(page) {
            self.prefetch.stages.withdrawn(predicted.origin, access.time);
        }
        let staged = self.prefetch.stages.touched(page, access.time);
        let in_memory = |used: &Used| self.pages.node_tiers().contains(used.tier);
        let ready = staged.filter(in_memory);
        if let Some(Used { tier, .. }) = ready.filter(|_| touch.was_lower) {
            self.pages.update(page, |entry| entry.with_place(Place::In(tier)));
        }
        let in_time = ready.is_some_and(|used| used.in_time);
        let back = touch.was_lower.then(|| match in_time {
            true => self.reclaim.touched(page, access.weight),
            false => self.reclaim.waited_for(page, access.weight, self.read_wait, access.time),
        });
        let missed = back.is_some_and(|back| back.read && !in_time);
        if missed {
            self.braking.waited_for(touch.before.place(), weight);
        }
        if let Some(used) = ready.filter(|used| used.in_time && back.is_some_and(|back| back.read)) {
            self.prefetch.stages.spared(used.origin, access.time);
        }
        let soon = back.and_then(|back| back.soon);
        if let Some(soon) = note_return(&mut self.pages, page, touch, soon, rules, now) {
            self.moves.totals.ping_pong += weight * u64::from(soon);
        }
        let came_up = touch.was_lower || staged.is_some();
        if came_up {
            self.prefetch.stages.came_up(page, ready.is_none(), access.time);
        }
        came_up.then_some(Returned { page, missed })
    }

    /// The page at the same guest-physical address in `other`, a VM of the same shape: as much RAM below the hole
    /// for devices, as much above it.
    pub fn same_page_in(&self, other: &Self, page: PageIndex) -> Option<PageIndex> {
        let (here, there) = (&self.info.vm.guest_ranges, &other.info.vm.guest_ranges);
        let known = |ranges: &[GuestRange]| ranges.iter().all(|range| range.gpa.is_some());
        let same_shape = known(here)
            && here
                .iter()
                .map(|range| (range.gpa, range.bytes))
                .eq(there.iter().map(|range| (range.gpa, range.bytes)));
        let (hva, _) = self.info.layout.locate(page).filter(|_| same_shape)?;
        let (from, to) = here.iter().zip(there).find(|(range, _)| range.contains(hva))?;
        other.info.layout.page(Hva(to.start.0 + (hva.0 - from.start.0)))
    }

    /// Pages of private memory that are staged and not mapped: the kernel has them in the swap cache.
    pub fn staged_in_swap_cache(&self) -> u64 {
        let layout = self.pages.layout();
        let private = |page: &PageIndex| layout.locate(*page).is_some_and(|(_, shared)| !shared);
        self.prefetch.stages.up_unmapped().filter(private).count() as u64
    }

    /// Pages brought up: by a move, or by a stage that was used.
    pub fn promoted_pages(&self) -> u64 {
        self.moves.totals.promoted + self.prefetch.stages.counts().used
    }

    /// Plans nothing for this many seconds.
    pub fn rest(&mut self, seconds: u64, now: Monotonic) {
        self.moves.rest(now.after(Duration::from_secs(seconds)));
    }

    /// Takes over what became of a step.
    pub fn on_outcome(&mut self, outcome: &Outcome, now: Seconds) {
        self.moves.note_decision(outcome);
        self.sweeps.disturb();
        self.moves.totals.huge_split += outcome.huge_split_pages;
        for (run, place) in &outcome.found {
            // What could not be placed is not worth trying again at once.
            let missed = outcome.reason != Reason::MayBeTouched
                && matches!(outcome.action, Action::Place { to } if *place != Place::In(to));
            self.came_up.note_raised(&self.pages, *run, *place);
            self.pages.place(*run, *place);
            if missed && *place != Place::Untouched {
                // Promotion looks for heat: a page that could not be promoted waits for its next access.
                let lower_memory = self.pages.in_lower_memory(*place);
                for page in run.pages() {
                    self.pages.update(page, |entry| {
                        let entry = entry.postponed(now);
                        if lower_memory { entry.without_heat() } else { entry }
                    });
                }
            }
        }
        match outcome.action {
            Action::Place { .. } => {
                let down = outcome.found.iter().filter(|(_, place)| self.pages.in_swap(*place));
                for page in down.flat_map(|(run, _)| run.pages()).collect::<Vec<_>>() {
                    if outcome.reason != Reason::MayBeTouched {
                        self.prefetch.stages.failed(page);
                    }
                    self.pages.update(page, |entry| entry.with_staged(false));
                }
                self.note_lift(outcome, now);
                // Of those only what is used counts, as of all stages.
                if outcome.reason != Reason::MayBeTouched {
                    self.moves.totals.promoted += outcome.raised_pages;
                    self.moves.totals.demoted += outcome.moved_pages - outcome.raised_pages;
                }
            }
            Action::Collapse => {
                self.moves.totals.collapsed += outcome.moved_pages;
                // What was not tried is not given up, but for blocks of which the guest has given something back.
                if outcome.skipped.keys().all(|skip| matches!(skip, Skip::NotCollapsed | Skip::Absent)) {
                    self.pages.tried_to_collapse(&outcome.asked);
                }
            }
            Action::MapStaged => {
                let found = outcome.found.iter().filter(|(_, place)| self.pages.in_memory(*place));
                for page in found.flat_map(|(run, _)| run.pages()) {
                    self.prefetch.stages.mapped(page, outcome.finished);
                }
            }
            Action::Stage { .. } => {
                self.prefetch.staging = None;
                let staged = outcome.moved_pages > 0;
                for page in &outcome.left_out {
                    self.prefetch.stages.failed(*page);
                    self.pages.update(*page, |entry| entry.with_staged(false));
                }
                for page in &outcome.asked {
                    if staged {
                        self.prefetch.stages.done(*page, outcome.finished);
                    } else {
                        self.prefetch.stages.failed(*page);
                        self.pages.update(*page, |entry| entry.with_staged(false));
                    }
                }
            }
            Action::DropStage { .. } | Action::Free => {
                for page in outcome.asked.iter().chain(&outcome.left_out) {
                    self.prefetch.dropping.remove(page);
                }
                // A page that was touched between the deadline and the drop is mapped, and accessed now.
                let mapped = outcome.found.iter().filter(|(_, place)| self.pages.in_memory(*place));
                for page in mapped.flat_map(|(run, _)| run.pages()).collect::<Vec<_>>() {
                    self.pages.touch(page, now, false);
                }
            }
        }
    }
}
