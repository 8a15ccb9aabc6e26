//! One swap file of a tier: created, switched on, switched off, removed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statfs::{FsType, statfs};
use nix::sys::statvfs::statvfs;
use thiserror::Error;

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
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let ours = files.filter(|file| is_swap_file(&file.file_name().to_string_lossy()));
    let held: u64 = ours.filter_map(|file| Some(file.metadata().ok()?.len())).sum();
    Ok(free_bytes(folder)? + held)
}

/// Whether a file of this name is one that a swap tier makes.
pub(in crate::tiers) fn is_swap_file(name: &str) -> bool {
    name.starts_with("segment-") && name.ends_with(".swap")
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

/// Creates the swap file `path` of `bytes` bytes and switches it on. Leaves no file behind on an error; the folder stays, since
/// the tier is tried again.
///
/// # Errors
/// Any [`AreaError`].
pub(super) fn create(path: &Path, bytes: u64, label: &str, priority: i32) -> Result<(), AreaError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    check_folder(folder, bytes)?;
    fs::create_dir_all(folder).map_err(AreaError::io(folder, "create the folder"))?;
    let made = write(path, bytes, label).and_then(|()| switch_on(path, priority));
    if made.is_err() {
        // The reason it was not made is the error worth telling.
        fs::remove_file(path).ok();
    }
    made
}

fn write(path: &Path, bytes: u64, label: &str) -> Result<(), AreaError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(AreaError::io(path, "create the swap file"))?;
    let length = i64::try_from(bytes).unwrap_or(i64::MAX);
    match fallocate(&file, FallocateFlags::empty(), 0, length) {
        Err(nix::errno::Errno::ENOSPC) => {
            let path = path.to_owned();
            return Err(AreaError::Full { path, free_mib: 0, needed_mib: bytes >> 20 });
        }
        result => result.map_err(io::Error::from).map_err(AreaError::io(path, "allocate the swap file"))?,
    }
    let pages = u32::try_from(bytes / PAGE_BYTES).unwrap_or(u32::MAX);
    file.write_all(&header::encode(pages, random_uuid(), label))
        .and_then(|()| file.sync_all())
        .map_err(AreaError::io(path, "write the swap header"))
}

fn switch_on(path: &Path, priority: i32) -> Result<(), AreaError> {
    sys::swap_on(path, priority).map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM) => AreaError::NoArea { path: path.to_owned() },
        _ => AreaError::io(path, "switch the swap file on (does its file system hold swap files?)")(error),
    })
}

/// Switches the area off, which brings its `used_bytes` back to RAM, and removes the file.
///
/// # Errors
/// [`AreaError::NoMemory`] before anything is done; [`AreaError::Io`].
pub(super) fn remove(path: &Path, used_bytes: u64) -> Result<(), AreaError> {
    let available = available_memory();
    if available < used_bytes {
        let path = path.to_owned();
        return Err(AreaError::NoMemory { path, used_mib: used_bytes >> 20, available_mib: available >> 20 });
    }
    sys::swap_off(path).map_err(AreaError::io(path, "switch the swap file off"))?;
    wipe(path).ok();
    fs::remove_file(path).map_err(AreaError::io(path, "remove the swap file"))
}

/// Gives the blocks back at once, so that guest memory does not stay readable in a file that a reader holds open.
fn wipe(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(&[0; PAGE_BYTES as usize], 0)?;
    file.set_len(0)
}

/// Makes sure that what is in the area fits into memory and leaves some there: as much again, or 1 / [`MARGIN_DIVISOR`] of
/// all memory if that is less.
///
/// # Errors
/// [`AreaError::NoMemory`].
pub(super) fn check_memory(path: &Path, used_bytes: u64) -> Result<(), AreaError> {
    use procfs::Current as _;
    let total = procfs::Meminfo::current().map_or(0, |memory| memory.mem_total);
    let available = available_memory();
    if available < used_bytes + (total / MARGIN_DIVISOR).min(used_bytes) {
        let path = path.to_owned();
        return Err(AreaError::NoMemory { path, used_mib: used_bytes >> 20, available_mib: available >> 20 });
    }
    Ok(())
}

fn available_memory() -> u64 {
    use procfs::Current as _;
    // Where it cannot be told, the kernel's own refusal (ENOMEM) decides.
    procfs::Meminfo::current().ok().and_then(|memory| memory.mem_available).unwrap_or(u64::MAX)
}

/// 16 random bytes marked as a version 4 UUID; all zero where the kernel gives none, which is a valid UUID too.
fn random_uuid() -> [u8; 16] {
    let mut uuid = [0; 16];
    if let Ok(source) = File::open("/dev/urandom") {
        source.read_exact_at(&mut uuid, 0).ok();
    }
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

#[cfg(test)]
mod tests {
    use super::*;

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
            File::create(folder.path().join(name)).unwrap().set_len(mib << 20).unwrap();
        }
        let free = free_for_swap(folder.path()).unwrap() >> 20;
        assert!((1 << 20..1 << 21).contains(&free), "{free} MiB");
    }

    #[test]
    fn what_does_not_fit_into_memory_with_something_left_does_not_come_up() {
        let area = Path::new("/nowhere/segment-0.swap");
        check_memory(area, 0).unwrap();
        check_memory(area, 1 << 20).unwrap();
        let total = procfs_total();
        let error = check_memory(area, total - total / MARGIN_DIVISOR + 1).unwrap_err();
        assert!(error.to_string().starts_with("/nowhere/segment-0.swap: "), "{error}");
        assert!(matches!(error, AreaError::NoMemory { .. }), "{error}");
    }

    fn procfs_total() -> u64 {
        use procfs::Current as _;
        procfs::Meminfo::current().unwrap().mem_total
    }
}
