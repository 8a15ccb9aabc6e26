//! A ladder for a host whose configuration names none.
//!
//! In: the memory nodes, the size of RAM, and what is free where the agent keeps its state. Out: tiers as the
//! configuration would have them, and notes on what is not among them and why. Pure, but for [`propose_here`], which
//! looks first.
//!
//! 1. `dram`: all nodes with processors and memory.
//! 2. Nodes without processors, by HMAT latency, else by distance; those of one kernel tier together.
//! 3. `disk`: swap files on a quarter of what is free in the state folder's file system, at most the size of RAM.
//!
//! # Limits
//! Nodes without processors always come below `dram`, also where they are faster (HBM); `verify` says so. Other disks
//! are named and never used unasked.

use std::path::{Path, PathBuf};

use super::candidates::{Candidate, candidates};
use super::swap::area::{self, AreaError};
use super::{Ladder, NodeFacts, Nodes, node_facts};
use crate::config::{Backing, Config, MAX_TIERS, Size, Swap, SwapPlace, Tier};

/// Of what is free, the swap tier takes this part.
const SHARE: u64 = 4;
/// A smaller swap tier is not proposed.
const LEAST_SWAP_BYTES: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
/// `dram` and `disk` are two of them.
const MOST_OTHERS: usize = MAX_TIERS - 2;

/// A ladder, and what is to be said of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proposal {
    pub tiers: Vec<Tier>,
    /// What is not among them, and why.
    pub left_out: Vec<String>,
    /// Places on other disks that could be tiers.
    pub candidates: Vec<Candidate>,
}

/// The ladder for this host, where the configuration names none.
pub fn propose_here(config: &Config) -> Proposal {
    use procfs::Current as _;
    let folder = config.agent.state_dir.join("swap");
    let ram_bytes = procfs::Meminfo::current().map_or(0, |memory| memory.mem_total);
    let free = area::free_for_swap(&folder);
    let (sys_root, proc_root) = (Path::new("/sys"), Path::new("/proc"));
    let candidates = candidates(sys_root, proc_root, &folder);
    let proposal = propose(&node_facts(sys_root), &folder, free, ram_bytes);
    Proposal { candidates, ..what_works(sys_root, proposal) }
}

/// Without the lower memory tiers where the kernel does not tell which page is in which.
fn what_works(sys_root: &Path, mut proposal: Proposal) -> Proposal {
    let config = Config { tiers: proposal.tiers.clone(), ..Config::default() };
    if let Err(error) = Nodes::open(sys_root, &Ladder::new(&config)) {
        proposal.left_out.push(format!("nodes without processors: {error}"));
        let mut place = 0..;
        proposal.tiers.retain(|tier| place.next() == Some(0) || matches!(tier.backing, Backing::Swap(_)));
    }
    proposal
}

/// The ladder for a host with these nodes. `free` is what the file system of `folder` could give to swap files.
pub fn propose(nodes: &[NodeFacts], folder: &Path, free: Result<u64, AreaError>, ram_bytes: u64) -> Proposal {
    let mut tiers = vec![Tier { name: "dram".to_owned(), backing: Backing::Nodes(main_memory(nodes)) }];
    tiers.extend(slower_memory(nodes));
    let size = free.map(|free| (free / SHARE).min(ram_bytes) / MIB * MIB);
    let mut left_out = Vec::new();
    match size {
        Ok(bytes) if bytes >= LEAST_SWAP_BYTES => tiers.push(swap(folder.to_owned(), bytes)),
        Ok(bytes) => left_out.push(format!(
            "swap: {}: a quarter of what is free there, at most the size of memory, is {} MiB, and {} MiB are the least: \
             name a folder with more room",
            folder.display(),
            bytes / MIB,
            LEAST_SWAP_BYTES / MIB
        )),
        Err(error) => left_out.push(format!("swap: {error}")),
    }
    Proposal { tiers, left_out, candidates: Vec::new() }
}

fn swap(path: PathBuf, bytes: u64) -> Tier {
    let swap =
        Swap { place: SwapPlace::Folder { path, size: Size(bytes) }, write_limit: None, daily_writes: None };
    Tier { name: "disk".to_owned(), backing: Backing::Swap(swap) }
}

fn main_memory(nodes: &[NodeFacts]) -> Vec<u32> {
    let numbers = |wanted: fn(&NodeFacts) -> bool| -> Vec<u32> {
        nodes.iter().filter(|node| node.total_bytes > 0 && wanted(node)).map(|node| node.node).collect()
    };
    match numbers(|node| !node.cpus.is_empty()) {
        with_cpus if !with_cpus.is_empty() => with_cpus,
        // Whatever the kernel tells, there is memory: the first node of it, or that of a kernel without NUMA.
        _ => vec![numbers(|_| true).first().copied().unwrap_or(0)],
    }
}

/// Nodes without processors, in tiers.
fn slower_memory(nodes: &[NodeFacts]) -> Vec<Tier> {
    let main = main_memory(nodes);
    let mut others: Vec<_> =
        nodes.iter().filter(|node| node.total_bytes > 0 && !main.contains(&node.node)).collect();
    let distance = |node: &NodeFacts| node.nearest_cpus.map_or(u32::MAX, |near| near.distance);
    // Latencies and distances are not of one scale: latencies decide only where every node has one.
    let all_told = others.iter().all(|node| node.hmat.read_latency_ns.is_some());
    let latency = |node: &NodeFacts| node.hmat.read_latency_ns.filter(|_| all_told).unwrap_or(0);
    others.sort_by_key(|node| (latency(node), distance(node), node.node));
    let mut groups: Vec<Vec<&NodeFacts>> = Vec::new();
    for node in others {
        let alike = |group: &&mut Vec<&NodeFacts>| match (group[0].kernel_tier, node.kernel_tier) {
            (Some(one), Some(other)) => one == other,
            _ => (latency(group[0]), distance(group[0])) == (latency(node), distance(node)),
        };
        let full = groups.len() == MOST_OTHERS;
        match groups.last_mut().filter(|group| full || alike(group)) {
            Some(group) => group.push(node),
            None => groups.push(vec![node]),
        }
    }
    let mut cxl = 0;
    let tiers = groups.into_iter().map(|group| {
        let name = match group.iter().any(|node| node.device.is_some()) {
            false => format!("node-{}", group[0].node),
            true => {
                cxl += 1;
                if cxl == 1 { "cxl".to_owned() } else { format!("cxl-{cxl}") }
            }
        };
        Tier { name, backing: Backing::Nodes(group.iter().map(|node| node.node).collect()) }
    });
    tiers.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiers::{Hmat, Nearest};

    const GIB: u64 = 1 << 30;

    fn node(node: u32, cpus: usize, mib: u64) -> NodeFacts {
        NodeFacts { node, cpus: (0..cpus).collect(), total_bytes: mib << 20, ..NodeFacts::default() }
    }

    fn far(number: u32, latency_ns: Option<u64>, distance: u32, kernel_tier: u32, device: &str) -> NodeFacts {
        NodeFacts {
            hmat: Hmat { read_latency_ns: latency_ns, ..Hmat::default() },
            nearest_cpus: Some(Nearest { node: 0, distance }),
            kernel_tier: Some(kernel_tier),
            device: (!device.is_empty()).then(|| device.to_owned()),
            ..node(number, 0, 1024)
        }
    }

    /// Name, and nodes or size.
    fn shown(tiers: &[Tier]) -> Vec<(&str, String)> {
        let shown = tiers.iter().map(|tier| match &tier.backing {
            Backing::Nodes(nodes) => (tier.name.as_str(), format!("{nodes:?}")),
            Backing::Swap(swap) => match &swap.place {
                SwapPlace::Folder { path, size } => {
                    (tier.name.as_str(), format!("{} {size}", path.display()))
                }
                SwapPlace::Device { .. } => panic!("a device is never proposed"),
            },
        });
        shown.collect()
    }

    fn proposed(nodes: &[NodeFacts], free: u64, ram: u64) -> Proposal {
        propose(nodes, Path::new("/s/swap"), Ok(free), ram)
    }

    #[test]
    fn memory_with_processors_is_one_tier_and_the_rest_follows_by_speed() {
        let nodes = [
            node(0, 2, 4096),
            far(1, Some(400), 20, 30, "region1"),
            node(2, 2, 4096),
            far(3, Some(250), 40, 22, "region0"),
            far(4, Some(260), 40, 22, "dax1.0"),
            far(5, Some(900), 90, 40, ""),
            node(6, 2, 0),
            node(7, 0, 0),
        ];
        let tiers = proposed(&nodes, 40 * GIB, 16 * GIB).tiers;
        let expected = [
            ("dram", "[0, 2]"),
            ("cxl", "[3, 4]"),
            ("cxl-2", "[1]"),
            ("node-5", "[5]"),
            ("disk", "/s/swap 10GiB"),
        ];
        assert_eq!(shown(&tiers), expected.map(|(name, what)| (name, what.to_owned())));
        let config = Config { tiers, ..Config::default() };
        config.validate().unwrap();
        assert_eq!(Config::parse(&config.to_toml(), "proposal").unwrap(), config);
    }

    #[test]
    fn without_figures_distance_decides() {
        let nodes = [node(0, 1, 64), far(1, None, 40, 22, ""), far(2, Some(9), 30, 21, "")];
        assert_eq!(
            shown(&proposed(&nodes, 0, 0).tiers)[1..],
            [("node-2", "[2]".into()), ("node-1", "[1]".into())]
        );
    }

    #[test]
    fn a_host_that_tells_nothing_has_one_node() {
        assert_eq!(shown(&proposed(&[], 0, 0).tiers), [("dram", "[0]".into())]);
        assert_eq!(shown(&proposed(&[node(3, 0, 64)], 0, 0).tiers), [("dram", "[3]".into())]);
    }

    #[test]
    fn swap_takes_a_quarter_of_what_is_free_at_most_as_much_as_memory() {
        let size = |free, ram| shown(&proposed(&[node(0, 1, 64)], free, ram).tiers)[1].1.clone();
        assert_eq!(size(100 * GIB, 8 * GIB), "/s/swap 8GiB");
        assert_eq!(size(8 * GIB + 4096, 8 * GIB), "/s/swap 2GiB");
        let proposal = proposed(&[node(0, 1, 64)], 4 * GIB - 4096, 8 * GIB);
        assert_eq!(proposal.tiers.len(), 1);
        let why = proposal.left_out.concat();
        assert!(why.contains("/s/swap") && why.contains("1023 MiB") && why.contains("more room"), "{why}");
        let unfit = AreaError::Filesystem { path: "/s/swap".into(), filesystem: "tmpfs" };
        let why = propose(&[], Path::new("/s/swap"), Err(unfit), 8 * GIB).left_out.concat();
        assert!(why.contains("tmpfs cannot hold swap files"), "{why}");
    }

    #[test]
    fn lower_memory_is_left_out_where_the_kernel_does_not_tell_pages_apart() {
        let tree = tempfile::tempdir().unwrap();
        for node in [0, 1] {
            let folder = tree.path().join(format!("devices/system/node/node{node}"));
            std::fs::create_dir_all(&folder).unwrap();
            let meminfo = format!("Node {node} MemTotal: 4096 kB\nNode {node} MemFree: 4096 kB\n");
            std::fs::write(folder.join("meminfo"), meminfo).unwrap();
        }
        let all = proposed(&[node(0, 1, 64), far(1, None, 20, 9, "")], 40 * GIB, 8 * GIB);
        assert_eq!(all.tiers.len(), 3);
        let works = what_works(tree.path(), all);
        assert_eq!(works.tiers.iter().map(|tier| tier.name.as_str()).collect::<Vec<_>>(), ["dram", "disk"]);
        assert!(works.left_out.concat().contains("lists no memory blocks"), "{:?}", works.left_out);
    }

    #[test]
    fn more_kinds_of_memory_than_tiers_share_the_last() {
        let kinds = (1..12).map(|number| far(number, Some(number.into()), 20, number, ""));
        let nodes: Vec<_> = [node(0, 1, 64)].into_iter().chain(kinds).collect();
        let tiers = proposed(&nodes, 40 * GIB, 8 * GIB).tiers;
        assert_eq!(tiers.len(), MAX_TIERS);
        assert_eq!(shown(&tiers)[6].1, "[6, 7, 8, 9, 10, 11]");
    }
}
