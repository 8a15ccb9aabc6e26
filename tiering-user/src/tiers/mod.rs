//! The ladder of tiers, and the swap files that make up its lower rungs.
//!
//! In: the configuration and `/proc/swaps`. Out: which tiers there are ([`Ladder`]), how full each is, and for
//! a page-out the guarantee, as far as a stock kernel can give one, that it lands in the tier that was chosen
//! ([`SwapTiers::aim`]). Does not decide which page goes where.

mod area;
mod budget;
mod header;
mod ladder;
mod numbers;
mod plug;
mod proc_swaps;
mod segments;
mod swap_tiers;

pub use area::{AreaError, check_folder};
pub use budget::WriteBudget;
pub use ladder::{Ladder, SecondNodeTier, Tier, TierId, TierKind};
pub use proc_swaps::{SwapLine, read as read_proc_swaps};
pub use segments::{Area, Areas, BASE_PRIORITY};
pub use swap_tiers::{SwapError, SwapTiers};
