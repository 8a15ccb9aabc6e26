//! The files of the swap tiers: how many, how large, where, with which priority.
//!
//! The fastest swap tier is one file. A lower one is made of up to [`SEGMENTS`], added when they are needed, so that the
//! plug of its free slots stays small. Nothing here moves a page.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::area::{self, AreaError};
use super::plug::Plug;
use super::proc_swaps::SwapLine;
use super::tiers::SwapError;
use crate::sys::{PAGE_BYTES, SWAP_PRIORITY_MAX};
use crate::tiers::TierId;

/// Most files of one lower tier.
const SEGMENTS: u64 = 8;
/// Usual least size of such a file.
const SEGMENT_MIN_BYTES: u64 = 64 << 20;
/// A rest smaller than this is not worth a file.
const SEGMENT_LEAST_BYTES: u64 = 16 << 20;
/// Priority of the fastest swap tier's area; a lower tier's are [`PRIORITY_STEP`] a level above.
pub const BASE_PRIORITY: i32 = SWAP_PRIORITY_MAX - 700;
pub(super) const PRIORITY_STEP: i32 = 50;

/// An area of ours that is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area {
    pub path: PathBuf,
    pub tier: TierId,
    /// The kernel's number, as pagemap shows it.
    pub number: u8,
    pub priority: i32,
    pub bytes: u64,
    /// Slots the plug holds.
    pub plugged_pages: u64,
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

#[derive(Debug)]
pub(super) struct SwapTier {
    pub(super) id: TierId,
    pub(super) name: String,
    pub(super) folder: PathBuf,
    pub(super) capacity_bytes: u64,
    /// The fastest swap tier is never plugged: it is where the kernel's own reclaim belongs.
    pub(super) fastest: bool,
    pub(super) closed: bool,
    pub(super) segments: Vec<Segment>,
}

#[derive(Debug)]
pub(super) struct Segment {
    pub(super) area: Area,
    pub(super) plug: Option<Plug>,
}

impl SwapTier {
    pub(super) fn made_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.area.bytes).sum()
    }

    /// Size of the next file where files of `made` bytes are there; 0 where there is none to come.
    pub(super) fn next_segment_bytes(&self, made: u64) -> u64 {
        let rest = self.capacity_bytes.saturating_sub(made);
        let bytes = match self.fastest {
            true if made > 0 => 0,
            true => rest,
            false => (self.capacity_bytes / SEGMENTS).max(SEGMENT_MIN_BYTES).min(rest),
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

/// The tier's folder as `/proc/swaps` shows it, made, and found fit for what is not there yet.
pub(super) fn prepare(folder: &Path, capacity_bytes: u64, on: &[SwapLine]) -> Result<PathBuf, SwapError> {
    area::check_folder(folder, 0)?;
    fs::create_dir_all(folder).map_err(AreaError::io(folder, "create the folder"))?;
    let real = fs::canonicalize(folder).map_err(AreaError::io(folder, "resolve the folder"))?;
    let made: u64 =
        on.iter().filter(|line| line.path.parent() == Some(&real)).map(|line| line.size_bytes).sum();
    area::check_folder(&real, capacity_bytes.saturating_sub(made)).inspect_err(|_| {
        // Only if nothing is in it.
        fs::remove_dir(&real).ok();
    })?;
    Ok(real)
}

/// An area of somebody else's that fills before ours would take every batch.
pub(super) fn refuse_areas_above(tiers: &[SwapTier], on: &[SwapLine]) -> Result<(), SwapError> {
    let ours = |line: &SwapLine| tiers.iter().any(|tier| line.path.parent() == Some(&tier.folder));
    match on.iter().find(|line| line.priority >= BASE_PRIORITY && !ours(line)) {
        None => Ok(()),
        Some(line) => Err(SwapError::Above { path: line.path.clone(), priority: line.priority }),
    }
}

pub(super) fn free_pages(on: &[SwapLine], area: &Area) -> u64 {
    on.iter().find(|line| line.path == area.path).map_or(0, |line| line.free_bytes() / PAGE_BYTES)
}

/// Swap files of ours that are not on: left by a crash or a reboot, their content means nothing any more.
pub(super) fn remove_stale_files(folder: &Path, on: &[SwapLine]) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if area::is_swap_file(&name) && !on.iter().any(|line| line.path == path) {
            tracing::info!(path = %path.display(), "removing a swap file that is not on");
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove it");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn tier(capacity_bytes: u64, fastest: bool) -> SwapTier {
        SwapTier {
            id: TierId(1),
            name: "test".into(),
            folder: "/nowhere".into(),
            capacity_bytes,
            fastest,
            closed: false,
            segments: Vec::new(),
        }
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
    fn the_fastest_tier_is_one_file_and_a_lower_one_at_most_eight() {
        assert_eq!(sizes(&tier(4096 * MIB, true)), [4096]);
        assert_eq!(sizes(&tier(8192 * MIB, false)), [1024; 8]);
        assert_eq!(sizes(&tier(200 * MIB, false)), [64, 64, 64]);
        assert_eq!(sizes(&tier(100 * MIB, false)), [64, 36]);
        assert_eq!(sizes(&tier(32 * MIB, false)), [32]);
    }

    #[test]
    fn a_tier_has_room_only_for_files_that_will_be_made() {
        for (capacity, files) in [(8192, 8), (100, 2), (200, 3), (32, 1)] {
            let tier = tier(capacity * MIB, false);
            let made: u64 = sizes(&tier).iter().map(|mib| mib * MIB).sum();
            // Each file's first page is its header.
            assert_eq!(tier.growth_bytes(), made - files * PAGE_BYTES, "{capacity} MiB");
        }
    }
}
