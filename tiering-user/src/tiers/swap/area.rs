//! One swap file of a tier: made, switched on, switched off, removed. A device is switched on and off the same way.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, fallocate};
use nix::sys::statfs::{FsType, statfs};
use nix::sys::statvfs::statvfs;
use nix::unistd::linkat;
use thiserror::Error;

use super::files::{self, FileId};
use super::header;
use crate::sys::{self, PAGE_BYTES};

/// Share of memory that bringing an area up must leave.
const MARGIN_DIVISOR: u64 = 20;

/// Why a tier's swap file cannot be had. Every message names the path.
#[derive(Debug, Error)]
pub enum AreaError {
    #[error("{path}: {filesystem} cannot hold swap files; choose a folder on ext4 or xfs")]
    Filesystem { path: PathBuf, filesystem: &'static str },
    #[error(
        "{path}: {free_mib} MiB are free and {needed_mib} MiB needed; free some, or choose a smaller size"
    )]
    Full { path: PathBuf, free_mib: u64, needed_mib: u64 },
    #[error(
        "{path}: the kernel has no number left for another swap area, or this user may not switch one on"
    )]
    NoArea { path: PathBuf },
    #[error(
        "{path}: {used_mib} MiB must come back, which leaves too little of the {available_mib} MiB of memory that are \
         available; free some first"
    )]
    NoMemory { path: PathBuf, used_mib: u64, available_mib: u64 },
    #[error(
        "{path}: user {uid} owns this folder, and its mode is {mode:04o}: others than root could put files in the place of \
         swap files; give it to root alone (`chown root`, `chmod go-w`), or choose another folder"
    )]
    NotRoots { path: PathBuf, uid: u32, mode: u32 },
    #[error("{path}: is not the swap file any more that the agent made: it is left alone")]
    Replaced { path: PathBuf },
    #[error("{path}: cannot {action}: {source}")]
    Io { path: PathBuf, action: &'static str, source: io::Error },
}

impl AreaError {
    pub(super) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), action, source }
    }
}

/// File systems that are known not to hold swap files as the agent makes them: in memory, stacked, or copying
/// on write.
fn unfit(kind: FsType) -> Option<&'static str> {
    use nix::sys::statfs as fs;
    /// linux/magic.h; nix has no name for it.
    const RAMFS_MAGIC: libc::__fsword_t = 0x8584_58f6;
    const ZFS_MAGIC: libc::__fsword_t = 0x2fc1_2fc1;
    match kind {
        fs::TMPFS_MAGIC => Some("tmpfs"),
        fs::OVERLAYFS_SUPER_MAGIC => Some("overlay"),
        fs::BTRFS_SUPER_MAGIC => Some("btrfs"),
        fs::NFS_SUPER_MAGIC => Some("nfs"),
        fs::FUSE_SUPER_MAGIC => Some("fuse"),
        FsType(RAMFS_MAGIC) => Some("ramfs"),
        FsType(ZFS_MAGIC) => Some("zfs"),
        _ => None,
    }
}

/// Makes sure that the file system of `folder`, which need not exist, can hold `bytes` more of swap.
///
/// # Errors
/// [`AreaError::Filesystem`], [`AreaError::Full`], [`AreaError::Io`].
pub fn check_folder(folder: &Path, bytes: u64) -> Result<(), AreaError> {
    let free = free_bytes(folder)?;
    if free < bytes {
        let path = folder.to_owned();
        return Err(AreaError::Full { path, free_mib: free >> 20, needed_mib: bytes >> 20 });
    }
    Ok(())
}

/// What is free in the file system of `folder`, which need not exist, together with what swap files of ours hold there.
///
/// # Errors
/// [`AreaError::Filesystem`], [`AreaError::Io`].
pub(in crate::tiers) fn free_for_swap(folder: &Path) -> Result<u64, AreaError> {
    let files = files::look(folder).unwrap_or_default();
    let held: u64 = files.iter().filter(|file| file.made_for.is_some()).map(|file| file.bytes).sum();
    Ok(free_bytes(folder)? + held)
}

fn free_bytes(folder: &Path) -> Result<u64, AreaError> {
    let there = folder.ancestors().find(|path| path.exists()).unwrap_or(folder);
    let kind =
        statfs(there).map_err(io::Error::from).map_err(AreaError::io(there, "look at the file system"))?;
    if let Some(filesystem) = unfit(kind.filesystem_type()) {
        return Err(AreaError::Filesystem { path: folder.to_owned(), filesystem });
    }
    let room =
        statvfs(there).map_err(io::Error::from).map_err(AreaError::io(there, "look at the free space"))?;
    Ok(room.blocks_available() * room.fragment_size())
}

/// A swap file that an agent made, or a device that it made into swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Own {
    /// A way to the file that leads through the tier's folder; of a device its node.
    pub(super) path: PathBuf,
    pub(super) id: FileId,
    pub(super) bytes: u64,
}

impl Own {
    /// Makes a swap file of `bytes` bytes for `tier`, in a folder that is there. It gets its name when all of it is
    /// there, so that none is ever without its header, and never takes the name of another file.
    ///
    /// # Errors
    /// Any [`AreaError`].
    pub(super) fn make(path: &Path, bytes: u64, tier: &str) -> Result<Self, AreaError> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        check_folder(folder, bytes)?;
        let mut file = OpenOptions::new()
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_TMPFILE)
            .open(folder)
            .map_err(AreaError::io(folder, "create a file there"))?;
        let length = i64::try_from(bytes).unwrap_or(i64::MAX);
        match fallocate(&file, FallocateFlags::empty(), 0, length) {
            Err(nix::errno::Errno::ENOSPC) => {
                let path = path.to_owned();
                return Err(AreaError::Full { path, free_mib: 0, needed_mib: bytes >> 20 });
            }
            result => {
                result.map_err(io::Error::from).map_err(AreaError::io(path, "allocate the swap file"))?;
            }
        }
        let pages = u32::try_from(bytes / PAGE_BYTES).unwrap_or(u32::MAX);
        file.write_all(&header::encode(pages, random(), tier))
            .and_then(|()| file.sync_all())
            .map_err(AreaError::io(path, "write the swap header"))?;
        linkat(AT_FDCWD, &through(&file), AT_FDCWD, path, AtFlags::AT_SYMLINK_FOLLOW)
            .map_err(io::Error::from)
            .map_err(AreaError::io(path, "give the swap file its name"))?;
        let id = FileId::of(&file.metadata().map_err(AreaError::io(path, "look at the swap file"))?);
        Ok(Self { path: path.to_owned(), id, bytes })
    }

    /// The file, if it is still there.
    fn open(&self) -> Result<File, AreaError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&self.path)
            .map_err(AreaError::io(&self.path, "open the swap file"))?;
        let found = file.metadata().map_err(AreaError::io(&self.path, "look at the swap file"))?;
        if FileId::of(&found) == self.id {
            Ok(file)
        } else {
            Err(AreaError::Replaced { path: self.path.clone() })
        }
    }

    /// Switches it on: the file that was looked at, whatever lies at its path by now. `/proc/swaps` shows its path all
    /// the same, since the kernel shows where the opened file is.
    ///
    /// # Errors
    /// [`AreaError::NoArea`], [`AreaError::Replaced`], [`AreaError::Io`].
    pub(super) fn switch_on(&self, priority: i32) -> Result<(), AreaError> {
        let file = self.open()?;
        sys::swap_on(&through(&file), priority).map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM) => AreaError::NoArea { path: self.path.clone() },
            _ => {
                let action = match self.id.is_device() {
                    true => "switch the swap device on",
                    false => "switch the swap file on (does its file system hold swap files?)",
                };
                AreaError::io(&self.path, action)(error)
            }
        })
    }

    /// Switches it off, which brings what is in it back to RAM.
    ///
    /// # Errors
    /// [`AreaError::Replaced`], [`AreaError::Io`].
    pub(super) fn switch_off(&self) -> Result<(), AreaError> {
        let file = self.open()?;
        // The file that was looked at, whatever lies at its path by now.
        sys::swap_off(&through(&file)).map_err(AreaError::io(&self.path, "switch the swap file off"))
    }

    /// Removes it, and gives its blocks back at once, so that guest memory does not stay readable in a file that a
    /// reader holds open. The kernel refuses that for a file that is on, and the agent for one that does not bear its
    /// mark any more, or has a second name. A device stays as it is, with its header.
    ///
    /// # Errors
    /// [`AreaError::Replaced`], [`AreaError::Io`].
    pub(super) fn remove(&self) -> Result<(), AreaError> {
        if self.id.is_device() {
            return Ok(());
        }
        let mut file = self.open()?;
        if !files::is_ours(&self.path, &mut file) {
            return Err(AreaError::Replaced { path: self.path.clone() });
        }
        fs::remove_file(&self.path).map_err(AreaError::io(&self.path, "remove the swap file"))?;
        // Best effort: whoever has it open still is somebody whom root let read it.
        file.set_len(0).ok();
        Ok(())
    }
}

/// A path that leads to an open file, whatever its name is.
fn through(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// The host's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    pub(super) total_bytes: u64,
    pub(super) available_bytes: u64,
}

impl Memory {
    pub(super) fn now() -> Self {
        use procfs::Current as _;
        // Where it cannot be told, the kernel's own refusal (ENOMEM) decides.
        let memory = procfs::Meminfo::current().ok();
        Self {
            total_bytes: memory.as_ref().map_or(0, |memory| memory.mem_total),
            available_bytes: memory.and_then(|memory| memory.mem_available).unwrap_or(u64::MAX),
        }
    }

    /// Whether so much can come up from swap and leaves some: as much again, or 1 / [`MARGIN_DIVISOR`] of all memory if
    /// that is less.
    pub(super) fn takes(self, used_bytes: u64) -> bool {
        self.available_bytes >= used_bytes + (self.total_bytes / MARGIN_DIVISOR).min(used_bytes)
    }

    /// Makes sure that what is in an area can come up.
    ///
    /// # Errors
    /// [`AreaError::NoMemory`].
    pub(super) fn check(self, area: &Path, used_bytes: u64) -> Result<(), AreaError> {
        if self.takes(used_bytes) {
            return Ok(());
        }
        let (path, available_mib) = (area.to_owned(), self.available_bytes >> 20);
        Err(AreaError::NoMemory { path, used_mib: used_bytes >> 20, available_mib })
    }
}

/// 16 random bytes; all zero where the kernel gives none: then two files have one UUID, which only confuses people.
pub(super) fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    if let Ok(source) = File::open("/dev/urandom") {
        source.read_exact_at(&mut bytes, 0).ok();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn memory_file_systems_are_refused_by_name() {
        let error = check_folder(Path::new("/dev/shm/tiering"), 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "/dev/shm/tiering: tmpfs cannot hold swap files; choose a folder on ext4 or xfs"
        );
    }

    #[test]
    fn a_folder_that_is_too_small_is_refused_with_figures() {
        let error = check_folder(Path::new("/var/tmp/tiering"), 1 << 60).unwrap_err();
        assert!(matches!(error, AreaError::Full { needed_mib, .. } if needed_mib == 1 << 40), "{error}");
    }

    #[test]
    fn what_our_own_swap_files_hold_counts_as_free_for_swap() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        for (name, mib) in [("segment-0.swap", 1 << 20), ("other.swap", 1 << 21)] {
            // Sparse: it holds what it is long, as a swap file would.
            let file = File::create(folder.path().join(name)).unwrap();
            file.write_all_at(&header::encode(1, random(), "disk"), 0).unwrap();
            file.set_len(mib << 20).unwrap();
        }
        let without_header = File::create(folder.path().join("segment-1.swap")).unwrap();
        without_header.set_len((1 << 21) << 20).unwrap();
        let free = free_for_swap(folder.path()).unwrap() >> 20;
        assert!((1 << 20..1 << 21).contains(&free), "{free} MiB");
    }

    #[test]
    fn what_does_not_fit_into_memory_with_something_left_does_not_come_up() {
        let memory = Memory { total_bytes: 100 << 20, available_bytes: 50 << 20 };
        let area = Path::new("/nowhere/segment-0.swap");
        memory.check(area, 0).unwrap();
        memory.check(area, 45 << 20).unwrap();
        let error = memory.check(area, 46 << 20).unwrap_err();
        assert!(error.to_string().starts_with("/nowhere/segment-0.swap: 46 MiB must come back"), "{error}");
    }

    #[test]
    fn a_file_is_made_whole_never_over_another_one_and_removed_only_if_it_is_that_file() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = folder.path().join("segment-0.swap");
        let own = Own::make(&path, 1 << 20, "nvme").unwrap();
        let found = files::look(folder.path()).unwrap();
        assert_eq!(found.iter().map(|file| (file.id, file.bytes)).collect::<Vec<_>>(), [(own.id, 1 << 20)]);
        Own::make(&path, 1 << 20, "nvme").unwrap_err();

        let moved = folder.path().join("moved");
        fs::rename(&path, &moved).unwrap();
        fs::write(&path, "a user's").unwrap();
        assert!(matches!(own.remove(), Err(AreaError::Replaced { .. })));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&moved, &path).unwrap();
        own.remove().unwrap_err();
        fs::rename(&moved, &path).unwrap();

        let refused = || assert!(matches!(own.remove(), Err(AreaError::Replaced { .. })));
        fs::hard_link(&path, &moved).unwrap();
        refused();
        fs::remove_file(&moved).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let mut mark = [0; 16];
        file.read_exact_at(&mut mark, 1052).unwrap();
        file.write_all_at(b"of somebody else", 1052).unwrap();
        refused();
        file.write_all_at(&mark, 1052).unwrap();
        if fs::metadata(&path).unwrap().uid() != 0 {
            // Only root's files are the agent's.
            return;
        }
        own.remove().unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
