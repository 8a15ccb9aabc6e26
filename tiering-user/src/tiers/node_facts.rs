//! What the kernel tells of its memory nodes, and whether it moves pages between them by itself.
//!
//! In: the root of sysfs, and that of `/proc`. Out: one [`NodeFacts`] a node, with `None` for what is not told. Judges
//! nothing.
//!
//! # Limits
//! CXL memory is known by the region or dax device behind it. Memory that the firmware has mapped as ordinary RAM
//! without telling of a region looks like any node without processors. HMAT figures are those of the nearest initiator
//! (`access0`), which can be a device.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::nodes::{memory_blocks, memory_of, present_nodes};

/// One memory node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    pub node: u32,
    /// The processors on it; none for memory that only others use.
    pub cpus: Vec<usize>,
    pub total_bytes: u64,
    pub free_bytes: u64,
    /// The kernel's own memory tier; the lower, the faster.
    pub kernel_tier: Option<u32>,
    /// The nearest node that has processors, which can be this one, and how far that is (SLIT; 10 is the node itself).
    pub nearest_cpus: Option<Nearest>,
    pub hmat: Hmat,
    /// The CXL region or dax device that the memory is behind: `region0`, `dax1.0`.
    pub device: Option<String>,
}

/// Where the processors are that use a node first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nearest {
    pub node: u32,
    pub distance: u32,
}

/// What the firmware says of a node's speed, as seen from its nearest initiator
/// (Documentation/admin-guide/mm/numaperf.rst).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hmat {
    pub read_latency_ns: Option<u64>,
    pub write_latency_ns: Option<u64>,
    pub read_bandwidth_mib_per_s: Option<u64>,
    pub write_bandwidth_mib_per_s: Option<u64>,
}

/// What the kernel does to pages of several nodes by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelMoves {
    /// Reclaim demotes to slower nodes; none where the kernel cannot.
    pub demotion: Option<bool>,
    /// `kernel.numa_balancing`: 0 off, bit 0 between equal nodes, bit 1 promotion from slower ones.
    pub balancing: Option<u32>,
}

/// All nodes, ascending; none on a kernel without NUMA. `sys_root` is `/sys`.
pub fn node_facts(sys_root: &Path) -> Vec<NodeFacts> {
    let folder = |node: u32| sys_root.join(format!("devices/system/node/node{node}"));
    let present = present_nodes(sys_root);
    let (kernel_tiers, devices) = (kernel_tiers(sys_root), devices(sys_root));
    let cpus: Vec<_> =
        present.iter().map(|node| (*node, list(&text(&folder(*node).join("cpulist"))))).collect();
    let facts = cpus.iter().map(|(node, own)| {
        let memory = memory_of(sys_root, *node).unwrap_or_default();
        let initiators = folder(*node).join("access0/initiators");
        let figure = |name| number(&initiators.join(name));
        let distances = text(&folder(*node).join("distance"));
        // One figure a node, in the order of their numbers.
        let distances = distances.split_ascii_whitespace().filter_map(|word| word.parse().ok());
        let to_cpus = cpus.iter().zip(distances).filter(|((_, cpus), _)| !cpus.is_empty());
        NodeFacts {
            node: *node,
            cpus: own.clone(),
            total_bytes: memory.total,
            free_bytes: memory.free,
            kernel_tier: kernel_tiers.get(node).copied(),
            nearest_cpus: to_cpus
                .map(|((node, _), distance)| Nearest { node: *node, distance })
                .min_by_key(|nearest| nearest.distance),
            hmat: Hmat {
                read_latency_ns: figure("read_latency"),
                write_latency_ns: figure("write_latency"),
                read_bandwidth_mib_per_s: figure("read_bandwidth"),
                write_bandwidth_mib_per_s: figure("write_bandwidth"),
            },
            device: devices.get(node).cloned(),
        }
    });
    facts.collect()
}

/// Whether the kernel moves pages between nodes. `proc_root` is `/proc`.
pub fn kernel_moves(sys_root: &Path, proc_root: &Path) -> KernelMoves {
    let demotion = match text(&sys_root.join("kernel/mm/numa/demotion_enabled")).as_str() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    };
    let balancing = number(&proc_root.join("sys/kernel/numa_balancing"));
    KernelMoves { demotion, balancing: balancing.and_then(|mode| u32::try_from(mode).ok()) }
}

/// The kernel's memory tier of each node (`memory_tierN/nodelist`, from Linux 6.1 on).
fn kernel_tiers(sys_root: &Path) -> HashMap<u32, u32> {
    let folder = sys_root.join("devices/virtual/memory_tiering");
    let mut tiers = HashMap::new();
    for tier in super::nodes::numbered(&folder, "memory_tier") {
        let nodes = list(&text(&folder.join(format!("memory_tier{tier}/nodelist"))));
        tiers.extend(nodes.into_iter().filter_map(|node| Some((u32::try_from(node).ok()?, tier))));
    }
    tiers
}

/// The CXL region or dax device of each node that has one.
fn devices(sys_root: &Path) -> HashMap<u32, String> {
    let mut devices = HashMap::new();
    for entry in fs::read_dir(sys_root.join("bus/dax/devices")).into_iter().flatten().flatten() {
        let target = number(&entry.path().join("target_node")).and_then(|node| u32::try_from(node).ok());
        let Some(node) = target else { continue };
        // A dax device of CXL memory stands below its region: .../region0/dax_region0/dax0.0.
        let real = fs::canonicalize(entry.path()).unwrap_or_default();
        let mut above = real.components().map(|part| part.as_os_str().to_string_lossy().into_owned());
        let name = above.find(|name| is_region(name));
        devices
            .entry(node)
            .or_insert_with(|| name.unwrap_or_else(|| entry.file_name().to_string_lossy().into_owned()));
    }
    // A region that became ordinary RAM at boot has no dax device: its address tells the node.
    let block = text(&sys_root.join("devices/system/memory/block_size_bytes"));
    let block_bytes = u64::from_str_radix(&block, 16).unwrap_or(0);
    for entry in fs::read_dir(sys_root.join("bus/cxl/devices")).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let start = text(&entry.path().join("resource"));
        let start = start.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let (true, Some(start)) = (is_region(&name), start) else { continue };
        let Some(first_block) = start.checked_div(block_bytes) else { continue };
        let holds = |node: &u32| memory_blocks(sys_root, *node).contains(&first_block);
        if let Some(node) = present_nodes(sys_root).into_iter().find(holds) {
            devices.entry(node).or_insert(name);
        }
    }
    devices
}

fn is_region(name: &str) -> bool {
    name.strip_prefix("region")
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()))
}

/// The numbers of a list such as `0-3,8`.
fn list(text: &str) -> Vec<usize> {
    let ranges = text.split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.trim().parse::<usize>().ok()?..=last.trim().parse().ok()?)
    });
    ranges.flatten().collect()
}

fn number(path: &Path) -> Option<u64> {
    text(path).parse().ok()
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn node(root: &Path, node: u32, cpus: &str, distances: &str, mib: u64) {
        let folder = format!("devices/system/node/node{node}");
        write(root, &format!("{folder}/cpulist"), &format!("{cpus}\n"));
        write(root, &format!("{folder}/distance"), &format!("{distances}\n"));
        let kib = mib << 10;
        let text = format!("Node {node} MemTotal:  {kib} kB\nNode {node} MemFree:  {kib} kB\n");
        write(root, &format!("{folder}/meminfo"), &text);
    }

    /// Two sockets, a CXL region behind the second, a dax device, and a region that is ordinary RAM.
    fn host() -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        let root = tree.path();
        node(root, 0, "0-1,4", "10 21 30 28 24", 1024);
        node(root, 1, "2-3", "21 10 24 28 24", 1024);
        node(root, 2, "", "30 24 10 28 24", 512);
        node(root, 3, "", "28 28 28 10 24", 256);
        node(root, 4, "", "24 24 24 24 10", 128);
        for (tier, nodes) in [(4, "0-1"), (22, "2-4")] {
            write(
                root,
                &format!("devices/virtual/memory_tiering/memory_tier{tier}/nodelist"),
                &format!("{nodes}\n"),
            );
        }
        let initiators = "devices/system/node/node2/access0/initiators";
        write(root, &format!("{initiators}/read_latency"), "250\n");
        write(root, &format!("{initiators}/read_bandwidth"), "20480\n");
        for (name, at, target) in [
            ("dax0.0", "platform/root0/region0/dax_region0/dax0.0", 2),
            ("dax1.0", "platform/hmem.0/dax1.0", 3),
        ] {
            write(root, &format!("devices/{at}/target_node"), &format!("{target}\n"));
            fs::create_dir_all(root.join("bus/dax/devices")).unwrap();
            std::os::unix::fs::symlink(
                root.join("devices").join(at),
                root.join("bus/dax/devices").join(name),
            )
            .unwrap();
        }
        write(root, "devices/system/memory/block_size_bytes", "8000000\n");
        fs::create_dir_all(root.join("devices/system/node/node4/memory33")).unwrap();
        write(root, "bus/cxl/devices/region7/resource", "0x108000000\n");
        write(root, "bus/cxl/devices/mem0/resource", "0x0\n");
        tree
    }

    #[test]
    fn each_node_is_told_with_its_processors_distance_tier_and_device() {
        let facts = node_facts(host().path());
        assert_eq!(facts.iter().map(|node| node.node).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!(facts[0].cpus, [0, 1, 4]);
        assert_eq!(facts[2].cpus, [0; 0]);
        assert_eq!(facts[1].nearest_cpus, Some(Nearest { node: 1, distance: 10 }));
        assert_eq!(facts[2].nearest_cpus, Some(Nearest { node: 1, distance: 24 }));
        let tiers: Vec<_> = facts.iter().map(|node| node.kernel_tier).collect();
        assert_eq!(tiers, [Some(4), Some(4), Some(22), Some(22), Some(22)]);
        assert_eq!((facts[2].hmat.read_latency_ns, facts[2].hmat.write_latency_ns), (Some(250), None));
        assert_eq!(facts[2].hmat.read_bandwidth_mib_per_s, Some(20480));
        assert_eq!(facts[3].total_bytes, 256 << 20);
        let devices: Vec<_> = facts.iter().map(|node| node.device.as_deref()).collect();
        assert_eq!(devices, [None, None, Some("region0"), Some("dax1.0"), Some("region7")]);
    }

    #[test]
    fn a_kernel_that_tells_nothing_has_no_facts() {
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(node_facts(empty.path()), []);
        assert_eq!(kernel_moves(empty.path(), empty.path()), KernelMoves::default());
        node(empty.path(), 0, "0", "", 64);
        let alone = &node_facts(empty.path())[0];
        assert_eq!((alone.kernel_tier, alone.nearest_cpus, alone.device.clone()), (None, None, None));
    }

    #[test]
    fn what_the_kernel_moves_by_itself_is_read() {
        let tree = tempfile::tempdir().unwrap();
        write(tree.path(), "kernel/mm/numa/demotion_enabled", "true\n");
        write(tree.path(), "sys/kernel/numa_balancing", "2\n");
        let expected = KernelMoves { demotion: Some(true), balancing: Some(2) };
        assert_eq!(kernel_moves(tree.path(), tree.path()), expected);
    }
}
