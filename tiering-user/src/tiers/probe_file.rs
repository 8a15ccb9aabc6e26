//! A small file of random bytes beside a tier's swap files, read past the page cache to learn how fast the disk is.
//!
//! In: the tier's folder or device. Out: how long single reads took. The file has no name: it is gone with the process,
//! however that ends.
//!
//! A tier's swap file itself would tell nothing: its blocks are allocated and, for the file system, never written, so
//! reading them returns zeroes without asking the disk (1.7 us a read, where a file with content took 54 us; ext4 on
//! Linux 6.18).
//!
//! On a device there is no such file: the agent has written its pages at the end, behind the swap area
//! ([`ProbeFile::on_device`]).
//!
//! # Limits
//! A disk that keeps what was written last in a faster part of its own answers from there.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use super::disk_facts::existing;
use super::swap::open_probe;
use crate::sys::{self, Buffer, Monotonic, PAGE_BYTES};

/// Bytes of the whole file.
const FILE_BYTES: u64 = 8 << 20;
/// The least of it: 256 pages to choose from.
const LEAST_BYTES: u64 = 1 << 20;
/// One large read or write.
const CHUNK_BYTES: u64 = 256 << 10;
const PAGE: usize = PAGE_BYTES as usize;

/// The file, open.
#[derive(Debug)]
pub struct ProbeFile {
    file: File,
    /// Where its content begins.
    start: u64,
    bytes: u64,
    buffer: Buffer,
    random: Random,
}

impl ProbeFile {
    /// Writes the file: as much of it as can be written until `end`, and an eighth in any case.
    ///
    /// # Errors
    /// Where the file system takes no such file or is full.
    pub fn create(folder: &Path, seed: u64, end: Monotonic) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .mode(0o600)
            .custom_flags(libc::O_TMPFILE | libc::O_DIRECT | libc::O_CLOEXEC)
            .open(existing(folder))?;
        let mut buffer = Buffer::map((CHUNK_BYTES / PAGE_BYTES) as usize)?;
        let mut random = Random(seed);
        // Disks that compress, or leave out zeroes, are not to be flattered.
        for word in buffer.bytes_mut().chunks_exact_mut(8) {
            word.copy_from_slice(&random.next().to_le_bytes());
        }
        let mut bytes = 0;
        while bytes < FILE_BYTES && (bytes < LEAST_BYTES || sys::now() < end) {
            file.write_all_at(buffer.bytes(), bytes)?;
            bytes += CHUNK_BYTES;
        }
        Ok(Self { file, start: 0, bytes, buffer, random })
    }

    /// The pages of a device that the agent wrote for this purpose when it made the device into swap. They can be read,
    /// and not written: the device may be on.
    ///
    /// # Errors
    /// Where no agent has made this device into swap.
    pub fn on_device(path: &Path, seed: u64) -> io::Result<Self> {
        let (file, range) = open_probe(path)?;
        let buffer = Buffer::map((CHUNK_BYTES / PAGE_BYTES) as usize)?;
        Ok(Self { file, start: range.start, bytes: range.end - range.start, buffer, random: Random(seed) })
    }

    /// Reads one page at random and tells how long that took.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn read_page(&mut self) -> io::Result<Duration> {
        let at = self.anywhere();
        let began = sys::now();
        self.file.read_exact_at(&mut self.buffer.bytes_mut()[..PAGE], at)?;
        Ok(sys::now().since(began))
    }

    /// Writes one page at random and tells how long that took.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn write_page(&mut self) -> io::Result<Duration> {
        let at = self.anywhere();
        let began = sys::now();
        self.file.write_all_at(&self.buffer.bytes()[..PAGE], at)?;
        Ok(sys::now().since(began))
    }

    fn anywhere(&mut self) -> u64 {
        self.start + self.random.next() % (self.bytes / PAGE_BYTES) * PAGE_BYTES
    }

    /// Reads from the begin on, in large pieces, until the file or the time ends. Returns bytes a second.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn read_through(&mut self, end: Monotonic) -> io::Result<u64> {
        let began = sys::now();
        let mut at = 0;
        while at < self.bytes && (at == 0 || sys::now() < end) {
            self.file.read_exact_at(self.buffer.bytes_mut(), self.start + at)?;
            at += CHUNK_BYTES;
        }
        Ok(bytes_per_s(at, sys::now().since(began)))
    }
}

/// A rate in bytes a second.
pub fn bytes_per_s(bytes: u64, took: Duration) -> u64 {
    let rate = u128::from(bytes) * 1_000_000_000 / took.as_nanos().max(1);
    u64::try_from(rate).unwrap_or(u64::MAX)
}

/// xorshift64* (Vigna, 2016): where to read next needs no better.
#[derive(Clone, Copy, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // Zero would stay zero.
        let mut x = self.0.max(1);
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0 = x;
        x.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Monotonic {
        sys::now().after(Duration::from_secs(60))
    }

    /// On a disk, where the temporary folder may be in memory.
    fn on_disk() -> tempfile::TempDir {
        tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap()
    }

    #[test]
    fn it_has_content_is_read_and_leaves_nothing_in_the_folder() {
        let folder = on_disk();
        let mut probe = ProbeFile::create(&folder.path().join("to/come"), 1, soon()).unwrap();
        assert_eq!((probe.bytes, probe.file.metadata().unwrap().len()), (FILE_BYTES, FILE_BYTES));
        for _ in 0..20 {
            probe.buffer.bytes_mut()[..PAGE].fill(0);
            assert!(probe.read_page().unwrap() > Duration::ZERO);
            let zeroes = probe.buffer.bytes()[..PAGE].iter().filter(|byte| **byte == 0).count();
            assert!(zeroes < PAGE / 16, "a page of random bytes has {zeroes} zeroes");
        }
        assert!(probe.write_page().unwrap() > Duration::ZERO);
        assert!(probe.read_through(soon()).unwrap() > 0);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_part_serves_where_time_is_short_and_a_folder_that_takes_no_file_is_told() {
        let folder = on_disk();
        let mut probe = ProbeFile::create(folder.path(), 1, Monotonic(0)).unwrap();
        assert_eq!(probe.bytes, LEAST_BYTES);
        for _ in 0..20 {
            probe.read_page().unwrap();
        }
        assert!(ProbeFile::create(Path::new("/proc/tiering"), 1, soon()).is_err());
    }

    #[test]
    fn a_rate_is_bytes_by_time() {
        assert_eq!(bytes_per_s(1 << 20, Duration::from_millis(500)), 2 << 20);
        assert_eq!(bytes_per_s(5, Duration::ZERO), 5_000_000_000);
    }
}
