//! The ladder: which tiers there are, fastest first.

use std::path::PathBuf;

use crate::config::{Backing, Config};

/// A tier's place in the ladder: 0 is the fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TierId(pub u8);

/// One rung.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tier {
    pub id: TierId,
    pub name: String,
    pub kind: TierKind,
}

/// What a tier is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TierKind {
    /// Memory of these NUMA nodes.
    Node { nodes: Vec<u32> },
    /// Swap files in a folder.
    Swap { folder: PathBuf, capacity_bytes: u64, write_limit: Option<u64>, daily_writes: Option<u64> },
}

/// How many of the tiers are memory nodes. They come first in the ladder: a page in one of them is in memory, and a
/// guest that uses it does not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeTiers(pub u8);

impl NodeTiers {
    /// Whether this tier is made of memory nodes.
    pub fn contains(self, tier: TierId) -> bool {
        tier.0 < self.0
    }

    /// Whether this tier is made of memory nodes and not the first one.
    pub fn has_lower(self, tier: TierId) -> bool {
        tier.0 > 0 && self.contains(tier)
    }
}

/// The tiers of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ladder {
    tiers: Vec<Tier>,
}

impl Ladder {
    /// The ladder that a validated configuration describes, or that was proposed in its place.
    pub fn new(config: &Config) -> Self {
        let tiers = (0u8..).zip(&config.tiers).map(|(id, tier)| {
            let kind = match &tier.backing {
                Backing::Nodes(nodes) => TierKind::Node { nodes: nodes.clone() },
                Backing::Swap(swap) => TierKind::Swap {
                    folder: swap.path.clone(),
                    capacity_bytes: swap.size.0,
                    write_limit: swap.write_limit.map(|rate| rate.0),
                    daily_writes: swap.daily_writes.map(|size| size.0),
                },
            };
            Tier { id: TierId(id), name: tier.name.clone(), kind }
        });
        Self { tiers: tiers.collect() }
    }

    /// All tiers, fastest first.
    pub fn tiers(&self) -> &[Tier] {
        &self.tiers
    }

    /// The tier with this place.
    pub fn get(&self, id: TierId) -> Option<&Tier> {
        self.tiers.get(usize::from(id.0))
    }

    /// The tier with this name.
    pub fn by_name(&self, name: &str) -> Option<&Tier> {
        self.tiers.iter().find(|tier| tier.name == name)
    }

    /// The swap tiers, fastest first.
    pub fn swap_tiers(&self) -> impl DoubleEndedIterator<Item = &Tier> {
        self.tiers.iter().filter(|tier| matches!(tier.kind, TierKind::Swap { .. }))
    }
    /// How many tiers are memory nodes.
    pub fn node_tiers(&self) -> NodeTiers {
        // The configuration allows eight tiers, and node tiers only above swap tiers.
        let nodes = self.tiers.iter().take_while(|tier| matches!(tier.kind, TierKind::Node { .. }));
        NodeTiers(u8::try_from(nodes.count()).unwrap_or(u8::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_tiers_are_told_from_swap_tiers() {
        let text = r#"
[[tier]]
name = "dram"
nodes = [0]
[[tier]]
name = "cxl"
nodes = [1, 2]
[[tier]]
name = "nvme"
swap = { path = "/s", size = "1GiB" }
"#;
        let ladder = Ladder::new(&Config::parse(text, "test.toml").unwrap());
        assert_eq!(ladder.by_name("cxl").unwrap().kind, TierKind::Node { nodes: vec![1, 2] });
        assert_eq!(ladder.swap_tiers().map(|tier| tier.id).collect::<Vec<_>>(), [TierId(2)]);
        let nodes = ladder.node_tiers();
        assert_eq!([0, 1, 2].map(|level| nodes.contains(TierId(level))), [true, true, false]);
        assert_eq!([0, 1, 2].map(|level| nodes.has_lower(TierId(level))), [false, true, false]);
    }
}
