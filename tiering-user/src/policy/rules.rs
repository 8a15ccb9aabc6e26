//! What the policy goes by for one VM at one moment: how long a page must be idle, what keeps it in the first tier all
//! the same, and after how long heat cools. Pure.

use std::fmt;
use std::time::Duration;

use super::evidence::Verdict;
use super::heat::Bands;
use super::priority_scale;
use crate::tiermap::{IDLE_CAP, PageEntry, Seconds, VmPages};
use crate::tiers::TierId;

/// The table cannot tell longer idle times apart.
const IDLE_MOST: Duration = Duration::from_secs(IDLE_CAP as u64);
/// How much longer a page must be idle for each tier it is further down.
const LEVEL_FACTOR: u32 = 4;
/// How much sooner pages go while the first tier has too little free.
const PRESSURE_DIVISOR: u32 = 4;
/// An epoch, over which accesses are counted: this many times the least idle time, within these bounds.
const EPOCH_FACTOR: u32 = 2;
const EPOCH_LEAST: Duration = Duration::from_secs(1);
const EPOCH_MOST: Duration = Duration::from_mins(10);

/// What the policy goes by for one VM at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Least idle time in the first tier, before scaling.
    pub demote_after: Duration,
    /// 0 to 100; 50 is neutral, 100 doubles the idle time, 0 halves it.
    pub priority: u8,
    /// Pages of the first tier beyond the VM's share of it, while the tier has less free than it should.
    pub excess_pages: u64,
    pub bands: Bands,
    /// Since when the first access to each mapped page shows; none where it does not.
    pub armed_at: Option<Seconds>,
    /// Huge pages do not go to swap.
    pub keep_huge: bool,
}

#[cfg(test)]
impl Rules {
    /// Of a VM like any other, on a host with room.
    pub(super) const ORDINARY: Self = Self {
        demote_after: Duration::from_secs(10),
        priority: 50,
        excess_pages: 0,
        bands: Bands::ROOMY,
        armed_at: None,
        keep_huge: false,
    };
}

/// Why a page that is idle for long enough stays in the first tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Its heat says that it is used now and then.
    Warm,
    /// It was accessed since its VM's pages were armed, and would show no access after that.
    MayBeInUse,
    /// Others of its block went out a moment ago, and it is not known yet whether they come back.
    NotJudgedYet,
    /// Most of its block that went out came back soon.
    BlockInUse,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Warm => "it is warm",
            Self::MayBeInUse => {
                "it may be in use: it was accessed in the present round of watching, which shows first accesses only"
            }
            Self::NotJudgedYet => "others of its block went out a moment ago, to see whether they come back",
            Self::BlockInUse => "its block is in use: most of it that went out came back soon",
        })
    }
}

impl Rules {
    /// Least idle time of a page before it leaves the tier at `level`.
    pub fn least_idle(&self, level: u8, backoff: u32) -> Duration {
        let factor = LEVEL_FACTOR.saturating_pow(level.into()).saturating_mul(1 << backoff);
        let base = self.demote_after.min(IDLE_MOST).mul_f64(priority_scale(self.priority));
        base.saturating_mul(factor).min(IDLE_MOST)
    }

    /// Whether huge pages of `pages` stay where they are rather than go to the tier `to`.
    pub fn keeps_huge(&self, pages: &VmPages, to: TierId) -> bool {
        self.keep_huge && !pages.node_tiers().contains(to)
    }

    /// What keeps a page of the first tier there although it is old enough, if something does. `verdict` is that on its
    /// block, if it would go to swap.
    pub fn held(&self, entry: PageEntry, verdict: Option<Verdict>, now: Seconds) -> Option<Held> {
        match verdict {
            _ if self.is_warm(entry) => Some(Held::Warm),
            _ if self.may_be_in_use(entry, now) => Some(Held::MayBeInUse),
            Some(Verdict::Open) => Some(Held::NotJudgedYet),
            Some(Verdict::InUse) => Some(Held::BlockInUse),
            Some(Verdict::Unknown | Verdict::Calm) | None => None,
        }
    }

    /// The same where the tier at `level` is short of room and the VM has more of it than its share.
    pub(super) fn least_idle_under_pressure(&self, level: u8, backoff: u32) -> Duration {
        let least = self.least_idle(level, backoff);
        if self.excess_pages > 0 && level == 0 { least / PRESSURE_DIVISOR } else { least }
    }

    /// Whether a page is too warm to leave the first tier.
    pub(super) fn is_warm(&self, entry: PageEntry) -> bool {
        let from = if self.excess_pages > 0 { self.bands.hot_from } else { self.bands.warm_from };
        entry.heat() >= from
    }

    /// Pages in memory that were accessed within this time may be in use: accesses since then may not have shown.
    pub fn in_use_within(&self, now: Seconds) -> Duration {
        self.armed_at
            .map_or(Duration::ZERO, |at| Duration::from_secs(u64::from(now.0.wrapping_sub(at.0)) + 1))
    }

    /// Whether a page in memory may have been accessed since its last access that showed.
    pub fn may_be_in_use(&self, entry: PageEntry, now: Seconds) -> bool {
        self.armed_at.is_some_and(|at| entry.idle(now) <= now.0.wrapping_sub(at.0))
    }
}

/// After how long heat cools, where accesses show all the time.
pub fn cooling_epoch(rules: &Rules) -> Duration {
    (rules.least_idle(0, 0) * EPOCH_FACTOR).clamp(EPOCH_LEAST, EPOCH_MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules::ORDINARY;

    #[test]
    fn priority_and_tier_scale_the_idle_time() {
        let least = |priority, level| Rules { priority, ..RULES }.least_idle(level, 0).as_secs_f64();
        assert!((least(100, 0) - 20.0).abs() < 1e-9);
        assert!((least(0, 0) - 5.0).abs() < 1e-9);
        assert!((least(50, 1) - 40.0).abs() < 1e-9);
    }
}
