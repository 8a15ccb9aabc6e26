//! A block of 2 MiB in a few numbers: what `tier_map` shows, and what is worth remembering of it.
//!
//! In: the entries of its pages. Out: how many are where, their back-off and heat. Pure.

use super::entry::{PageEntry, Place};
use super::layout::BLOCK_PAGES;
use super::table::VmPages;
use crate::config::MAX_TIERS;
use crate::tiers::TierId;

/// What is known of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockSummary {
    /// Pages by place.
    pub tiers: [u16; MAX_TIERS],
    pub other_swap: u16,
    pub untouched: u16,
    /// Pages of which accesses were seen lately.
    pub hot: u16,
    pub habit: Habit,
}

/// How a block behaves: back-off and heat of its touched pages in the mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Habit {
    pub backoff: u8,
    pub heat: u8,
}

impl BlockSummary {
    fn of(entries: &[PageEntry]) -> Self {
        let mut summary = Self::default();
        let (mut backoffs, mut heats) = (0u32, 0u32);
        for entry in entries {
            match entry.place() {
                Place::Untouched => {
                    summary.untouched += 1;
                    continue;
                }
                Place::OtherSwap => summary.other_swap += 1,
                // The configuration allows no more tiers than there is room for here.
                Place::In(TierId(level)) => summary.tiers[usize::from(level).min(MAX_TIERS - 1)] += 1,
            }
            summary.hot += u16::from(entry.heat() > 0);
            backoffs += entry.backoff();
            heats += u32::from(entry.heat());
        }
        let touched = u32::try_from(entries.len()).unwrap_or(0) - u32::from(summary.untouched);
        let mean = |sum: u32| u8::try_from((sum + touched / 2) / touched.max(1)).unwrap_or(u8::MAX);
        summary.habit = Habit { backoff: mean(backoffs), heat: mean(heats) };
        summary
    }

    /// Whether no page of it takes memory anywhere.
    pub fn is_empty(&self) -> bool {
        self.other_swap == 0 && self.tiers.iter().all(|pages| *pages == 0)
    }
}

impl VmPages {
    /// The summary of this block; empty for one of which no page was touched, and for numbers that are none.
    pub fn summary(&self, block: u32) -> BlockSummary {
        let first = block.saturating_mul(BLOCK_PAGES).min(self.layout().pages());
        let pages = (self.layout().pages() - first).min(BLOCK_PAGES);
        match self.block(block) {
            Some(entries) => BlockSummary::of(&entries[..pages as usize]),
            None => BlockSummary {
                untouched: u16::try_from(pages).unwrap_or(u16::MAX),
                ..BlockSummary::default()
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Layout, PageRun, Seconds};
    use super::*;
    use crate::tiers::NodeTiers;
    use crate::vm::{Backing, Hva, RamRegion};

    #[test]
    fn the_summaries_of_all_blocks_add_up_to_the_counts_of_the_table() {
        let region = RamRegion { start: Hva(0x10_0000), bytes: 1200 * 4096, backing: Backing::Anonymous };
        let mut pages = VmPages::new(Layout::new(&[region]), NodeTiers(1));
        pages.touch(3, Seconds(1), false);
        pages.place(PageRun { first: 4, count: 2 }, Place::In(TierId(0)));
        for page in 3..500 {
            pages.update(page, |entry| entry.with_backoff(2));
        }
        pages.place(PageRun { first: 500, count: 30 }, Place::In(TierId(1)));
        pages.place(PageRun { first: 1190, count: 10 }, Place::OtherSwap);
        assert_eq!(pages.take_changed(9), [0, 1, 2]);
        assert!(pages.take_changed(9).is_empty());

        let first = pages.summary(0);
        assert_eq!((first.tiers[0], first.tiers[1], first.untouched, first.hot), (3, 12, 497, 1));
        assert_eq!(first.habit, Habit::default(), "three of fifteen pages came back, one is warm");
        assert_eq!(pages.summary(1).tiers[1], 18);
        (512..522).for_each(|page| pages.update(page, |entry| entry.with_backoff(1)));
        assert_eq!(pages.summary(1).habit, Habit { backoff: 1, ..Habit::default() }, "ten of eighteen");
        let last = pages.summary(2);
        assert_eq!(
            (last.other_swap, last.untouched),
            (10, 1200 - 1024 - 10),
            "the last block is a short one"
        );
        assert!(!last.is_empty());
        assert!(pages.summary(7).is_empty());

        pages.update(3, |_| PageEntry::default());
        assert_eq!(pages.take_changed(9), [0, 1]);
    }
}
