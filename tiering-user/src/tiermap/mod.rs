//! The mapping table: for every page of every VM, in which tier it is and how warm.
//!
//! In: accesses, outcomes of moves, and sweeps of the page tables. Out: look-ups by page, counts per tier, and walks
//! for the policy. Four bytes a page, allocated for each 2 MiB block of which some page is in memory or in swap. Frames
//! and swap slots go stale, so they are read when asked for and not kept here.
//!
//! # Limits
//! Between a change in the kernel and the access, outcome or sweep that tells of it, the table is behind. Every
//! move is therefore read back, and `tiering map` sweeps first.

mod apply;
mod block;
mod by_block;
mod digest;
mod dirty;
mod entry;
mod freshness;
mod layout;
mod places;
mod shared_file;
mod sparse;
mod summary;
mod sweep;
mod table;
#[cfg(test)]
mod tests;

pub use block::BlockInfo;
pub use digest::{HEAT_BINS, heat_bin};
pub use entry::{BACKOFF_MAX, IDLE_CAP, PageEntry, Place, Seconds};
pub use layout::{BLOCK_PAGES, Layout, PageIndex, PageRun, into_runs};
pub use places::Places;
pub use shared_file::SharedFile;
pub use sparse::Sparse;
pub use summary::{BlockSummary, Habit};
pub use sweep::{Sweep, is_huge, part, sweep, written};
pub use table::{PlaceCounts, Touch, VmPages};
