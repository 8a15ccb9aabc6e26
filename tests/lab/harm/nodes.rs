//! Pages that come up land on the node that they left, though the agent runs on another one.

use anyhow::{Context, Result, ensure};
use tiering_testkit::agent::Agent;
use tiering_testkit::filled::Filled;
use tiering_testkit::guest::{Backend, Guest};
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::results::Results;
use tiering_user::sys::{Pidfd, PreferNodes, move_pages};

use crate::host::{BOOT, Host, drain_and_end, known_vm, kvm_guest, move_to, number, vm, wait_for};
use crate::scenario::Scenario;
use crate::spread::{Spread, nodes};
use crate::still::Still;

/// Addresses in a block of 2 MiB.
const BLOCK: u64 = 2 << 20;

/// The ladder with both nodes in the first tier. All processors are on node 0.
fn two_sockets(host: &Host, demote_after: &str) -> Result<String> {
    let apart = "nodes = [0]\n[[tier]]\nname = \"cxl\"\nnodes = [1]\n";
    let config = host.config(demote_after);
    ensure!(config.contains(apart), "another ladder: {config}");
    Ok(config.replace(apart, "nodes = [0, 1]\n"))
}

/// Every other block to node 1.
fn to_both_nodes(filled: &Filled) -> Result<()> {
    let process = Pidfd::open(i32::try_from(filled.guest().pid())?)?;
    let pages: Vec<u64> = filled.pages().filter(|hva| hva / BLOCK % 2 == 1).collect();
    move_pages(&process, &pages, 1).context("moving half of the guest to node 1")?;
    Ok(())
}

/// Pages of which some are on each node go down and come up again.
fn moved(results: &mut Results, host: &Host, backend: Backend, kind: &str) -> Result<()> {
    let agent = Agent::start(&two_sockets(host, "1h")?, &[])?;
    let still = Still::new(&agent, kind, backend)?;
    to_both_nodes(&still.filled)?;
    let (pid, ram) = (still.filled.guest().pid(), still.filled.ram());
    let before = nodes(pid, &ram)?;
    let on_1 = before.iter().filter(|node| **node == Some(1)).count();
    results.check(&format!("{kind}: pages on node 1"), on_1, "about half", on_1 * 3 > before.len());
    for tier in ["nvme", "qlc", "dram"] {
        move_to(&agent, &still.name, tier, &[])?;
    }
    let after = nodes(pid, &ram)?;
    let same = before.iter().zip(&after).filter(|(before, after)| before == after).count();
    let wanted = format!("95 % of {}", before.len());
    results.check(
        &format!("{kind}: pages on the node they left"),
        same,
        &wanted,
        same * 100 >= before.len() * 95,
    );
    still.check_content(results)?;
    drop(still);
    drain_and_end(results, agent, host)
}

/// What is staged for a guest that lives on node 1.
fn staged(results: &mut Results, host: &Host) -> Result<()> {
    let access = Access::Stride { set_mib: 8, stride_pages: 7 };
    let pattern = Pattern { mem_mib: 16, rounds_on_command: true, access, ..Pattern::default() };
    let name = "tt-staged";
    let start = |guest: tiering_testkit::guest::Builder| -> Result<Guest> {
        // What it touches itself lands there, as on a host where its processors are.
        let _there = PreferNodes::set(&[1])?;
        guest.start()
    };
    let mut guest = start(kvm_guest(name, Backend::AnonymousSmall).memory_mib(96).pattern(pattern))?;
    guest.wait_ready(BOOT)?;
    let agent = Agent::start(&two_sockets(host, "1s")?, &[])?;
    known_vm(&agent, name)?;
    let ram = guest.ram()?;
    let on_node_1 = || -> Result<u64> { Ok(Spread::of(guest.pid(), &ram)?.node[1]) };
    results.note("pages on node 1 to begin with", on_node_1()?);
    let down = |bytes: u64| {
        wait_for("its memory to go down", || {
            let swapped =
                |vm: &serde_json::Value| number(&vm["tier_bytes"]["nvme"]) + number(&vm["tier_bytes"]["qlc"]);
            Ok(vm(&agent, name)?.map(|vm| swapped(&vm)).filter(|swapped| *swapped >= bytes))
        })
    };
    let mut issued = 0;
    let swapped = down(48 << 20)?;
    for round in 1..=2 {
        down(swapped.saturating_sub(1 << 20))?;
        let before = number(&known_vm(&agent, name)?["prefetch"]["issued_pages"]);
        guest.go()?;
        guest.wait_phase(round, BOOT)?;
        issued = number(&known_vm(&agent, name)?["prefetch"]["issued_pages"]) - before;
    }
    let spread = Spread::of(guest.pid(), &ram)?;
    results.check("pages staged in the second walk", issued, "some", issued > 0);
    let there = spread.node[0] + spread.node[1];
    let wanted = format!("95 % of {there}");
    results.check(
        "of what is in memory, on node 1",
        spread.node[1],
        &wanted,
        spread.node[1] * 100 >= there * 95,
    );
    let right = guest.finish()?.checksum_ok;
    results.check("memory right", right, "true", right);
    drop(guest);
    drain_and_end(results, agent, host)
}

#[test]
fn pages_that_come_up_land_on_the_node_of_the_first_tier_that_they_left() {
    let nodes = "dram:1G,dram:1G";
    Scenario { nodes, ..Scenario::default() }.run(
        "harm::nodes::pages_that_come_up_land_on_the_node_of_the_first_tier_that_they_left",
        |results: &mut Results| {
            let host = Host::new()?;
            moved(results, &host, Backend::AnonymousSmall, "private")?;
            moved(results, &host, Backend::Memfd, "shared")
        },
    );
}

#[test]
#[ignore = "long: a KVM guest whose memory goes down twice"]
fn staged_pages_land_on_the_node_of_the_first_tier_that_they_left() {
    let nodes = "dram:1G,dram:1G";
    Scenario { nodes, ..Scenario::default() }.run(
        "harm::nodes::staged_pages_land_on_the_node_of_the_first_tier_that_they_left",
        |results: &mut Results| staged(results, &Host::new()?),
    );
}
