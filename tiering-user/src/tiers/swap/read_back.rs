//! Whether a tier's disk still takes what is written to it.
//!
//! The kernel does not tell who paged something out that it could not be written: the page stays in the swap cache,
//! where it takes memory, and pagemap shows it in swap (`end_swap_bio_write` in mm/page_io.c, Linux 6.1 to 6.18). So a
//! page is written to a file without a name in the tier's folder and read back, past the page cache, before a batch is
//! sent there. To a device that is on as swap nothing can be written: a page that the agent put there when it made the
//! device into swap is read back.
//!
//! In: a folder or a device. Out: an error of the disk or the file system. A full disk is none: the swap files have
//! their blocks.
//!
//! # Limits
//! A disk of which only some blocks fail passes. Once in [`EVERY`] a tier: what is sent in between can meet a disk that
//! has just failed; it stays in memory. A device that can be read and not written passes, unless the kernel has made it
//! read-only.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use super::device;
use super::segments::Place;
use crate::sys::{Monotonic, PAGE_BYTES};
use crate::tiers::TierId;

/// How often a tier that is written to is probed.
const EVERY: Duration = Duration::from_secs(2);

/// As O_DIRECT wants it.
#[repr(align(4096))]
struct Block([u8; PAGE_BYTES as usize]);

/// When each tier was last found to work.
#[derive(Debug, Default)]
pub(super) struct Probes(BTreeMap<TierId, Monotonic>);

impl Probes {
    /// Probes the tier, unless that has just been done.
    pub(super) fn look(&mut self, tier: TierId, place: &Place, now: Monotonic) -> io::Result<()> {
        if self.0.get(&tier).is_some_and(|last| now.since(*last) < EVERY) {
            return Ok(());
        }
        self.0.remove(&tier);
        match place {
            Place::Folder(folder) => probe(folder)?,
            Place::Device(device) => device::read_back(&device.path, now.0 / 4096)?,
        }
        self.0.insert(tier, now);
        Ok(())
    }
}

fn probe(folder: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE | libc::O_DIRECT);
    let written = Block([0x5a; PAGE_BYTES as usize]);
    let mut read = Block([0; PAGE_BYTES as usize]);
    let result = options.open(folder).and_then(|file| {
        file.write_all_at(&written.0, 0)?;
        file.read_exact_at(&mut read.0, 0)?;
        if read.0 == written.0 { Ok(()) } else { Err(io::Error::other("it gives back what was not written")) }
    });
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_can_be_written_passes_and_keeps_nothing() {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        probe(folder.path()).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_tier_is_not_probed_all_the_time_and_one_that_failed_at_once_again() {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let gone = Place::Folder(folder.path().join("gone"));
        let there = Place::Folder(folder.path().to_owned());
        let mut probes = Probes::default();
        let at = |seconds: u64| Monotonic(seconds * 1_000_000_000);
        probes.look(TierId(1), &there, at(10)).unwrap();
        probes.look(TierId(1), &gone, at(11)).unwrap();
        probes.look(TierId(1), &gone, at(12)).unwrap_err();
        probes.look(TierId(1), &gone, at(12)).unwrap_err();
        probes.look(TierId(1), &there, at(12)).unwrap();
    }
}
