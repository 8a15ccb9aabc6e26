//! The swap files of all tiers, and how a page-out is directed into the one that was chosen.
//!
//! A stock kernel fills swap areas by priority, highest first, and offers no choice per process. So:
//!
//! 1. The priorities follow the ladder: what the kernel reclaims on its own goes to the fastest swap tier, with or
//!    without an agent.
//! 2. The slowest swap tier is one file, on from the start. The faster ones grow by files as they fill
//!    ([`super::segments`]), so that few of their slots are free.
//! 3. [`SwapTiers::aim`] opens one tier: zero pages of the agent take the free slots of the tiers above it
//!    ([`super::cover`]), and what this CPU still holds of another area is used up (a cluster of 512 slots from
//!    Linux 6.15 on, a cache of 64 before). The caller pages its batch out from the same thread, bound to that CPU.
//! 4. [`SwapTiers::settle`] ends that: the slots above are free again, and the CPU goes on in the fastest tier.
//!
//! An area of somebody else's may be switched on at any time. One with a priority above a tier's would take its
//! batches and its place in the kernel's order: such a tier takes nothing until it is gone ([`SwapTiers::hindered`]).
//!
//! In: the ladder, `/proc/swaps`. Out: areas that are on, and which kernel number belongs to which tier
//! ([`Areas`]). Areas that an agent before this one left on are taken over with what is in them ([`super::opening`]).
//!
//! # Limits
//! - While a lower tier is open, what the kernel reclaims goes there too; so it does when it reclaims more at once than
//!   the faster tiers have free. Where a page went is therefore read back by the caller, never assumed.
//! - Where the control group of the agent may not swap, nothing can be covered, and lower tiers are not reached.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::Duration;

use super::area::AreaError;
use super::cover::Cover;
use super::error::SwapError;
use super::files;
use super::numbers::Numbers;
use super::passage::Passage;
use super::proc_swaps::{self, SwapLine};
use super::read_back::Probes;
use super::segments::{Areas, Place, Segment, SwapTier};
use crate::sys::{self, Monotonic, OneCpu, PAGE_BYTES, PageState, Pagemap, ZeroPages};
use crate::tiers::TierId;

/// Pages of our own that are enough to use up what a CPU still holds of another area.
pub(super) const PRIMER_PAGES: usize = 1280;
/// Slots wanted beyond a batch: what the primer takes, and what others may take meanwhile.
const SLACK_PAGES: u64 = 512;
/// Of what was free above a lower tier, this part may have become free again meanwhile.
const UNCOVERED_DIVISOR: u64 = 8;
/// After a file could not be added in advance it is tried again.
const GROW_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// How often a tier gives up a file: what guests leave now they may send again soon.
const SHED_EVERY: Duration = Duration::from_secs(30);

/// The swap tiers, owned by the one thread that pages out.
#[derive(Debug)]
pub struct SwapTiers {
    /// Fastest first.
    pub(super) tiers: Vec<SwapTier>,
    pub(super) areas: Areas,
    pub(super) numbers: Numbers,
    pub(super) own: Pagemap,
    pub(super) probes: Probes,
    /// The lower tier that is open.
    pub(super) open: Option<Open>,
    /// Shut while one is.
    pub(super) passage: Passage,
    /// When files that are not needed were last given up.
    pub(super) shed: Monotonic,
    /// When a file could not be added in advance.
    pub(super) no_growth: Option<Monotonic>,
}

/// A lower tier that is open, until all others are as they were.
#[derive(Debug)]
pub(super) struct Open {
    /// Its place, counted from the fastest swap tier.
    tier: usize,
    pub(super) cover: Cover,
    /// The CPUs that fill it.
    cpus: BTreeSet<usize>,
}

impl SwapTiers {
    /// Which areas are ours.
    pub fn areas(&self) -> &Areas {
        &self.areas
    }

    /// What pages out by the order of the areas has to pass.
    pub fn passage(&self) -> Passage {
        self.passage.clone()
    }

    fn direct_error(&self, tier: usize, source: io::Error) -> SwapError {
        SwapError::Direct { tier: self.tiers[tier].name.clone(), source }
    }

    /// The areas that are on. One of ours that somebody switched off, or on again elsewhere in the order, is ours no
    /// more.
    fn look(&mut self) -> Result<Vec<SwapLine>, SwapError> {
        let on = proc_swaps::read().map_err(SwapError::ProcSwaps)?;
        let mut gone = false;
        for tier in &mut self.tiers {
            for segment in tier.segments.extract_if(.., |segment| is_lost(segment, &on)) {
                gone = true;
                let path = segment.area.path.display();
                tracing::warn!(tier = tier.name, %path, "somebody has switched a swap area of the agent off");
                // Refused where it is on again.
                segment.own.remove().ok();
            }
        }
        if gone {
            self.publish();
            self.numbers.save(&self.areas.list());
        }
        Ok(on)
    }

    /// The area of somebody else's that is filled before all others of theirs.
    fn foremost_of_others<'a>(&self, on: &'a [SwapLine]) -> Option<&'a SwapLine> {
        let ours = |line: &&SwapLine| {
            self.tiers.iter().flat_map(|tier| &tier.segments).any(|segment| segment.area.path == line.path)
        };
        on.iter().filter(|line| !ours(line)).max_by_key(|line| line.priority)
    }

    pub(super) fn refuse_areas_above(&self, tier: usize, on: &[SwapLine]) -> Result<(), SwapError> {
        match self.foremost_of_others(on) {
            Some(line) if line.priority >= self.tiers[tier].lowest_priority() => Err(SwapError::above(line)),
            _ => Ok(()),
        }
    }

    /// The tiers that nothing can be sent to now, since areas of others would take it, and why.
    ///
    /// # Errors
    /// [`SwapError::ProcSwaps`].
    pub fn hindered(&self) -> Result<BTreeMap<TierId, String>, SwapError> {
        let on = proc_swaps::read().map_err(SwapError::ProcSwaps)?;
        let why = |tier| self.refuse_areas_above(tier, &on).err().map(|error| error.to_string());
        Ok((0..self.tiers.len()).filter_map(|tier| Some((self.tiers[tier].id, why(tier)?))).collect())
    }

    /// Pages zero pages of our own out until one lands in an area of these numbers, so that this CPU fills that
    /// area next.
    fn prime(&self, numbers: &[u8]) -> io::Result<()> {
        /// Few at first: between two batches for one tier, the CPU is there already.
        const CHUNKS: [usize; 2] = [8, 64];
        let mut pages = ZeroPages::map(PRIMER_PAGES)?;
        let mut first = 0;
        while first < PRIMER_PAGES {
            let chunk = CHUNKS[usize::from(first > 0)].min(PRIMER_PAGES - first);
            pages.page_out(first, chunk)?;
            let states = self.own.of_zero_pages(&pages, first, chunk)?;
            first += chunk;
            if let Some(PageState::Swapped { area, .. }) = states.last()
                && numbers.contains(area)
            {
                break;
            }
        }
        Ok(())
    }

    /// Opens `tier` for `pages` pages that this thread pages out next. Returns how many it has room for.
    ///
    /// The thread must be bound to one CPU until it has paged them out.
    ///
    /// # Errors
    /// Any [`SwapError`].
    pub fn aim(&mut self, tier: TierId, pages: u64) -> Result<u64, SwapError> {
        let index = self.index(tier)?;
        if self.tiers[index].closed {
            return Ok(0);
        }
        let on = self.look()?;
        self.refuse_areas_above(index, &on)?;
        let place = &self.tiers[index].place;
        let action = match place {
            Place::Folder(_) => "write and read back a page",
            Place::Device(_) => "read back a page",
        };
        self.probes.look(tier, place, sys::now()).map_err(AreaError::io(place.path(), action))?;
        if self.open.as_ref().is_some_and(|open| open.tier != index) {
            self.close()?;
        }
        let pages = pages.min(self.tiers[index].allowed_pages(&on));
        if pages == 0 {
            return Ok(0);
        }
        let room = self.make_room(index, pages + SLACK_PAGES, &on)?;
        if room == 0 {
            return Ok(0);
        }
        self.cover_above(index)?;
        self.prime(&self.tiers[index].numbers()).map_err(|source| self.direct_error(index, source))?;
        Ok(room.min(pages))
    }

    /// Adds files to the tier until `wanted` slots are free, if it may have so many. Returns how many are.
    fn make_room(&mut self, tier: usize, wanted: u64, on: &[SwapLine]) -> Result<u64, SwapError> {
        let mut free = self.tiers[tier].free_pages(on);
        while free < wanted {
            match self.grow(tier, on) {
                Ok(0) => break,
                Ok(added) => free += added,
                // There is room for a part all the same.
                Err(error) if free > 0 => {
                    tracing::warn!(tier = self.tiers[tier].name, %error, "no further swap file");
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(free)
    }

    /// Takes what is free in the tiers above this one.
    fn cover_above(&mut self, tier: usize) -> Result<(), SwapError> {
        if tier == 0 {
            return Ok(());
        }
        if self.open.is_none() {
            self.passage.shut();
        }
        let above = &self.tiers[..tier];
        let on = proc_swaps::read().map_err(SwapError::ProcSwaps)?;
        let free: u64 = above.iter().map(|tier| tier.free_pages(&on)).sum();
        let numbers: Vec<u8> = above.iter().flat_map(SwapTier::numbers).collect();
        let open =
            self.open.get_or_insert_with(|| Open { tier, cover: Cover::default(), cpus: BTreeSet::new() });
        open.cpus.extend(nix::sched::sched_getcpu());
        let taken = open.cover.take(free, &numbers, &self.own);
        self.publish();
        taken.map_err(|source| self.direct_error(tier, source))?;
        let on = proc_swaps::read().map_err(SwapError::ProcSwaps)?;
        let left: u64 = self.tiers[..tier].iter().map(|tier| tier.free_pages(&on)).sum();
        // A little is given back at any time, and is read back afterwards.
        if left > free / UNCOVERED_DIVISOR + SLACK_PAGES {
            return Err(SwapError::Uncovered { left_mib: (left * PAGE_BYTES) >> 20 });
        }
        Ok(())
    }

    /// Frees what is covered, and has the CPU that filled a lower tier go on in the fastest one.
    pub(super) fn close(&mut self) -> Result<(), SwapError> {
        self.passage.open();
        let Some(open) = self.open.take() else { return Ok(()) };
        let Open { cover, cpus, .. } = open;
        drop(cover);
        self.publish();
        let Some(first) = self.tiers.first() else { return Ok(()) };
        cpus.into_iter().try_for_each(|cpu| {
            let _that_cpu = OneCpu::bind_to(cpu);
            self.prime(&first.numbers()).map_err(|source| self.direct_error(0, source))
        })
    }

    /// Pages the tier can still take, in files not yet made too.
    ///
    /// # Errors
    /// [`SwapError::ProcSwaps`], [`SwapError::NotSwap`].
    pub fn room(&mut self, tier: TierId) -> Result<u64, SwapError> {
        let on = self.look()?;
        let tier = &self.tiers[self.index(tier)?];
        if tier.closed {
            return Ok(0);
        }
        let covered: u64 = tier.segments.iter().map(|segment| segment.area.covered_pages).sum();
        let there = tier.free_pages(&on) + covered;
        Ok((there + tier.growth_bytes() / PAGE_BYTES).min(tier.allowed_pages(&on)))
    }

    /// Closes the lower tier that is open, sees to it that the kernel finds slots in the faster tiers, and gives up files
    /// that are not needed.
    ///
    /// # Errors
    /// Any [`SwapError`].
    pub fn settle(&mut self) -> Result<(), SwapError> {
        self.close()?;
        let on = self.look()?;
        let now = sys::now();
        if self.no_growth.is_none_or(|at| now.since(at) >= GROW_AGAIN_AFTER) {
            self.no_growth = None;
            for tier in 0..self.tiers.len() {
                if self.tiers[tier].needs_slots(&on)
                    && self.refuse_areas_above(tier, &on).is_ok()
                    && let Err(error) = self.grow(tier, &on)
                {
                    tracing::warn!(tier = self.tiers[tier].name, %error, "no further swap file");
                    self.no_growth = Some(now);
                }
            }
        }
        if now.since(self.shed) >= SHED_EVERY {
            self.shed = now;
            self.shed()?;
        }
        Ok(())
    }

    pub(super) fn index(&self, tier: TierId) -> Result<usize, SwapError> {
        self.tiers
            .iter()
            .position(|candidate| candidate.id == tier)
            .ok_or_else(|| SwapError::NotSwap(format!("level {}", tier.0)))
    }

    pub(super) fn publish(&mut self) {
        let held = self.open.as_ref().map(|open| open.cover.held());
        for segment in self.tiers.iter_mut().flat_map(|tier| &mut tier.segments) {
            segment.area.covered_pages =
                held.and_then(|held| held.get(&segment.area.number)).copied().unwrap_or(0);
        }
        let segments = self.tiers.iter().flat_map(|tier| &tier.segments);
        self.areas.set(segments.map(|segment| segment.area.clone()).collect());
    }
}

/// Whether somebody has switched the area off, or on again elsewhere in the order.
fn is_lost(Segment { area, own }: &Segment, on: &[SwapLine]) -> bool {
    let mut lines = on.iter().filter(|line| line.path == area.path).peekable();
    if lines.peek().is_none() {
        // A line can be missing from one look at all: the file itself tells.
        return files::is_swap_file(&own.path) != Some(true);
    }
    lines.all(|line| line.priority != area.priority)
}

#[cfg(test)]
mod tests {
    use super::super::area::Own;
    use super::super::files::FileId;
    use super::super::segments::Area;
    use super::*;

    #[test]
    fn an_area_is_lost_when_it_is_off_or_elsewhere_in_the_order() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_owned();
        let own = Own { path: path.clone(), id: FileId { device: 1, inode: 2 }, bytes: 0 };
        let area =
            Area { path: path.clone(), tier: TierId(1), number: 0, priority: 7, bytes: 0, covered_pages: 0 };
        let segment = Segment { area, own };
        let line =
            |priority| SwapLine { path: path.clone(), is_file: true, size_bytes: 0, used_bytes: 0, priority };
        assert!(!is_lost(&segment, &[line(7)]));
        assert!(is_lost(&segment, &[line(8)]));
        assert!(is_lost(&segment, &[]), "a file that is not on");
        drop(file);
        assert!(is_lost(&segment, &[]), "a file that is not there");
    }
}
