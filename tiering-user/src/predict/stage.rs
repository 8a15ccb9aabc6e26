//! One page brought up ahead of need, and the counts of many.

use std::ops::AddAssign;

use super::{Foreseen, Origin};
use crate::sys::Monotonic;
use crate::tiermap::PageIndex;
use crate::tiers::TierId;

/// One page that is brought up ahead of need.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub page: PageIndex,
    pub origin: Origin,
    /// When what predicted it happened.
    pub predicted: Monotonic,
    /// Into this tier.
    pub to: TierId,
    /// Which is memory, not a faster swap tier.
    pub in_memory: bool,
}

/// A page on its way, or up and not touched yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stage {
    pub request: Request,
    pub requested: Monotonic,
    pub done: Option<Monotonic>,
    /// How likely it was thought to be used.
    pub confidence: f64,
    /// The try of its origin.
    pub attempt: u32,
    /// It is mapped, or is to be: its first touch is no fault any more, and seen all the same.
    pub mapped: bool,
}

impl Stage {
    /// When it is wasted, if nothing touches it before.
    pub(super) fn deadline(&self) -> Monotonic {
        self.requested.after(self.request.origin.patience())
    }
}

/// A stage that ended by a touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    pub origin: Origin,
    pub in_time: bool,
    /// Where the page is.
    pub tier: TierId,
}

/// Pages in memory whose stages ended without a touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wasted {
    pub unmapped: Vec<PageIndex>,
    pub mapped: Vec<PageIndex>,
    /// Mapped, and perhaps in use: their touches would not have been seen.
    pub in_use: Vec<PageIndex>,
}

/// Totals, pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageCounts {
    pub issued: u64,
    pub used: u64,
    pub wasted: u64,
    /// Of `used`: touched before the stage was done.
    pub late: u64,
    /// Mapped before they were touched.
    pub mapped: u64,
    /// Brought to a faster swap tier only.
    pub lifted: u64,
}

impl AddAssign for StageCounts {
    fn add_assign(&mut self, other: Self) {
        self.issued += other.issued;
        self.used += other.used;
        self.wasted += other.wasted;
        self.late += other.late;
        self.mapped += other.mapped;
        self.lifted += other.lifted;
    }
}

/// What is known of one origin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OriginCounts {
    pub counts: StageCounts,
    /// Probability that a page staged for this will be used.
    pub confidence: f64,
    pub window: u32,
    /// Of what was not staged for it.
    pub foreseen: Foreseen,
}
