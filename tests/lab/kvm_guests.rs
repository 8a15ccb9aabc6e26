//! The first path with KVM guests: their accesses are seen, idle pages go down through all four tiers, what a guest
//! will touch next is staged, and its memory is right in the end.

use anyhow::{Context, Result};
use serde_json::Value;
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::{Backend, Guest};
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::results::Results;

use crate::host::{BOOT, Host, known_vm, kvm_guest, number, ready, vm, wait_for};
use crate::scenario::Scenario;

const NAMES: [&str; 2] = ["tt-one", "tt-two"];
const SET_PAGES: u64 = 4 * 256;

/// Walks 4 MiB of its memory, in the same order each time, when it is told to.
fn pattern(seed: u64) -> Pattern {
    let access = Access::Stride { set_mib: 4, stride_pages: 7 };
    Pattern { seed, mem_mib: 12, rounds_on_command: true, access, ..Pattern::default() }
}

fn bytes_in_swap(vm: &Value) -> u64 {
    number(&vm["tier_bytes"]["nvme"]) + number(&vm["tier_bytes"]["qlc"])
}

/// Waits until this much of a guest is in the swap tiers.
fn wait_until_down(agent: &Agent, guest: &Guest, bytes: u64) -> Result<Value> {
    wait_for(&format!("{} MiB of {} in swap", bytes >> 20, guest.name()), || {
        Ok(vm(agent, guest.name())?.filter(|vm| bytes_in_swap(vm) >= bytes))
    })
}

fn walk(guest: &mut Guest, round: u64) -> Result<()> {
    guest.go()?;
    guest.wait_phase(round, BOOT)?;
    Ok(())
}

/// All of it, on whatever kernel the lab has.
fn the_first_path(results: &mut Results) -> Result<()> {
    let host = Host::new()?;
    let mut guests = Vec::new();
    for (seed, name) in (1..).zip(NAMES) {
        let builder = kvm_guest(name, Backend::Anonymous).memory_mib(96).pattern(pattern(seed));
        guests.push(ready(builder, results)?);
    }
    // Each its own tenant: here a guest learns from its own past alone.
    let agent = Agent::start(&host.config("1s").replace("tenant = \"test\"\n", ""), &[])?;
    for name in NAMES {
        known_vm(&agent, name)?;
    }
    results.note("guests that the agent knows", NAMES.len());

    // Nothing is touched but what the guest's kernel does.
    for guest in &guests {
        wait_until_down(&agent, guest, 48 << 20)?;
        wait_for(&format!("{} in the last tier", guest.name()), || {
            Ok(vm(&agent, guest.name())?.filter(|vm| number(&vm["tier_bytes"]["qlc"]) > 16 << 20))
        })?;
        results.note("idle memory is down", guest.name());
    }
    let mut down = Vec::new();
    for guest in &mut guests {
        let before = known_vm(&agent, guest.name())?;
        down.push(bytes_in_swap(&before));
        walk(guest, 1)?;
        let seen = wait_for("the walk to be seen", || {
            let vm = known_vm(&agent, guest.name())?;
            Ok(Some(number(&vm["faults_total"]) - number(&before["faults_total"]))
                .filter(|n| *n >= SET_PAGES))
        })?;
        results.note(&format!("{}: accesses seen in a walk of {SET_PAGES} pages", guest.name()), seen);
    }
    for (guest, down) in guests.iter_mut().zip(down) {
        let name = guest.name().to_owned();
        // What was walked has to go down again: it came back soon, so that takes longer now.
        wait_until_down(&agent, guest, down.saturating_sub(1 << 20))?;
        let before = known_vm(&agent, &name)?;
        walk(guest, 2)?;
        let after = known_vm(&agent, &name)?;
        let more = |field: &str| number(&after["prefetch"][field]) - number(&before["prefetch"][field]);
        results.note(&format!("{name}: pages staged in the second walk"), more("issued_pages"));
        let used = more("used_pages");
        results.check(
            &format!("{name}: of these used"),
            used,
            &format!(">= {}", SET_PAGES / 4),
            used >= SET_PAGES / 4,
        );
        for tier in ["dram", "cxl", "nvme", "qlc"] {
            let mib = number(&after["tier_bytes_peak"][tier]) >> 20;
            results.check(&format!("{name}: MiB in {tier} at most"), mib, "> 0", mib > 0);
        }
    }
    let status = agent.status()?;
    let sources = status["sources"].as_array().context("a status without sources")?;
    let kvm = sources
        .iter()
        .find(|source| source["name"] == "kvm_page_fault")
        .context("no source kvm_page_fault")?;
    let detail = kvm["detail"].as_str().unwrap_or_default();
    results.check("source kvm_page_fault", detail, "proved for 2 of 2", detail.contains("2 of 2"));

    for guest in &mut guests {
        let right = guest.finish()?.checksum_ok;
        results.check(&format!("{}: memory right", guest.name()), right, "true", right);
    }
    for guest in &mut guests {
        guest.kill();
    }
    let report = agent.interrupt()?;
    results.check("agent's exit code", format!("{:?}", report.code), "Some(0)", report.code == Some(0));
    Ok(())
}

#[test]
#[ignore = "long: two guests go down four tiers, twice"]
fn accesses_of_kvm_guests_are_seen_and_followed() {
    Scenario::default().run("kvm_guests::accesses_of_kvm_guests_are_seen_and_followed", the_first_path);
}

#[test]
#[ignore = "long: the same on the oldest kernel"]
fn accesses_of_kvm_guests_are_seen_and_followed_on_6_1() {
    // The plugs of the lower tier are really written there.
    Scenario { kernel: "6.1", ..Scenario::default() }
        .run("kvm_guests::accesses_of_kvm_guests_are_seen_and_followed_on_6_1", the_first_path);
}
