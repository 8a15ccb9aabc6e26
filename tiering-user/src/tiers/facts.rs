//! All that the host tells about a ladder, in one place.
//!
//! In: the ladder, the roots of sysfs and `/proc`. Out: [`Facts`]. Nothing is measured and nothing judged here.

use std::fs;
use std::path::{Path, PathBuf};

use super::disk_facts::{DiskFacts, device_below, device_itself, disk_facts};
use super::{
    KernelMoves, Ladder, NodeFacts, SwapPlace, Tier, TierKind, kernel_moves, node_facts, read_proc_swaps,
};

/// What the host tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub nodes: Vec<NodeFacts>,
    /// What is below each tier, by level; none for memory tiers, and where it cannot be told.
    pub disks: Vec<Option<DiskFacts>>,
    pub kernel_moves: KernelMoves,
    /// The kernel keeps pages compressed in memory that it was told to write to swap.
    pub zswap: bool,
    /// Swap areas that are compressed memory.
    pub zram: Vec<PathBuf>,
}

impl Facts {
    /// Looks at the host. `sys_root` is `/sys`, `proc_root` is `/proc`.
    pub fn gather(sys_root: &Path, proc_root: &Path, ladder: &Ladder) -> Self {
        let disks = ladder.tiers().iter().map(|tier| match &tier.kind {
            TierKind::Node { .. } => None,
            TierKind::Swap { place, .. } => {
                let device = match place {
                    SwapPlace::Folder(folder) => device_below(folder),
                    SwapPlace::Device { path, .. } => device_itself(path),
                };
                device.ok().and_then(|device| disk_facts(sys_root, device))
            }
        });
        let areas = read_proc_swaps().unwrap_or_default().into_iter().map(|area| area.path);
        let zswap = fs::read_to_string(sys_root.join("module/zswap/parameters/enabled"));
        Self {
            nodes: node_facts(sys_root),
            disks: disks.collect(),
            kernel_moves: kernel_moves(sys_root, proc_root),
            zswap: zswap.is_ok_and(|text| text.trim() == "Y"),
            zram: areas.filter(|path| path.to_string_lossy().starts_with("/dev/zram")).collect(),
        }
    }

    /// What a tier is on, for people: a swap tier's disks, a memory tier's CXL regions or dax devices.
    pub fn device_of(&self, tier: &Tier) -> Option<String> {
        let mut names: Vec<String> = match &tier.kind {
            TierKind::Node { nodes } => {
                nodes.iter().filter_map(|node| self.node(*node)?.device.clone()).collect()
            }
            TierKind::Swap { .. } => {
                let below = self.disks.get(usize::from(tier.id.0)).and_then(Option::as_ref)?;
                below.disks.iter().map(ToString::to_string).collect()
            }
        };
        names.dedup();
        (!names.is_empty()).then(|| names.join(", "))
    }

    /// What is known of a node.
    pub fn node(&self, node: u32) -> Option<&NodeFacts> {
        self.nodes.iter().find(|facts| facts.node == node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::tiers::verify;

    #[test]
    fn zswap_is_read_from_the_kernel_and_told_of_a_ladder_with_swap() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("module/zswap/parameters");
        fs::create_dir_all(&folder).unwrap();
        let text = "[[tier]]\nname = \"dram\"\nnodes = [0]\n[[tier]]\nname = \"disk\"\n\
                    swap = { device = \"/dev/tiering-none\" }\n";
        let ladder = Ladder::new(&Config::parse(text, "test.toml").unwrap());
        let told = |enabled: &str| {
            fs::write(folder.join("enabled"), enabled).unwrap();
            let facts = Facts { zram: Vec::new(), ..Facts::gather(root.path(), root.path(), &ladder) };
            let findings = verify(&ladder, &facts, &[None, None]);
            findings.iter().map(|finding| format!("{finding}: {}", finding.advice())).collect::<Vec<_>>()
        };
        let on = told("Y\n");
        assert!(
            on.len() == 1 && on[0].starts_with("zswap is on: demoted pages may stay in memory"),
            "{on:?}"
        );
        assert_eq!(told("N\n"), [""; 0]);
    }
}
