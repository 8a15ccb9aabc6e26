//! Swap files and devices, and the guarantee that a page-out lands in the one that was chosen, as far as a stock kernel
//! can give it.
//!
//! In: the swap tiers of the [`Ladder`](super::Ladder) and `/proc/swaps`. Out: files made and switched on as they are
//! needed ([`SwapTiers`]), which area is whose ([`Areas`]), and everything gone again when a tier is drained.

pub(super) mod area;
mod claim;
mod cover;
mod device;
mod error;
mod files;
mod folder;
mod growing;
mod header;
mod leaving;
mod numbers;
mod opening;
mod order;
mod passage;
mod proc_swaps;
mod read_back;
mod segments;
mod tiers;

pub use area::AreaError;
pub(super) use device::open_probe;
pub use error::{DeviceError, SwapError};
pub use opening::{areas_of_others, check_tier};
pub use order::BASE_PRIORITY;
pub use passage::Passage;
pub use proc_swaps::{SwapLine, read as read_proc_swaps};
pub use segments::{Area, Areas};
pub use tiers::SwapTiers;
