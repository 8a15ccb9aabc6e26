//! How much of a VM the kernel is asked to reclaim, where it chooses the pages by its own LRU.
//!
//! In, before each step: what the VM may wait for in a minute. In, at any time: pages that it read back, and pages that
//! were reclaimed. Out: pages to ask for.
//!
//! 1. Steps grow and are halved as everywhere ([`Pacer`]), but in any minute no more is reclaimed than is expected to
//!    cost nine tenths of the budget: a page costs what one did in the last five minutes, or in the last one, whichever
//!    is more. Nothing goes while the VM waits for more than the budget, by the last ten or twenty seconds.
//! 2. That alone would spend the whole budget for ever on memory which is not cold. So where, in five
//!    minutes, more than one page was read back for [`COLD_DIVISOR`] that were reclaimed, nothing goes for a while.
//! 3. Then, and when what is read back has ceased, a few pages are tried. If next to none of them is read back within a
//!    minute, 1. goes on; else the next pause is twice as long, five minutes at most.

use std::time::Duration;

use super::pacer::Pacer;
use super::recent::Recent;
use crate::sys::Monotonic;

/// Where no cold memory is left, as much is read back as is reclaimed. Where it is, some all the same: the kernel takes
/// pages that are in use, too.
const COLD_DIVISOR: u64 = 5;
/// Over so long; fewer pages say nothing.
const COLD_WINDOW: Duration = Duration::from_mins(5);
const COLD_LEAST: u64 = 256;
/// Of the budget, so much is planned to be spent.
const PLANNED_SHARE: f64 = 0.9;
/// Before anything is known, so many pages are expected to be read back, of so many.
const EXPECTED_READS: u64 = 10;
const EXPECTED_OF: u64 = 500;
/// Ten seconds of a slow trickle say little.
const TWENTY: Duration = Duration::from_secs(20);
/// Of the VM's pages, the largest step: what is no longer cold shows when the steps before have come back.
const MOST_SHARE: f64 = 0.0075;
const PROBE_PAGES: u64 = 128;
/// Nothing is tried before the VM waits for no more than this part of its budget.
const CALM_DIVISOR: u32 = 4;
/// Of a probe, so much may be read back.
const PROBE_DIVISOR: u64 = 7;
const PAUSE_LEAST: Duration = Duration::from_mins(1);
const PAUSE_MOST: Duration = Duration::from_mins(5);
const MINUTE: Duration = Duration::from_mins(1);
/// Least pages of a step.
const LEAST_PAGES: f64 = 64.0;

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
    /// Pages of the last five minutes.
    reads: Recent<u64>,
    reclaimed: Recent<u64>,
    /// What the VM waits for one page.
    wait: Duration,
}

impl Default for Lru {
    fn default() -> Self {
        Self {
            pacer: Pacer::new(LEAST_PAGES, MOST_SHARE),
            phase: Phase::default(),
            pause: PAUSE_LEAST,
            reads: Recent::new(COLD_WINDOW),
            reclaimed: Recent::new(COLD_WINDOW),
            wait: Duration::ZERO,
        }
    }
}

impl Lru {
    /// The VM read so many pages back, and waited so long for all of them.
    pub fn read_back(&mut self, pages: u64, wait: Duration, now: Monotonic) {
        self.pacer.waited(wait, now);
        self.reads.add(pages, now);
        if pages > 0 {
            self.wait = wait / u32::try_from(pages).unwrap_or(u32::MAX);
        }
    }

    /// So many pages were reclaimed.
    pub fn reclaimed(&mut self, pages: u64, now: Monotonic) {
        self.pacer.sent(pages);
        self.reclaimed.add(pages, now);
    }

    /// So many pages left the first tier for a slower memory tier: they cost no read.
    pub fn demoted(&mut self, pages: u64) {
        self.pacer.sent(pages);
    }

    /// How many of the VM's `pages` to ask for now, of a VM that may wait for `budget` in a minute; at most one step in
    /// `every`.
    pub fn step(&mut self, pages: u64, budget: Duration, every: Duration, now: Monotonic) -> u64 {
        let reads = self.reads.within(MINUTE, now);
        match self.phase {
            Phase::Working => {
                let size = self.pacer.step(pages, budget, every, now);
                let lately = |what: &Recent<u64>| what.within(COLD_WINDOW, now);
                let (read, reclaimed) = (lately(&self.reads), lately(&self.reclaimed));
                if size > 0 && reclaimed >= COLD_LEAST && read * COLD_DIVISOR > reclaimed {
                    return self.rest(now);
                }
                size.min(self.affordable(budget, now))
            }
            // What comes back of the pages before would hide what comes back of a few.
            Phase::Resting { until }
                if now < until || self.pacer.waits_a_minute(now) > budget / CALM_DIVISOR =>
            {
                0
            }
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
                // What was before says nothing of now.
                self.reads.clear();
                self.reclaimed.clear();
                self.pacer.step(pages, budget, every, now)
            }
        }
    }

    /// Pages that may go now, so that what goes within a minute costs no more than is planned.
    fn affordable(&self, budget: Duration, now: Monotonic) -> u64 {
        let lately = self.wait.as_secs_f64() * (self.reads.within(TWENTY, now) * 3) as f64;
        if self.pacer.waits_a_minute(now).as_secs_f64().max(lately) > budget.as_secs_f64() {
            return 0;
        }
        let read_back = |time| {
            let (reads, of) = (self.reads.within(time, now), self.reclaimed.within(time, now));
            (reads + EXPECTED_READS) as f64 / (of + EXPECTED_OF) as f64
        };
        let a_page = self.wait.as_secs_f64() * read_back(COLD_WINDOW).max(read_back(MINUTE));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "pages, any number of them"
        )]
        let a_minute = (budget.as_secs_f64() * PLANNED_SHARE / a_page) as u64;
        a_minute.saturating_sub(self.reclaimed.within(MINUTE, now))
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
