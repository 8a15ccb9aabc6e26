//! How a tier gets another swap file, or its device, and how the kernel's number of its area is found.
//!
//! Pagemap names an area by its number, and nothing tells which number an area has. So a new one is switched on above
//! all others for a moment, and the number is the one that a page of our own lands in then. The kernel gives an area
//! the lowest number that is free (`alloc_swap_info` in mm/swapfile.c, Linux 6.1 to 6.18): switched off and on again
//! with the priority it is to have, it has the same.

use std::fs;
use std::io;
use std::path::Path;

use super::area::Own;
use super::error::SwapError;
use super::folder;
use super::order::segment_name;
use super::proc_swaps::{self, SwapLine};
use super::segments::{Area, Place, Segment, SwapTier};
use super::tiers::{PRIMER_PAGES, SwapTiers};
use crate::sys::{OneCpu, PAGE_BYTES, PageState, SWAP_PRIORITY_MAX, ZeroPages};

impl SwapTiers {
    /// Adds a swap file to the tier. Returns its slots, 0 where the tier has its full size.
    pub(super) fn grow(&mut self, tier: usize, on: &[SwapLine]) -> Result<u64, SwapError> {
        self.refuse_areas_above(tier, on)?;
        let SwapTier { id, name, place, segments, priorities, .. } = &self.tiers[tier];
        let bytes = self.tiers[tier].next_segment_bytes(self.tiers[tier].made_bytes());
        // One that is too small or cannot be read says so when it is made into swap.
        let is_device = matches!(place, Place::Device(_));
        // No two areas of one priority: the kernel would fill them in turn. And a name that somebody uses is left
        // alone.
        let free = |(n, priority): &(i32, i32)| {
            segments.iter().all(|segment| segment.area.priority != *priority)
                && match place {
                    Place::Folder(folder) => fs::symlink_metadata(folder.join(segment_name(*n))).is_err(),
                    Place::Device(_) => segments.is_empty(),
                }
        };
        // The first file is filled first, so that what is free of a tier is in its last one.
        let Some((n, priority)) =
            (0..).zip(priorities.clone().rev()).find(free).filter(|_| bytes > 0 || is_device)
        else {
            return Ok(0);
        };
        let id = *id;
        let own = match place {
            Place::Folder(folder) => {
                folder::make(folder)?;
                Own::make(&folder.join(segment_name(n)), bytes, name)?
            }
            Place::Device(device) => device.make(name).map_err(|error| error.of_tier(name))?,
        };
        let bytes = own.bytes;
        let number = match self.switch_on(&own, priority) {
            Ok(number) => number,
            Err(error) => {
                // Either may be off, and the reason it is of no use is the error worth telling.
                own.switch_off().ok();
                if let Err(error) = own.remove() {
                    tracing::warn!(%error, "a swap file that is of no use stays");
                }
                return Err(error);
            }
        };
        let path = own.path.clone();
        tracing::info!(path = %path.display(), mib = bytes >> 20, number, "swap switched on");
        let area = Area { path, tier: id, number, priority, bytes, covered_pages: 0 };
        self.tiers[tier].segments.push(Segment { area, own });
        self.publish();
        self.numbers.save(&self.areas.list());
        // One holds the header.
        Ok(bytes / PAGE_BYTES - 1)
    }

    /// Switches a new file on, and finds the kernel's number of it.
    fn switch_on(&self, own: &Own, priority: i32) -> Result<u8, SwapError> {
        own.switch_on(SWAP_PRIORITY_MAX)?;
        let one_cpu = OneCpu::bind();
        let landed = self.primer_landing();
        drop(one_cpu);
        let place = place_of(&own.path);
        own.switch_off()?;
        own.switch_on(priority)?;
        let landed = landed.map_err(|source| SwapError::Direct { tier: "all".into(), source })?;
        let known = self.areas.list();
        landed
            .filter(|number| known.iter().all(|area| area.number != *number))
            // Else somebody switched another area on or off meanwhile.
            .filter(|_| place.is_some() && place_of(&own.path) == place)
            .ok_or_else(|| SwapError::NoNumber { path: own.path.clone() })
    }

    /// The number of the area that the kernel fills once what this CPU held of another one is used up.
    fn primer_landing(&self) -> io::Result<Option<u8>> {
        let mut pages = ZeroPages::map(PRIMER_PAGES)?;
        pages.page_out(0, PRIMER_PAGES)?;
        let last = self.own.of_zero_pages(&pages, PRIMER_PAGES - 1, 1)?;
        Ok(last.first().and_then(|state| match state {
            PageState::Swapped { area, .. } => Some(*area),
            _ => None,
        }))
    }
}

/// The line of an area in `/proc/swaps`, which is in the order of the numbers, and of how many.
fn place_of(path: &Path) -> Option<(usize, usize)> {
    let on = proc_swaps::read().ok()?;
    Some((on.iter().position(|line| line.path == path)?, on.len()))
}
