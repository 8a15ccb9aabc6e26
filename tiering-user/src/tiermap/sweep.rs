//! Reads from the page tables where every page of a process is.
//!
//! `PAGEMAP_SCAN` (Linux 6.7 and later) gives the ranges of present and of swapped pages, pagemap the area of the
//! swapped ones and, where there is more than one memory tier, the frames of the present ones; without the first,
//! pagemap alone gives all.
//!
//! # Limits
//! Of shared memory, pagemap knows only what is mapped. What is not mapped but has data in its file is taken to be
//! in swap, in an area that cannot be told; a page that is in the page cache and just not mapped looks the same.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd as _;

use nix::unistd::{Whence, lseek};

use super::entry::Place;
use super::layout::{Layout, PageIndex, PageRun};
use super::places::Places;
use crate::sys::{PAGE_BYTES, PageState, Pagemap};
use crate::tiers::TierId;
use crate::vm::Hva;

/// Pages read from pagemap at a time.
const CHUNK_PAGES: u32 = 16_384;

/// Where the pages were, in ascending order; what lies between two runs was never touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    pub runs: Vec<(PageRun, Place)>,
}

impl Sweep {
    fn push(&mut self, first: PageIndex, count: u32, place: Place) {
        match self.runs.last_mut() {
            Some((run, last)) if *last == place && run.first + run.count == first => run.count += count,
            _ if place == Place::Untouched || count == 0 => {}
            _ => self.runs.push((PageRun { first, count }, place)),
        }
    }
}

/// Sweeps all guest RAM of process `pid`.
///
/// # Errors
/// `ENOENT` or `ESRCH` where the process has ended; `EACCES`.
pub fn sweep(pid: i32, layout: &Layout, places: &Places) -> io::Result<Sweep> {
    let pagemap = Pagemap::open(pid)?;
    let mut found = Sweep::default();
    for (region, start, shared) in layout.regions() {
        if shared {
            let unmapped = data_ranges(pid, start, region.count)?;
            sweep_shared(&pagemap, region, start, &unmapped, places, &mut found)?;
        } else {
            sweep_private(&pagemap, region, start, places, &mut found)?;
        }
    }
    Ok(found)
}

fn sweep_private(
    pagemap: &Pagemap,
    region: PageRun,
    start: Hva,
    places: &Places,
    found: &mut Sweep,
) -> io::Result<()> {
    let mut ranges = Vec::new();
    let end = start.0 + u64::from(region.count) * PAGE_BYTES;
    match pagemap.scan(start.0, end, |range| ranges.push(range)) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
            return read_states(pagemap, region, start, places, found);
        }
        result => result?,
    }
    for range in ranges {
        let run = PageRun {
            first: region.first + pages_between(start.0, range.start),
            count: pages_between(range.start, range.end),
        };
        if range.swapped || places.nodes.tiers().0 > 1 {
            read_states(pagemap, run, Hva(range.start), places, found)?;
        } else {
            found.push(run.first, run.count, Place::In(TierId(0)));
        }
    }
    Ok(())
}

fn read_states(
    pagemap: &Pagemap,
    run: PageRun,
    start: Hva,
    places: &Places,
    found: &mut Sweep,
) -> io::Result<()> {
    for offset in (0..run.count).step_by(CHUNK_PAGES as usize) {
        let count = CHUNK_PAGES.min(run.count - offset);
        let states = pagemap.read(start.0 + u64::from(offset) * PAGE_BYTES, count as usize)?;
        for (page, state) in (run.first + offset..).zip(states) {
            found.push(page, 1, places.of(state));
        }
    }
    Ok(())
}

fn sweep_shared(
    pagemap: &Pagemap,
    region: PageRun,
    start: Hva,
    data: &[Range<u32>],
    places: &Places,
    found: &mut Sweep,
) -> io::Result<()> {
    for range in data {
        for offset in range.clone().step_by(CHUNK_PAGES as usize) {
            let count = CHUNK_PAGES.min(range.end - offset);
            let states = pagemap.read(start.0 + u64::from(offset) * PAGE_BYTES, count as usize)?;
            for (page, state) in (region.first + offset..).zip(states) {
                let mapped = matches!(state, PageState::Present { .. });
                found.push(page, 1, if mapped { places.of(state) } else { Place::OtherSwap });
            }
        }
    }
    Ok(())
}

/// The parts of a shared region that have data in RAM or in swap, as page offsets from its start.
fn data_ranges(pid: i32, start: Hva, pages: u32) -> io::Result<Vec<Range<u32>>> {
    let mapping = mapping_of(pid, start)?;
    let file =
        File::open(format!("/proc/{pid}/map_files/{:x}-{:x}", mapping.range.start, mapping.range.end))?;
    let base = mapping.file_offset + (start.0 - mapping.range.start);
    let end = base + u64::from(pages) * PAGE_BYTES;
    let mut ranges = Vec::new();
    let mut at = base;
    while at < end {
        let Some(data) = seek(&file, at, Whence::SeekData)? else { break };
        let hole = seek(&file, data, Whence::SeekHole)?.unwrap_or(end).min(end);
        if data >= end {
            break;
        }
        ranges.push(pages_between(base, data)..pages_between(base, hole));
        at = hole;
    }
    Ok(ranges)
}

/// The next data or hole; `None` where there is none up to the end of the file.
fn seek(file: &File, at: u64, whence: Whence) -> io::Result<Option<u64>> {
    match lseek(file.as_fd(), i64::try_from(at).unwrap_or(i64::MAX), whence) {
        Ok(found) => Ok(u64::try_from(found).ok()),
        Err(nix::errno::Errno::ENXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

struct Mapping {
    range: Range<u64>,
    file_offset: u64,
}

fn mapping_of(pid: i32, start: Hva) -> io::Result<Mapping> {
    let maps = std::fs::read(format!("/proc/{pid}/maps"))?;
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

fn pages_between(start: u64, end: u64) -> u32 {
    u32::try_from(end.saturating_sub(start) / PAGE_BYTES).unwrap_or(u32::MAX)
}
