//! The plug of a swap area: zero pages of the agent that hold the area's free slots, so that nobody else's page
//! goes there.
//!
//! Swap areas fill by priority, and the lower tiers have the higher ones (see [`super::tiers`]). At rest
//! their free slots are plugged, and what the kernel reclaims on its own passes on to the fastest swap tier. To
//! page a batch out to a tier, as many slots of its plug are let go. Zero-filled pages take a slot but no I/O
//! from Linux 6.12 on; before that they are written.
//!
//! # Limits
//! The plug dies with the agent: until the next one starts, the kernel's reclaim may use the free slots of the
//! lower tiers. It costs 8 bytes of page table a plugged page.

use std::io;

use crate::sys::{PageState, Pagemap, ZeroPages};

/// Pages made present, paged out and looked at in one go: what the agent needs of memory while it plugs.
const CHUNK_PAGES: usize = 4096;

#[derive(Debug)]
pub(super) struct Plug {
    /// One page for each slot of the area.
    pages: ZeroPages,
    /// Pages that hold a slot of the area, in the order they got it.
    held: Vec<u32>,
    /// Pages that hold nothing.
    idle: Vec<u32>,
}

impl Plug {
    /// An empty plug for an area of `slots` slots.
    pub(super) fn new(slots: u32) -> io::Result<Self> {
        let pages = ZeroPages::map(slots as usize)?;
        Ok(Self { pages, held: Vec::new(), idle: (0..slots).rev().collect() })
    }

    /// How many slots it holds.
    pub(super) fn held(&self) -> u64 {
        self.held.len() as u64
    }

    /// Takes up to `free` slots of the area with this kernel number, which must be the one the kernel fills
    /// now. Returns how many it got.
    pub(super) fn take(&mut self, free: u64, area: u8, own: &Pagemap) -> io::Result<u64> {
        let mut taken = 0;
        // What lands elsewhere (each CPU first uses up the cluster it had) is given back; a chunk of which
        // next to nothing landed here twice in a row means that the rest cannot be had.
        let mut misses = 0;
        while taken < free && misses < 2 && !self.idle.is_empty() {
            let chunk = usize::try_from(free - taken).unwrap_or(CHUNK_PAGES).min(CHUNK_PAGES);
            let got = self.take_chunk(chunk, area, own)?;
            misses = if got * 16 < chunk as u64 { misses + 1 } else { 0 };
            taken += got;
        }
        Ok(taken)
    }

    fn take_chunk(&mut self, wanted: usize, area: u8, own: &Pagemap) -> io::Result<u64> {
        let chunk = self.idle.split_off(self.idle.len().saturating_sub(wanted));
        let mut got = 0;
        let mut result = Ok(());
        for run in runs(&chunk) {
            let states = self
                .pages
                .page_out(run.first, run.count)
                .and_then(|()| self.pages.states(run.first, run.count, own))
                .unwrap_or_else(|error| {
                    result = Err(error);
                    vec![PageState::Absent; run.count]
                });
            for (page, state) in (run.first..).zip(states) {
                let number = u32::try_from(page).unwrap_or(u32::MAX);
                match state {
                    PageState::Swapped { area: at, .. } if at == area => {
                        self.held.push(number);
                        got += 1;
                    }
                    _ => {
                        self.idle.push(number);
                        let freed = self.pages.free(page, 1);
                        result = result.and(freed);
                    }
                }
            }
        }
        result.map(|()| got)
    }

    /// Lets go of up to `count` slots, the ones taken last first. Returns how many.
    pub(super) fn release(&mut self, count: u64) -> io::Result<u64> {
        let count = self.held.len().min(usize::try_from(count).unwrap_or(usize::MAX));
        let mut chunk = self.held.split_off(self.held.len() - count);
        chunk.sort_unstable_by(|a, b| b.cmp(a));
        let freed = runs(&chunk).into_iter().try_for_each(|run| self.pages.free(run.first, run.count));
        match freed {
            Ok(()) => self.idle.append(&mut chunk),
            Err(_) => self.held.append(&mut chunk),
        }
        freed.map(|()| count as u64)
    }
}

struct Run {
    first: usize,
    count: usize,
}

/// The runs of neighbours in a list that is mostly sorted downwards.
fn runs(pages: &[u32]) -> Vec<Run> {
    let neighbours = |a: &u32, b: &u32| *a == b.wrapping_add(1);
    pages
        .chunk_by(neighbours)
        .filter_map(|run| Some(Run { first: *run.last()? as usize, count: run.len() }))
        .collect()
}
