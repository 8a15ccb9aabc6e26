//! The ladder: which tiers there are, fastest first.

use std::path::PathBuf;

use thiserror::Error;

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

/// The ladder cannot be built from the configuration.
#[derive(Debug, Error)]
#[error(
    "tier `{0}`: only the first tier can be made of nodes in this version; remove it from the configuration"
)]
pub struct SecondNodeTier(String);

/// The tiers of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ladder {
    tiers: Vec<Tier>,
}

impl Ladder {
    /// The ladder that a validated configuration describes.
    ///
    /// # Errors
    /// [`SecondNodeTier`].
    pub fn new(config: &Config) -> Result<Self, SecondNodeTier> {
        let mut tiers = Vec::with_capacity(config.tiers.len());
        for (id, tier) in (0u8..).zip(&config.tiers) {
            let kind = match &tier.backing {
                Backing::Nodes(_) if id > 0 => return Err(SecondNodeTier(tier.name.clone())),
                Backing::Nodes(nodes) => TierKind::Node { nodes: nodes.clone() },
                Backing::Swap(swap) => TierKind::Swap {
                    folder: swap.path.clone(),
                    capacity_bytes: swap.size.0,
                    write_limit: swap.write_limit.map(|rate| rate.0),
                    daily_writes: swap.daily_writes.map(|size| size.0),
                },
            };
            tiers.push(Tier { id: TierId(id), name: tier.name.clone(), kind });
        }
        Ok(Self { tiers })
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
}
