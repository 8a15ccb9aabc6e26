//! Zero pages of the agent that hold the free slots of the tiers above the one that a batch is meant for.
//!
//! Swap areas fill by priority, and the faster tiers have the higher ones. So a page goes to a lower tier only while
//! nothing is free above it. Zero-filled pages take a slot but no I/O from Linux 6.12 on; before that they are written.
//! A cover lasts as long as one tier is filled; dropped, it frees its slots.
//!
//! # Limits
//! What the kernel reclaims on its own while there is a cover goes to the lower tier too.

use std::collections::BTreeMap;
use std::io;

use crate::sys::{PageState, Pagemap, ZeroPages};

/// Pages made present, paged out and looked at in one go: what the agent needs of memory meanwhile.
const CHUNK_PAGES: usize = 1024;

/// Slots that are held, by the kernel's number of their area.
pub(super) type Held = BTreeMap<u8, u64>;

#[derive(Debug, Default)]
pub(super) struct Cover {
    pages: Vec<ZeroPages>,
    held: Held,
}

impl Cover {
    pub(super) fn held(&self) -> &Held {
        &self.held
    }

    /// Takes `free` slots, or as many as there are, of the areas with these numbers, which must be the ones that the
    /// kernel fills first.
    pub(super) fn take(&mut self, free: u64, areas: &[u8], own: &Pagemap) -> io::Result<()> {
        let free = usize::try_from(free).unwrap_or(usize::MAX);
        if free == 0 {
            return Ok(());
        }
        // What lands elsewhere (each CPU first uses up the cluster it had) is given back; a chunk of which next to
        // nothing landed there twice in a row means that the rest cannot be had.
        let (mut taken, mut misses) = (0, 0);
        while taken < free && misses < 2 {
            let chunk = (free - taken).min(CHUNK_PAGES);
            let mut pages = ZeroPages::map(chunk)?;
            pages.page_out(0, chunk)?;
            let mut got = 0;
            for (page, state) in own.of_zero_pages(&pages, 0, chunk)?.into_iter().enumerate() {
                match state {
                    PageState::Swapped { area, .. } if areas.contains(&area) => {
                        *self.held.entry(area).or_default() += 1;
                        got += 1;
                    }
                    _ => pages.free(page, 1)?,
                }
            }
            if got > 0 {
                self.pages.push(pages);
            }
            misses = if got * 16 < chunk { misses + 1 } else { 0 };
            taken += got;
        }
        Ok(())
    }
}
