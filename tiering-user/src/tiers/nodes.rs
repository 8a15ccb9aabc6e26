//! The memory nodes behind the upper rungs of the ladder.
//!
//! In: the ladder, and `devices/system/node`, `cpu` and `memory` below the root of sysfs. Out: which node and tier a
//! frame of memory belongs to, and how much memory a tier's nodes have. Moves nothing.
//!
//! # Limits
//! A memory block that two nodes share (they meet inside of it) counts as the first one's. Without CAP_SYS_ADMIN
//! pagemap shows no frame numbers: all that is in memory is then taken to be in the first tier.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use procfs::Meminfo;
use thiserror::Error;

use super::{Ladder, NodeTiers, TierId, TierKind};
use crate::sys::{self, Monotonic, PAGE_BYTES};

/// Memory comes and goes with somebody's hands on it; a frame that is of no known block is looked up no more often.
const RELOAD_EVERY: Duration = Duration::from_secs(5);

/// A node of the configuration cannot hold pages here.
#[derive(Debug, Error)]
pub enum NodeError {
    #[error(
        "tier `{tier}`: this host has no memory node {node} (it has {present}): correct `nodes` in the configuration"
    )]
    Missing { tier: String, node: u32, present: String },
    #[error(
        "tier `{tier}`: node {node} has no memory: bring it online, or name another node in the configuration"
    )]
    NoMemory { tier: String, node: u32 },
    #[error(
        "tier `{tier}`: {} lists no memory blocks, so which page is on which node cannot be told: use one memory tier \
         on this kernel", path.display()
    )]
    NoBlocks { tier: String, path: PathBuf },
}

/// Memory of a tier's nodes, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeMemory {
    pub total: u64,
    pub free: u64,
    /// Free, or in the page cache, or copies: both give way.
    pub available: u64,
    /// What page-outs left in the swap cache, and is not mapped.
    pub copies: u64,
}

/// Anonymous memory of a node or of the host, bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Anonymous {
    /// On the kernel's lists of anonymous memory, active and inactive.
    listed: u64,
    mapped: u64,
    shared: u64,
    locked: u64,
    swap_cached: u64,
}

impl Anonymous {
    /// What is in the swap cache and not mapped: copies that page-outs left, and pages read ahead. The kernel frees it
    /// without a write. `SwapCached` alone counts what was read back and is mapped too. Locked memory is mapped and on
    /// no such list (include/linux/mmzone.h, mm/mlock.c, Linux 6.1 to 6.18).
    fn copies(self) -> u64 {
        let listed = self.listed.saturating_add(self.locked);
        listed.saturating_sub(self.mapped.saturating_add(self.shared)).min(self.swap_cached)
    }
}

impl NodeMemory {
    /// That of the whole host; none where the kernel does not tell.
    pub fn of_host(memory: &Meminfo) -> Option<Self> {
        let anonymous = Anonymous {
            listed: memory.active_anon? + memory.inactive_anon?,
            mapped: memory.anon_pages?,
            shared: memory.shmem?,
            locked: memory.mlocked.unwrap_or(0),
            swap_cached: memory.swap_cached,
        };
        let (free, copies) = (memory.mem_free, anonymous.copies());
        let available = memory.mem_available.unwrap_or(free) + copies;
        Some(Self { total: memory.mem_total, free, available, copies })
    }
}

/// The nodes of all node tiers; shared by everyone who reads pagemap.
#[derive(Clone, Debug)]
pub struct Nodes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sys_root: PathBuf,
    /// Node numbers of each node tier, fastest first.
    tiers: Vec<Vec<u32>>,
    /// More than one node counts as the first tier's.
    first_tier_is_spread: bool,
    blocks: Mutex<Blocks>,
}

/// Which memory block belongs to which node.
#[derive(Debug, Default)]
struct Blocks {
    /// 0 where it is not known.
    block_pages: u64,
    nodes: HashMap<u64, u32>,
    loaded: Monotonic,
}

impl Nodes {
    /// The nodes of the ladder, which must all be there and have memory. `sys_root` is `/sys`.
    ///
    /// # Errors
    /// Any [`NodeError`].
    pub fn open(sys_root: &Path, ladder: &Ladder) -> Result<Self, NodeError> {
        let mut tiers = Vec::new();
        for tier in ladder.tiers() {
            let TierKind::Node { nodes } = &tier.kind else { continue };
            check_nodes(sys_root, &tier.name, nodes)?;
            tiers.push(nodes.clone());
        }
        let blocks = Blocks::load(sys_root, sys::now());
        for (tier, nodes) in ladder.tiers().iter().zip(&tiers).filter(|_| tiers.len() > 1) {
            let listed = |node: &u32| !memory_blocks(sys_root, *node).is_empty();
            if blocks.block_pages == 0 || !nodes.iter().all(listed) {
                let path = sys_root.join("devices/system/memory");
                return Err(NodeError::NoBlocks { tier: tier.name.clone(), path });
            }
        }
        let first_tier: BTreeSet<u32> =
            blocks.nodes.values().copied().filter(|node| level(&tiers, *node) == TierId(0)).collect();
        let first_tier_is_spread = first_tier.len() > 1;
        let blocks = Mutex::new(blocks);
        Ok(Self(Arc::new(Inner { sys_root: sys_root.to_owned(), tiers, first_tier_is_spread, blocks })))
    }

    /// How many tiers there are.
    pub fn tiers(&self) -> NodeTiers {
        NodeTiers(u8::try_from(self.0.tiers.len()).unwrap_or(u8::MAX))
    }

    /// The tier of this frame; none where its block is not known. A frame on a node that is in no tier counts as the
    /// first tier's.
    pub fn tier_of(&self, pfn: u64) -> Option<TierId> {
        if self.0.tiers.len() <= 1 {
            return Some(TierId(0));
        }
        self.node_of(pfn).map(|node| level(&self.0.tiers, node))
    }

    /// The node of this frame; none where its block is not known.
    pub fn node_of(&self, pfn: u64) -> Option<u32> {
        // What pagemap shows to those who may not see frame numbers.
        if pfn == 0 {
            return None;
        }
        let mut blocks = self.0.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(node) = blocks.node_of(pfn) {
            return Some(node);
        }
        let now = sys::now();
        if now.since(blocks.loaded) >= RELOAD_EVERY {
            *blocks = Blocks::load(&self.0.sys_root, now);
        }
        blocks.node_of(pfn)
    }

    /// Whether a page of the first tier can be on one of several nodes.
    pub fn first_tier_is_spread(&self) -> bool {
        self.0.first_tier_is_spread
    }

    /// The node of this frame, if it is one of the first tier.
    pub fn first_tier_node_of(&self, pfn: u64) -> Option<u32> {
        self.node_of(pfn).filter(|node| level(&self.0.tiers, *node) == TierId(0))
    }

    /// The node of the first tier that this processor belongs to.
    pub fn first_tier_node_of_cpu(&self, cpu: u32) -> Option<u32> {
        let folder = self.0.sys_root.join(format!("devices/system/cpu/cpu{cpu}"));
        numbered(&folder, "node").into_iter().find(|node| level(&self.0.tiers, *node) == TierId(0))
    }

    /// Whether pages on this node are in the first tier, as those are of a node that is in no tier.
    pub fn is_of_first_tier(&self, node: u32) -> bool {
        level(&self.0.tiers, node) == TierId(0)
    }

    /// Whether pages can be moved to this node without filling it up: a twentieth of it stays free.
    pub fn has_room(&self, node: u32) -> bool {
        memory_of(&self.0.sys_root, node).is_some_and(|memory| memory.free > memory.total / 20)
    }

    /// The nodes of this tier; none for a swap tier.
    pub fn of_tier(&self, tier: TierId) -> &[u32] {
        self.0.tiers.get(usize::from(tier.0)).map_or(&[], Vec::as_slice)
    }

    /// The files by which the kernel is asked to reclaim memory of each node of this tier. Not there before Linux 6.17.
    pub fn reclaim_files(&self, tier: TierId) -> Vec<PathBuf> {
        let file = |node: &u32| self.0.sys_root.join(format!("devices/system/node/node{node}/reclaim"));
        self.of_tier(tier).iter().map(file).collect()
    }

    /// The memory of all nodes of this tier.
    pub fn memory(&self, tier: TierId) -> NodeMemory {
        let nodes = self.of_tier(tier).iter().filter_map(|node| memory_of(&self.0.sys_root, *node));
        nodes.fold(NodeMemory::default(), |sum, node| NodeMemory {
            total: sum.total + node.total,
            free: sum.free + node.free,
            available: sum.available + node.available,
            copies: sum.copies + node.copies,
        })
    }

    /// The node of this tier that has most free.
    pub fn roomiest(&self, tier: TierId) -> Option<u32> {
        let free = |node: &u32| memory_of(&self.0.sys_root, *node).map_or(0, |memory| memory.free);
        self.of_tier(tier).iter().copied().max_by_key(free)
    }
}

impl Default for Nodes {
    /// One tier, which holds all memory.
    fn default() -> Self {
        let (sys_root, tiers, blocks) = (PathBuf::new(), vec![Vec::new()], Mutex::default());
        Self(Arc::new(Inner { sys_root, tiers, first_tier_is_spread: false, blocks }))
    }
}

impl Blocks {
    fn load(sys_root: &Path, now: Monotonic) -> Self {
        let size = fs::read_to_string(sys_root.join("devices/system/memory/block_size_bytes"));
        let bytes = size.ok().and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
        let mut nodes = HashMap::new();
        for node in present_nodes(sys_root) {
            for block in memory_blocks(sys_root, node) {
                nodes.entry(block).or_insert(node);
            }
        }
        Self { block_pages: bytes / PAGE_BYTES, nodes, loaded: now }
    }

    fn node_of(&self, pfn: u64) -> Option<u32> {
        self.nodes.get(&pfn.checked_div(self.block_pages)?).copied()
    }
}

/// The tier of a node; the first one for a node that is in none.
fn level(tiers: &[Vec<u32>], node: u32) -> TierId {
    let tier = (0u8..).zip(tiers).find(|(_, nodes)| nodes.contains(&node));
    tier.map_or(TierId(0), |(level, _)| TierId(level))
}

/// Makes sure that all nodes of a tier are there and have memory.
///
/// # Errors
/// [`NodeError::Missing`], [`NodeError::NoMemory`].
pub fn check_nodes(sys_root: &Path, tier: &str, nodes: &[u32]) -> Result<(), NodeError> {
    let present = present_nodes(sys_root);
    for node in nodes {
        let tier = tier.to_owned();
        match memory_of(sys_root, *node) {
            // A kernel without NUMA shows no node and has one.
            None if present.is_empty() && *node == 0 => {}
            None => {
                let present: Vec<_> = present.iter().map(ToString::to_string).collect();
                return Err(NodeError::Missing { tier, node: *node, present: present.join(", ") });
            }
            Some(NodeMemory { total: 0, .. }) => return Err(NodeError::NoMemory { tier, node: *node }),
            Some(_) => {}
        }
    }
    Ok(())
}

/// The numbers of the nodes that this host has, ascending.
pub(super) fn present_nodes(sys_root: &Path) -> Vec<u32> {
    let mut nodes: Vec<u32> = numbered(&sys_root.join("devices/system/node"), "node");
    nodes.sort_unstable();
    nodes
}

/// The memory blocks of a node.
pub(super) fn memory_blocks(sys_root: &Path, node: u32) -> Vec<u64> {
    numbered(&sys_root.join(format!("devices/system/node/node{node}")), "memory")
}

/// The numbers behind `prefix` in the names of a folder.
pub(super) fn numbered<T: std::str::FromStr>(folder: &Path, prefix: &str) -> Vec<T> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter_map(|name| name.strip_prefix(prefix)?.parse().ok()).collect()
}

/// The memory of one node.
pub(super) fn memory_of(sys_root: &Path, node: u32) -> Option<NodeMemory> {
    let text = fs::read_to_string(sys_root.join(format!("devices/system/node/node{node}/meminfo"))).ok()?;
    // Node 0 MemFree:        10340560 kB
    let field = |name: &str| {
        let fields = text.lines().map(|line| line.split_ascii_whitespace().skip(2));
        let mut found =
            fields.filter_map(|mut fields| (fields.next()? == name).then(|| fields.next()).flatten());
        found.next()?.parse::<u64>().ok().map(|kib| kib << 10)
    };
    let (total, free) = (field("MemTotal:")?, field("MemFree:")?);
    let bytes = |name| field(name).unwrap_or(0);
    let cache = bytes("Active(file):") + bytes("Inactive(file):");
    let anonymous = Anonymous {
        listed: bytes("Active(anon):") + bytes("Inactive(anon):"),
        mapped: bytes("AnonPages:"),
        shared: bytes("Shmem:"),
        locked: bytes("Mlocked:"),
        swap_cached: bytes("SwapCached:"),
    };
    let copies = anonymous.copies();
    Some(NodeMemory { total, free, available: free + cache + copies, copies })
}

#[cfg(test)]
mod tests {
    use procfs::Current as _;

    use super::*;
    use crate::config::Config;

    const BLOCK_PAGES: u64 = (128 << 20) / PAGE_BYTES;

    struct Tree(tempfile::TempDir);

    impl Tree {
        /// Blocks of 128 MiB.
        fn new() -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            let memory = tree.0.path().join("devices/system/memory");
            fs::create_dir_all(&memory).unwrap();
            fs::write(memory.join("block_size_bytes"), "8000000\n").unwrap();
            tree
        }

        fn node(self, node: u32, blocks: &[u64], free_mib: u64) -> Self {
            let folder = self.0.path().join(format!("devices/system/node/node{node}"));
            for block in blocks {
                fs::create_dir_all(folder.join(format!("memory{block}"))).unwrap();
            }
            fs::create_dir_all(&folder).unwrap();
            let (total, free) = ((blocks.len() as u64 * 128) << 10, free_mib << 10);
            let meminfo = format!(
                "Node {node} MemTotal:       {total} kB\nNode {node} MemFree:        {free} kB\n\
                 Node {node} Active(anon):   4 kB\nNode {node} Active(file):   8 kB\nNode {node} Inactive(file): 16 kB\n\
                 Node {node} SwapCached: 9 kB\nNode {node} Inactive(anon): 40 kB\nNode {node} AnonPages:  36 kB\n\
                 Node {node} Shmem:      3 kB\nNode {node} Mlocked:        2 kB\n"
            );
            fs::write(folder.join("meminfo"), meminfo).unwrap();
            self
        }

        fn open(&self, tiers: &[&[u32]]) -> Result<Nodes, NodeError> {
            let tier = |(level, nodes): (usize, &&[u32])| {
                format!("[[tier]]\nname = \"t{level}\"\nnodes = {nodes:?}\n")
            };
            let text: String = tiers.iter().enumerate().map(tier).collect();
            Nodes::open(self.0.path(), &Ladder::new(&Config::parse(&text, "test.toml").unwrap()))
        }
    }

    /// A frame in the middle of a block.
    fn frame(block: u64) -> u64 {
        block * BLOCK_PAGES + BLOCK_PAGES / 2
    }

    #[test]
    fn a_frame_belongs_to_the_tier_of_its_node() {
        let tree =
            Tree::new().node(0, &[0, 1], 10).node(1, &[40, 41], 20).node(2, &[60], 30).node(3, &[80], 0);
        let nodes = tree.open(&[&[0], &[1, 2]]).unwrap();
        for (block, level) in [(0, 0), (1, 0), (40, 1), (41, 1), (60, 1)] {
            assert_eq!(nodes.tier_of(frame(block)), Some(TierId(level)), "block {block}");
        }
        assert_eq!(nodes.tier_of(frame(80)), Some(TierId(0)), "a node of no tier counts as the first");
        assert_eq!(nodes.tier_of(frame(2)), None, "there is no such block");
        assert_eq!(nodes.roomiest(TierId(1)), Some(2));
        let lower = nodes.memory(TierId(1));
        assert_eq!((lower.total >> 20, lower.free >> 20), (3 * 128, 50));
        // Lists 44 and locked 2, of which mapped 36 and shared 3.
        assert_eq!(lower.copies, (2 * 7) << 10);
        assert_eq!(lower.available - lower.free, (2 * (24 + 7)) << 10);
    }

    #[test]
    fn what_is_mapped_again_is_no_copy_and_no_more_are_told_than_the_swap_cache_holds() {
        let paged_out = Anonymous { listed: 265, mapped: 18, shared: 8, locked: 15, swap_cached: 256 };
        assert_eq!(paged_out.copies(), 254);
        let half_read_back = Anonymous { mapped: 145, ..paged_out };
        assert_eq!(half_read_back.copies(), 127, "half of the swap cache");
        let other_memory = Anonymous { listed: 9000, ..paged_out };
        assert_eq!(other_memory.copies(), 256);
        assert_eq!(Anonymous { mapped: 9000, ..paged_out }.copies(), 0);
    }

    #[test]
    fn the_hosts_memory_is_told() {
        let host = NodeMemory::of_host(&Meminfo::current().unwrap()).unwrap();
        assert!(
            host.free <= host.available && host.available <= host.total && host.copies <= host.total,
            "{host:?}"
        );
    }

    #[test]
    fn memory_that_was_plugged_in_later_is_found_after_a_while() {
        let tree = Tree::new().node(0, &[0], 10).node(1, &[40], 20);
        let nodes = tree.open(&[&[0], &[1]]).unwrap();
        let tree = tree.node(1, &[40, 41], 20);
        assert_eq!(nodes.tier_of(frame(41)), None, "looked at a moment ago");
        nodes.0.blocks.lock().unwrap().loaded = Monotonic(0);
        assert_eq!(nodes.tier_of(frame(41)), Some(TierId(1)));
        drop(tree);
    }

    #[test]
    fn pages_of_two_sockets_and_processors_have_a_node_of_the_first_tier() {
        let tree = Tree::new().node(0, &[0], 100).node(1, &[40], 6).node(2, &[60], 30);
        fs::create_dir_all(tree.0.path().join("devices/system/cpu/cpu5/node1")).unwrap();
        let nodes = tree.open(&[&[0, 1], &[2]]).unwrap();
        assert!(nodes.first_tier_is_spread());
        assert_eq!([0, 40, 60].map(|block| nodes.first_tier_node_of(frame(block))), [Some(0), Some(1), None]);
        assert_eq!([5, 6].map(|cpu| nodes.first_tier_node_of_cpu(cpu)), [Some(1), None]);
        assert_eq!([0, 1].map(|node| nodes.has_room(node)), [true, false], "a twentieth stays free");
        assert!(
            tree.open(&[&[0], &[2]]).unwrap().first_tier_is_spread(),
            "a node of no tier counts as the first"
        );
        assert!(!tree.open(&[&[0], &[1, 2]]).unwrap().first_tier_is_spread());
    }

    #[test]
    fn with_one_tier_nothing_is_looked_up() {
        let nodes = Tree::new().node(0, &[0], 10).open(&[&[0]]).unwrap();
        assert_eq!(nodes.tier_of(u64::MAX), Some(TierId(0)));
        assert_eq!(Nodes::default().tier_of(7), Some(TierId(0)));
    }

    #[test]
    fn nodes_that_cannot_hold_pages_are_refused_with_what_to_do() {
        let tree = Tree::new().node(0, &[0], 10).node(1, &[], 0);
        let message = |tiers: &[&[u32]]| tree.open(tiers).unwrap_err().to_string();
        let missing = message(&[&[0], &[2]]);
        assert!(missing.contains("`t1`") && missing.contains("no memory node 2 (it has 0, 1)"), "{missing}");
        let empty = message(&[&[0], &[1]]);
        assert!(empty.contains("node 1 has no memory"), "{empty}");
        let tree = tree.node(1, &[40], 10);
        fs::remove_file(tree.0.path().join("devices/system/memory/block_size_bytes")).unwrap();
        let blind = tree.open(&[&[0], &[1]]).unwrap_err().to_string();
        assert!(blind.contains("lists no memory blocks"), "{blind}");
        tree.open(&[&[0]]).unwrap();
    }
}
