//! The file behind a region of shared guest RAM (memfd or tmpfs).
//!
//! In: a process and an address in the region. Out: which parts of the region have data, and a way to say on which
//! nodes the kernel should put what comes into it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::ops::Range;

use super::layout::{PageRun, pages_between};
use crate::sys::{self, PAGE_BYTES, Pidfd};
use crate::vm::Hva;

/// Opened by way of the process that maps it.
#[derive(Debug)]
pub struct SharedFile {
    file: File,
    /// Where in the file the region begins, bytes.
    base: u64,
}

impl SharedFile {
    /// The file behind the region that begins at `start`.
    ///
    /// # Errors
    /// `ENOENT` or `ESRCH` where the process has ended; `EPERM` without CAP_SYS_ADMIN.
    pub fn behind(process: &Pidfd, start: Hva) -> io::Result<Self> {
        let Mapping { range, file_offset } = mapping_of(process, start)?;
        let name = format!("map_files/{:x}-{:x}", range.start, range.end);
        let file = process.open_file(name, OpenOptions::new().read(true))?;
        Ok(Self { file, base: file_offset + (start.0 - range.start) })
    }

    /// Has the kernel put what comes into these pages of the region on `nodes` while they have room; none: as it likes.
    /// Pages that are there stay. It holds for the file, whoever maps it, until it is said otherwise.
    ///
    /// # Errors
    /// `EINVAL` (none of the nodes has memory), `ENOMEM`.
    pub fn prefer(&self, pages: PageRun, nodes: &[u32]) -> io::Result<()> {
        let offset = self.base + u64::from(pages.first) * PAGE_BYTES;
        sys::prefer_nodes_of_file(&self.file, offset, u64::from(pages.count) * PAGE_BYTES, nodes)
    }

    /// The parts of this run of pages, counted from the start of the region, that exist in RAM or in swap. The others
    /// were never touched, or the guest has given them back.
    ///
    /// # Errors
    /// As [`sys::pages_of_file`].
    pub fn pages(&self, run: PageRun) -> io::Result<Vec<Range<u32>>> {
        let byte = |page: u32| self.base + u64::from(page) * PAGE_BYTES;
        let mut parts: Vec<Range<u32>> = Vec::new();
        sys::pages_of_file(&self.file, byte(run.first)..byte(run.first + run.count), &mut |found| {
            let part = pages_between(self.base, found.start)..pages_between(self.base, found.end);
            match parts.last_mut() {
                Some(last) if last.end == part.start => last.end = part.end,
                _ => parts.push(part),
            }
        })?;
        Ok(parts)
    }
}

struct Mapping {
    range: Range<u64>,
    file_offset: u64,
}

fn mapping_of(process: &Pidfd, start: Hva) -> io::Result<Mapping> {
    let mut maps = Vec::new();
    process.open_file("maps", OpenOptions::new().read(true))?.read_to_end(&mut maps)?;
    // Only the fields before the path are looked at: what a mapped file is called is not ours to trust.
    String::from_utf8_lossy(&maps)
        .lines()
        .filter_map(parse_mapping)
        .find(|mapping| mapping.range.contains(&start.0))
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

fn parse_mapping(line: &str) -> Option<Mapping> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let offset = fields.nth(1)?;
    let hex = |text| u64::from_str_radix(text, 16).ok();
    Some(Mapping { range: hex(start)?..hex(end)?, file_offset: hex(offset)? })
}
