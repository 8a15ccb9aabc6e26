//! VMs that cannot be re-armed, watched by DAMON.
//!
//! In: which VMs those are, the regions that DAMON finds accessed. Out: tasks for its worker; the pages of those
//! regions count as accessed.

use std::time::Duration;

use tiering_common::Region;

use super::Engine;
use super::command::Command;
use crate::bpf::{Setup, Watched, Watching};
use crate::sys::{Monotonic, PAGE_BYTES, Span};
use crate::tiermap::PageRun;
use crate::track::VmId;
use crate::vm::Hva;

/// Looks at a region until its accesses are told.
const SAMPLES: u32 = 8;
/// Looks in the time after which an idle page goes down. What is used less often than that a look finds it is not told
/// from what is idle, so they are as far apart as that time allows.
const SAMPLES_PER_IDLE_TIME: u32 = 32;
const SAMPLE_EVERY_LEAST: Duration = Duration::from_millis(50);
const SAMPLE_EVERY_MOST: Duration = Duration::from_secs(5);
/// Which VMs are watched is changed at most once in so many counts: all regions are found anew then.
const COUNTS_PER_CHANGE: u32 = 2;
/// After DAMON could not be used it is tried again.
const TRY_EVERY: Duration = Duration::from_mins(1);
/// Regions: so much of RAM in each, in the mean, within bounds.
const REGION_BYTES: u64 = 4 << 20;
const REGIONS: std::ops::RangeInclusive<u64> = 1_000..=10_000;
/// Pages followed up at a time.
const DRAIN_PAGES: u64 = 65_536;
/// Looks, one in so many, that must have found an access for a region to count as accessed: fewer say that little of it
/// is.
const FOUND_SHARE: u32 = 4;
/// A page in a region of which every look found an access counts as accessed so often.
const TIMES_MOST: u32 = 4;

/// What DAMON is to watch, and does.
#[derive(Debug)]
pub(super) struct RegionWatch {
    pub watching: Watching,
    asked: Vec<VmId>,
    asked_at: Option<Monotonic>,
}

impl Default for RegionWatch {
    fn default() -> Self {
        Self { watching: Watching::Nothing, asked: Vec::new(), asked_at: None }
    }
}

impl Engine {
    /// Has DAMON watch the VMs that need it.
    pub(super) fn watch_regions(&mut self) {
        let now = self.clock.now;
        let wanted: Vec<VmId> = if self.config.tracking.damon {
            let needs = |vm: &&super::managed::ManagedVm| {
                vm.unmovable().is_none() && self.why_not_rearmed(vm).is_some()
            };
            self.vms.values().filter(needs).map(|vm| vm.info.id).collect()
        } else {
            Vec::new()
        };
        let setup = self.region_setup(&wanted);
        let wait = match self.region_watch.watching {
            Watching::Failed(_) if !wanted.is_empty() && wanted == self.region_watch.asked => TRY_EVERY,
            _ if wanted == self.region_watch.asked => return,
            Watching::Vms { .. } => setup.sample_every * SAMPLES * COUNTS_PER_CHANGE,
            Watching::Failed(_) | Watching::Nothing => Duration::from_secs(1),
        };
        if self.region_watch.asked_at.is_some_and(|at| now.since(at) < wait) {
            return;
        }
        self.region_watch.asked.clone_from(&wanted);
        self.region_watch.asked_at = Some(now);
        self.commands.push(Command::WatchRegions(wanted, setup));
    }

    fn region_setup(&self, ids: &[VmId]) -> Setup {
        let vms = || ids.iter().filter_map(|id| self.vms.get(id));
        let watched = vms().map(|vm| Watched {
            pid: vm.info.vm.key.pid,
            ranges: vm
                .pages
                .layout()
                .regions()
                .map(|(run, start, _)| Span { start: start.0, bytes: u64::from(run.count) * PAGE_BYTES })
                .collect(),
        });
        let ram: u64 = vms().map(|vm| vm.info.vm.ram_bytes()).sum();
        let regions = (ram / REGION_BYTES).clamp(*REGIONS.start(), *REGIONS.end());
        let sample_every = self.config.policy.demote_after.0 / SAMPLES_PER_IDLE_TIME;
        Setup {
            targets: watched.collect(),
            sample_every: sample_every.clamp(SAMPLE_EVERY_LEAST, SAMPLE_EVERY_MOST),
            samples: SAMPLES,
            least_regions: u32::try_from(regions / 4).unwrap_or(u32::MAX),
            most_regions: u32::try_from(regions).unwrap_or(u32::MAX),
        }
    }

    /// The worker has done what it was asked for.
    pub(super) fn on_watching(&mut self, watching: Watching) {
        match &watching {
            Watching::Vms { ids, .. } => tracing::debug!(vms = ids.len(), "watched by DAMON"),
            Watching::Failed(why) => tracing::debug!(why, "not watched by DAMON"),
            Watching::Nothing => {}
        }
        self.region_watch.watching = watching;
    }

    /// Follows up what DAMON found.
    pub(super) fn on_regions(&mut self, regions: &mut dyn Iterator<Item = Region>) {
        let Watching::Vms { ids, samples, .. } = &self.region_watch.watching else { return };
        let now = self.clock.seconds();
        let mut pages = 0;
        while pages < DRAIN_PAGES
            && let Some(region) = regions.next()
        {
            let id = ids.get(region.target as usize);
            let Some(vm) = id.and_then(|id| self.vms.get_mut(id)) else { continue };
            let Some(first) = vm.pages.layout().page(Hva(region.start)) else { continue };
            if let Some(times) = times(&region, *samples) {
                let count = u32::try_from((region.end - region.start) / PAGE_BYTES).unwrap_or(0);
                vm.watch.seen_by.damon += vm.pages.touch_region(PageRun { first, count }, now, times);
                pages += u64::from(count);
            }
        }
    }
}

/// For how many accesses of each of its pages a region's count stands; none where too few accesses were found to say
/// that of all.
fn times(region: &Region, samples: u32) -> Option<u8> {
    let found = region.accesses.min(samples);
    (found * FOUND_SHARE >= samples)
        .then(|| u8::try_from((found * TIMES_MOST).div_ceil(samples.max(1))).unwrap_or(u8::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_counts_by_the_share_of_looks_that_found_an_access() {
        let times = |accesses| times(&Region { start: 0, end: 4096, target: 0, accesses }, SAMPLES);
        assert_eq!((times(0), times(1)), (None, None));
        assert_eq!([2, 3, 4, 8, 9].map(|accesses| times(accesses).unwrap()), [1, 2, 2, 4, 4]);
    }
}
