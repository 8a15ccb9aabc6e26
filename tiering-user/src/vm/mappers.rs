//! Which processes map which shared memory. In: `/proc`. Out: for the files behind a VM's RAM, another process that
//! maps them too (virtiofsd, a vhost-user network daemon). The kernel does not page out what two processes map.
//!
//! Reads the mappings of every process, so it is done once a scan and only when a VM uses vhost-user devices.
//!
//! Limits: a daemon that starts later is seen at the next [`super::Scanner::refresh`].

use std::collections::HashMap;
use std::path::Path;

use procfs::process::MMPermissions;

use super::process::{Proc, VmError, pids};
use super::{Backing, RamRegion};

/// Device and inode of a file.
type FileId = ((i32, i32), u64);

/// Processes by the files they map shared.
pub(super) struct SharedMappings(HashMap<FileId, Vec<i32>>);

impl SharedMappings {
    /// Reads all processes; those that end meanwhile or cannot be read are passed over.
    pub(super) fn read(proc_root: &Path) -> Result<SharedMappings, VmError> {
        let mut mappers: HashMap<FileId, Vec<i32>> = HashMap::new();
        for pid in pids(proc_root)? {
            let Ok(maps) = Proc::open(proc_root, pid).and_then(|process| process.mappings("maps")) else {
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
