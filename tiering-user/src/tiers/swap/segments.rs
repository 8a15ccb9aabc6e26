//! The areas of the swap tiers: how many, how large, where.
//!
//! The slowest swap tier is one file or device. The faster ones share [`UPPER_SEGMENTS`], added as they fill, so that
//! few of their slots are free: a batch for a lower tier has to cover them. Nothing here moves a page.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::area::Own;
use super::device::Device;
use super::folder;
use super::order::priorities;
use super::proc_swaps::SwapLine;
use crate::sys::PAGE_BYTES;
use crate::tiers::TierId;

/// Most files of all tiers but the slowest together. With that one's there are some left to the host of the 23 areas
/// that can be told apart ([`crate::sys::FIRST_SPECIAL`]).
const UPPER_SEGMENTS: u64 = 16;
/// Usual least size of such a file.
const SEGMENT_MIN_BYTES: u64 = 256 << 20;
/// A rest smaller than this is not worth a file.
const SEGMENT_LEAST_BYTES: u64 = 16 << 20;

/// An area of ours that is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area {
    /// As `/proc/swaps` shows it.
    pub path: PathBuf,
    pub tier: TierId,
    /// The kernel's number, as pagemap shows it.
    pub number: u8,
    pub priority: i32,
    pub bytes: u64,
    /// Slots that the agent covers while a lower tier is open.
    pub covered_pages: u64,
}

/// Which areas are ours; shared with everyone who reads pagemap.
#[derive(Clone, Debug, Default)]
pub struct Areas(Arc<Mutex<Vec<Area>>>);

impl Areas {
    /// The tier that the area with this kernel number belongs to, if it is ours.
    pub fn tier_of(&self, number: u8) -> Option<TierId> {
        // Asked for every swapped page of a sweep: nothing is copied.
        self.lock().iter().find(|area| area.number == number).map(|area| area.tier)
    }

    /// All of them.
    pub fn list(&self) -> Vec<Area> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Area>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, areas: Vec<Area>) {
        *self.lock() = areas;
    }
}

/// Where a tier's areas are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Files in a folder, which is there.
    Folder(PathBuf),
    /// One area.
    Device(Device),
}

impl Place {
    /// Of the folder or the device's node.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Folder(path) => path,
            Self::Device(device) => &device.path,
        }
    }

    /// Removes a folder that an agent made and that is empty.
    pub(super) fn tidy(&self) {
        if let Self::Folder(path) = self {
            folder::remove(path);
        }
    }
}

#[derive(Debug)]
pub(super) struct SwapTier {
    pub(super) id: TierId,
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) capacity_bytes: u64,
    /// Of its areas.
    pub(super) priorities: Range<i32>,
    /// Most files it is made of.
    pub(super) most_segments: u64,
    /// Of all swap tiers.
    pub(super) is_slowest: bool,
    pub(super) closed: bool,
    pub(super) segments: Vec<Segment>,
}

#[derive(Debug)]
pub(super) struct Segment {
    pub(super) area: Area,
    pub(super) own: Own,
}

impl SwapTier {
    /// The swap tier in this place, counted from the fastest, of so many.
    pub(super) fn new(
        id: TierId,
        name: String,
        place: Place,
        capacity_bytes: u64,
        rank: (usize, usize),
    ) -> Self {
        let (rank, of) = rank;
        let upper = u64::try_from(of).unwrap_or(1).saturating_sub(1).max(1);
        let is_slowest = rank + 1 >= of;
        Self {
            id,
            name,
            place,
            capacity_bytes,
            priorities: priorities(rank),
            most_segments: if is_slowest { 1 } else { UPPER_SEGMENTS / upper },
            is_slowest,
            closed: false,
            segments: Vec::new(),
        }
    }

    /// The kernel's numbers of its areas.
    pub(super) fn numbers(&self) -> Vec<u8> {
        self.segments.iter().map(|segment| segment.area.number).collect()
    }

    pub(super) fn free_pages(&self, on: &[SwapLine]) -> u64 {
        self.segments.iter().map(|segment| free_pages(on, &segment.area)).sum()
    }

    /// Whether another file is due, so that the kernel finds slots here and not below.
    pub(super) fn needs_slots(&self, on: &[SwapLine]) -> bool {
        let next = self.next_segment_bytes(self.made_bytes());
        !self.closed && self.free_pages(on) * PAGE_BYTES < next / 2
    }

    /// The priority that its pages need others to be below.
    pub(super) fn lowest_priority(&self) -> i32 {
        self.segments.iter().map(|segment| segment.area.priority).min().unwrap_or(self.priorities.start)
    }

    /// What is in its areas, without what is covered.
    pub(super) fn held_bytes(&self, on: &[SwapLine]) -> u64 {
        let held = |segment: &Segment| {
            used_bytes(on, &segment.area).saturating_sub(segment.area.covered_pages * PAGE_BYTES)
        };
        self.segments.iter().map(held).sum()
    }

    /// Pages it may still take before it holds what the configuration gives it; its files may be larger where that was
    /// made less.
    pub(super) fn allowed_pages(&self, on: &[SwapLine]) -> u64 {
        self.capacity_bytes.saturating_sub(self.held_bytes(on)) / PAGE_BYTES
    }

    pub(super) fn made_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.area.bytes).sum()
    }

    /// Size of the next file where files of `made` bytes are there; 0 where there is none to come.
    pub(super) fn next_segment_bytes(&self, made: u64) -> u64 {
        let rest = self.capacity_bytes.saturating_sub(made);
        let bytes = if self.is_slowest {
            rest
        } else {
            (self.capacity_bytes / self.most_segments).max(SEGMENT_MIN_BYTES).min(rest)
        };
        if bytes < SEGMENT_LEAST_BYTES { 0 } else { bytes / PAGE_BYTES * PAGE_BYTES }
    }

    /// What all files to come can hold, bytes.
    pub(super) fn growth_bytes(&self) -> u64 {
        let mut made = self.made_bytes();
        let mut growth = 0;
        loop {
            let bytes = self.next_segment_bytes(made);
            if bytes == 0 {
                return growth;
            }
            made += bytes;
            growth += bytes - PAGE_BYTES;
        }
    }
}

pub(super) fn free_pages(on: &[SwapLine], area: &Area) -> u64 {
    on.iter().find(|line| line.path == area.path).map_or(0, |line| line.free_bytes() / PAGE_BYTES)
}

pub(super) fn used_bytes(on: &[SwapLine], area: &Area) -> u64 {
    on.iter().find(|line| line.path == area.path).map_or(0, |line| line.used_bytes)
}

#[cfg(test)]
mod tests {
    use super::super::files::FileId;
    use super::super::order::BASE_PRIORITY;
    use super::*;

    const MIB: u64 = 1 << 20;

    fn tier(capacity_bytes: u64, place: (usize, usize)) -> SwapTier {
        SwapTier::new(TierId(1), "test".into(), Place::Folder("/nowhere".into()), capacity_bytes, place)
    }

    fn sizes(tier: &SwapTier) -> Vec<u64> {
        let mut made = 0;
        let mut sizes = Vec::new();
        while sizes.len() < 100 {
            match tier.next_segment_bytes(made) {
                0 => break,
                bytes => sizes.push(bytes / MIB),
            }
            made += tier.next_segment_bytes(made);
        }
        sizes
    }

    #[test]
    fn the_slowest_tier_is_one_file_and_the_faster_ones_share_sixteen() {
        assert_eq!(sizes(&tier(4096 * MIB, (0, 1))), [4096]);
        assert_eq!(sizes(&tier(4096 * MIB, (1, 2))), [4096]);
        assert_eq!(sizes(&tier(16_384 * MIB, (0, 2))), [1024; 16]);
        assert_eq!(sizes(&tier(16_384 * MIB, (1, 3))), [2048; 8]);
        assert_eq!(sizes(&tier(600 * MIB, (0, 2))), [256, 256, 88]);
        assert_eq!(sizes(&tier(100 * MIB, (0, 2))), [100]);
        // The longest ladder: one tier of memory and seven of swap.
        let files: usize = (0..7).map(|place| sizes(&tier(1 << 40, (place, 7))).len()).sum();
        assert!(files <= 17, "{files} areas");
    }

    #[test]
    fn a_tier_has_room_only_for_files_that_will_be_made() {
        for (capacity, files) in [(8192, 16), (264, 1), (600, 3), (32, 1)] {
            let tier = tier(capacity * MIB, (0, 2));
            let made: u64 = sizes(&tier).iter().map(|mib| mib * MIB).sum();
            // Each file's first page is its header.
            assert_eq!(tier.growth_bytes(), made - files * PAGE_BYTES, "{capacity} MiB");
        }
    }

    #[test]
    fn a_tier_that_was_made_smaller_takes_no_more_than_it_may() {
        let mut tier = tier(100 * MIB, (0, 1));
        let path = PathBuf::from("/nowhere/segment-0.swap");
        let own = Own { path: path.clone(), id: FileId { device: 1, inode: 2 }, bytes: 200 * MIB };
        let area = Area {
            path,
            tier: tier.id,
            number: 0,
            priority: BASE_PRIORITY,
            bytes: own.bytes,
            covered_pages: 256,
        };
        let on = |used_bytes| SwapLine {
            path: area.path.clone(),
            is_file: true,
            size_bytes: area.bytes,
            used_bytes,
            priority: BASE_PRIORITY,
        };
        let (some, more) = (on(61 * MIB), on(150 * MIB));
        tier.segments.push(Segment { area, own });
        assert_eq!(tier.allowed_pages(&[some]) * PAGE_BYTES, 40 * MIB, "what is covered does not count");
        assert_eq!(tier.allowed_pages(&[more]), 0);
    }
}
