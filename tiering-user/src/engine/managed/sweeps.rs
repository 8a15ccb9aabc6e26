//! What sweeps of a VM's page tables say of it, and when the next one is due.

use std::time::Duration;

use crate::sys::Monotonic;
use crate::tiermap::{Layout, PageIndex, PageRun, Sweep, part};

/// A VM rests from being swept for so many times as long as that took.
const REST_FACTOR: u32 = 4;

/// A sweep that held is no longer ago, or so many times as long as one takes, before moves wait for one.
const HELD_WITHIN: Duration = Duration::from_mins(1);
const HELD_FACTOR: u32 = 8;

/// Of one VM.
#[derive(Debug, Default)]
pub struct Sweeps {
    under_way: Option<UnderWay>,
    last: LastSweep,
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

    /// Whether the next one is due, `every` so often.
    pub fn is_due(&self, every: Duration, now: Monotonic) -> bool {
        self.last.is_over(every, now)
    }

    /// Whether what is known of the page tables is so old that moves wait for a sweep.
    pub fn is_overdue(&self, now: Monotonic) -> bool {
        self.last.is_overdue(now)
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
    pub fn begin(&mut self, now: Monotonic) -> bool {
        if self.under_way.is_some() {
            return false;
        }
        self.last.began = Some(now);
        self.under_way = Some(UnderWay {
            began: now,
            next: 0,
            fresh: true,
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

    /// A part was read.
    pub fn note(&mut self, sweep: &Sweep, fresh: bool, plugged_pages: u64) {
        let Some(under_way) = &mut self.under_way else { return };
        under_way.next = sweep.part.first + sweep.part.count;
        under_way.fresh &= fresh;
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
    }

    /// All parts were read.
    pub fn end(&mut self, now: Monotonic) -> Option<Ended> {
        let UnderWay { began, fresh, huge_bytes, shared_huge_bytes, plugged_pages, .. } =
            self.under_way.take()?;
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

    fn is_overdue(self, now: Monotonic) -> bool {
        self.held.is_some_and(|held| now.since(held) > HELD_WITHIN.max(self.took * HELD_FACTOR))
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
        assert!(!LastSweep::default().is_overdue(at(1000)), "the first one is waited for anyway");
        let held =
            |took| LastSweep { began: Some(at(190)), took: Duration::from_secs(took), held: Some(at(100)) };
        assert!(!held(1).is_overdue(at(160)) && held(1).is_overdue(at(161)));
        assert!(!held(10).is_overdue(at(180)) && held(10).is_overdue(at(181)), "of a large VM");
    }
}
