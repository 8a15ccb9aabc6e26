//! How much of a VM the kernel is asked to reclaim, where it chooses the pages by its own LRU.
//!
//! In, before each step: what the VM may wait for in a minute. In, at any time: pages that it read back, and pages that
//! were reclaimed. Out: pages to ask for.
//!
//! 1. Steps grow and are halved as everywhere ([`Pacer`]).
//! 2. That alone would spend the whole budget for ever on memory which is not cold. So where more than one of
//!    [`COLD_DIVISOR`] reclaimed pages is read back within the minute, nothing goes for a while.
//! 3. Then a few pages are tried. If next to none of them is read back within a minute, 1. goes on; else the next pause
//!    is twice as long, five minutes at most.

use std::collections::VecDeque;
use std::time::Duration;

use super::pacer::Pacer;
use crate::sys::Monotonic;

/// Of what is reclaimed, so much is read back at once where cold memory is left; twice as much is too much. The kernel
/// takes some pages that are in use, one in twenty or so.
const COLD_DIVISOR: u64 = 5;
/// Fewer pages in a minute say nothing.
const COLD_LEAST: u64 = 256;
const PROBE_PAGES: u64 = 64;
/// Of a probe, so much may be read back.
const PROBE_DIVISOR: u64 = 7;
const PAUSE_LEAST: Duration = Duration::from_mins(1);
const PAUSE_MOST: Duration = Duration::from_mins(5);
const MINUTE: Duration = Duration::from_mins(1);
/// Least pages of a step.
const LEAST_PAGES: f64 = 64.0;

/// What happened in the last minute, by second.
#[derive(Clone, Debug, Default)]
struct Minute(VecDeque<(Monotonic, u64)>);

impl Minute {
    fn add(&mut self, count: u64, now: Monotonic) {
        match self.0.back_mut() {
            _ if count == 0 => {}
            Some((at, sum)) if now.since(*at) < Duration::from_secs(1) => *sum += count,
            _ => self.0.push_back((now, count)),
        }
        while self.0.front().is_some_and(|(at, _)| now.since(*at) >= MINUTE) {
            self.0.pop_front();
        }
    }

    fn sum(&self, now: Monotonic) -> u64 {
        self.0.iter().filter(|(at, _)| now.since(*at) < MINUTE).map(|(_, count)| count).sum()
    }
}

#[derive(Clone, Copy, Debug, Default)]
enum Phase {
    #[default]
    Working,
    Resting {
        until: Monotonic,
    },
    /// A few pages went, when so many were read back in the minute before.
    Probing {
        since: Monotonic,
        reads_before: u64,
    },
}

/// The steps of one VM.
#[derive(Clone, Debug)]
pub struct Lru {
    pacer: Pacer,
    phase: Phase,
    pause: Duration,
    reads: Minute,
    reclaimed: Minute,
}

impl Default for Lru {
    fn default() -> Self {
        Self {
            pacer: Pacer::with_least(LEAST_PAGES),
            phase: Phase::default(),
            pause: PAUSE_LEAST,
            reads: Minute::default(),
            reclaimed: Minute::default(),
        }
    }
}

impl Lru {
    /// The VM read so many pages back, and waited so long for all of them.
    pub fn read_back(&mut self, pages: u64, wait: Duration, now: Monotonic) {
        self.pacer.waited(wait, now);
        self.reads.add(pages, now);
    }

    /// So many pages were reclaimed.
    pub fn reclaimed(&mut self, pages: u64, now: Monotonic) {
        self.pacer.sent(pages);
        self.reclaimed.add(pages, now);
    }

    /// How many of the VM's `pages` to ask for now, of a VM that may wait for `budget` in a minute; at most one step in
    /// `every`.
    pub fn step(&mut self, pages: u64, budget: Duration, every: Duration, now: Monotonic) -> u64 {
        let reads = self.reads.sum(now);
        match self.phase {
            Phase::Working => {
                let size = self.pacer.step(pages, budget, every, now);
                let reclaimed = self.reclaimed.sum(now);
                if size > 0 && reclaimed >= COLD_LEAST && reads * COLD_DIVISOR > reclaimed {
                    return self.rest(now);
                }
                size
            }
            Phase::Resting { until } if now < until => 0,
            Phase::Resting { .. } => {
                self.phase = Phase::Probing { since: now, reads_before: reads };
                PROBE_PAGES
            }
            Phase::Probing { since, .. } if now.since(since) < MINUTE => 0,
            Phase::Probing { reads_before, .. } => {
                if reads.saturating_sub(reads_before) * PROBE_DIVISOR > PROBE_PAGES {
                    self.pause = (self.pause * 2).min(PAUSE_MOST);
                    return self.rest(now);
                }
                self.pause = PAUSE_LEAST;
                self.phase = Phase::Working;
                self.pacer.step(pages, budget, every, now)
            }
        }
    }

    fn rest(&mut self, now: Monotonic) -> u64 {
        self.phase = Phase::Resting { until: now.after(self.pause) };
        self.pacer.begin_small();
        0
    }

    /// Whether no cold memory was found.
    pub fn has_found_none(&self) -> bool {
        !matches!(self.phase, Phase::Working)
    }

    pub fn rests_until(&self, now: Monotonic) -> Option<Monotonic> {
        self.pacer.rests_until(now)
    }

    pub fn waits_a_minute(&self, now: Monotonic) -> Duration {
        self.pacer.waits_a_minute(now)
    }
}
