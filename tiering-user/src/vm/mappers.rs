//! Which processes map which shared memory. In: `/proc`. Out: for the files behind a VM's RAM, another process that
//! maps them too (virtiofsd, a vhost-user network daemon). The kernel does not page out what two processes map.
//!
//! Reads the mappings of every process, so it is done at most once a scan, and when there is a reason: a VM with
//! vhost-user devices, or pages of shared RAM that somebody else has mapped too ([`mapped_twice`]), which costs little.
//!
//! Limits: a daemon that maps RAM and has not touched it yet is seen only where the command line has vhost-user
//! devices.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use procfs::process::MMPermissions;

use super::process::{Proc, VmError, pids};
use super::{Backing, RamRegion};
use crate::sys::PAGE_BYTES;

/// Places of a region that are looked at, and pages in a row at each.
const PLACES: u64 = 64;
const PAGES: u64 = 16;
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

/// Device and inode of a file.
type FileId = ((i32, i32), u64);

/// Processes by the files they map shared.
pub(super) struct SharedMappings(HashMap<FileId, Vec<i32>>);

impl SharedMappings {
    /// Reads all processes; those that end meanwhile or cannot be read are passed over.
    pub(super) fn read(proc_root: &Path) -> Result<SharedMappings, VmError> {
        let mut mappers: HashMap<FileId, Vec<i32>> = HashMap::new();
        for pid in pids(proc_root)? {
            let Ok(maps) = Proc::open(proc_root, pid).and_then(|process| process.mappings()) else {
                continue;
            };
            for map in maps.iter().filter(|map| map.perms.contains(MMPermissions::SHARED) && map.inode != 0) {
                mappers.entry((map.dev, map.inode)).or_default().push(pid);
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
