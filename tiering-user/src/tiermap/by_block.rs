//! What the table says by block: how many pages are warm, were used lately, were idle for long.
//!
//! In: blocks, as they change. Out: counts and lists of blocks. Blocks in which nothing has changed since the last
//! [`VmPages::refresh`] are not gone through page by page. Pure.

use std::cmp::Reverse;
use std::time::Duration;

use super::block::BlockInfo;
use super::digest::{Digest, HEAT_BINS, heat_bin};
use super::entry::{PageEntry, Place, Seconds};
use super::freshness::Freshness;
use super::layout::{BLOCK_PAGES, PageIndex};
use super::table::{Block, VmPages};
use crate::tiers::TierId;

impl VmPages {
    /// Pages that were accessed within each of these times.
    pub fn used_within<const N: usize>(&self, times: [Duration; N], now: Seconds) -> [u64; N] {
        times.map(|time| self.count_used(time, false, now))
    }

    /// Pages in memory that were accessed within this time.
    pub fn used_in_memory(&self, within: Duration, now: Seconds) -> u64 {
        self.count_used(within, true, now)
    }

    fn count_used(&self, within: Duration, in_memory: bool, now: Seconds) -> u64 {
        // Idle ages are whole seconds.
        let seconds = within.as_secs() + u64::from(within.subsec_nanos() > 0);
        let of = |block: &Block| {
            let counted = |entry: &&PageEntry| {
                let there =
                    if in_memory { self.in_memory(entry.place()) } else { entry.place() != Place::Untouched };
                there && u64::from(entry.idle(now)) < seconds
            };
            let known = block.digest.and_then(|digest| digest.used_within(seconds, in_memory, now));
            known.unwrap_or_else(|| block.entries.iter().filter(counted).count() as u64)
        };
        self.blocks.iter().map(|(_, block)| of(block)).sum()
    }

    /// Pages in memory, by heat.
    pub fn heat(&self) -> [u64; HEAT_BINS] {
        if self.fresh.stale.is_empty() {
            return self.fresh.heat;
        }
        let mut heat = [0; HEAT_BINS];
        self.for_each(|_, entry| {
            heat[heat_bin(entry.heat())] += u64::from(self.in_memory(entry.place()));
        });
        heat
    }

    /// Brings the digests of blocks that have changed up to date. All else is right without that, and slower.
    pub fn refresh(&mut self, now: Seconds) {
        for number in self.fresh.stale.take(usize::MAX) {
            let Some(block) = self.blocks.get_mut(number) else { continue };
            block.digest = Digest::of(&block.entries, self.node_tiers, now);
            match &block.digest {
                Some(digest) => self.fresh.add(digest),
                None => self.fresh.later.push(number),
            }
        }
        let Freshness { stale, later, .. } = &mut self.fresh;
        later.drain(..).for_each(|number| stale.mark(number));
    }

    /// Numbers of the blocks that may have pages in `tier` which were idle for at least so long, each with how long one
    /// of its pages was idle at most. Longest first.
    pub fn idle_blocks(&self, tier: TierId, least_idle: Duration, now: Seconds) -> Vec<(u16, u32)> {
        let idle = |number: u32, block: &Block| {
            let Some(digest) = &block.digest else { return Some((u16::MAX, number)) };
            let longest = digest.longest_idle(now);
            let is_idle = digest.has(tier) && Duration::from_secs(longest.into()) >= least_idle;
            is_idle.then_some((longest, number))
        };
        let mut idle: Vec<_> = self.blocks.iter().filter_map(|(number, block)| idle(number, block)).collect();
        idle.sort_unstable_by_key(|(longest, number)| (Reverse(*longest), *number));
        idle
    }

    /// A block: its first page, what is known of it, and its pages; none where no page of it was touched.
    pub fn block_at(&self, number: u32) -> Option<(PageIndex, BlockInfo, &[PageEntry])> {
        let block = self.blocks.get(number)?;
        let first = number * BLOCK_PAGES;
        let pages = (self.layout.pages() - first).min(BLOCK_PAGES) as usize;
        Some((first, block.info, &block.entries[..pages]))
    }
}
