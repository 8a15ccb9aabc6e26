//! The swap files of all tiers, and how a page-out is directed into the one that was chosen.
//!
//! A stock kernel fills swap areas by priority, highest first, and offers no choice per process. So:
//!
//! 1. The fastest swap tier is one area with the lowest priority of ours; each lower tier has higher ones, and
//!    is made of up to [`SEGMENTS`] files that are added when they are needed.
//! 2. At rest every free slot of the lower tiers is plugged ([`super::plug`]): what the kernel reclaims on its
//!    own goes to the fastest swap tier.
//! 3. [`SwapTiers::aim`] opens one tier: it lets go as much of that tier's plug as the batch needs, and uses up
//!    what this CPU still holds of the area it filled before (a cluster of 512 slots from Linux 6.15 on, a cache
//!    of 64 before). The caller pages its batch out from the same thread, bound to that CPU.
//! 4. [`SwapTiers::settle`] plugs what is left.
//!
//! In: the ladder, `/proc/swaps`. Out: areas that are on, and which kernel number belongs to which tier
//! ([`Areas`]). Areas that an agent before this one left on are taken over with what is in them.
//!
//! # Limits
//! While a tier is open, the kernel's own reclaim may take slots of it too. Where a page went is therefore read
//! back by the caller, never assumed.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use super::area::{self, AreaError};
use super::numbers::Numbers;
use super::plug::Plug;
use super::proc_swaps;
use super::read_back::Probes;
use super::segments::{Area, Areas, BASE_PRIORITY, PRIORITY_STEP, Segment, SwapTier};
use super::segments::{free_pages, prepare, refuse_areas_above, remove_stale_files};
use crate::store::Store;
use crate::sys::{self, OneCpu, PAGE_BYTES, PageState, Pagemap, ZeroPages};
use crate::tiers::{Ladder, TierId, TierKind};

/// Pages of our own that are enough to use up what a CPU still holds of another area.
const PRIMER_PAGES: usize = 1280;
/// An area with no more than this in it counts as empty: slots of pages that were freed may linger in the swap cache.
const EMPTY_BYTES: u64 = 1 << 20;
/// Slots let go beyond a batch: what the primer takes, and what others may take meanwhile.
const SLACK_PAGES: u64 = 512;

/// Why a swap tier cannot be used.
#[derive(Debug, Error)]
pub enum SwapError {
    #[error(transparent)]
    Area(#[from] AreaError),
    #[error("cannot read /proc/swaps: {0}")]
    ProcSwaps(io::Error),
    #[error(
        "{} has priority {priority} and would be filled before the tiers: switch it off with swapoff, or on again \
         with a lower priority", path.display()
    )]
    Above { path: PathBuf, priority: i32 },
    #[error("tier `{0}` is no swap tier")]
    NotSwap(String),
    #[error("tier `{tier}` cannot be plugged or primed: {source}")]
    Plug { tier: String, source: io::Error },
    #[error("the kernel's number of {} cannot be found out: is another swap area filled first?", path.display())]
    NoNumber { path: PathBuf },
}

/// The swap tiers, owned by the one thread that pages out.
#[derive(Debug)]
pub struct SwapTiers {
    tiers: Vec<SwapTier>,
    areas: Areas,
    numbers: Numbers,
    own: Pagemap,
    probes: Probes,
}

impl SwapTiers {
    /// Takes over areas that are on below the tiers' folders, removes files of ours that are not, creates the
    /// fastest tier's area, and plugs the others.
    ///
    /// # Errors
    /// Any [`SwapError`]; areas that were on stay on.
    pub fn open(ladder: &Ladder, store: Arc<Store>) -> Result<Self, SwapError> {
        let own = Pagemap::of_self().map_err(|source| SwapError::Plug { tier: "all".into(), source })?;
        let on = proc_swaps::read().map_err(SwapError::ProcSwaps)?;
        let mut fastest = true;
        let mut tiers = Vec::new();
        for tier in ladder.swap_tiers() {
            let TierKind::Swap { folder, capacity_bytes, .. } = &tier.kind else { continue };
            tiers.push(SwapTier {
                id: tier.id,
                name: tier.name.clone(),
                // As /proc/swaps will show it.
                folder: prepare(folder, *capacity_bytes, &on).inspect_err(|_| remove_folders(&tiers))?,
                capacity_bytes: *capacity_bytes,
                fastest,
                closed: false,
                segments: Vec::new(),
            });
            fastest = false;
        }
        refuse_areas_above(&tiers, &on).inspect_err(|_| remove_folders(&tiers))?;
        let mut this =
            Self { tiers, areas: Areas::default(), numbers: Numbers(store), own, probes: Probes::default() };
        match this.take_over() {
            Ok(()) => Ok(this),
            Err(error) => {
                this.release_empty();
                Err(error)
            }
        }
    }

    fn take_over(&mut self) -> Result<(), SwapError> {
        self.adopt()?;
        if let Some(first) = self.tiers.first()
            && first.segments.is_empty()
        {
            self.grow(0)?;
        }
        self.settle()
    }

    /// Which areas are ours.
    pub fn areas(&self) -> &Areas {
        &self.areas
    }

    fn adopt(&mut self) -> Result<(), SwapError> {
        let on = proc_swaps::read().map_err(SwapError::ProcSwaps)?;
        let numbers = self.numbers.load(&on);
        for index in 0..self.tiers.len() {
            let tier = &self.tiers[index];
            let (id, folder) = (tier.id, tier.folder.clone());
            let mut segments = Vec::new();
            for (line, number) in on.iter().zip(&numbers) {
                if line.path.parent() == Some(&folder) {
                    tracing::info!(path = %line.path.display(), used_mib = line.used_bytes >> 20, "taking over a swap file");
                    let area = Area {
                        path: line.path.clone(),
                        tier: id,
                        number: *number,
                        priority: line.priority,
                        // The header's page is not counted there.
                        bytes: line.size_bytes + PAGE_BYTES,
                        plugged_pages: 0,
                    };
                    segments.push(Segment { plug: self.plug_for(index, area.bytes)?, area });
                }
            }
            remove_stale_files(&folder, &on);
            self.tiers[index].segments = segments;
        }
        self.publish();
        Ok(())
    }

    fn plug_for(&self, tier: usize, bytes: u64) -> Result<Option<Plug>, SwapError> {
        if self.tiers[tier].fastest {
            return Ok(None);
        }
        let slots = u32::try_from(bytes / PAGE_BYTES).unwrap_or(u32::MAX);
        Plug::new(slots).map(Some).map_err(|source| self.plug_error(tier, source))
    }

    fn plug_error(&self, tier: usize, source: io::Error) -> SwapError {
        SwapError::Plug { tier: self.tiers[tier].name.clone(), source }
    }

    /// Adds a swap file to the tier. Returns false where the tier has its full size.
    fn grow(&mut self, tier: usize) -> Result<bool, SwapError> {
        let SwapTier { id, name, folder, segments, .. } = &self.tiers[tier];
        let bytes = self.tiers[tier].next_segment_bytes(self.tiers[tier].made_bytes());
        let level = BASE_PRIORITY + i32::try_from(tier).unwrap_or(0) * PRIORITY_STEP;
        // No two areas of one priority: the kernel would fill them in turn.
        let free = (0..PRIORITY_STEP).find(|n| segments.iter().all(|s| s.area.priority != level + n));
        let (Some(n), true) = (free, bytes > 0) else { return Ok(false) };
        let (path, priority) = (folder.join(format!("segment-{n}.swap")), level + n);
        let id = *id;
        area::create(&path, bytes, &format!("tiering-{name}"), priority)?;
        let number = self
            .find_number(priority)
            .and_then(|number| number.ok_or_else(|| SwapError::NoNumber { path: path.clone() }));
        let (number, plug) = match number.and_then(|number| Ok((number, self.plug_for(tier, bytes)?))) {
            Ok(made) => made,
            Err(error) => {
                // The reason it is of no use is the error worth telling.
                if let Err(error) = area::remove(&path, 0) {
                    tracing::warn!(%error, "a swap file that is of no use stays");
                }
                return Err(error);
            }
        };
        tracing::info!(path = %path.display(), mib = bytes >> 20, number, "swap file switched on");
        let area = Area { path, tier: id, number, priority, bytes, plugged_pages: 0 };
        self.tiers[tier].segments.push(Segment { area, plug });
        self.publish();
        self.numbers.save(&self.areas.list());
        Ok(true)
    }

    /// The kernel's number of the area just switched on, which is the one our own pages land in now.
    fn find_number(&mut self, priority: i32) -> Result<Option<u8>, SwapError> {
        // Areas above the new one would be filled first.
        for index in 0..self.tiers.len() {
            self.plug_up(index, priority)?;
        }
        let one_cpu = OneCpu::bind();
        let landed = self.primer_landing().map_err(|source| self.plug_error(0, source))?;
        drop(one_cpu);
        let known = self.areas.list();
        Ok(landed.filter(|number| known.iter().all(|area| area.number != *number)))
    }

    /// The number of the area that the kernel fills once what this CPU held of another one is used up.
    fn primer_landing(&self) -> io::Result<Option<u8>> {
        let mut pages = ZeroPages::map(PRIMER_PAGES)?;
        pages.page_out(0, PRIMER_PAGES)?;
        let last = pages.states(PRIMER_PAGES - 1, 1, &self.own)?;
        Ok(last.first().and_then(|state| match state {
            PageState::Swapped { area, .. } => Some(*area),
            _ => None,
        }))
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
            let states = pages.states(first, chunk, &self.own)?;
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
    /// The thread must be bound to one CPU until [`Self::settle`].
    ///
    /// # Errors
    /// Any [`SwapError`].
    pub fn aim(&mut self, tier: TierId, pages: u64) -> Result<u64, SwapError> {
        let index = self.index(tier)?;
        if self.tiers[index].closed {
            return Ok(0);
        }
        let folder = &self.tiers[index].folder;
        self.probes
            .look(tier, folder, sys::now())
            .map_err(AreaError::io(folder, "write and read back a page"))?;
        // Whatever was freed above the target since the last batch would catch this one.
        let target = self.tiers[index].segments.iter().map(|segment| segment.area.priority).min();
        for other in (0..self.tiers.len()).rev().filter(|other| *other != index) {
            self.plug_up(other, target.unwrap_or(0))?;
        }
        let wanted = pages + SLACK_PAGES;
        let mut room = self.open_slots(index, wanted)?;
        while room < wanted {
            match self.grow(index) {
                Ok(true) => room = self.open_slots(index, wanted)?,
                Ok(false) => break,
                // There is room for a part of the batch all the same.
                Err(error) if room > 0 => {
                    tracing::warn!(tier = self.tiers[index].name, %error, "no further swap file");
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        if room == 0 {
            return Ok(0);
        }
        let numbers: Vec<u8> = self.tiers[index].segments.iter().map(|segment| segment.area.number).collect();
        self.prime(&numbers).map_err(|source| self.plug_error(index, source))?;
        Ok(room.min(pages))
    }

    /// Pages the tier can still take, plugged slots and files not yet made included.
    ///
    /// # Errors
    /// [`SwapError::ProcSwaps`], [`SwapError::NotSwap`].
    pub fn room(&self, tier: TierId) -> Result<u64, SwapError> {
        let on = proc_swaps::read().map_err(SwapError::ProcSwaps)?;
        let tier = &self.tiers[self.index(tier)?];
        if tier.closed {
            return Ok(0);
        }
        let segments = tier.segments.iter();
        let there: u64 = segments.map(|s| free_pages(&on, &s.area) + s.area.plugged_pages).sum();
        Ok(there + tier.growth_bytes() / PAGE_BYTES)
    }

    /// Frees plugged slots of the tier until `wanted` are free, if it has that many. Returns how many are.
    fn open_slots(&mut self, tier: usize, wanted: u64) -> Result<u64, SwapError> {
        let on = proc_swaps::read().map_err(SwapError::ProcSwaps)?;
        let mut free: u64 =
            self.tiers[tier].segments.iter().map(|segment| free_pages(&on, &segment.area)).sum();
        let mut released = Ok(0);
        for segment in &mut self.tiers[tier].segments {
            if let Some(plug) = &mut segment.plug
                && free < wanted
            {
                released = released.and(plug.release(wanted - free));
                free += *released.as_ref().unwrap_or(&0);
            }
        }
        released.map_err(|source| self.plug_error(tier, source))?;
        self.publish();
        Ok(free)
    }

    /// Plugs all free slots of the lower tiers.
    ///
    /// # Errors
    /// Any [`SwapError`].
    pub fn settle(&mut self) -> Result<(), SwapError> {
        for tier in (0..self.tiers.len()).rev() {
            self.plug_up(tier, -1)?;
        }
        Ok(())
    }

    /// Plugs the free slots of the tier's segments whose priority is above `above`, highest first.
    fn plug_up(&mut self, tier: usize, above: i32) -> Result<(), SwapError> {
        let on = proc_swaps::read().map_err(SwapError::ProcSwaps)?;
        let mut result = Ok(0);
        for segment in self.tiers[tier].segments.iter_mut().rev() {
            let free = free_pages(&on, &segment.area);
            if let Some(plug) = &mut segment.plug
                && free > 0
                && segment.area.priority > above
            {
                result = result.and(plug.take(free, segment.area.number, &self.own));
                segment.area.plugged_pages = plug.held();
            }
        }
        result.map_err(|source| self.plug_error(tier, source))?;
        self.publish();
        Ok(())
    }

    /// Switches the tier's areas off, which brings what is in them back to RAM, and removes the files. Nothing
    /// is sent to the tier any more. Returns the pages that were in it.
    ///
    /// # Errors
    /// [`AreaError::NoMemory`] where what is in it does not fit; the areas not yet off stay as they are.
    pub fn drain(&mut self, tier: TierId) -> Result<u64, SwapError> {
        let index = self.index(tier)?;
        self.tiers[index].closed = true;
        let mut brought_up = 0;
        while let Some(Segment { area, plug }) = self.tiers[index].segments.pop() {
            drop(plug);
            let on = proc_swaps::read().map_err(SwapError::ProcSwaps)?;
            let used = on.iter().find(|line| line.path == area.path).map_or(0, |line| line.used_bytes);
            let fits = area::check_memory(&area.path, used);
            if let Err(error) = fits.and_then(|()| area::remove(&area.path, used)) {
                self.tiers[index].closed = false;
                let bytes = area.bytes;
                // First of all: an area that is on is never forgotten.
                self.tiers[index].segments.push(Segment { area, plug: None });
                let plug = self.plug_for(index, bytes)?;
                if let Some(segment) = self.tiers[index].segments.last_mut() {
                    segment.plug = plug;
                }
                self.settle()?;
                return Err(error.into());
            }
            brought_up += used / PAGE_BYTES;
            self.publish();
        }
        self.numbers.save(&self.areas.list());
        // Only if nothing else is in it.
        fs::remove_dir(&self.tiers[index].folder).ok();
        Ok(brought_up)
    }

    /// Switches off and removes the areas that hold nothing; what holds something stays for the next agent.
    pub fn release_empty(&mut self) {
        for tier in &mut self.tiers {
            for segment in &mut tier.segments {
                segment.plug = None;
                segment.area.plugged_pages = 0;
            }
            let on = proc_swaps::read().unwrap_or_default();
            tier.segments.retain(|segment| {
                let line = on.iter().find(|line| line.path == segment.area.path);
                let empty = line.is_some_and(|line| line.used_bytes <= EMPTY_BYTES);
                !empty || area::remove(&segment.area.path, EMPTY_BYTES).is_err()
            });
            fs::remove_dir(&tier.folder).ok();
        }
        self.publish();
        self.numbers.save(&self.areas.list());
    }

    fn index(&self, tier: TierId) -> Result<usize, SwapError> {
        self.tiers
            .iter()
            .position(|candidate| candidate.id == tier)
            .ok_or_else(|| SwapError::NotSwap(format!("level {}", tier.0)))
    }

    fn publish(&mut self) {
        for segment in self.tiers.iter_mut().flat_map(|tier| &mut tier.segments) {
            segment.area.plugged_pages = segment.plug.as_ref().map_or(0, Plug::held);
        }
        let segments = self.tiers.iter().flat_map(|tier| &tier.segments);
        self.areas.set(segments.map(|segment| segment.area.clone()).collect());
    }
}

/// Removes folders that are empty.
fn remove_folders(tiers: &[SwapTier]) {
    for tier in tiers {
        fs::remove_dir(&tier.folder).ok();
    }
}
