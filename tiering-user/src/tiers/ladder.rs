//! The ladder: which tiers there are, fastest first.

use std::path::{Path, PathBuf};

use super::device_layout::Layout;
use super::disk_facts::{device_itself, real_folder, text};
use crate::config::{self, Backing, Config};

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
    /// Swap files in a folder, or a device.
    Swap { place: SwapPlace, capacity_bytes: u64, write_limit: Option<u64>, daily_writes: Option<u64> },
}

/// Where a tier's swap is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SwapPlace {
    Folder(PathBuf),
    Device {
        /// As configured: mostly a link.
        path: PathBuf,
        /// Also where swap can hang the host.
        allow_unsafe: bool,
    },
}

impl SwapPlace {
    /// Of the folder or the device.
    pub fn path(&self) -> &Path {
        match self {
            Self::Folder(path) | Self::Device { path, .. } => path,
        }
    }

    /// Where it is, and what it holds. A device that is not there holds nothing.
    fn of(place: &config::SwapPlace) -> (Self, u64) {
        match place {
            config::SwapPlace::Folder { path, size } => (Self::Folder(path.clone()), size.0),
            config::SwapPlace::Device { path, allow_unsafe } => {
                let place = Self::Device { path: path.clone(), allow_unsafe: *allow_unsafe };
                (place, device_capacity_bytes(Path::new("/sys"), path).unwrap_or(0))
            }
        }
    }
}

/// What the tier on this device can hold; none where there is no such device, or one that is too small.
fn device_capacity_bytes(sys_root: &Path, path: &Path) -> Option<u64> {
    let folder = real_folder(sys_root, device_itself(path).ok()?)?;
    // In units of 512 bytes, whatever the disk's own are (Documentation/ABI/stable/sysfs-block).
    let sectors: u64 = text(&folder.join("size"))?.parse().ok()?;
    Layout::of(sectors << 9).map(|layout| layout.area_bytes())
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
    /// The ladder that a validated configuration describes, or that was proposed in its place. Of a tier on a device
    /// the size is looked up.
    pub fn new(config: &Config) -> Self {
        let tiers = (0u8..).zip(&config.tiers).map(|(id, tier)| {
            let kind = match &tier.backing {
                Backing::Nodes(nodes) => TierKind::Node { nodes: nodes.clone() },
                Backing::Swap(swap) => {
                    let (place, capacity_bytes) = SwapPlace::of(&swap.place);
                    TierKind::Swap {
                        place,
                        capacity_bytes,
                        write_limit: swap.write_limit.map(|rate| rate.0),
                        daily_writes: swap.daily_writes.map(|size| size.0),
                    }
                }
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
