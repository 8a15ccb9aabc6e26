//! Which processes map which shared memory. In: `/proc`. Out: for the files behind a VM's RAM, another process that
//! maps them too (virtiofsd, a vhost-user network daemon). The kernel does not page out what two processes map.
//!
//! Reads the mappings of every process, so it is done at most once a scan, and when there is a reason: a VM with
//! vhost-user devices, or pages of shared RAM that somebody else has mapped too ([`mapped_twice`]), which costs little.
//!
//! Limits: of a process, [`MOST_FILES`] files count. A daemon that maps RAM and has not touched it yet is seen only
//! where the command line has vhost-user devices.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};

use super::process::{FileId, Proc, VmError, pids};
use super::{Backing, RamRegion};
use crate::sys::PAGE_BYTES;

/// Places of a region that are looked at, and pages in a row at each.
const PLACES: u64 = 64;
const PAGES: u64 = 16;
/// Files of one process that count: one that has more maps its own, not guests' RAM.
const MOST_FILES: usize = 16_384;
/// Of a pagemap entry (Documentation/admin-guide/mm/pagemap.rst): in RAM, and mapped by this process alone.
const PRESENT: u64 = 1 << 63;
const ALONE: u64 = 1 << 56;

/// Whether another process has mapped pages of these regions too, by some of their pages. A page that nobody else has
/// touched says nothing.
pub(super) fn mapped_twice(process: &Proc, regions: &[RamRegion]) -> bool {
    let shared = regions.iter().filter(|region| matches!(region.backing, Backing::Shared { .. }));
    let look = || -> io::Result<bool> {
        let pagemap = File::open(process.file("pagemap"))?;
        for region in shared {
            let (first, pages) = (region.start.0 / PAGE_BYTES, region.bytes / PAGE_BYTES);
            for place in 0..PLACES.min(pages.div_ceil(PAGES)) {
                let at = first + pages / PLACES.min(pages.div_ceil(PAGES)) * place;
                let mut entries = [0; 8 * PAGES as usize];
                pagemap.read_exact_at(&mut entries, at * 8)?;
                let entries = entries
                    .chunks_exact(8)
                    .filter_map(|bytes| Some(u64::from_ne_bytes(bytes.try_into().ok()?)));
                if entries.into_iter().any(|entry| entry & (PRESENT | ALONE) == PRESENT) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    };
    look().unwrap_or(false)
}

/// Processes by the files they map shared.
pub(super) struct SharedMappings(HashMap<FileId, Vec<i32>>);

impl SharedMappings {
    /// Reads all processes but those that are `left_alone`; the one that is being read is written to `at`. Those that
    /// end meanwhile or cannot be read are passed over.
    pub(super) fn read(
        proc_root: &Path,
        left_alone: &HashSet<i32>,
        at: &AtomicI32,
    ) -> Result<SharedMappings, VmError> {
        let mut mappers: HashMap<FileId, Vec<i32>> = HashMap::new();
        for pid in pids(proc_root)?.into_iter().filter(|pid| !left_alone.contains(pid)) {
            at.store(pid, Ordering::Relaxed);
            let mut files = HashSet::new();
            let see = |file| {
                if files.len() < MOST_FILES {
                    files.insert(file);
                }
            };
            if Proc::open(proc_root, pid).and_then(|process| process.shared_files(see)).is_ok() {
                files.into_iter().for_each(|file| mappers.entry(file).or_default().push(pid));
            }
        }
        Ok(SharedMappings(mappers))
    }

    /// A process other than `pid` that maps one of the regions.
    pub(super) fn other_than(&self, pid: i32, regions: &[RamRegion]) -> Option<i32> {
        regions.iter().find_map(|region| match region.backing {
            Backing::Shared { device, inode, .. } => {
                self.0.get(&(device, inode))?.iter().copied().find(|&mapper| mapper != pid)
            }
            Backing::Anonymous | Backing::Hugetlb => None,
        })
    }
}
