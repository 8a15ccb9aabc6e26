//! The ladder of tiers: the memory nodes of its upper rungs, and the swap files that make up its lower ones.
//!
//! In: the configuration, `/proc/swaps`, and the memory nodes in `/sys`. Out: which tiers there are ([`Ladder`]), how full
//! each is, which node tier a frame belongs to ([`Nodes`]), and for
//! a page-out the guarantee, as far as a stock kernel can give one, that it lands in the tier that was chosen
//! ([`SwapTiers::aim`]). Does not decide which page goes where.

mod area;
mod budget;
mod header;
mod ladder;
mod nodes;
mod numbers;
mod plug;
mod proc_swaps;
mod segments;
mod swap_tiers;

pub use area::{AreaError, check_folder};
pub use budget::WriteBudget;
pub use ladder::{Ladder, NodeTiers, Tier, TierId, TierKind};
pub use nodes::{NodeError, NodeMemory, Nodes, check_nodes};
pub use proc_swaps::{SwapLine, read as read_proc_swaps};
pub use segments::{Area, Areas, BASE_PRIORITY};
pub use swap_tiers::{SwapError, SwapTiers};
