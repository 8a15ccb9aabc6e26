//! Which pages should move, and why. Pure: returns a plan and never acts.
//!
//! In five rules:
//!
//! 1. A page that was idle for long enough goes one tier down. How long is `demote_after`, times 4 for each tier it has
//!    gone down already, scaled by the VM's priority, and doubled for each time the page came back soon after it had
//!    gone. Longest idle first (LRU within the tier), of a block as what went of it before says ([`Verdict`]), and
//!    nothing that is warm ([`HeatHistogram`]).
//! 2. While the first tier has less free than it should, VMs that have more of it than their share ([`shares`])
//!    give what they have in excess after a quarter of that time ([`relief()`]).
//! 3. A page of a lower memory tier that is hot, or warm and getting warmer, goes to the first tier, as long as that
//!    has room.
//! 4. A block that was a huge page and is back in the first tier becomes one again ([`collapses`]).
//! 5. The brakes ([`Governor`], [`Room`], [`Refaults`], [`Stalls`]) say how much may go down in a second, down to
//!    nothing.
//!
//! Staging is proposed by `predict`; [`Step`] and [`Reason`] serve both.
//!
//! # Limits
//! A page that stays mapped shows no accesses to this policy, but for VMs whose pages are armed anew in rounds: of
//! each block a few go to swap to find out, and what comes back soon is left alone for longer and longer. In a lower
//! memory tier no page comes back by itself: there the third rule needs a source that sees accesses to mapped pages.

mod brakes;
mod collapse;
mod demote;
mod evidence;
mod free;
mod heat;
mod longest_idle;
mod old;
mod promote;
mod quota;
mod refaults;
mod relief;
mod returns;
mod room;
mod rules;
mod shared_group;
mod stalls;
mod tier_load;

use std::fmt;
use std::time::Duration;

pub use brakes::{Brake, Governor, Limited, Load, MOST, Pace, Rate, STEP};
pub use collapse::collapses;
pub use demote::demotions;
pub use evidence::{Evidence, Verdict};
pub use free::FreeSpace;
pub use heat::{Bands, HeatHistogram};
pub use promote::promotions;
pub use quota::{Claim, Waits, shares, weight};
pub use refaults::{Refaults, TooMany};
pub use relief::{Holding, Relief, relief};
pub use returns::note_return;
pub use room::{GroupLimit, Room};
pub use rules::{Held, Rules, cooling_epoch};
pub use shared_group::{GroupReading, SharedGroup, SharedGroups};
pub use stalls::{Stall, StallSource, Stalls, Waited};
pub use tier_load::{TierLoad, fault_wait};

use crate::tiermap::PageIndex;
use crate::tiers::TierId;
use crate::track::VmId;

/// Pages of one VM that should move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub vm: VmId,
    pub action: Action,
    /// Ascending, but for what goes to swap: that goes in the order in which it stands here.
    pub pages: Vec<PageIndex>,
    pub reason: Reason,
}

/// What should be done with the pages of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// To this tier, from wherever they are; in a memory tier they are mapped.
    Place { to: TierId },
    /// Made into huge pages again: the pages are whole blocks.
    Collapse,
    /// From swap into this memory tier ahead of need, not mapped, so that the first touch is seen.
    Stage { to: TierId },
    /// What was staged is mapped too: the first touch is no fault, or under KVM a short one.
    MapStaged,
    /// Staged pages that were not used go back to where they came from. Whether the agent had mapped them.
    DropStage { mapped: bool },
    /// Copies that page-outs left in the swap cache are freed.
    Free,
}

/// Why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Not accessed for at least this long.
    Idle(Duration),
    /// Accessed in a lower memory tier.
    AccessedThere,
    /// They were huge pages, and are in the first tier again.
    WereHuge,
    /// The same VM touched it right after a page it touched now.
    FollowedLastTime,
    /// The same VM touched it a period ago.
    TouchedLastPeriod,
    /// Another VM of its tenant touched the page at the same guest-physical address.
    TouchedElsewhere,
    /// Another VM of its tenant touched a page of the same content.
    ContentTouchedElsewhere,
    /// Another VM of its tenant touched what corresponds to it, right after what this one touched now.
    FollowedElsewhere,
    /// It comes after a page that the same VM touched, in the order of addresses.
    Readahead,
    /// Another VM of its tenant touched what corresponds to it, which was not always right.
    MayBeTouched,
    /// Brought up ahead of need and not touched before the deadline.
    NotUsedInTime,
    /// Paged out, and it did not come back.
    StayedAway,
    /// An operator asked for it.
    Operator,
}

/// What a priority multiplies by: 1/2 for 0, 1 for 50, 2 for 100.
fn priority_scale(priority: u8) -> f64 {
    f64::exp2((f64::from(priority.min(100)) - 50.0) / 50.0)
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle(time) => write!(f, "idle for {} s or more", time.as_secs()),
            Self::AccessedThere => f.write_str("accessed in a lower memory tier"),
            Self::WereHuge => f.write_str("was huge before it went down"),
            Self::FollowedLastTime => f.write_str("touched next, last time"),
            Self::TouchedLastPeriod => f.write_str("touched a period ago"),
            Self::TouchedElsewhere => f.write_str("another VM touched the same page"),
            Self::ContentTouchedElsewhere => f.write_str("another VM touched the same content"),
            Self::FollowedElsewhere => f.write_str("another VM touched it next"),
            Self::Readahead => f.write_str("after a page that it touched, by address"),
            Self::MayBeTouched => f.write_str("another VM touched it, which may mean little"),
            Self::NotUsedInTime => f.write_str("staged and not used in time"),
            Self::StayedAway => f.write_str("paged out, and did not come back"),
            Self::Operator => f.write_str("an operator asked for it"),
        }
    }
}
