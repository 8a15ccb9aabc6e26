//! A block of 2 MiB in the few numbers that decisions go by every second, so that blocks in which nothing happens are
//! not gone through page by page.
//!
//! In: the entries of its pages. Out: in which tiers they are, when they were accessed, how warm they are. Pure.

use super::entry::{PageEntry, Place, Seconds};
use crate::tiers::{NodeTiers, TierId};

/// Heat 0, 1, 2 to 3, 4 to 7, 8 to 15, 16 and more.
pub const HEAT_BINS: usize = 6;

pub fn heat_bin(heat: u8) -> usize {
    (heat.checked_ilog2().map_or(0, |log| log + 1) as usize).min(HEAT_BINS - 1)
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Digest {
    /// Pages that take memory somewhere.
    touched: u16,
    /// Pages in memory tiers, by heat.
    heat: [u16; HEAT_BINS],
    /// Tiers that have pages of it, a bit each.
    tiers: u16,
    /// The latest and the earliest of the last accesses of touched pages, and of those in memory.
    all: Span,
    memory: Span,
    /// Some page has heat, or was written: an epoch's end changes it.
    cools: bool,
}

/// When the pages of a set were accessed last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Span {
    pages: u16,
    newest: Seconds,
    oldest: Seconds,
}

impl Span {
    fn note(&mut self, entry: PageEntry, now: Seconds) {
        let last = entry.last();
        if self.pages == 0 || last.idle(now) < self.newest.idle(now) {
            self.newest = last;
        }
        if self.pages == 0 || last.idle(now) > self.oldest.idle(now) {
            self.oldest = last;
        }
        self.pages += 1;
    }

    /// How many of the pages were idle for less than so many seconds; none where some were and some were not.
    fn used_within(&self, seconds: u64, now: Seconds) -> Option<u64> {
        match () {
            () if self.pages == 0 || u64::from(self.newest.idle(now)) >= seconds => Some(0),
            () if u64::from(self.oldest.idle(now)) < seconds => Some(self.pages.into()),
            () => None,
        }
    }
}

impl Digest {
    /// None where the last access of some page lies ahead, as far as its number of seconds tells: its idle age stays
    /// zero until that time has come, and jumps then.
    pub(super) fn of(entries: &[PageEntry], node_tiers: NodeTiers, now: Seconds) -> Option<Self> {
        let mut digest = Self::default();
        for entry in entries.iter().filter(|entry| entry.place() != Place::Untouched) {
            if entry.last().is_ahead_of(now) {
                return None;
            }
            digest.touched += 1;
            digest.cools |= entry.heat() > 0 || entry.written();
            digest.all.note(*entry, now);
            let Place::In(tier) = entry.place() else { continue };
            digest.tiers |= bit(tier);
            if node_tiers.contains(tier) {
                digest.heat[heat_bin(entry.heat())] += 1;
                digest.memory.note(*entry, now);
            }
        }
        Some(digest)
    }

    /// Pages in memory tiers, by heat.
    pub(super) fn heat(&self) -> [u16; HEAT_BINS] {
        self.heat
    }

    /// Whether the end of an epoch changes anything.
    pub(super) fn cools(&self) -> bool {
        self.cools
    }

    pub(super) fn has(&self, tier: TierId) -> bool {
        self.tiers & bit(tier) != 0
    }

    /// The longest that one of its pages was idle.
    pub(super) fn longest_idle(&self, now: Seconds) -> u16 {
        if self.touched == 0 { 0 } else { self.all.oldest.idle(now) }
    }

    /// Pages that were idle for less than so many seconds, all or those in memory; none where the pages have to be
    /// looked at.
    pub(super) fn used_within(&self, seconds: u64, in_memory: bool, now: Seconds) -> Option<u64> {
        if in_memory { self.memory } else { self.all }.used_within(seconds, now)
    }
}

fn bit(TierId(level): TierId) -> u16 {
    1u16.checked_shl(level.into()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::tiermap::{BLOCK_PAGES, Layout, PageIndex, PageRun, VmPages};
    use crate::vm::{Backing, Hva, RamRegion};

    const PAGES: u32 = 3 * BLOCK_PAGES;

    #[derive(Clone, Debug)]
    enum Op {
        Touch(PageIndex, bool),
        Place(PageIndex, u32, u8),
        Untouch(PageIndex),
        Cool,
        Refresh,
        /// So many seconds ago a round began, and the next one.
        EndRound(u16, u16),
        Wait(u16),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0..PAGES, any::<bool>()).prop_map(|(page, write)| Op::Touch(page, write)),
            (0..PAGES, 1..600u32, 0..4u8).prop_map(|(page, count, tier)| Op::Place(page, count, tier)),
            (0..PAGES).prop_map(Op::Untouch),
            Just(Op::Cool),
            Just(Op::Refresh),
            (1..2000u16, 1..100u16).prop_map(|(began, again)| Op::EndRound(began, again)),
            (0..3000u16).prop_map(Op::Wait),
        ]
    }

    proptest! {
        #[test]
        fn digests_say_what_the_pages_say(ops in prop::collection::vec(op(), 1..60)) {
            let bytes = u64::from(PAGES) * 4096;
            let layout = Layout::new(&[RamRegion { start: Hva(0), bytes, backing: Backing::Anonymous }]);
            let mut pages = VmPages::new(layout, NodeTiers(2));
            let mut now = Seconds(60_000);
            for op in ops {
                match op {
                    Op::Touch(page, write) => drop(pages.touch(page, now, write)),
                    Op::Place(first, count, tier) => {
                        let count = count.min(PAGES - first);
                        pages.place(PageRun { first, count }, Place::In(TierId(tier)));
                    }
                    Op::Untouch(page) => pages.update(page, |_| PageEntry::default()),
                    Op::Cool => pages.age(now, true),
                    Op::Refresh => pages.refresh(now),
                    Op::EndRound(began, again) => {
                        let ago = |seconds: u16| Seconds(now.0.wrapping_sub(seconds));
                        pages.end_round(ago(began.max(again)), ago(again.min(began)), now);
                    }
                    Op::Wait(seconds) => now = Seconds(now.0.wrapping_add(seconds)),
                }
                pages.age(now, false);
                let mut heat = [0; HEAT_BINS];
                let within = [1, 40, 900, 5000];
                let (mut used, mut in_memory) = ([0; 4], [0; 4]);
                pages.for_each(|_, entry| {
                    let there = pages.in_memory(entry.place());
                    heat[heat_bin(entry.heat())] += u64::from(there);
                    for (at, seconds) in within.iter().enumerate() {
                        let recent = entry.idle(now) < *seconds;
                        used[at] += u64::from(recent);
                        in_memory[at] += u64::from(recent && there);
                    }
                });
                let times = within.map(|seconds| Duration::from_secs(seconds.into()));
                prop_assert_eq!(pages.heat(), heat);
                prop_assert_eq!(pages.used_within(times, now), used);
                prop_assert_eq!(times.map(|time| pages.used_in_memory(time, now)), in_memory);
                let (tier, least) = (TierId(2), 40);
                let (mut idle, mut visited) = (0, 0);
                let is_idle = |entry: PageEntry| entry.place() == Place::In(tier) && entry.idle(now) >= least;
                pages.for_each(|_, entry| idle += u64::from(is_idle(entry)));
                let mut before = u16::MAX;
                for (longest, number) in pages.idle_blocks(tier, Duration::from_secs(least.into()), now) {
                    let (_, _, entries) = pages.block_at(number).unwrap();
                    visited += entries.iter().filter(|entry| is_idle(**entry)).count() as u64;
                    prop_assert!(longest <= before);
                    prop_assert!(entries.iter().filter(|entry| is_idle(**entry)).all(|e| e.idle(now) <= longest));
                    before = longest;
                }
                prop_assert_eq!(visited, idle, "no idle page is passed over");
            }
        }
    }
}
