//! A ladder of two memory tiers and two swap tiers: pages go where they were sent, by pagemap and the kernel's own list
//! of which memory block is on which node. Needs a host with the memory nodes 0 and 1, as the lab has them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tiering_tests::agent::Agent;
use tiering_tests::guest::{Accel, Backend, Guest};
use tiering_tests::pattern::Pattern;
use tiering_tests::skip::{Skip, skip_or_fail};

use crate::host::{
    At, Host, PAGE, area_numbers, assert_memory_right, drain_and_end, no_swap_is_on, pagemap, runs, vm,
    wait_for, wait_until_quiet,
};

const NAME: &str = "tt-nodes";
/// A guest in a guest in an emulator takes its time.
const BOOT: Duration = Duration::from_secs(120);

/// A host with a second memory node.
fn two_nodes() -> Result<Host, Skip> {
    no_swap_is_on()?;
    if !Path::new("/sys/devices/system/node/node1/meminfo").exists() {
        return Err(Skip("this host has one memory node: run the test in the lab".into()));
    }
    Host::new()
}

/// dram and cxl above nvme and qlc.
fn config(host: &Host, demote_after: &str) -> String {
    let dram = "nodes = [0]\n";
    host.config(demote_after).replace(dram, &format!("{dram}[[tier]]\nname = \"cxl\"\nnodes = [1]\n"))
}

fn guest(backend: Backend) -> Guest {
    let accel = if Path::new("/dev/kvm").exists() { Accel::Kvm } else { Accel::Tcg };
    let pattern =
        Pattern { mem_mib: 64, hot_mib: 4, loop_mib: 24, loop_every_ms: 6000, ..Pattern::default() };
    let builder = Guest::builder(NAME).memory_mib(128).pattern(pattern).backend(backend).accel(accel);
    let mut guest = builder.start().unwrap();
    guest.wait_ready(BOOT).unwrap();
    guest
}

fn move_to(agent: &Agent, tier: &str) -> Value {
    let outcome = agent.tiering(&["move", NAME, "--to", tier, "--json"]).unwrap();
    serde_json::from_str(&outcome).unwrap()
}

/// Pages of the guest by where they are.
#[derive(Debug, Default)]
struct Spread {
    all: u64,
    node: [u64; 2],
    swapped: Vec<(u64, u64)>,
    nowhere: u64,
}

impl Spread {
    /// Of the pages that the map knows.
    fn of(agent: &Agent, pid: u32) -> Self {
        let mut spread = Self::default();
        let (blocks, block_pages) = (blocks_on_node_1(), block_pages());
        let on_node_1 = |pfn: u64| blocks[usize::try_from(pfn / block_pages).unwrap()].unwrap();
        for run in runs(agent, NAME).iter().filter(|run| run["tier"] != "untouched") {
            for at in pagemap(pid, run["hva"].as_u64().unwrap(), run["pages"].as_u64().unwrap()) {
                spread.all += 1;
                match at {
                    At::Memory { pfn } => spread.node[usize::from(on_node_1(pfn))] += 1,
                    At::Swap { area, .. } => {
                        match spread.swapped.iter_mut().find(|(known, _)| *known == area) {
                            Some((_, pages)) => *pages += 1,
                            None => spread.swapped.push((area, 1)),
                        }
                    }
                    At::Zero | At::Nowhere => spread.nowhere += 1,
                }
            }
        }
        spread
    }

    fn in_areas(&self, areas: &[u64]) -> u64 {
        self.swapped.iter().filter(|(area, _)| areas.contains(area)).map(|(_, pages)| pages).sum()
    }
}

/// For each memory block, by number, whether it is on node 1; none for numbers that no block has.
fn blocks_on_node_1() -> Vec<Option<bool>> {
    let block = |number| PathBuf::from(format!("/sys/devices/system/memory/memory{number}"));
    (0..1024).map(|number| block(number).exists().then(|| block(number).join("node1").exists())).collect()
}

/// Pages of a memory block.
fn block_pages() -> u64 {
    let size = std::fs::read_to_string("/sys/devices/system/memory/block_size_bytes").unwrap();
    u64::from_str_radix(size.trim(), 16).unwrap() / PAGE
}

fn bytes_in(status: &Value, tier: &str) -> u64 {
    status["tier_bytes"][tier].as_u64().unwrap()
}

#[test]
fn pages_go_down_and_up_through_memory_and_swap_tiers() {
    let Some(host) = skip_or_fail(two_nodes()) else { return };
    let mut guest = guest(Backend::Anonymous);
    let agent = Agent::start(&config(&host, "1h"), &[]).unwrap();
    vm(&agent, NAME);
    guest.stop().unwrap();

    for tier in ["cxl", "dram", "cxl", "nvme", "cxl", "qlc", "dram"] {
        let outcome = move_to(&agent, tier);
        let spread = Spread::of(&agent, guest.pid());
        println!("to {tier}: {spread:?}; {outcome}");
        assert!(spread.all >= 64 * 256, "the guest filled 64 MiB, the map knows {} pages", spread.all);
        let there = match tier {
            "dram" => spread.node[0],
            "cxl" => spread.node[1],
            swap => spread.in_areas(&area_numbers(&host.scratch.path().join(swap))),
        };
        assert!(there * 100 >= spread.all * 99, "{there} of {} pages in {tier}: {outcome}", spread.all);
        let status = vm(&agent, NAME);
        assert!(bytes_in(&status, tier) >= there * PAGE * 99 / 100, "{status}");
    }

    // And while the guest runs.
    guest.cont().unwrap();
    for tier in ["cxl", "dram", "cxl"] {
        let outcome = move_to(&agent, tier);
        println!("running, to {tier}: {:?}; {outcome}", Spread::of(&agent, guest.pid()));
    }
    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}

#[test]
fn shared_memory_moves_between_nodes_too() {
    let Some(host) = skip_or_fail(two_nodes()) else { return };
    let mut guest = guest(Backend::Memfd);
    let agent = Agent::start(&config(&host, "1h"), &[]).unwrap();
    vm(&agent, NAME);
    guest.stop().unwrap();
    for (tier, node) in [("cxl", 1), ("dram", 0), ("nvme", 2), ("cxl", 1)] {
        let outcome = move_to(&agent, tier);
        let spread = Spread::of(&agent, guest.pid());
        println!("to {tier}: {spread:?}; {outcome}");
        let there = spread.node.get(node).copied().unwrap_or(spread.nowhere);
        assert!(there * 100 >= spread.all * 99, "{there} of {} pages in {tier}: {outcome}", spread.all);
    }
    guest.cont().unwrap();
    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}

#[test]
fn idle_pages_go_to_the_next_memory_tier_by_themselves() {
    let Some(host) = skip_or_fail(two_nodes()) else { return };
    let mut guest = guest(Backend::Anonymous);
    let agent = Agent::start(&config(&host, "15s"), &[]).unwrap();
    let arrived = wait_for("idle pages in cxl", || {
        let status = vm(&agent, NAME);
        (bytes_in(&status, "cxl") > 32 << 20).then_some(status)
    });
    let status = arrived.unwrap_or_else(|| panic!("{}", vm(&agent, NAME)));
    assert_eq!(bytes_in(&status, "nvme"), 0, "a page goes one tier at a time: {status}");
    let tiers = agent.status().unwrap()["tiers"].clone();
    assert_eq!(
        (tiers[1]["kind"].as_str(), &tiers[1]["nodes"][0]),
        (Some("node"), &Value::from(1)),
        "{tiers}"
    );
    assert!(tiers[1]["used_bytes"].as_u64() > Some(32 << 20), "{tiers}");
    println!("{:?}; {status}", Spread::of(&agent, guest.pid()));
    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}

/// Huge pages in the pools of the two nodes, given back when dropped.
struct Pool;

impl Pool {
    fn of(pages: u32) -> Result<Self, Skip> {
        for node in 0..2 {
            let file = Self::file(node);
            std::fs::write(&file, pages.to_string())
                .map_err(|error| Skip(format!("{}: {error}", file.display())))?;
            let made = std::fs::read_to_string(&file).unwrap();
            if made.trim() != pages.to_string() {
                return Err(Skip(format!("node {node} has {} of {pages} huge pages", made.trim())));
            }
        }
        Ok(Self)
    }

    fn file(node: u32) -> PathBuf {
        format!("/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages").into()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for node in 0..2 {
            std::fs::write(Self::file(node), "0").unwrap();
        }
    }
}

#[test]
fn a_guest_of_pages_from_the_hugetlb_pool_moves_between_nodes_only() {
    let Some(host) = skip_or_fail(two_nodes()) else { return };
    let Some(_pool) = skip_or_fail(Pool::of(72)) else { return };
    let mut guest = guest(Backend::Hugetlb);
    let agent = Agent::start(&config(&host, "1h"), &[]).unwrap();
    let status = vm(&agent, NAME);
    assert_eq!(status["movable"], true, "{status}");
    assert!(status["reason"].as_str().unwrap().contains("hugetlb"), "{status}");
    let error = agent.tiering(&["move", NAME, "--to", "nvme"]).unwrap_err();
    assert!(format!("{error:#}").contains("hugetlb"), "{error:#}");

    guest.stop().unwrap();
    for (tier, node) in [("cxl", 1), ("dram", 0), ("cxl", 1)] {
        let outcome = move_to(&agent, tier);
        let spread = Spread::of(&agent, guest.pid());
        println!("to {tier}: {spread:?}; {outcome}");
        assert_eq!(spread.node[node], spread.all, "{outcome}");
    }
    guest.cont().unwrap();
    wait_until_quiet(&agent, NAME);
    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}
