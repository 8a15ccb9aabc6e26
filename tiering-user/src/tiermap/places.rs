//! From pagemap entries to places.
//!
//! In: which swap areas and which memory nodes belong to which tier. Out: the place that an entry names.
//!
//! # Limits
//! Where pagemap shows no frame numbers (without CAP_SYS_ADMIN), all that is in memory is in the first tier.

use super::entry::Place;
use crate::sys::PageState;
use crate::tiers::{Areas, Nodes, TierId};

/// What is needed to tell in which tier a page is; shared by everyone who reads pagemap.
#[derive(Clone, Debug, Default)]
pub struct Places {
    pub areas: Areas,
    pub nodes: Nodes,
}

impl Places {
    /// The place that a pagemap entry names.
    pub fn of(&self, state: PageState) -> Place {
        match state {
            PageState::Absent | PageState::Zero => Place::Untouched,
            PageState::Present { pfn } => Place::In(self.nodes.tier_of(pfn).unwrap_or(TierId(0))),
            PageState::Swapped { area, .. } => self.areas.tier_of(area).map_or(Place::OtherSwap, Place::In),
        }
    }

    /// Whether a page in this place is in memory, so that its use makes nobody wait.
    pub fn in_memory(&self, place: Place) -> bool {
        matches!(place, Place::In(tier) if self.nodes.tiers().contains(tier))
    }
}
