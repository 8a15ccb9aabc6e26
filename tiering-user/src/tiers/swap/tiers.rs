//! The swap files of all tiers, and how a page-out is directed into the one that was chosen.
//!
//! A stock kernel fills swap areas by priority, highest first, and offers no choice per process. So:
//!
//! 1. The fastest swap tier is one area with the lowest priority of ours; each lower tier has higher ones, and
//!    is made of several files that are added when they are needed ([`super::segments`]).
//! 2. At rest every free slot of the lower tiers is plugged ([`super::plug`]): what the kernel reclaims on its
//!    own goes to the fastest swap tier.
//! 3. [`SwapTiers::aim`] opens one tier: it lets go as much of that tier's plug as the batch needs, and uses up
//!    what this CPU still holds of the area it filled before (a cluster of 512 slots from Linux 6.15 on, a cache
//!    of 64 before). The caller pages its batch out from the same thread, bound to that CPU.
//! 4. [`SwapTiers::settle`] plugs what is left, a slice at a time: a new file of many gigabytes takes a while. As long
//!    as a tier is behind, nothing can be sent to the tiers above it ([`SwapTiers::is_behind`]), and what the kernel
//!    reclaims on its own goes to that file: to a slower tier than it should, but never astray.
//!
//! An area of somebody else's may be switched on at any time. One with a priority above a tier's would take its
//! batches, its plug and its place in the kernel's order: such a tier takes nothing until it is gone
//! ([`SwapTiers::hindered`]).
//!
//! In: the ladder, `/proc/swaps`. Out: areas that are on, and which kernel number belongs to which tier
//! ([`Areas`]). Areas that an agent before this one left on are taken over with what is in them ([`super::opening`]).
//!
//! # Limits
//! While a tier is open, the kernel's own reclaim may take slots of it too. Where a page went is therefore read
//! back by the caller, never assumed.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

use super::area::AreaError;
use super::files;
use super::numbers::Numbers;
use super::plug::Plug;
use super::proc_swaps::{self, SwapLine};
use super::read_back::Probes;
use super::segments::{Areas, BASE_PRIORITY, Segment, SwapTier, free_pages};
use crate::sys::{self, Monotonic, PAGE_BYTES, PageState, Pagemap, ZeroPages};
use crate::tiers::TierId;

/// Pages of our own that are enough to use up what a CPU still holds of another area.
pub(super) const PRIMER_PAGES: usize = 1280;
/// Slots let go beyond a batch: what the primer takes, and what others may take meanwhile.
const SLACK_PAGES: u64 = 512;
/// Slots plugged in one go, 64 MiB of them: 50 ms (1.3 GB/s, Linux 6.18, 2 cores).
const SLICE_PAGES: u64 = 16_384;
/// Slots asked for at least, where so many are free: those that a CPU still holds of another area come first.
const LEAST_PAGES: u64 = 512;
/// How often a lower tier gives up a file: what guests leave now they may send again soon.
const SHED_EVERY: Duration = Duration::from_secs(30);

/// Why a swap tier cannot be used.
#[derive(Debug, Error)]
pub enum SwapError {
    #[error(transparent)]
    Area(#[from] AreaError),
    #[error("cannot read /proc/swaps: {0}")]
    ProcSwaps(io::Error),
    #[error(
        "tier `{tier}`: {} is {what}, and not the agent's: nothing in {} is touched; give the tier a folder of its own, or \
         switch that file off and move it elsewhere", path.display(), folder.display()
    )]
    Foreign { tier: String, path: PathBuf, folder: PathBuf, what: String },
    #[error(
        "tiers `{first}` and `{second}` have one folder, by the paths {} and {}: nothing in it is touched; give each tier a \
         folder of its own", paths[0].display(), paths[1].display()
    )]
    OneFolder { first: String, second: String, paths: [PathBuf; 2] },
    #[error(
        "{misfits}: to bring {needed_mib} MiB up, {available_mib} MiB of memory are too little, and nothing is changed; start \
         the agent with the tiers as they were and drain these first (`tiering drain TIER`), or free memory"
    )]
    DrainFirst { misfits: String, needed_mib: u64, available_mib: u64 },
    #[error(
        "{} has priority {priority} and would be filled before the tiers: switch it off with swapoff, or on again \
         with a priority below {BASE_PRIORITY}", path.display()
    )]
    Above { path: PathBuf, priority: i32 },
    #[error("the tier is not drained: the agent ends; what came up so far is in memory")]
    Stopped,
    #[error("tier `{0}` is no swap tier")]
    NotSwap(String),
    #[error("tier `{tier}` cannot be plugged or primed: {source}")]
    Plug { tier: String, source: io::Error },
    #[error("the kernel's number of {} cannot be found out: is another swap area filled first?", path.display())]
    NoNumber { path: PathBuf },
}

impl SwapError {
    pub(super) fn above(line: &SwapLine) -> Self {
        Self::Above { path: line.path.clone(), priority: line.priority }
    }
}

/// The swap tiers, owned by the one thread that pages out.
#[derive(Debug)]
pub struct SwapTiers {
    /// Fastest first.
    pub(super) tiers: Vec<SwapTier>,
    pub(super) areas: Areas,
    pub(super) numbers: Numbers,
    pub(super) own: Pagemap,
    pub(super) probes: Probes,
    /// When files that are not needed were last given up.
    pub(super) shed: Monotonic,
}

impl SwapTiers {
    /// Which areas are ours.
    pub fn areas(&self) -> &Areas {
        &self.areas
    }

    pub(super) fn plug_for(&self, tier: usize, bytes: u64) -> Result<Option<Plug>, SwapError> {
        if self.tiers[tier].is_fastest() {
            return Ok(None);
        }
        let slots = u32::try_from(bytes / PAGE_BYTES).unwrap_or(u32::MAX);
        Plug::new(slots).map(Some).map_err(|source| self.plug_error(tier, source))
    }

    fn plug_error(&self, tier: usize, source: io::Error) -> SwapError {
        SwapError::Plug { tier: self.tiers[tier].name.clone(), source }
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
                tracing::warn!(tier = tier.name, %path, "somebody has switched a swap file of the agent off");
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
        let on = self.look()?;
        self.refuse_areas_above(index, &on)?;
        let folder = &self.tiers[index].folder;
        self.probes
            .look(tier, folder, sys::now())
            .map_err(AreaError::io(folder, "write and read back a page"))?;
        // Whatever was freed above the target since the last batch would catch this one.
        let target = self.tiers[index].lowest_priority();
        let mut slice = SLICE_PAGES;
        for other in (0..self.tiers.len()).rev().filter(|other| *other != index) {
            self.plug_up(other, target, &mut slice)?;
        }
        let pages = pages.min(self.tiers[index].allowed_pages(&on));
        if pages == 0 || self.is_behind(tier) {
            return Ok(0);
        }
        let wanted = pages + SLACK_PAGES;
        let mut room = self.open_slots(index, wanted)?;
        while room < wanted {
            match self.grow(index, &on) {
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
    pub fn room(&mut self, tier: TierId) -> Result<u64, SwapError> {
        let on = self.look()?;
        let tier = &self.tiers[self.index(tier)?];
        if tier.closed {
            return Ok(0);
        }
        let segments = tier.segments.iter();
        let there: u64 = segments.map(|s| free_pages(&on, &s.area) + s.area.plugged_pages).sum();
        Ok((there + tier.growth_bytes() / PAGE_BYTES).min(tier.allowed_pages(&on)))
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

    /// Plugs free slots of the lower tiers, no more than takes some 50 ms, and gives up files that are not needed.
    /// Returns whether there are more slots.
    ///
    /// # Errors
    /// Any [`SwapError`].
    pub fn settle(&mut self) -> Result<bool, SwapError> {
        self.look()?;
        let mut slice = SLICE_PAGES;
        for tier in (0..self.tiers.len()).rev() {
            self.plug_up(tier, -1, &mut slice)?;
        }
        let behind = self.tiers.iter().any(|tier| tier.behind);
        if !behind && sys::now().since(self.shed) >= SHED_EVERY {
            self.shed = sys::now();
            self.shed()?;
        }
        Ok(behind)
    }

    /// Whether what is sent to the swap tier now would go to a lower one, of which not all free slots are plugged yet.
    pub fn is_behind(&self, tier: TierId) -> bool {
        self.index(tier).is_ok_and(|index| self.tiers[index + 1..].iter().any(|lower| lower.behind))
    }

    /// Plugs the free slots of the tier's segments whose priority is above `above`, highest first, as far as the slice
    /// goes. What an area of somebody else's would take is left.
    fn plug_up(&mut self, tier: usize, above: i32, slice: &mut u64) -> Result<(), SwapError> {
        let on = proc_swaps::read().map_err(SwapError::ProcSwaps)?;
        let others = self.foremost_of_others(&on).map_or(-1, |line| line.priority);
        let mut result = Ok(0);
        let mut behind = false;
        for segment in self.tiers[tier].segments.iter_mut().rev() {
            let free = free_pages(&on, &segment.area);
            if let Some(plug) = &mut segment.plug
                && free > 0
                && segment.area.priority > above.max(others)
            {
                // No more than is free: the rest would go to areas of others.
                let part = if *slice == 0 { 0 } else { free.min((*slice).max(LEAST_PAGES)) };
                let taken = plug.take(part, segment.area.number, &self.own);
                let got = *taken.as_ref().unwrap_or(&0);
                *slice = slice.saturating_sub(got);
                // Where nothing can be had now, trying again at once is no use.
                behind |= part < free && (got > 0 || part == 0);
                result = result.and(taken);
            }
        }
        self.tiers[tier].behind = behind;
        result.map_err(|source| self.plug_error(tier, source))?;
        self.publish();
        Ok(())
    }

    pub(super) fn index(&self, tier: TierId) -> Result<usize, SwapError> {
        self.tiers
            .iter()
            .position(|candidate| candidate.id == tier)
            .ok_or_else(|| SwapError::NotSwap(format!("level {}", tier.0)))
    }

    pub(super) fn publish(&mut self) {
        for segment in self.tiers.iter_mut().flat_map(|tier| &mut tier.segments) {
            segment.area.plugged_pages = segment.plug.as_ref().map_or(0, Plug::held);
        }
        let segments = self.tiers.iter().flat_map(|tier| &tier.segments);
        self.areas.set(segments.map(|segment| segment.area.clone()).collect());
    }
}

/// Whether somebody has switched the area off, or on again elsewhere in the order.
fn is_lost(Segment { area, own, .. }: &Segment, on: &[SwapLine]) -> bool {
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
            Area { path: path.clone(), tier: TierId(1), number: 0, priority: 7, bytes: 0, plugged_pages: 0 };
        let segment = Segment { area, own, plug: None };
        let line =
            |priority| SwapLine { path: path.clone(), is_file: true, size_bytes: 0, used_bytes: 0, priority };
        assert!(!is_lost(&segment, &[line(7)]));
        assert!(is_lost(&segment, &[line(8)]));
        assert!(is_lost(&segment, &[]), "a file that is not on");
        drop(file);
        assert!(is_lost(&segment, &[]), "a file that is not there");
    }
}
