//! What the agent's decisions are told of the host, once a second. Figures of VMs come as events.

use std::collections::BTreeMap;
use std::time::Duration;

use tiering_common::KernelMoves;

use crate::policy::TierLoad;
use crate::sys::PAGE_BYTES;
use crate::tiers::{Area, NodeMemory, SwapLine, TierId};

#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Seconds since 1970.
    pub unix_s: u64,
    /// Of the whole host; none where the kernel does not tell.
    pub memory: Option<NodeMemory>,
    /// Of the memory tiers.
    pub tier_memory: BTreeMap<TierId, NodeMemory>,
    /// All that is in the swap cache.
    pub swap_cached_bytes: u64,
    /// Of all swap more than half is used.
    pub swap_half_full: bool,
    pub swap: SwapFacts,
    /// How busy the disks below the swap tiers are.
    pub tier_loads: BTreeMap<TierId, TierLoad>,
    /// Anonymous and shared pages of the host that were read from swap so far; told where the kernel reclaims of the
    /// host.
    pub refaults_total: Option<u64>,
    /// CPU time of the agent's threads so far, without those that move pages; not told every second.
    pub cpu_s: Option<f64>,
    /// What the agent takes.
    pub own_memory_bytes: Option<u64>,
    /// What it costs a guest that an access to a mapped page shows; none where none can be made to.
    pub shown_access: Option<Duration>,
    /// Pages that others than the agent have moved so far, and whether reclaim and migration by the kernel show.
    pub moved_by_others: KernelMoves,
    pub moves_show: bool,
    /// Accesses of KVM guests show, once it is proved where their RAM lies.
    pub kvm_shows: bool,
    /// The kernel can be asked for memory of the first tier's nodes.
    pub reclaims_nodes: bool,
    /// One of the VMs that could not be taken in, and why.
    pub left_out: Option<(String, String)>,
    pub demotion: DemotionFacts,
}

/// The kernel's demotion between memory nodes.
#[derive(Clone, Debug, Default)]
pub struct DemotionFacts {
    pub is_on: bool,
    /// Why the agent does not have it on, though its configuration wants that.
    pub refused: Option<String>,
    /// Why reclaim does not demote as the ladder has it.
    pub of_no_use: Option<String>,
}

impl Facts {
    /// Of a memory tier.
    pub(super) fn memory_of(&self, tier: TierId) -> NodeMemory {
        self.tier_memory.get(&tier).copied().unwrap_or_default()
    }
}

/// Swap areas.
#[derive(Clone, Debug, Default)]
pub struct SwapFacts {
    /// All that are on.
    pub lines: Vec<SwapLine>,
    /// Those that the agent has made.
    pub areas: Vec<Area>,
}

impl SwapFacts {
    /// Bytes in use in each swap tier, without what covers free slots.
    pub(super) fn used_by_tier(&self) -> BTreeMap<TierId, u64> {
        let mut used = BTreeMap::new();
        for area in &self.areas {
            *used.entry(area.tier).or_default() += self.used_bytes(area);
        }
        used
    }

    /// Bytes in use in an area, without what covers free slots.
    pub(super) fn used_bytes(&self, area: &Area) -> u64 {
        let line = self.lines.iter().find(|line| line.path == area.path);
        line.map_or(0, |line| line.used_bytes).saturating_sub(area.covered_pages * PAGE_BYTES)
    }
}
