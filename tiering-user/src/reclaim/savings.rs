//! How much memory is saved, how lasting that is, and how much more can be freed.
//!
//! In: what is free of a VM, time and again ([`FreeHistory`]); how old the kernel says its pages are; what came
//! of pages that were paged out to see whether they are used ([`Tried`]). Out: an [`Estimate`] with its source and its
//! bounds, or why there is none and what would make one possible. Never a figure without a source.
//!
//! The source is the first of these that says something:
//!
//! 1. *Page ages* of the kernel ([`Idle`]): pages that were idle for long enough when the kernel last looked.
//! 2. Where the kernel chooses the pages: that it found nothing cold, as what was read back says.
//! 3. *Pages tried*: of the blocks (2 MiB) of which pages went out, the share that stayed away. It is extended to the
//!    memory of which nothing was tried. Pages of a block come back together, and blocks beside each other are alike.
//!    So the bounds (Wilson's interval, 95 %) count blocks instead of pages, and no more of them than the differences
//!    between zones (64 MiB) bear out.
//!
//! # Limits
//! Something must have been tried in half of the zones: which pages go first is no sample. What was tried was longest
//! idle: the rest may be warmer, which no bound takes in. What a VM will do differently
//! tomorrow is in none of them. Room in swap and limits of control groups are not looked at.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::sys::Monotonic;
use crate::tiermap::BLOCK_PAGES;
use crate::vm::Idle;

/// How long memory must have been free before others may have it.
pub const REUSABLE_AFTER: Duration = Duration::from_hours(24);
/// Where the kernel has not looked at page ages for so long, they say too little of now.
pub const STALE: Duration = Duration::from_hours(1);
/// One minimum is kept for so long.
const SLOT: Duration = Duration::from_mins(15);
/// Blocks of 2 MiB of which something must have been tried.
const LEAST_BLOCKS: u32 = 8;
/// Of the zones that a VM has touched, one in so many must have been tried.
const COVERED_DIVISOR: u64 = 2;
/// Blocks of a zone.
const ZONE_BLOCKS: u32 = 32;
/// Of a block of which less than one page in so many stayed, the agent leaves the rest alone.
const STAYED_DIVISOR: u32 = 4;
/// Bounds hold in 95 of 100 cases.
const Z: f64 = 1.96;

/// How much was free, at the least, in each quarter of an hour.
#[derive(Clone, Debug, Default)]
pub struct FreeHistory {
    since: Option<Monotonic>,
    /// Number of the quarter, and the least bytes in it.
    least: VecDeque<(u64, u64)>,
}

impl FreeHistory {
    /// So much is free now.
    pub fn note(&mut self, bytes: u64, now: Monotonic) {
        self.since.get_or_insert(now);
        let slot = slot(now);
        match self.least.back_mut() {
            Some((at, least)) if *at == slot => *least = bytes.min(*least),
            _ => self.least.push_back((slot, bytes)),
        }
        while self.least.front().is_some_and(|(at, _)| !reaches_into(*at, REUSABLE_AFTER, now)) {
            self.least.pop_front();
        }
    }

    /// What was free through all of the last `time`, or since it is known.
    pub fn through(&self, time: Duration, now: Monotonic) -> u64 {
        let within = self.least.iter().filter(|(at, _)| reaches_into(*at, time, now));
        within.map(|(_, least)| *least).min().unwrap_or(0)
    }

    /// How much of the last 24 hours is known.
    pub fn known(&self, now: Monotonic) -> Duration {
        self.since.map_or(Duration::ZERO, |since| now.since(since)).min(REUSABLE_AFTER)
    }
}

fn slot(at: Monotonic) -> u64 {
    at.0 / (SLOT.as_nanos() as u64)
}

/// Whether a slot ends within the last `time`.
fn reaches_into(slot: u64, time: Duration, now: Monotonic) -> bool {
    Monotonic((slot + 1) * SLOT.as_nanos() as u64).after(time) > now
}

/// What came of the pages of a VM that went out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tried {
    /// By zone: blocks, and the sum of the shares that stayed.
    zones: BTreeMap<u32, (f64, f64)>,
    blocks: u32,
    /// Pages of these blocks that were not tried, and of them those that should stay too.
    rest_pages: f64,
    rest_cold: f64,
    /// Tried pages that came back.
    back_pages: u64,
    /// Pages that were not tried, of blocks that are being tried.
    open_pages: u64,
}

impl Tried {
    /// Of a block that is being tried, of which nothing is concluded yet, so many pages went out and are away.
    pub fn add_open(&mut self, tried: u32, away: u32) {
        self.back_pages += u64::from(tried.saturating_sub(away));
        self.open_pages += u64::from(BLOCK_PAGES.saturating_sub(tried));
    }

    /// Of a block so many pages went out since it is known, of which `away` are away, and have been for a while.
    pub fn add(&mut self, block: u32, tried: u32, away: u32) {
        self.back_pages += u64::from(tried.saturating_sub(away));
        if tried == 0 {
            return;
        }
        let share = f64::from(away) / f64::from(tried);
        let (blocks, stayed) = self.zones.entry(block / ZONE_BLOCKS).or_default();
        *blocks += 1.0;
        *stayed += share;
        self.blocks += 1;
        let rest = f64::from(BLOCK_PAGES.saturating_sub(tried));
        self.rest_pages += rest;
        if away * STAYED_DIVISOR >= tried {
            self.rest_cold += rest * share;
        }
    }

    /// The share that stayed, and for how many independent blocks it stands.
    fn share(&self) -> (f64, f64) {
        let blocks = f64::from(self.blocks).max(1.0);
        let share = self.zones.values().map(|(_, stayed)| stayed).sum::<f64>() / blocks;
        let zones = self.zones.len() as f64;
        let squares = |(blocks, stayed): &(f64, f64)| (stayed - share * blocks).powi(2);
        let spread: f64 = self.zones.values().map(squares).sum();
        let variance = spread / blocks.powi(2) * zones / (zones - 1.0).max(1.0);
        let of_one = share * (1.0 - share);
        let effective = match () {
            // How alike the blocks of a zone are does not show.
            () if zones < 2.0 || of_one < 1e-9 => zones,
            () if variance > 0.0 => of_one / variance,
            () => blocks,
        };
        (share, effective.clamp(zones.min(blocks), blocks))
    }
}

/// Wilson's interval for a share that was found in so many cases.
fn wilson(share: f64, cases: f64) -> (f64, f64) {
    let z2 = Z * Z;
    let centre = (share + z2 / (2.0 * cases)) / (1.0 + z2 / cases);
    let half = Z / (1.0 + z2 / cases) * (share * (1.0 - share) / cases + z2 / (4.0 * cases * cases)).sqrt();
    ((centre - half).max(0.0), (centre + half).min(1.0))
}

/// Who chooses which pages leave memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chooser {
    /// Nobody: nothing is touched.
    DryRun,
    Agent,
    Kernel {
        /// What it takes comes back.
        found_no_cold: bool,
    },
}

/// What is known of one VM.
#[derive(Clone, Debug)]
pub struct Facts {
    pub in_memory_pages: u64,
    /// Those, and what is in swap.
    pub touched_pages: u64,
    /// Accessed within the least idle time, as far as that was seen.
    pub in_use_pages: u64,
    /// Copies in the swap cache: in memory, and as good as free.
    pub copied_pages: u64,
    /// Why its pages are not moved to swap, if so.
    pub not_moved: Option<String>,
    /// What the kernel says of page ages, or why it says nothing.
    pub ages: Result<Idle, String>,
    pub chooser: Chooser,
    pub tried: Tried,
}

/// From what an estimate follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    PageAges,
    Tried,
    /// What the kernel reclaimed came back.
    ReadBack,
    /// Its pages are not moved.
    NotMoved,
}

/// Pages that can be freed, beyond those that are.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    pub source: Source,
    pub expected_pages: u64,
    /// None where the source gives no bound.
    pub lower_pages: Option<u64>,
    pub upper_pages: Option<u64>,
    /// What it follows from, in words.
    pub detail: String,
}

/// How much more of a VM can be freed.
///
/// # Errors
/// Why that is not known, and what would make it known.
pub fn estimate(facts: &Facts) -> Result<Estimate, String> {
    if let Some(why) = &facts.not_moved {
        return Ok(Estimate {
            source: Source::NotMoved,
            expected_pages: 0,
            lower_pages: Some(0),
            upper_pages: Some(0),
            detail: format!("its pages do not go to swap: {why}"),
        });
    }
    let no_ages = match &facts.ages {
        Ok(idle) if idle.is_known => return Ok(by_ages(facts, idle)),
        Ok(idle) if idle.watched.is_zero() => {
            "the kernel has not looked at their ages yet, which it does when it reclaims memory".to_owned()
        }
        Ok(idle) => format!(
            "the kernel last looked at their ages {} s ago, and watched them for {} s, which says too little",
            idle.looked_ago.as_secs(),
            idle.watched.as_secs()
        ),
        Err(why) => why.clone(),
    };
    let zones = facts.tried.zones.len() as u64;
    let all_zones = facts.touched_pages.div_ceil(u64::from(ZONE_BLOCKS * BLOCK_PAGES));
    match facts.chooser {
        Chooser::DryRun => Err(format!("a dry run tries no pages, and {no_ages}")),
        Chooser::Kernel { found_no_cold: true } => Ok(Estimate {
            source: Source::ReadBack,
            expected_pages: 0,
            lower_pages: Some(0),
            upper_pages: None,
            detail: "of what the kernel reclaimed lately, too much was read back".to_owned(),
        }),
        Chooser::Kernel { found_no_cold: false } => Err(format!(
            "the kernel chooses the pages, and {no_ages}; what becomes free in the next hours will show it"
        )),
        Chooser::Agent if facts.tried.blocks < LEAST_BLOCKS => Err(format!(
            "pages of {} blocks of 2 MiB were tried so far, {LEAST_BLOCKS} are needed, which takes minutes; and \
             {no_ages}",
            facts.tried.blocks
        )),
        // Blocks go out in the order of their addresses where nothing else tells them apart: the first are no sample.
        Chooser::Agent if zones * COVERED_DIVISOR < all_zones => Err(format!(
            "pages were tried in {zones} of {all_zones} zones of 64 MiB so far, half are needed, which takes minutes; \
             and {no_ages}"
        )),
        Chooser::Agent => Ok(by_tried(facts)),
    }
}

fn by_ages(facts: &Facts, idle: &Idle) -> Estimate {
    let without_copies = |pages: u64| pages.saturating_sub(facts.copied_pages).min(facts.in_memory_pages);
    Estimate {
        source: Source::PageAges,
        expected_pages: without_copies(idle.pages),
        // What was accessed since the kernel looked does not show.
        lower_pages: None,
        upper_pages: Some(without_copies(idle.most_pages)),
        detail: format!(
            "idle when the kernel last looked at page ages (MGLRU), {} s ago",
            idle.looked_ago.as_secs()
        ),
    }
}

fn by_tried(facts: &Facts) -> Estimate {
    let tried = &facts.tried;
    let (share, cases) = tried.share();
    let (lower, upper) = wilson(share, cases);
    // Pages in use are those that came back, and those that were seen; how far these are the same is not known.
    let (most_used, least_used) =
        (facts.in_use_pages.saturating_add(tried.back_pages), facts.in_use_pages.max(tried.back_pages));
    let extended = |used: u64, share_of_new: f64, scale: f64| {
        let all = facts.in_memory_pages.saturating_sub(used) as f64;
        let of_blocks = tried.rest_pages.min(all);
        let cold = tried.rest_cold / tried.rest_pages.max(1.0);
        let pages = of_blocks * (cold * scale).min(1.0) + (all - of_blocks) * share_of_new;
        whole(pages).min(facts.in_memory_pages)
    };
    let scale = |bound: f64| if share > 0.0 { bound / share } else { 1.0 };
    Estimate {
        source: Source::Tried,
        // What is being tried is not claimed: it may be tried again because it came back before.
        expected_pages: extended(least_used + tried.open_pages, share, 1.0),
        lower_pages: Some(extended(most_used + tried.open_pages, lower, scale(lower))),
        upper_pages: Some(extended(least_used, upper, scale(upper))),
        detail: format!(
            "of {} blocks of 2 MiB of which pages went out, {:.0} % stayed; being alike, they count as {:.0} blocks",
            tried.blocks,
            share * 100.0,
            cases
        ),
    }
}

#[expect(clippy::cast_sign_loss, reason = "shares of pages are not negative")]
fn whole(pages: f64) -> u64 {
    pages.round() as u64
}

#[cfg(test)]
#[path = "savings_tests.rs"]
mod tests;
