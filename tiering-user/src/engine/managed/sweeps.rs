//! What sweeps of a VM's page tables say of it, and when the next one is due.

use std::time::Duration;

use crate::sys::Monotonic;
use crate::tiermap::{Layout, PageIndex, PageRun, Sweep, part};

/// A VM rests from being swept for so many times as long as that took.
const REST_FACTOR: u32 = 4;

/// A sweep that held is no longer ago, or so many times as long as one takes, before moves wait for one.
const HELD_WITHIN: Duration = Duration::from_mins(1);
const HELD_FACTOR: u32 = 8;

/// A VM of which sweeps tell nothing new is swept half as often after each of them, so many times, but once in so long.
const QUIET_MOST: u32 = 3;
const QUIET_EVERY_MOST: Duration = Duration::from_mins(4);

/// Of one VM.
#[derive(Debug, Default)]
pub struct Sweeps {
    under_way: Option<UnderWay>,
    last: LastSweep,
    /// So many in a row told nothing new, and nothing else did since.
    quiet: u32,
    huge_bytes: u64,
    shared_huge_bytes: u64,
    unplugged_bytes: u64,
}

/// A sweep under way.
#[derive(Debug)]
struct UnderWay {
    began: Monotonic,
    /// Where the part begins that comes next.
    next: PageIndex,
    /// No part was out of date when it came.
    fresh: bool,
    why: Why,
    /// Nothing was found, nor came in meanwhile, that was not known.
    quiet: bool,
    huge_bytes: u64,
    shared_huge_bytes: u64,
    /// Of RAM that is plugged on demand.
    plugged_pages: u64,
}

/// When a VM was swept last.
#[derive(Clone, Copy, Debug, Default)]
struct LastSweep {
    began: Option<Monotonic>,
    took: Duration,
    /// When the last one began of which nothing was out of date.
    held: Option<Monotonic>,
}

/// Why a VM is swept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Due,
    /// Somebody wants to know where its pages are.
    Asked,
}

/// A sweep that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub began: Monotonic,
    /// Nothing of it was out of date.
    pub fresh: bool,
    /// Of RAM that is plugged on demand.
    pub plugged_pages: u64,
}

impl Sweeps {
    /// Of a VM with so much room for RAM in which nothing was touched yet.
    pub fn new(unplugged_bytes: u64) -> Self {
        Self { unplugged_bytes, ..Self::default() }
    }

    /// Where all its pages are was read once, and nothing of it was out of date.
    pub fn have_held(&self) -> bool {
        self.last.held.is_some()
    }

    /// When the last one began.
    pub fn began(&self) -> Option<Monotonic> {
        self.last.began
    }

    /// Whether the next one is due, `every` so often where something happens.
    pub fn are_due(&self, every: Duration, now: Monotonic) -> bool {
        let rarer = (every * self.rarer()).min(QUIET_EVERY_MOST);
        self.last.is_over(every.max(rarer), now)
    }

    /// Whether what is known of the page tables is so old that moves wait for a sweep.
    pub fn are_overdue(&self, now: Monotonic) -> bool {
        self.last.is_overdue(HELD_WITHIN * self.rarer(), now)
    }

    fn rarer(&self) -> u32 {
        1 << self.quiet.min(QUIET_MOST)
    }

    /// Something changes in the page tables, or may: a page comes or goes, or what happens to them is not seen.
    pub fn disturb(&mut self) {
        self.quiet = 0;
        if let Some(under_way) = &mut self.under_way {
            under_way.quiet = false;
        }
    }

    /// Anonymous huge pages of the process.
    pub fn huge_bytes(&self) -> u64 {
        self.huge_bytes
    }

    /// Shared guest RAM in huge pages.
    pub fn shared_huge_bytes(&self) -> u64 {
        self.shared_huge_bytes
    }

    /// Room for RAM (virtio-mem) in which nothing was ever touched.
    pub fn unplugged_bytes(&self) -> u64 {
        self.unplugged_bytes
    }

    pub fn set_unplugged_bytes(&mut self, bytes: u64) {
        self.unplugged_bytes = bytes;
    }

    /// Begins one. Returns false where one is under way.
    pub fn begin(&mut self, why: Why, now: Monotonic) -> bool {
        if self.under_way.is_some() {
            return false;
        }
        self.last.began = Some(now);
        self.under_way = Some(UnderWay {
            began: now,
            next: 0,
            fresh: true,
            why,
            quiet: true,
            huge_bytes: 0,
            shared_huge_bytes: 0,
            plugged_pages: 0,
        });
        true
    }

    /// What is to be read next.
    pub fn next_part(&self, layout: &Layout) -> Option<PageRun> {
        part(layout, self.under_way.as_ref()?.next)
    }

    /// A part was read. It is fresh unless it was out of date, and then told of `changed` pages what was not known.
    pub fn note(&mut self, sweep: &Sweep, fresh: bool, changed: u64, plugged_pages: u64) {
        let Some(under_way) = &mut self.under_way else { return };
        under_way.next = sweep.part.first + sweep.part.count;
        under_way.fresh &= fresh;
        under_way.quiet &= fresh && changed == 0;
        under_way.huge_bytes += sweep.huge_bytes;
        under_way.shared_huge_bytes += sweep.shared_huge_bytes;
        under_way.plugged_pages += plugged_pages;
    }

    pub fn are_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// The page tables could not be read.
    pub fn fail(&mut self) {
        self.under_way = None;
        self.quiet = 0;
    }

    /// All parts were read.
    pub fn end(&mut self, now: Monotonic) -> Option<Ended> {
        let UnderWay { began, fresh, why, quiet, huge_bytes, shared_huge_bytes, plugged_pages, .. } =
            self.under_way.take()?;
        self.quiet = match (quiet, why) {
            (true, Why::Due) => self.quiet.saturating_add(1),
            // Two of them may be close to each other.
            (true, Why::Asked) => self.quiet,
            (false, _) => 0,
        };
        self.last.took = now.since(began);
        (self.huge_bytes, self.shared_huge_bytes) = (huge_bytes, shared_huge_bytes);
        if fresh {
            self.last.held = Some(began);
        }
        Some(Ended { began, fresh, plugged_pages })
    }
}

impl LastSweep {
    fn is_over(self, every: Duration, now: Monotonic) -> bool {
        self.began.is_none_or(|began| now.since(began) >= every.max(self.took * REST_FACTOR))
    }

    fn is_overdue(self, within: Duration, now: Monotonic) -> bool {
        self.held.is_some_and(|held| now.since(held) > within.max(self.took * HELD_FACTOR))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_that_takes_long_to_sweep_is_swept_less_often() {
        let at = |seconds: u64| Monotonic(seconds * 1_000_000_000);
        let every = Duration::from_secs(30);
        assert!(LastSweep::default().is_over(every, at(0)));
        let last = |took| LastSweep {
            began: Some(at(100)),
            took: Duration::from_secs(took),
            ..LastSweep::default()
        };
        assert!(!last(2).is_over(every, at(129)) && last(2).is_over(every, at(130)));
        assert!(!last(20).is_over(every, at(179)) && last(20).is_over(every, at(180)));
    }

    #[test]
    fn moves_wait_for_a_sweep_where_the_last_one_that_held_is_long_ago() {
        let at = |seconds: u64| Monotonic(seconds * 1_000_000_000);
        assert!(
            !LastSweep::default().is_overdue(HELD_WITHIN, at(1000)),
            "the first one is waited for anyway"
        );
        let held =
            |took| LastSweep { began: Some(at(190)), took: Duration::from_secs(took), held: Some(at(100)) };
        assert!(!held(1).is_overdue(HELD_WITHIN, at(160)) && held(1).is_overdue(HELD_WITHIN, at(161)));
        assert!(
            !held(10).is_overdue(HELD_WITHIN, at(180)) && held(10).is_overdue(HELD_WITHIN, at(181)),
            "of a large VM"
        );
    }

    #[test]
    fn a_quiet_vm_is_swept_less_and_less_often_until_something_happens() {
        let every = Duration::from_secs(30);
        let at = |seconds: u64| Monotonic(seconds * 1_000_000_000);
        let part = Sweep::of(PageRun { first: 0, count: 100 });
        let mut sweeps = Sweeps::default();
        // Returns how long it was until the sweep was due.
        let swept = |sweeps: &mut Sweeps, from: u64, changed: u64| {
            let due = (from..).find(|second| sweeps.are_due(every, at(*second))).unwrap();
            assert!(sweeps.begin(Why::Due, at(due)) && !sweeps.are_overdue(at(due)));
            sweeps.note(&part, true, changed, 0);
            assert!(sweeps.end(at(due)).is_some_and(|ended| ended.fresh));
            due
        };
        let mut now = swept(&mut sweeps, 1000, 100);
        let mut intervals = |sweeps: &mut Sweeps, changed: &[u64]| -> Vec<u64> {
            let mut each = |changed: &u64| {
                let due = swept(sweeps, now, *changed);
                due - std::mem::replace(&mut now, due)
            };
            changed.iter().map(&mut each).collect()
        };
        assert_eq!(intervals(&mut sweeps, &[0, 0, 0, 0, 0, 1, 0]), [30, 60, 120, 240, 240, 240, 30]);
        sweeps.disturb();
        assert_eq!(intervals(&mut sweeps, &[0, 0]), [30, 60]);
        let slowly = Duration::from_mins(8);
        assert!(!sweeps.are_due(slowly, at(now + 479)) && sweeps.are_due(slowly, at(now + 480)));
    }
}
