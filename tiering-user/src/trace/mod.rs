//! What happened to the memory of VMs, as a file: recorded once, replayed as often as one likes.
//!
//! In: events, in the order in which the agent took them in. Out: a stream of blocks, and from such a stream the same
//! events. A block says everything anew but which VMs there are, so that one which is lost costs what is in it and
//! no more. Contents of pages, and what follows from them, are never in a trace. docs/replay.md has the format.

mod block;
mod reader;

pub use block::{BLOCK_BYTES, Block, MAGIC};
pub use reader::{Reader, TraceError};

use crate::sys::Monotonic;
use crate::tiermap::{PageRun, Place};
use crate::track::VmId;
use crate::vm::Usage;

/// A VM as it was when it appeared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appeared {
    pub vm: VmId,
    pub name: String,
    /// Pages of its RAM.
    pub pages: u32,
    /// 0 to 100.
    pub priority: u8,
    /// Tiers that are memory, from the first on; all others are swap.
    pub node_tiers: u8,
}

/// What happened. Of every VM [`Event::Appeared`] comes before anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Appeared(Appeared),
    Gone(VmId),
    /// A page was accessed, so many times of which this one was looked at: 2 to the power of `weight_log2`.
    Accessed {
        vm: VmId,
        page: u32,
        write: bool,
        weight_log2: u8,
    },
    /// Pages were found there when the recording of their VM began.
    Found {
        vm: VmId,
        run: PageRun,
        place: Place,
    },
    /// Pages were moved there by the agent.
    Moved {
        vm: VmId,
        run: PageRun,
        place: Place,
    },
    /// From here on the first access to each mapped page shows again.
    Armed(VmId),
    /// What its process had used by then, where it tells: when the recording of the VM begins, and whenever an epoch of
    /// its profile ends.
    Used {
        vm: VmId,
        usage: Option<Usage>,
    },
    /// So many accesses were not recorded, as whoever reads the stream was too slow.
    Lost(u64),
}

/// With the time, to the microsecond.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timed {
    pub time: Monotonic,
    pub event: Event,
}
