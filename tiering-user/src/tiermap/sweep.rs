//! Reads from the page tables where every page of a process is, part by part.
//!
//! `PAGEMAP_SCAN` (Linux 6.7 and later) gives the ranges of present and of swapped pages, pagemap the area of the
//! swapped ones and, where there is more than one memory tier, the frames of the present ones; without the first,
//! pagemap alone gives all.
//!
//! # Limits
//! Of shared memory, pagemap knows only what is mapped. What is not mapped but exists in its file is taken to be
//! in swap, in an area that cannot be told; a page that is in the page cache and just not mapped looks the same.
//! Before Linux 6.7 a huge page is told by its frames, which small pages in a row look like.

use std::io;

use super::entry::Place;
use super::layout::{BLOCK_PAGES, Layout, PageIndex, PageRun, pages_between};
use super::places::Places;
use super::shared_file::SharedFile;
use crate::sys::{PAGE_BYTES, PageState, Pagemap, Pidfd};
use crate::tiers::TierId;
use crate::vm::Hva;

/// Pages of a part: 256 MiB, so that what was read is taken over before it is old.
const PART_PAGES: u32 = 65_536;
/// Pages read from pagemap at a time.
const CHUNK_PAGES: u32 = 16_384;

/// Where the pages of a part were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sweep {
    pub part: PageRun,
    /// In ascending order; what lies between two runs was never touched, or was given back.
    pub runs: Vec<(PageRun, Place)>,
    /// First pages of the blocks that are huge pages, ascending.
    pub huge: Vec<PageIndex>,
    /// In huge pages, of private memory and of shared memory.
    pub huge_bytes: u64,
    pub shared_huge_bytes: u64,
}

impl Sweep {
    /// A part of which nothing was found yet.
    pub fn of(part: PageRun) -> Self {
        Self { part, runs: Vec::new(), huge: Vec::new(), huge_bytes: 0, shared_huge_bytes: 0 }
    }

    fn note_huge(&mut self, run: PageRun, shared: bool) {
        self.huge.extend(whole_blocks(run));
        let bytes = if shared { &mut self.shared_huge_bytes } else { &mut self.huge_bytes };
        *bytes += u64::from(run.count) * PAGE_BYTES;
    }

    fn push(&mut self, first: PageIndex, count: u32, place: Place) {
        match self.runs.last_mut() {
            Some((run, last)) if *last == place && run.first + run.count == first => run.count += count,
            _ if place == Place::Untouched || count == 0 => {}
            _ => self.runs.push((PageRun { first, count }, place)),
        }
    }
}

/// The part of guest RAM to be swept next that begins at page `first`; none behind the last one. Parts end between two
/// blocks.
pub fn part(layout: &Layout, first: PageIndex) -> Option<PageRun> {
    let left = layout.pages().checked_sub(first)?;
    // A VM without RAM has one part, without pages.
    (left > 0 || first == 0).then(|| PageRun { first, count: left.min(PART_PAGES) })
}

/// Sweeps a part of the guest RAM of the process.
///
/// # Errors
/// `ENOENT` or `ESRCH` where the process has ended; `EACCES`.
pub fn sweep(process: &Pidfd, layout: &Layout, part: PageRun, places: &Places) -> io::Result<Sweep> {
    let pagemap = process.pagemap()?;
    let mut found = Sweep::of(part);
    for (run, start, shared) in layout.cut(part) {
        let mapped = sweep_mapped(&pagemap, run, start, shared, places, &mut found)?;
        if shared {
            let file = SharedFile::behind(process, start)?;
            add_unmapped(&file, run, &mapped, &mut found)?;
        } else {
            mapped.into_iter().for_each(|(run, place)| found.push(run.first, run.count, place));
        }
    }
    Ok(found)
}

/// The small pages of the process's guest RAM that were written since they were armed, ascending.
///
/// # Errors
/// As [`sweep`].
pub fn written(process: &Pidfd, layout: &Layout) -> io::Result<Vec<PageRun>> {
    let pagemap = process.pagemap()?;
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

/// Where the pages are that the page tables tell of, of a run that begins at `start`.
fn sweep_mapped(
    pagemap: &Pagemap,
    run: PageRun,
    start: Hva,
    shared: bool,
    places: &Places,
    found: &mut Sweep,
) -> io::Result<Vec<(PageRun, Place)>> {
    let mut ranges = Vec::new();
    let mut mapped = Sweep::of(run);
    let end = start.0 + u64::from(run.count) * PAGE_BYTES;
    match pagemap.scan(start.0, end, |range| ranges.push(range)) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
            read_states(pagemap, run, start, places, &mut mapped)?;
            for block in whole_blocks(run) {
                if frames_follow(pagemap, Hva(start.0 + u64::from(block - run.first) * PAGE_BYTES))? {
                    found.note_huge(PageRun { first: block, count: BLOCK_PAGES }, shared);
                }
            }
            return Ok(mapped.runs);
        }
        result => result?,
    }
    for range in &ranges {
        let part = PageRun {
            first: run.first + pages_between(start.0, range.start),
            count: pages_between(range.start, range.end),
        };
        if range.huge {
            found.note_huge(part, shared);
        }
        if range.swapped || places.nodes.tiers().0 > 1 {
            read_states(pagemap, part, Hva(range.start), places, &mut mapped)?;
        } else {
            mapped.push(part.first, part.count, Place::In(TierId(0)));
        }
    }
    Ok(mapped.runs)
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

/// What of a run of shared memory, the start of which `file` was opened for, is mapped, and what else of it exists.
fn add_unmapped(
    file: &SharedFile,
    run: PageRun,
    mapped: &[(PageRun, Place)],
    found: &mut Sweep,
) -> io::Result<()> {
    let mut next = run.first;
    let end = PageRun { first: run.first + run.count, count: 0 };
    for (part, place) in mapped.iter().copied().chain([(end, Place::Untouched)]) {
        if next < part.first {
            let gap = PageRun { first: next - run.first, count: part.first - next };
            for there in file.pages(gap)? {
                found.push(run.first + there.start, there.end - there.start, Place::OtherSwap);
            }
        }
        found.push(part.first, part.count, place);
        next = part.first + part.count;
    }
    Ok(())
}

/// The blocks of the table that lie in `run` as a whole.
fn whole_blocks(run: PageRun) -> impl Iterator<Item = PageIndex> {
    let first = run.first.next_multiple_of(BLOCK_PAGES);
    let end = run.first + run.count;
    (first..end).step_by(BLOCK_PAGES as usize).filter(move |block| end - block >= BLOCK_PAGES)
}

/// Whether the frames of a block follow each other from a multiple of a huge page on: before `PAGEMAP_SCAN` nothing
/// tells better where a page table is read anyway.
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
