//! A temporary folder on a file system that can hold swap files.
//!
//! In: how much room is needed. Out: a folder that is gone, with every swap area below it switched off, when it is
//! dropped. swapon(2) needs a file whose blocks stay where they are: ext4 and XFS are taken, tmpfs, overlay and btrfs
//! are not.

use crate::paths;
use crate::skip::Skip;
use anyhow::{Context, Result, ensure};
use nix::sys::statfs::{EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, statfs};
use nix::sys::statvfs::statvfs;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;

const SWAPS: &str = "/proc/swaps";
/// What the kernel puts behind the path of an area whose file was unlinked.
const DELETED: &str = " (deleted)";

/// The folder. Removed when dropped.
#[derive(Debug)]
pub struct Scratch {
    folder: tempfile::TempDir,
}

impl Scratch {
    /// A folder below the target folder or /var/tmp with `room` bytes free.
    ///
    /// # Errors
    /// A skip where neither place is fit.
    pub fn new(room: u64) -> Result<Self, Skip> {
        let mut refused = Vec::new();
        for place in [paths::target_dir(), PathBuf::from("/var/tmp")] {
            let made = fit(&place, room).and_then(|()| {
                let prefixed = tempfile::Builder::new().prefix("tiering-scratch-").tempdir_in(&place);
                prefixed.with_context(|| format!("{}: no folder can be made", place.display()))
            });
            match made {
                Ok(folder) => return Ok(Self { folder }),
                Err(error) => refused.push(format!("{error:#}")),
            }
        }
        Err(Skip(format!("no place for swap files: {}", refused.join("; "))))
    }

    /// The folder's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The swap areas that are in use below the folder.
    ///
    /// # Errors
    /// Where /proc/swaps cannot be read.
    pub fn swap_areas(&self) -> Result<Vec<PathBuf>> {
        swap_areas_below(self.path())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for area in self.swap_areas().unwrap_or_default() {
            // Nobody to return an error to; the area stays in /proc/swaps, where whoever cares looks.
            let _ = Command::new("swapoff").arg(&area).status();
        }
    }
}

/// The swap areas that are in use below `folder`, which may be gone already.
///
/// # Errors
/// Where /proc/swaps cannot be read.
pub fn swap_areas_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let swaps = std::fs::read(SWAPS).with_context(|| format!("reading {SWAPS}"))?;
    Ok(areas(&swaps).into_iter().filter(|area| area.starts_with(folder)).collect())
}

/// The paths in /proc/swaps, where blanks and backslashes are written as three octal digits
/// (mm/swapfile.c, `swap_show`, 6.12).
fn areas(swaps: &[u8]) -> Vec<PathBuf> {
    let lines = swaps.split(|byte| *byte == b'\n').skip(1);
    let paths =
        lines.filter_map(|line| line.split(u8::is_ascii_whitespace).next().filter(|path| !path.is_empty()));
    paths.map(|path| PathBuf::from(unescape(path))).collect()
}

fn unescape(path: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, tail)) = rest.split_first() {
        let octal =
            tail.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    let unlinked = OsStr::from_bytes(&bytes).as_bytes().strip_suffix(DELETED.as_bytes()).map(<[u8]>::len);
    bytes.truncate(unlinked.unwrap_or(bytes.len()));
    OsString::from_vec(bytes)
}

fn fit(place: &Path, room: u64) -> Result<()> {
    let kind = statfs(place).with_context(|| place.display().to_string())?.filesystem_type();
    // ext2, ext3 and ext4 share one number.
    ensure!(
        kind == EXT4_SUPER_MAGIC || kind == XFS_SUPER_MAGIC,
        "{} is neither ext4 nor XFS (file system type {:#x})",
        place.display(),
        kind.0
    );
    let space = statvfs(place)?;
    let free = space.blocks_available() * space.fragment_size();
    ensure!(free >= room, "{} has {} MiB free, {} are needed", place.display(), free >> 20, room >> 20);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_files_with_blanks_and_unlinked_ones_are_found() {
        let swaps = b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
            /var/tmp/a\\040b/nvme                    file\t\t1048572\t\t0\t\t-2\n\
            /var/tmp/x/qlc\\040(deleted)             file\t\t1048572\t\t0\t\t-3\n\
            /dev/dm-1                               partition\t1048572\t\t0\t\t-4\n";
        let expected = ["/var/tmp/a b/nvme", "/var/tmp/x/qlc", "/dev/dm-1"].map(PathBuf::from);
        assert_eq!(areas(swaps), expected);
    }

    #[test]
    fn a_folder_is_not_taken_from_a_file_system_without_swap_files() {
        let error = format!("{:#}", fit(Path::new("/proc"), 0).unwrap_err());
        assert!(error.contains("/proc is neither ext4 nor XFS"), "{error}");
    }

    #[test]
    fn too_little_room_is_a_skip_that_names_each_place() {
        let Skip(reason) = Scratch::new(u64::MAX).unwrap_err();
        assert!(reason.contains("/var/tmp"), "{reason}");
    }
}
