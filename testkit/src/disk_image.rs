//! The file of a guest's disk, and what of it is in the host's page cache.
//!
//! In: a folder on a disk, size and seed. Out: a file that holds what [`crate::content`] says, none of it in the page
//! cache until somebody reads it; and how much of it a process waited for.

use crate::content;
use crate::pattern::PAGE_BYTES;
use anyhow::{Context, Result};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

const PAGES_A_MIB: usize = (1 << 20) / PAGE_BYTES;

/// As the agent's status names an image of the testkit: QEMU reads other files too, as the kernel that it starts.
pub const NAME: &str = "base.img";

/// Gone with the folder it is in.
#[derive(Debug)]
pub struct DiskImage {
    path: PathBuf,
}

impl DiskImage {
    /// # Errors
    /// Where it cannot be written.
    pub fn create(folder: &Path, mib: usize, seed: u64) -> Result<Self> {
        let path = folder.join(NAME);
        let image = Self { path };
        let mut out = BufWriter::new(File::create(&image.path).with_context(|| image.name())?);
        content::write_pages(&mut out, seed, mib * PAGES_A_MIB)?;
        out.flush()?;
        image.leave_cache()?;
        Ok(image)
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes all of it out of the page cache. What somebody reads meanwhile stays.
    ///
    /// # Errors
    /// Where it cannot be opened or written back.
    pub fn leave_cache(&self) -> Result<()> {
        let file = File::open(&self.path).with_context(|| self.name())?;
        // Pages that are not on the disk yet would stay.
        file.sync_all().with_context(|| self.name())?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).with_context(|| self.name())
    }

    fn name(&self) -> String {
        format!("the disk image {}", self.path.display())
    }
}

/// Bytes that this process itself had fetched from disks: not what others had read into the page cache before.
///
/// # Errors
/// Where there is no such process, or the kernel does not count.
pub fn fetched_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/io");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let bytes = text.lines().find_map(|line| line.strip_prefix("read_bytes: "));
    bytes.and_then(|bytes| bytes.parse().ok()).with_context(|| format!("no read_bytes in {path}"))
}
