//! The VM a job is about, and what becomes of the job.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::homes::Homes;
use crate::policy::{Action, GroupLimit, Reason};
use crate::predict::{Tag, TagKey};
use crate::sys::{self, Advice, MAX_RANGES_PER_CALL, Monotonic, PAGE_BYTES, PageState, Pidfd, Span};
use crate::tiermap::{Layout, PageIndex, PageRun, Place, Places, into_runs};
use crate::track::VmId;
use crate::vm::{self, Refusal, Scope, Vm};

/// Pages that are not asked for are read along with those around them when they are no more than this: one more call
/// costs as much as about 32 entries more (scattered moves went at 42 % of the bare system call's rate with a call a
/// page).
const READ_ACROSS_PAGES: u64 = 32;

/// Where the system's trees are mounted.
#[derive(Clone, Debug)]
pub struct Roots {
    pub proc: PathBuf,
    /// cgroup v2.
    pub cgroup: PathBuf,
}

/// What is known of a VM for as long as it is the same.
#[derive(Clone, Debug)]
pub struct VmInfo {
    pub id: VmId,
    pub vm: Arc<Vm>,
    pub layout: Arc<Layout>,
    /// Where other VMs may learn from this one.
    pub tag_key: Option<Arc<TagKey>>,
    /// Its huge pages do not go to swap.
    pub keep_huge: bool,
    /// Written by the lanes.
    pub homes: Arc<Homes>,
}

/// A VM that can be acted on.
#[derive(Clone, Debug)]
pub struct Target {
    pub info: VmInfo,
    pub process: Arc<Pidfd>,
}

/// Why pages were left alone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Skip {
    /// Only planned, not done.
    DryRun,
    /// The tier has no room for them.
    TierFull,
    /// The kernel left them where they are, and does not show why: pinned, or in use at that moment.
    Stayed,
    /// Left by the kernel: one copy serves several pages.
    Merged,
    /// Left by the kernel: it never reclaims them.
    Locked,
    /// Left by the kernel: mapped by another process too.
    Shared,
    /// The VM's control groups have no room for the move.
    NoRoom(GroupLimit),
    /// Left by the kernel, which found no swap for the VM's control group.
    NoSwap,
    /// Part of a huge page, which the configuration keeps.
    KeptHuge,
    /// From the hugetlb pool: cannot be swapped.
    Hugetlb,
    /// Mapped by another process too, so that they stay on their node.
    MappedElsewhere,
    /// Bound to their node by the VM's own configuration.
    Bound,
    /// Paged out, but into another area than the one meant.
    ElsewhereInSwap,
    /// There is no page.
    Absent,
    /// All zero: the kernel let go of its memory instead of writing it anywhere.
    Zero,
    /// Left in small pages: no huge page is free, or one of them is in use by a device.
    NotCollapsed,
    /// The process ended.
    Gone,
    /// The VM may not be touched now.
    Refused(String),
    /// The kernel gave an error.
    Failed(String),
    /// The tier cannot be used: nothing wrong with the VM.
    TierFailed(String),
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DryRun => f.write_str("dry run"),
            Self::TierFull => f.write_str("the tier is full"),
            Self::Stayed => f.write_str("left by the kernel (pinned or in use)"),
            Self::Merged => f.write_str("left by the kernel: merged by KSM"),
            Self::Locked => f.write_str("left by the kernel: locked in memory"),
            Self::Shared => f.write_str("left by the kernel: mapped by another process too"),
            Self::NoRoom(limit) => limit.fmt(f),
            Self::NoSwap => f.write_str(
                "left by the kernel, which found no swap for the control group (memory.swap.events)",
            ),
            Self::KeptHuge => f.write_str(
                "part of a huge page, which stays in memory as a whole (huge = \"keep\" in the configuration)",
            ),
            Self::Hugetlb => f.write_str("from the hugetlb pool, which cannot be swapped"),
            Self::MappedElsewhere => f.write_str("mapped by another process too: stays on its node"),
            Self::Bound => f.write_str("the VM binds its RAM to memory nodes (policy=bind)"),
            Self::ElsewhereInSwap => f.write_str("in another swap area"),
            Self::Absent => f.write_str("no page there"),
            Self::Zero => f.write_str("all zero: takes no memory now"),
            Self::NotCollapsed => f.write_str("left in small pages by the kernel"),
            Self::Gone => f.write_str("the VM has ended"),
            Self::Refused(reason) | Self::Failed(reason) | Self::TierFailed(reason) => f.write_str(reason),
        }
    }
}

/// What became of a step.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub vm: VmId,
    pub action: Action,
    pub reason: Reason,
    /// Ascending.
    pub asked: Vec<PageIndex>,
    /// Pages that were asked for too, and not tried: there was no room for them.
    pub left_out: Vec<PageIndex>,
    /// Where the pages are now, as read back; ascending.
    pub found: Vec<(PageRun, Place)>,
    /// Pages that now are where the step wanted them and were not before.
    pub moved_pages: u64,
    /// Those of them that came from a tier further down.
    pub raised_pages: u64,
    /// Pages of huge pages that are none any more, also of their parts that were not asked for.
    pub huge_split_pages: u64,
    /// Content of pages that were to go to swap, whether or not they got there.
    pub tags: Vec<(PageIndex, Tag)>,
    pub skipped: BTreeMap<Skip, u64>,
    pub finished: Monotonic,
}

impl Outcome {
    pub(crate) fn new(vm: VmId, action: Action, reason: Reason, asked: Vec<PageIndex>) -> Self {
        let finished = Monotonic::default();
        Self {
            vm,
            action,
            reason,
            asked,
            left_out: Vec::new(),
            found: Vec::new(),
            moved_pages: 0,
            raised_pages: 0,
            huge_split_pages: 0,
            tags: Vec::new(),
            skipped: BTreeMap::new(),
            finished,
        }
    }

    /// Notes that these pages do not exist.
    pub(super) fn found_absent(&mut self, pages: &[PageIndex]) {
        self.found_too(place_runs(pages, pages.iter().map(|_| Place::Untouched)));
    }

    /// Notes where pages are that were not tried.
    pub(super) fn found_too(&mut self, runs: Vec<(PageRun, Place)>) {
        self.found.extend(runs);
        self.found.sort_by_key(|(run, _)| run.first);
    }

    /// Notes pages that were in `from` and are where they should be.
    pub(super) fn moved(&mut self, from: Place, wanted: Place, pages: u64) {
        if from != wanted {
            self.moved_pages += pages;
            self.raised_pages += if from > wanted { pages } else { 0 };
        }
    }

    pub(super) fn skip(&mut self, why: Skip, pages: u64) {
        if pages > 0 {
            *self.skipped.entry(why).or_default() += pages;
        }
    }

    /// Notes why all pages stay of which nothing is told yet.
    pub(super) fn skip_rest(&mut self, why: Skip) {
        let told = self.moved_pages + self.skipped.values().sum::<u64>();
        self.skip(why, (self.asked.len() as u64).saturating_sub(told));
    }

    /// Of the asked pages, those in `place` now.
    pub fn in_place(&self, place: Place) -> u64 {
        self.found.iter().filter(|(_, there)| *there == place).map(|(run, _)| u64::from(run.count)).sum()
    }
}

impl Target {
    /// Why the VM may not be touched now, if so. What forbids swap alone does not forbid moves `within_memory`.
    pub(super) fn refusal(&self, roots: &Roots, within_memory: bool) -> Option<Skip> {
        if !self.process.is_alive() {
            return Some(Skip::Gone);
        }
        let applies = |refusal: &Refusal| !(within_memory && refusal.scope() == Scope::NodesOnly);
        let refusal = vm::recheck(&roots.proc, &roots.cgroup, &self.info.vm).filter(applies);
        refusal.map(|refusal| Skip::Refused(refusal.to_string()))
    }

    /// The states of these pages, in the same order.
    pub(super) fn states(&self, pages: &[PageIndex]) -> io::Result<Vec<PageState>> {
        let pagemap = self.process.pagemap()?;
        let mut states = Vec::with_capacity(pages.len());
        for near in self.addresses(pages).chunk_by(|a, b| b - a <= READ_ACROSS_PAGES * PAGE_BYTES) {
            let (Some(first), Some(last)) = (near.first(), near.last()) else { continue };
            let index = |hva: u64| ((hva - first) / PAGE_BYTES) as usize;
            let found = pagemap.read(*first, index(*last) + 1)?;
            states.extend(near.iter().map(|hva| found[index(*hva)]));
        }
        Ok(states)
    }

    /// Where these pages are, in the same order. Of shared memory, pagemap shows only what is mapped.
    pub(super) fn places(&self, pages: &[PageIndex], places: &Places) -> io::Result<Vec<Place>> {
        Ok(self.states(pages)?.into_iter().map(|state| places.of(state)).collect())
    }

    /// The addresses of these pages.
    pub(super) fn addresses(&self, pages: &[PageIndex]) -> Vec<u64> {
        pages.iter().filter_map(|page| self.info.layout.locate(*page)).map(|(hva, _)| hva.0).collect()
    }

    /// Whether these pages are shared memory. Those of one batch are all of one kind.
    pub(super) fn is_shared(&self, pages: &[PageIndex]) -> bool {
        pages.iter().all(|page| self.info.layout.locate(*page).is_some_and(|(_, shared)| shared))
    }

    /// Whether it matters on which node of the first tier a page of the VM is ([`Homes`]).
    pub(super) fn has_homes(&self, places: &Places) -> bool {
        places.nodes.first_tier_is_spread() && !self.info.vm.numa_bound
    }

    /// Gives advice for these pages, in this order and in as few calls as possible. A span that the kernel does not
    /// take is passed over: what stays is seen when it is read back.
    pub(super) fn advise(&self, pages: &[PageIndex], advice: Advice) -> io::Result<()> {
        let spans = self.spans(pages);
        let mut rest = spans.as_slice();
        while !rest.is_empty() {
            let chunk = &rest[..rest.len().min(MAX_RANGES_PER_CALL)];
            let mut done = match sys::advise(&self.process, chunk, advice) {
                Ok(bytes) => bytes,
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Err(error),
                Err(_) => 0,
            };
            let whole = chunk.iter().take_while(|span| match done.checked_sub(span.bytes) {
                Some(left) => {
                    done = left;
                    true
                }
                None => false,
            });
            let whole = whole.count();
            rest = &rest[(whole + usize::from(whole < chunk.len())).min(rest.len())..];
        }
        Ok(())
    }

    /// The addresses of these pages, in this order.
    pub(super) fn spans(&self, pages: &[PageIndex]) -> Vec<Span> {
        into_runs(pages, u32::MAX)
            .into_iter()
            .flat_map(|run| self.info.layout.cut(run))
            .map(|(run, hva, _)| Span { start: hva.0, bytes: u64::from(run.count) * PAGE_BYTES })
            .collect()
    }
}

/// Runs of `pages` that have one place, ascending.
pub(super) fn place_runs(pages: &[PageIndex], places: impl Iterator<Item = Place>) -> Vec<(PageRun, Place)> {
    let mut runs: Vec<(PageRun, Place)> = Vec::new();
    for (&page, place) in pages.iter().zip(places) {
        match runs.last_mut() {
            Some((run, last)) if *last == place && run.first + run.count == page => run.count += 1,
            _ => runs.push((PageRun { first: page, count: 1 }, place)),
        }
    }
    runs
}

/// The pages whose place is one of those to `keep`.
pub(super) fn select(pages: &[PageIndex], places: &[Place], keep: impl Fn(Place) -> bool) -> Vec<PageIndex> {
    pages.iter().zip(places).filter(|(_, place)| keep(**place)).map(|(page, _)| *page).collect()
}

/// Reading a process's memory fails for one reason that matters: it ended.
#[expect(clippy::needless_pass_by_value, reason = "the form map_err wants")]
pub(super) fn gone(error: io::Error) -> Skip {
    match error.raw_os_error() {
        Some(libc::ESRCH | libc::ENOENT) | None => Skip::Gone,
        _ => Skip::Failed(error.to_string()),
    }
}
