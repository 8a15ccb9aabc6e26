//! The table of one VM.

use super::block::BlockInfo;
use super::digest::Digest;
use super::dirty::DirtyBlocks;
use super::entry::{PageEntry, Place, Seconds};
use super::freshness::Freshness;
use super::layout::{BLOCK_PAGES, Layout, PageIndex, PageRun};
use super::sparse::Sparse;
use crate::tiers::{NodeTiers, TierId};
use crate::track::Shown;

/// A block of whose pages 1 / this are in swap has left memory.
const GONE_DIVISOR: usize = 2;
/// How often idle ages are kept from wrapping around, seconds.
const CAP_EVERY: u16 = 1024;

/// A block of which some page is, or was until lately, in memory or in swap.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) info: BlockInfo,
    /// None since an entry was changed.
    pub(super) digest: Option<Digest>,
    pub(super) entries: [PageEntry; BLOCK_PAGES as usize],
}

impl Block {
    fn new() -> Box<Self> {
        let digest = Some(Digest::default());
        Box::new(Self {
            info: BlockInfo::default(),
            digest,
            entries: [PageEntry::default(); BLOCK_PAGES as usize],
        })
    }

    fn is_untouched(&self) -> bool {
        self.entries.iter().all(|entry| entry.place() == Place::Untouched)
    }
}

/// Pages by place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlaceCounts {
    untouched: u64,
    other_swap: u64,
    tiers: [u64; 14],
}

impl PlaceCounts {
    /// Pages in this place.
    pub fn get(&self, place: Place) -> u64 {
        match place {
            Place::Untouched => self.untouched,
            Place::OtherSwap => self.other_swap,
            Place::In(TierId(level)) => self.tiers.get(usize::from(level)).copied().unwrap_or(0),
        }
    }

    fn slot(&mut self, place: Place) -> &mut u64 {
        match place {
            Place::Untouched => &mut self.untouched,
            Place::OtherSwap => &mut self.other_swap,
            // The configuration allows eight tiers; the entry's encoding fourteen.
            Place::In(TierId(level)) => &mut self.tiers[usize::from(level).min(13)],
        }
    }
}

/// What an access found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// The entry before it.
    pub before: PageEntry,
    /// Whether the page was in a swap tier, so that the guest waited for it, or would have but for a stage.
    pub was_lower: bool,
}

/// Every page of one VM.
#[derive(Clone, Debug)]
pub struct VmPages {
    pub(super) layout: Layout,
    pub(super) node_tiers: NodeTiers,
    pub(super) blocks: Sparse<Box<Block>>,
    /// No more blocks than these are taken in.
    most_blocks: usize,
    /// Pages that were not taken in since then.
    left_out_pages: u64,
    counts: PlaceCounts,
    changed: DirtyBlocks,
    pub(super) fresh: Freshness,
    /// Some block is, or was, a huge page.
    had_huge: bool,
    /// When idle ages were last kept from wrapping around.
    capped_at: Seconds,
    /// The latest time that was told.
    now: Seconds,
}

impl VmPages {
    /// A table in which no page was touched yet, on a host with these memory tiers.
    pub fn new(layout: Layout, node_tiers: NodeTiers) -> Self {
        let counts = PlaceCounts { untouched: u64::from(layout.pages()), ..PlaceCounts::default() };
        Self {
            layout,
            node_tiers,
            blocks: Sparse::default(),
            most_blocks: usize::MAX,
            left_out_pages: 0,
            counts,
            changed: DirtyBlocks::default(),
            fresh: Freshness::default(),
            had_huge: false,
            capped_at: Seconds::default(),
            now: Seconds::default(),
        }
    }

    /// Memory that the blocks take, bytes.
    pub fn bytes(&self) -> u64 {
        (self.blocks.len() * size_of::<Block>()) as u64
    }

    /// Lets the table grow by so many bytes at most until the next call. Returns how many pages were not taken in since
    /// the last one: they count as untouched.
    pub fn may_grow_by(&mut self, bytes: u64) -> u64 {
        let blocks = usize::try_from(bytes / size_of::<Block>() as u64).unwrap_or(usize::MAX);
        self.most_blocks = self.blocks.len().saturating_add(blocks);
        std::mem::take(&mut self.left_out_pages)
    }

    /// Which tiers are memory.
    pub fn node_tiers(&self) -> NodeTiers {
        self.node_tiers
    }

    /// Whether a page in this place is in memory.
    pub fn in_memory(&self, place: Place) -> bool {
        matches!(place, Place::In(tier) if self.node_tiers.contains(tier))
    }

    /// Whether a page in this place is in memory, and not in the first tier.
    pub fn in_lower_memory(&self, place: Place) -> bool {
        matches!(place, Place::In(tier) if self.node_tiers.has_lower(tier))
    }

    /// Whether a page in this place must be brought up before it can be used.
    pub fn in_swap(&self, place: Place) -> bool {
        place != Place::Untouched && !self.in_memory(place)
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// How many pages are where.
    pub fn counts(&self) -> &PlaceCounts {
        &self.counts
    }

    /// What is known of `page`; the default entry for pages never touched and for numbers that are none.
    pub fn get(&self, page: PageIndex) -> PageEntry {
        let block = self.blocks.get(page / BLOCK_PAGES);
        block.map_or(PageEntry::default(), |block| block.entries[(page % BLOCK_PAGES) as usize])
    }

    /// Replaces the entry of `page` by what `change` makes of it.
    pub fn update(&mut self, page: PageIndex, change: impl FnOnce(PageEntry) -> PageEntry) {
        if page >= self.layout.pages() {
            return;
        }
        if self.blocks.len() >= self.most_blocks && self.blocks.get(page / BLOCK_PAGES).is_none() {
            self.left_out_pages += 1;
            return;
        }
        // Out of memory altogether a page shows at its first access, and that costs little: below the first of several
        // memory tiers it is otherwise.
        let block = self.blocks.get_or_insert_with(page / BLOCK_PAGES, Block::new);
        let entry = &mut block.entries[(page % BLOCK_PAGES) as usize];
        let before = entry.place();
        *entry = change(*entry);
        self.fresh.outdate(page / BLOCK_PAGES, &mut block.digest);
        self.changed.mark(page / BLOCK_PAGES);
        if before != entry.place() {
            *self.counts.slot(before) -= 1;
            *self.counts.slot(entry.place()) += 1;
        }
    }

    /// The entries of this block; `None` where no page of it was touched.
    pub(super) fn block(&self, block: u32) -> Option<&[PageEntry]> {
        Some(&self.blocks.get(block)?.entries)
    }

    fn info_mut(&mut self, page: PageIndex) -> Option<&mut BlockInfo> {
        self.blocks.get_mut(page / BLOCK_PAGES).map(|block| &mut block.info)
    }

    /// At most `most` blocks of which some page changed since they were taken here last. Those that have no page any
    /// more take no memory from then on.
    pub fn take_changed(&mut self, most: usize) -> Vec<u32> {
        let taken = self.changed.take(most);
        for block in &taken {
            if self.blocks.get(*block).is_some_and(|block| block.is_untouched()) {
                self.blocks.remove(*block);
            }
        }
        taken
    }

    /// Notes an access: what was in swap is in the first tier now (a sweep tells where it came up if not there), what
    /// is in memory stays where it is.
    pub fn touch(&mut self, page: PageIndex, now: Seconds, write: bool) -> Touch {
        self.now = now;
        let before = self.get(page);
        let place = if self.in_memory(before.place()) { before.place() } else { Place::In(TierId(0)) };
        self.update(page, |entry| entry.accessed(now, write).with_place(place));
        let was_lower = self.in_swap(before.place());
        Touch { before, was_lower }
    }

    /// What is known of the block that holds `page`.
    pub fn block_of(&self, page: PageIndex) -> BlockInfo {
        self.blocks.get(page / BLOCK_PAGES).map(|block| block.info).unwrap_or_default()
    }

    /// Takes over which blocks of `part` are huge pages now: the first page of each, ascending. One that was given up
    /// and has left memory since, whoever took it, is worth a new try when it comes back. Returns of how many blocks
    /// that was not known.
    pub fn set_huge(&mut self, part: PageRun, huge: &[PageIndex]) -> u64 {
        let mut changed = 0;
        let node_tiers = self.node_tiers;
        let in_swap = |place| match place {
            Place::Untouched => false,
            Place::OtherSwap => true,
            Place::In(tier) => !node_tiers.contains(tier),
        };
        for first in part.pages().step_by(BLOCK_PAGES as usize) {
            let Some(block) = self.blocks.get_mut(first / BLOCK_PAGES) else { continue };
            let info = &mut block.info;
            let before = std::mem::replace(&mut info.huge, huge.binary_search(&first).is_ok());
            changed += u64::from(info.huge != before);
            info.was_huge |= info.huge;
            self.had_huge |= info.huge;
            if info.given_up {
                let gone = block.entries.iter().filter(|entry| in_swap(entry.place())).count();
                info.given_up = !info.huge && gone * GONE_DIVISOR < block.entries.len();
            }
        }
        changed
    }

    /// Notes that these blocks were to become huge pages: the next sweep tells which are, and the others are given up.
    pub fn tried_to_collapse(&mut self, pages: &[PageIndex]) {
        for first in pages.iter().filter(|page| **page % BLOCK_PAGES == 0) {
            if let Some(info) = self.info_mut(*first) {
                info.given_up = true;
            }
        }
    }

    /// Pages in memory that are a part of a huge page.
    pub fn huge_pages(&self) -> u64 {
        let huge = self.blocks.iter().filter(|(_, block)| block.info.huge);
        let in_memory = |entry: &&PageEntry| self.in_memory(entry.place());
        huge.map(|(_, block)| block.entries.iter().filter(in_memory).count() as u64).sum()
    }

    /// Whether some block is, or was, a huge page.
    pub fn had_huge(&self) -> bool {
        self.had_huge
    }

    /// Blocks that were huge pages and are not now.
    pub fn split_blocks(&self) -> u64 {
        if !self.had_huge {
            return 0;
        }
        self.blocks.iter().filter(|(_, block)| block.info.was_huge && !block.info.huge).count() as u64
    }

    /// Calls `visit` for every block of which some page was touched, with the first page's number.
    pub fn for_each_block(&self, mut visit: impl FnMut(PageIndex, BlockInfo, &[PageEntry])) {
        for (number, block) in self.blocks.iter() {
            let first = number * BLOCK_PAGES;
            let pages = (self.layout.pages() - first).min(BLOCK_PAGES) as usize;
            visit(first, block.info, &block.entries[..pages]);
        }
    }

    /// Notes where the pages of `run` were found, without any access. In a lower memory tier heat begins anew: it tells
    /// whether a page was accessed since it came there.
    pub fn place(&mut self, run: PageRun, place: Place) {
        let (lower_memory, now) = (self.in_lower_memory(place), self.now);
        for page in run.pages() {
            self.update(page, |entry| match entry.place() == place {
                true => entry,
                false if entry.place() == Place::Untouched => PageEntry::found(place, now),
                false if lower_memory => entry.with_place(place).without_heat(),
                false => entry.with_place(place),
            });
        }
    }

    /// Calls `visit` for every page that was touched.
    pub fn for_each(&self, mut visit: impl FnMut(PageIndex, PageEntry)) {
        for (number, block) in self.blocks.iter() {
            for (page, entry) in (number * BLOCK_PAGES..).zip(&block.entries) {
                if entry.place() != Place::Untouched {
                    visit(page, *entry);
                }
            }
        }
    }

    /// Notes that a range is accessed, of which it is not known which pages: all that are in memory count as accessed
    /// so many `times`. Returns how many there are.
    pub fn touch_region(&mut self, run: PageRun, now: Seconds, times: u8) -> u64 {
        let mut pages = 0;
        for part in run.by_block() {
            // Most of a large range may be nothing but addresses.
            if self.blocks.get(part.first / BLOCK_PAGES).is_none() {
                continue;
            }
            for page in part.pages() {
                if self.in_memory(self.get(page).place()) {
                    pages += 1;
                    self.update(page, |entry| entry.probably_accessed(now, times));
                }
            }
        }
        pages
    }

    /// Pages that were written at some time since `began`. Returns how many of them had shown no access since. Of a
    /// huge page it is known which of it only where it showed.
    pub fn written(&mut self, runs: &[PageRun], began: Seconds, now: Seconds) -> u64 {
        let age = now.0.wrapping_sub(began.0);
        let mut unseen = 0;
        for page in runs.iter().flat_map(|run| run.pages()) {
            let before = self.get(page);
            if !self.in_memory(before.place()) || self.block_of(page).huge {
                continue;
            }
            let seen = before.idle(now) <= age;
            unseen += u64::from(!seen);
            self.update(page, |entry| if seen { entry.with_written() } else { entry.accessed(now, true) });
        }
        unseen
    }

    /// Ends a round that began at `began` as all pages are armed anew at `again`. What was accessed in it may have been
    /// in use up to then: it counts as accessed a second before that.
    pub fn end_round(&mut self, began: Seconds, again: Seconds, now: Seconds) -> Shown {
        let mut shown = Shown::default();
        let (new_age, age) = (now.0.wrapping_sub(again.0), now.0.wrapping_sub(began.0));
        let last = Seconds(again.0.wrapping_sub(1));
        let node_tiers = self.node_tiers;
        for (number, block) in self.blocks.iter_mut() {
            let mut changed = false;
            for entry in &mut block.entries {
                if !matches!(entry.place(), Place::In(tier) if node_tiers.contains(tier)) {
                    continue;
                }
                match entry.idle(now) {
                    idle if idle <= new_age => shown.used += 1,
                    idle if idle <= age => {
                        shown.used += 1;
                        *entry = entry.used_until(last);
                        changed = true;
                    }
                    // That is where the round before this one ended.
                    idle if idle == age + 1 => shown.ended += 1,
                    _ => {}
                }
            }
            if changed {
                self.fresh.outdate(number, &mut block.digest);
            }
        }
        shown
    }

    /// Lets time pass: keeps idle ages from wrapping around and, if `cool`, halves the heat of every page.
    pub fn age(&mut self, now: Seconds, cool: bool) {
        self.now = now;
        let cap = self.capped_at.idle(now) >= CAP_EVERY;
        if cap {
            self.capped_at = now;
        }
        if !cap && !cool {
            return;
        }
        for (number, block) in self.blocks.iter_mut() {
            let cools = cool && block.digest.is_none_or(|digest| digest.cools());
            if !cap && !cools {
                continue;
            }
            let mut changed = false;
            for entry in block.entries.iter_mut().filter(|entry| entry.place() != Place::Untouched) {
                let before = *entry;
                let capped = if cap { before.cap_idle(now) } else { before };
                *entry = if cools { capped.cooled() } else { capped };
                changed |= *entry != before;
            }
            if changed {
                self.changed.mark(number);
                self.fresh.outdate(number, &mut block.digest);
            }
        }
    }
}
