//! Which pages should move, and why. Pure: returns a plan and never acts.
//!
//! The first policy, in four rules:
//!
//! 1. A page that was idle for long enough goes one tier down. How long is `demote_after`, times 4 for each tier
//!    it has gone down already, scaled by the machine's priority, and doubled for each time the page came back soon
//!    after it had gone. Longest idle first (LRU within the tier).
//! 2. While less than `free_target` of the first tier is free, a quarter of that is long enough there.
//! 3. While memory stalls (PSI) exceed `psi_limit`, nothing goes down.
//! 4. A page of a lower memory tier that was accessed there goes to the first tier, as long as that has room.
//!
//! Staging is proposed by `predict`; [`Step`] and [`Reason`] serve both.
//!
//! # Limits
//! A page that stays mapped shows no accesses to this policy: it is demoted once to find out, and what comes back
//! soon is left alone for longer and longer. In a lower memory tier no page comes back by itself: there the fourth rule
//! needs a source that sees accesses to mapped pages.

mod demote;
mod promote;

use std::fmt;
use std::time::Duration;

pub use demote::{Rules, backoff_after_return, demotions};
pub use promote::promotions;

use crate::tiermap::PageIndex;
use crate::tiers::TierId;
use crate::track::VmId;

/// Pages of one virtual machine that should move, in ascending order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub vm: VmId,
    pub action: Action,
    pub pages: Vec<PageIndex>,
    pub reason: Reason,
}

/// What should be done with the pages of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// To this tier, from wherever they are; in a memory tier they are mapped.
    Place { to: TierId },
    /// Into memory ahead of need, not mapped, so that the first touch is seen.
    Stage,
    /// Staged pages that were not used go back to where they came from.
    DropStage,
}

/// Why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Not accessed for at least this long.
    Idle(Duration),
    /// Accessed in a lower memory tier.
    AccessedThere,
    /// The same machine touched it right after a page it touched now.
    FollowedLastTime,
    /// Another machine of its tenant touched the page at the same guest-physical address.
    TouchedElsewhere,
    /// Another machine of its tenant touched a page of the same content.
    ContentTouchedElsewhere,
    /// Brought up ahead of need and not touched before the deadline.
    NotUsedInTime,
    /// An operator asked for it.
    Operator,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle(time) => write!(f, "idle for {} s or more", time.as_secs()),
            Self::AccessedThere => f.write_str("accessed in a lower memory tier"),
            Self::FollowedLastTime => f.write_str("touched next, last time"),
            Self::TouchedElsewhere => f.write_str("another machine touched the same page"),
            Self::ContentTouchedElsewhere => f.write_str("another machine touched the same content"),
            Self::NotUsedInTime => f.write_str("staged and not used in time"),
            Self::Operator => f.write_str("an operator asked for it"),
        }
    }
}
