//! A ladder of two memory tiers and two swap tiers: pages go where they were sent, by pagemap and the kernel's own list
//! of which memory block is on which node. Needs a host with the memory nodes 0 and 1, as the lab has them.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tiering_tests::agent::Agent;
use tiering_tests::guest::{Accel, Backend, Guest};
use tiering_tests::pattern::{Access, Pattern};
use tiering_tests::skip::{Skip, skip_or_fail};

use crate::host::{
    At, Host, PAGE, area_numbers, assert_memory_right, drain_and_end, no_swap_is_on, pagemap, runs, vm,
    wait_for,
};

const NAME: &str = "tt-nodes";
/// A guest in a guest in an emulator takes its time.
const BOOT: Duration = Duration::from_secs(300);

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

fn guest(backend: Backend, accel: Accel) -> Guest {
    let access = Access::HotAndLoop { hot_mib: 4, loop_mib: 24, loop_every_ms: 6000 };
    let pattern = Pattern { mem_mib: 64, access, ..Pattern::default() };
    let builder = Guest::builder(NAME).memory_mib(128).pattern(pattern).backend(backend).accel(accel);
    builder.start().unwrap()
}

/// A guest that stands still, all of whose RAM was filled from outside with what can be told again: it needs no boot, and
/// every byte can be compared.
struct Still {
    guest: Guest,
    memory: File,
    /// Address and pages of its RAM, run by run.
    ram: Vec<(u64, u64)>,
}

impl Still {
    fn new(agent: &Agent, backend: Backend) -> Self {
        let guest = guest(backend, Accel::Tcg);
        vm(agent, NAME);
        guest.stop().unwrap();
        let memory = format!("/proc/{}/mem", guest.pid());
        let memory = File::options().read(true).write(true).open(memory).unwrap();
        let number = |run: &Value, field: &str| run[field].as_u64().unwrap();
        let ram = runs(agent, NAME).iter().map(|run| (number(run, "hva"), number(run, "pages"))).collect();
        let still = Self { guest, memory, ram };
        assert_eq!(still.pages().count(), 128 * 256, "the guest has 128 MiB");
        still.pages().for_each(|hva| still.memory.write_all_at(&content(hva), hva).unwrap());
        // The agent looks at the page tables before it shows a map.
        runs(agent, NAME);
        still
    }

    fn pages(&self) -> impl Iterator<Item = u64> {
        self.ram.iter().flat_map(|(hva, pages)| (0..*pages).map(move |page| hva + page * PAGE))
    }

    fn spread(&self) -> Spread {
        Spread::of(self.guest.pid(), &self.ram)
    }

    /// Every page is what it was filled with.
    fn assert_content(&self) {
        let mut page = vec![0; usize::try_from(PAGE).unwrap()];
        for hva in self.pages() {
            self.memory.read_exact_at(&mut page, hva).unwrap();
            assert!(page == content(hva), "the page at {hva:#x} is not what it was");
        }
    }
}

/// What the page at this address is filled with: no two are equal, and none is all zero.
fn content(hva: u64) -> Vec<u8> {
    (hva | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_ne_bytes().repeat(512)
}

fn move_to(agent: &Agent, tier: &str) -> Value {
    let outcome = agent.tiering(&["move", NAME, "--to", tier, "--json"]).unwrap();
    serde_json::from_str(&outcome).unwrap()
}

/// Pages of a guest by where they are.
#[derive(Debug, Default)]
struct Spread {
    all: u64,
    node: [u64; 2],
    /// By the kernel's number of the swap area.
    swapped: Vec<(u64, u64)>,
    nowhere: u64,
}

impl Spread {
    fn of(pid: u32, ram: &[(u64, u64)]) -> Self {
        let mut spread = Self::default();
        let (blocks, block_pages) = (blocks_on_node_1(), block_pages());
        let on_node_1 = |pfn: u64| blocks[usize::try_from(pfn / block_pages).unwrap()].unwrap();
        for at in ram.iter().flat_map(|(hva, pages)| pagemap(pid, *hva, *pages)) {
            spread.all += 1;
            match at {
                At::Memory { pfn } => spread.node[usize::from(on_node_1(pfn))] += 1,
                At::Swap { area, .. } => match spread.swapped.iter_mut().find(|(known, _)| *known == area) {
                    Some((_, pages)) => *pages += 1,
                    None => spread.swapped.push((area, 1)),
                },
                At::Zero | At::Nowhere => spread.nowhere += 1,
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
    let agent = Agent::start(&config(&host, "1h"), &[]).unwrap();
    let still = Still::new(&agent, Backend::Anonymous);
    for tier in ["cxl", "dram", "cxl", "nvme", "cxl", "qlc", "dram"] {
        let outcome = move_to(&agent, tier);
        let spread = still.spread();
        println!("to {tier}: {spread:?}; {outcome}");
        let there = match tier {
            "dram" => spread.node[0],
            "cxl" => spread.node[1],
            swap => spread.in_areas(&area_numbers(&host.scratch.path().join(swap))),
        };
        assert!(there * 100 >= spread.all * 99, "{there} of {} pages in {tier}: {outcome}", spread.all);
        let status = vm(&agent, NAME);
        assert!(bytes_in(&status, tier) >= there * PAGE * 99 / 100, "{status}");
    }
    still.assert_content();
    drop(still);
    drain_and_end(agent, &host);
}

#[test]
fn shared_memory_moves_between_nodes_too() {
    let Some(host) = skip_or_fail(two_nodes()) else { return };
    let agent = Agent::start(&config(&host, "1h"), &[]).unwrap();
    let still = Still::new(&agent, Backend::Memfd);
    for tier in ["cxl", "dram", "nvme", "cxl"] {
        let outcome = move_to(&agent, tier);
        let spread = still.spread();
        println!("to {tier}: {spread:?}; {outcome}");
        let there = match tier {
            "dram" => spread.node[0],
            "cxl" => spread.node[1],
            // Pagemap shows nothing of shared memory in swap.
            _ => spread.nowhere,
        };
        assert!(there * 100 >= spread.all * 99, "{there} of {} pages in {tier}: {outcome}", spread.all);
    }
    still.assert_content();
    drop(still);
    drain_and_end(agent, &host);
}

#[test]
fn idle_pages_go_to_the_next_memory_tier_by_themselves() {
    let Some(host) = skip_or_fail(two_nodes()) else { return };
    // Four times that is how long they stay there: long enough to be seen on a slow machine.
    let agent = Agent::start(&config(&host, "30s"), &[]).unwrap();
    let still = Still::new(&agent, Backend::Anonymous);
    let arrived = wait_for("idle pages in cxl", || {
        (still.spread().node[1] > 64 * 256).then(|| (still.spread(), agent.status().unwrap()))
    });
    let (spread, status) = arrived.unwrap_or_else(|| panic!("{}", vm(&agent, NAME)));
    println!("{spread:?}; {}", vm(&agent, NAME));
    assert_eq!(spread.swapped, [], "a page goes one tier at a time");
    let cxl = &status["tiers"][1];
    assert_eq!((cxl["kind"].as_str(), &cxl["nodes"][0]), (Some("node"), &Value::from(1)), "{cxl}");
    assert!(cxl["used_bytes"].as_u64() > Some(64 << 20), "{cxl}");
    drop(still);
    drain_and_end(agent, &host);
}

#[test]
fn a_guest_does_not_notice_that_its_pages_change_nodes_and_what_it_uses_comes_back() {
    let Some(host) = skip_or_fail(two_nodes()) else { return };
    let accel = if Path::new("/dev/kvm").exists() { Accel::Kvm } else { Accel::Tcg };
    let mut guest = guest(Backend::Anonymous, accel);
    guest.wait_ready(BOOT).unwrap();
    let agent = Agent::start(&config(&host, "1h"), &[]).unwrap();
    vm(&agent, NAME);
    for tier in ["cxl", "nvme", "dram", "cxl"] {
        let outcome = move_to(&agent, tier);
        println!("running, to {tier}: {outcome}");
        assert!(outcome["in_tier_pages"].as_u64() > Some(32 * 256), "{outcome}");
    }
    // Accesses of an emulated guest to pages that stay mapped are not seen.
    if accel == Accel::Kvm {
        let hot = wait_for("the hot set to come back", || {
            let status = vm(&agent, NAME);
            (bytes_in(&status, "dram") >= 4 << 20).then_some(status)
        });
        println!("{hot:?}");
        assert!(hot.is_some(), "{}", agent.status().unwrap());
    }
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
    let agent = Agent::start(&config(&host, "1h"), &[]).unwrap();
    let still = Still::new(&agent, Backend::Hugetlb);
    let status = vm(&agent, NAME);
    assert_eq!(status["movable"], true, "{status}");
    assert!(status["reason"].as_str().unwrap().contains("hugetlb"), "{status}");
    let error = agent.tiering(&["move", NAME, "--to", "nvme"]).unwrap_err();
    assert!(format!("{error:#}").contains("hugetlb"), "{error:#}");
    for (tier, node) in [("cxl", 1), ("dram", 0), ("cxl", 1)] {
        let outcome = move_to(&agent, tier);
        let spread = still.spread();
        println!("to {tier}: {spread:?}; {outcome}");
        assert_eq!(spread.node[node], spread.all, "{outcome}");
    }
    still.assert_content();
    drop(still);
    drain_and_end(agent, &host);
}
