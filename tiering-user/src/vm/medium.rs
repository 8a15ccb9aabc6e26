//! What a mapped file of a process is made of. In: the mapping, the mounts that the process sees. Out: [`Medium`].
//!
//! 1. A file system that is mounted: by its type.
//! 2. A file system on a block device: storage.
//! 3. One that the kernel keeps for itself (memfd, shared anonymous memory, memfd of huge pages), or that was unmounted
//!    since: the kernel is asked through `/proc/PID/map_files`. Nothing on a network or in FUSE is asked: it might
//!    hang.

use std::cell::OnceCell;
use std::collections::HashMap;

use nix::sys::statfs::{HUGETLBFS_MAGIC, TMPFS_MAGIC, statfs};
use procfs::process::{MMapPath, MemoryMap};

use super::process::Proc;
use super::ram::Medium;

/// Where the kernel does not tell.
const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// Answers for one process.
pub(super) struct Media<'a> {
    process: &'a Proc,
    /// Types of the mounted file systems, by device.
    mounted: OnceCell<HashMap<(i32, i32), String>>,
}

impl<'a> Media<'a> {
    pub(super) fn new(process: &'a Proc) -> Media<'a> {
        Media { process, mounted: OnceCell::new() }
    }

    /// What is behind a mapping with a path.
    pub(super) fn of(&self, map: &MemoryMap) -> Medium {
        let path = match &map.pathname {
            MMapPath::Path(path) => path.to_string_lossy(),
            _ => return Medium::Memory,
        };
        if path.starts_with("/anon_hugepage") {
            return self.ask(map).unwrap_or(Medium::Hugetlb { page_bytes: HUGE_PAGE_BYTES });
        }
        let mounted = self.mounted.get_or_init(|| self.process.file_systems().unwrap_or_default());
        match mounted.get(&map.dev).map(String::as_str) {
            Some("tmpfs") if self.is_device(map, &path) => Medium::Storage,
            Some("tmpfs") => Medium::Memory,
            Some("hugetlbfs") => self.ask(map).unwrap_or(Medium::Hugetlb { page_bytes: HUGE_PAGE_BYTES }),
            Some(_) => Medium::Storage,
            None if map.dev.0 != 0 => Medium::Storage,
            None => self.ask(map).unwrap_or_else(|| {
                let is_memory = path.starts_with("/memfd:") || path.starts_with("/dev/zero");
                if is_memory { Medium::Memory } else { Medium::Storage }
            }),
        }
    }

    /// In a container /dev, with its devices, is a tmpfs.
    fn is_device(&self, map: &MemoryMap, path: &str) -> bool {
        let facts = std::fs::metadata(self.process.file(&link(map)));
        facts.map_or(path.starts_with("/dev/dax"), |facts| !facts.is_file())
    }

    /// Takes CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE.
    fn ask(&self, map: &MemoryMap) -> Option<Medium> {
        let facts = statfs(&self.process.file(&link(map))).ok()?;
        Some(match facts.filesystem_type() {
            TMPFS_MAGIC => Medium::Memory,
            HUGETLBFS_MAGIC => Medium::Hugetlb { page_bytes: u64::try_from(facts.block_size()).ok()? },
            _ => Medium::Storage,
        })
    }
}

fn link(map: &MemoryMap) -> String {
    format!("map_files/{:x}-{:x}", map.address.0, map.address.1)
}
