//! The first path with KVM guests: their accesses are seen, idle pages go down, what follows is staged, and their memory
//! is right in the end.

use anyhow::{Context, Result};
use tiering_tests::agent::Agent;
use tiering_tests::guest::Backend;
use tiering_tests::pattern::{Access, Pattern};
use tiering_tests::results::Results;

use crate::host::{BOOT, Host, known_vm, kvm_guest, number, vm, wait_for};
use crate::scenario::Scenario;

const NAMES: [&str; 2] = ["tt-one", "tt-two"];

/// Walked every 12 s: by then its pages have gone through the memory tiers to the disk.
fn pattern(seed: u64) -> Pattern {
    let access = Access::HotAndLoop { hot_mib: 2, loop_mib: 8, loop_every_ms: 12_000 };
    Pattern { seed, mem_mib: 32, access, ..Pattern::default() }
}

/// All of it, on whatever kernel the lab has.
fn the_first_path(results: &mut Results) -> Result<()> {
    let host = Host::new()?;
    let mut guests = Vec::new();
    for (seed, name) in (1..).zip(NAMES) {
        guests.push(kvm_guest(name, Backend::Anonymous).memory_mib(112).pattern(pattern(seed)).start()?);
    }
    for guest in &mut guests {
        guest.wait_ready(BOOT)?;
    }
    let agent = Agent::start(&host.config("1s"), &[])?;
    for name in NAMES {
        known_vm(&agent, name)?;
    }

    let used = wait_for("staged pages of both guests to be used", || {
        let mut all = Vec::new();
        for name in NAMES {
            all.extend(vm(&agent, name)?);
        }
        let enough = |vm: &&serde_json::Value| {
            number(&vm["prefetch"]["used_pages"]) > 300 && number(&vm["tier_bytes_peak"]["qlc"]) > 0
        };
        Ok((all.iter().filter(enough).count() == NAMES.len()).then_some(all))
    });
    let status = agent.status()?;
    println!("{status:#}");
    let vms = used?;
    for vm in &vms {
        let name = vm["name"].as_str().context("a VM without name")?;
        let samples = number(&vm["faults_total"]);
        results.check(&format!("{name}: accesses seen"), samples, "> 1000", samples > 1000);
        let peak = &vm["tier_bytes_peak"];
        for tier in ["dram", "cxl", "nvme", "qlc"] {
            let mib = number(&peak[tier]) >> 20;
            results.check(&format!("{name}: MiB in {tier} at most"), mib, "> 0", mib > 0);
        }
        results.note(&format!("{name}: staged and used pages"), &vm["prefetch"]);
    }
    let source =
        status["sources"].as_array().and_then(|all| all.iter().find(|s| s["name"] == "kvm_page_fault"));
    let detail = source.and_then(|source| source["detail"].as_str()).unwrap_or_default();
    results.check("source kvm_page_fault", detail, "proved for 2 of 2", detail.contains("2 of 2"));

    for guest in &mut guests {
        let name = guest.name().to_owned();
        let result = guest.finish()?;
        results.check(&format!("{name}: memory right"), result.checksum_ok, "true", result.checksum_ok);
    }
    let status = agent.status()?;
    let ended = agent.interrupt()?;
    let events = &status["events"];
    results.note("events", events);
    results.check("agent's exit code", format!("{:?}", ended.code), "Some(0)", ended.code == Some(0));
    Ok(())
}

#[test]
fn accesses_of_kvm_guests_are_seen_and_followed() {
    Scenario::default().run("kvm_guests::accesses_of_kvm_guests_are_seen_and_followed", the_first_path);
}

#[test]
#[ignore = "long: the same on the oldest kernel"]
fn accesses_of_kvm_guests_are_seen_and_followed_on_6_1() {
    Scenario { kernel: "6.1", ..Scenario::default() }
        .run("kvm_guests::accesses_of_kvm_guests_are_seen_and_followed_on_6_1", the_first_path);
}
