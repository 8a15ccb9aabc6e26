//! The ladder of tiers: the memory nodes of its upper rungs, and the swap files or the device of its
//! lower ones.
//!
//! In: the configuration, `/proc/swaps`, and the memory nodes in `/sys`. Out: which tiers there are ([`Ladder`]), how
//! full each is, which node tier a frame belongs to ([`Nodes`]), and for a page-out the guarantee, as far as a stock
//! kernel can give one, that it lands in the tier that was chosen ([`SwapTiers::aim`]). And what the host and a short
//! measurement say of each tier's speed ([`Facts`], [`measure()`]), what contradicts the order ([`verify()`]), and a
//! ladder for a configuration without one ([`propose_here`]). Does not decide which page goes where.

mod budget;
mod candidates;
mod demotion;
mod device_layout;
mod device_load;
mod disk_facts;
mod facts;
mod ladder;
mod latencies;
mod measure;
mod node_facts;
mod nodes;
mod probe_file;
mod prober;
mod propose;
mod swap;
mod verify;

pub use budget::{Budget, SpentToday};
pub use candidates::Candidate;
pub use demotion::Demotion;
pub use device_load::{DeviceLoad, DeviceLoads, DiskStat};
pub use disk_facts::{Disk, DiskFacts};
pub use facts::Facts;
pub use ladder::{Ladder, NodeTiers, SwapPlace, Tier, TierId, TierKind};
pub use latencies::{Latencies, Quantiles};
pub use measure::{Measured, Measurement, NotMeasured, measure};
pub use node_facts::{Hmat, KernelMoves, Nearest, NodeFacts, kernel_moves, node_facts};
pub use nodes::{NodeError, NodeMemory, Nodes, check_nodes};
pub use prober::{Probe, Prober, Speed, Speeds};
pub use propose::{Proposal, propose, propose_here};
pub use swap::{
    Area, AreaError, Areas, BASE_PRIORITY, DeviceError, Passage, SwapError, SwapLine, SwapTiers,
    areas_of_others, check_tier, read_proc_swaps,
};
pub use verify::{By, Finding, Told, verify};
