//! The table of one virtual machine.

use super::entry::{PageEntry, Place, Seconds};
use super::layout::{Layout, PageIndex, PageRun};
use super::sweep::Sweep;
use crate::tiers::TierId;

/// Pages of a block, the unit of allocation: 2 MiB.
pub const BLOCK_PAGES: u32 = 512;

type Block = [PageEntry; BLOCK_PAGES as usize];

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
    /// Whether the page was in a lower tier, so that the guest waited for it, or would have but for a stage.
    pub was_lower: bool,
}

/// Every page of one virtual machine.
#[derive(Clone, Debug)]
pub struct VmPages {
    layout: Layout,
    blocks: Vec<Option<Box<Block>>>,
    counts: PlaceCounts,
}

impl VmPages {
    /// A table in which no page was touched yet.
    pub fn new(layout: Layout) -> Self {
        let pages = layout.pages();
        let blocks = vec![None; pages.div_ceil(BLOCK_PAGES) as usize];
        Self { layout, blocks, counts: PlaceCounts { untouched: u64::from(pages), ..PlaceCounts::default() } }
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
        let block = self.blocks.get((page / BLOCK_PAGES) as usize).and_then(Option::as_deref);
        block.map_or(PageEntry::default(), |block| block[(page % BLOCK_PAGES) as usize])
    }

    /// Replaces the entry of `page` by what `change` makes of it.
    pub fn update(&mut self, page: PageIndex, change: impl FnOnce(PageEntry) -> PageEntry) {
        if page >= self.layout.pages() {
            return;
        }
        let block = self.blocks[(page / BLOCK_PAGES) as usize].get_or_insert_with(empty_block);
        let entry = &mut block[(page % BLOCK_PAGES) as usize];
        let before = entry.place();
        *entry = change(*entry);
        if before != entry.place() {
            *self.counts.slot(before) -= 1;
            *self.counts.slot(entry.place()) += 1;
        }
    }

    /// Notes an access: whatever was accessed is in the first tier now.
    pub fn touch(&mut self, page: PageIndex, now: Seconds, write: bool) -> Touch {
        let before = self.get(page);
        self.update(page, |entry| entry.accessed(now, write).with_place(Place::In(TierId(0))));
        let was_lower = !matches!(before.place(), Place::Untouched | Place::In(TierId(0)));
        Touch { before, was_lower }
    }

    /// Notes where the pages of `run` were found, without any access.
    pub fn place(&mut self, run: PageRun, place: Place) {
        for page in run.pages() {
            self.update(page, |entry| entry.with_place(place));
        }
    }

    /// Takes over what a sweep found that began at `began`; an access since then knows better. Returns how many
    /// pages had come back to the first tier unseen, which counts as an access.
    pub fn apply(&mut self, sweep: &Sweep, began: Seconds, now: Seconds) -> u64 {
        let age = now.0.wrapping_sub(began.0);
        let mut unseen = 0;
        let mut next = 0;
        let end = PageRun { first: self.layout.pages(), count: 0 };
        for (run, place) in sweep.runs.iter().copied().chain([(end, Place::Untouched)]) {
            for page in next..run.first {
                let entry = self.get(page);
                let accessed_since = entry.heat() > 0 && entry.idle(now) <= age;
                if entry.place() != Place::Untouched && !accessed_since {
                    self.update(page, |_| PageEntry::default());
                }
            }
            next = run.first + run.count;
            for page in run.pages() {
                let before = self.get(page);
                let first_tier = Place::In(TierId(0));
                match (before.place(), place) {
                    (Place::Untouched, _) => self.update(page, |_| PageEntry::found(place, now)),
                    // For shared memory a sweep can only tell "in swap"; in which tier, the table knows better.
                    (Place::In(TierId(1..)), Place::OtherSwap) => {}
                    (was, is) if was == is => {}
                    (was, _) if was == first_tier && before.heat() > 0 && before.idle(now) <= age => {}
                    (_, is) if is == first_tier => {
                        unseen += 1;
                        self.touch(page, now, false);
                    }
                    (_, is) => self.update(page, |entry| entry.with_place(is)),
                }
            }
        }
        unseen
    }

    /// Calls `visit` for every page that was touched.
    pub fn for_each(&self, mut visit: impl FnMut(PageIndex, PageEntry)) {
        for (index, block) in (0u32..).zip(&self.blocks) {
            let Some(block) = block else { continue };
            for (page, entry) in (index * BLOCK_PAGES..).zip(block.iter()) {
                if entry.place() != Place::Untouched {
                    visit(page, *entry);
                }
            }
        }
    }

    /// Lets time pass: keeps idle ages from wrapping around and, if `cool`, halves the heat of every page.
    pub fn age(&mut self, now: Seconds, cool: bool) {
        for entry in self.blocks.iter_mut().flatten().flat_map(|block| block.iter_mut()) {
            if entry.place() != Place::Untouched {
                let capped = entry.cap_idle(now);
                *entry = if cool { capped.cooled() } else { capped };
            }
        }
    }
}

fn empty_block() -> Box<Block> {
    Box::new([PageEntry::default(); BLOCK_PAGES as usize])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::PAGE_BYTES;
    use crate::vm::{Backing, Hva, RamRegion};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const PAGES: u32 = 1200;

    fn table() -> VmPages {
        let bytes = u64::from(PAGES) * PAGE_BYTES;
        VmPages::new(Layout::new(&[RamRegion { start: Hva(0x10_0000), bytes, backing: Backing::Anonymous }]))
    }

    #[derive(Clone, Debug)]
    enum Change {
        Touch(u32, bool),
        Place(u32, u32, Place),
        Sweep(Vec<(u32, u32, Place)>),
    }

    fn place() -> impl Strategy<Value = Place> {
        prop_oneof![Just(Place::OtherSwap), (0u8..3).prop_map(|level| Place::In(TierId(level)))]
    }

    fn change() -> impl Strategy<Value = Change> {
        let run = || (0..PAGES, 1u32..80, place());
        prop_oneof![
            (0..PAGES + 5, any::<bool>()).prop_map(|(page, write)| Change::Touch(page, write)),
            run().prop_map(|(first, count, place)| Change::Place(first, count, place)),
            prop::collection::vec(run(), 0..12).prop_map(Change::Sweep),
        ]
    }

    proptest! {
        /// The table against a map from page to place: same places, same counts.
        #[test]
        fn it_agrees_with_a_plain_map(changes in prop::collection::vec(change(), 1..40)) {
            let mut table = table();
            let mut model: BTreeMap<u32, Place> = BTreeMap::new();
            let mut time = 0;
            for change in changes {
                // Every change is later than the one before.
                time += 1;
                let now = Seconds(time);
                match change {
                    Change::Touch(page, write) => {
                        table.touch(page, now, write);
                        if page < PAGES {
                            model.insert(page, Place::In(TierId(0)));
                        }
                    }
                    Change::Place(first, count, place) => {
                        table.place(PageRun { first, count }, place);
                        for page in first..(first + count).min(PAGES) {
                            model.insert(page, place);
                        }
                    }
                    Change::Sweep(mut runs) => {
                        runs.sort_unstable_by_key(|run| run.0);
                        let mut swept = BTreeMap::new();
                        let mut sweep = Sweep::default();
                        let mut next = 0;
                        for (first, count, place) in runs {
                            let count = count.min(PAGES - first);
                            if first >= next && count > 0 {
                                sweep.runs.push((PageRun { first, count }, place));
                                next = first + count;
                                for page in first..next {
                                    let keeps = place == Place::OtherSwap
                                        && matches!(model.get(&page), Some(Place::In(TierId(1..))));
                                    swept.insert(page, if keeps { model[&page] } else { place });
                                }
                            }
                        }
                        table.apply(&sweep, now, now);
                        model = swept;
                    }
                }
                for page in 0..PAGES {
                    prop_assert_eq!(table.get(page).place(), model.get(&page).copied().unwrap_or(Place::Untouched));
                }
                for place in [Place::OtherSwap, Place::In(TierId(0)), Place::In(TierId(1)), Place::In(TierId(2))] {
                    let expected = model.values().filter(|there| **there == place).count() as u64;
                    prop_assert_eq!(table.counts().get(place), expected);
                }
                let untouched = u64::from(PAGES) - model.len() as u64;
                prop_assert_eq!(table.counts().get(Place::Untouched), untouched);
            }
        }
    }

    #[test]
    fn a_page_that_came_back_unseen_counts_as_accessed() {
        let mut table = table();
        table.place(PageRun { first: 3, count: 1 }, Place::In(TierId(1)));
        let sweep = Sweep { runs: vec![(PageRun { first: 3, count: 1 }, Place::In(TierId(0)))] };
        assert_eq!(table.apply(&sweep, Seconds(9), Seconds(9)), 1);
        assert_eq!(table.get(3).idle(Seconds(10)), 1);
        assert_eq!(table.get(3).heat(), 1);
    }

    #[test]
    fn an_access_after_the_sweep_began_knows_better() {
        let mut table = table();
        table.touch(3, Seconds(9), false);
        let old = Sweep { runs: vec![(PageRun { first: 3, count: 1 }, Place::In(TierId(1)))] };
        table.apply(&old, Seconds(8), Seconds(10));
        assert_eq!(table.get(3).place(), Place::In(TierId(0)));
        table.apply(&old, Seconds(10), Seconds(10));
        assert_eq!(table.get(3).place(), Place::In(TierId(1)));
    }
}
