//! Carries steps out, and reports what really happened.
//!
//! Lanes, each a thread of its own that takes one [`Job`] at a time:
//!
//! - the *mover* owns the swap tiers, pages out and moves pages between memory tiers;
//! - the *stager* brings pages up ahead of need, so that staging does not wait behind a slow page-out;
//! - the *mapper* waits until staged pages are read, and maps them or sends them back;
//! - the *freer* frees copies of what was paged out;
//! - the *reclaimer* has the kernel reclaim memory of a VM's own control group.
//!
//! They look once more whether the VM may be touched (the stager and the mapper ten times a second), act, read back
//! where the pages are, and send an [`Outcome`]. Nothing here decides.
//!
//! Of a batch that moves, the checks before it share one read of the page tables ([`page_states::PageStates`]), and one
//! more follows each try. Moves between memory tiers also read before each try.

mod bring_up;
mod collapse;
mod drain;
mod existing;
mod group_reclaim;
mod homes;
mod huge;
mod lanes;
mod later;
mod limits;
mod memory;
mod node_reclaim;
mod page_states;
mod read_ahead;
mod recent;
mod stage;
mod swap;
mod tags;
mod target;

pub use group_reclaim::{NoReclaim, Reclaimed};
pub use homes::Homes;
pub use lanes::{Busy, Done, Job, Lanes, NowAt};
pub use memory::room_bytes;
pub use node_reclaim::Order;
pub use read_ahead::read_ahead;
pub use target::{Outcome, Roots, Skip, Target, VmInfo};
