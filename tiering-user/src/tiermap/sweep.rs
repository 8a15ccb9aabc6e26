//! Reads from the page tables where every page of a process is.
//!
//! `PAGEMAP_SCAN` (Linux 6.7 and later) gives the ranges of present and of swapped pages, pagemap the area of the
//! swapped ones and, where there is more than one memory tier, the frames of the present ones; without the first,
//! pagemap alone gives all.
//!
//! # Limits
//! Of shared memory, pagemap knows only what is mapped. What is not mapped but has data in its file is taken to be
//! in swap, in an area that cannot be told; a page that is in the page cache and just not mapped looks the same.

use std::io;
use std::ops::Range;

use super::entry::Place;
use super::layout::{Layout, PageIndex, PageRun, pages_between};
use super::places::Places;
use super::shared_file::SharedFile;
use super::table::BLOCK_PAGES;
use crate::sys::{PAGE_BYTES, PageState, Pagemap};
use crate::tiers::TierId;
use crate::vm::Hva;

/// Pages read from pagemap at a time.
const CHUNK_PAGES: u32 = 16_384;

/// Where the pages were, in ascending order; what lies between two runs was never touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    pub runs: Vec<(PageRun, Place)>,
    /// First pages of the blocks that are huge pages, ascending. Of shared memory none is seen.
    pub huge: Vec<PageIndex>,
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
            let data = SharedFile::behind(pid, start)?.data_ranges(region.count)?;
            sweep_shared(&pagemap, region, start, &data, places, &mut found)?;
        } else {
            sweep_private(&pagemap, region, start, places, &mut found)?;
        }
    }
    Ok(found)
}

/// The small pages of process `pid`'s guest RAM that were written since they were armed, ascending.
///
/// # Errors
/// As [`sweep`].
pub fn written(pid: i32, layout: &Layout) -> io::Result<Vec<PageRun>> {
    let pagemap = Pagemap::open(pid)?;
    let mut runs: Vec<PageRun> = Vec::new();
    for (region, start, _) in layout.regions() {
        let end = start.0 + u64::from(region.count) * PAGE_BYTES;
        pagemap.written(start.0, end, |range| {
            let first = region.first + pages_between(start.0, range.start);
            let count = pages_between(range.start, range.end);
            match runs.last_mut() {
                Some(run) if run.first + run.count == first => run.count += count,
                _ => runs.push(PageRun { first, count }),
            }
        })?;
    }
    Ok(runs)
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
            read_states(pagemap, region, start, places, found)?;
            return huge_by_frames(pagemap, region, start, found);
        }
        result => result?,
    }
    for range in &ranges {
        let run = PageRun {
            first: region.first + pages_between(start.0, range.start),
            count: pages_between(range.start, range.end),
        };
        if range.huge {
            found.huge.extend(whole_blocks(run));
        }
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

/// The blocks of the table that lie in `run` as a whole.
fn whole_blocks(run: PageRun) -> impl Iterator<Item = PageIndex> {
    let first = run.first.next_multiple_of(BLOCK_PAGES);
    let end = run.first + run.count;
    (first..end).step_by(BLOCK_PAGES as usize).filter(move |block| end - block >= BLOCK_PAGES)
}

/// Blocks whose frames follow each other from a multiple of a huge page on: before `PAGEMAP_SCAN` nothing tells better
/// where a page table is read anyway.
fn huge_by_frames(pagemap: &Pagemap, region: PageRun, start: Hva, found: &mut Sweep) -> io::Result<()> {
    for block in whole_blocks(region) {
        if frames_follow(pagemap, Hva(start.0 + u64::from(block - region.first) * PAGE_BYTES))? {
            found.huge.push(block);
        }
    }
    Ok(())
}

fn frames_follow(pagemap: &Pagemap, start: Hva) -> io::Result<bool> {
    let states = pagemap.read(start.0, BLOCK_PAGES as usize)?;
    let Some(PageState::Present { pfn: first }) = states.first().copied() else { return Ok(false) };
    let follow = (first..).zip(&states).all(|(pfn, state)| *state == PageState::Present { pfn });
    Ok(first != 0 && first % u64::from(BLOCK_PAGES) == 0 && follow)
}

/// Whether the block that begins at `start` is a huge page now.
///
/// # Errors
/// As [`sweep`].
pub fn is_huge(pagemap: &Pagemap, start: Hva) -> io::Result<bool> {
    let mut huge = false;
    match pagemap.scan(start.0, start.0 + u64::from(BLOCK_PAGES) * PAGE_BYTES, |range| huge |= range.huge) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => frames_follow(pagemap, start),
        result => result.map(|()| huge),
    }
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
