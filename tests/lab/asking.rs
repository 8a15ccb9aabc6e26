//! Of a VM that has a control group of its own the kernel chooses which pages leave DRAM, as its LRU has them; where it
//! cannot be asked the agent says why, and chooses itself.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use tiering_tests::agent::Agent;
use tiering_tests::guest::{Backend, Guest};
use tiering_tests::pattern::{Access, Pattern};
use tiering_tests::results::Results;

use crate::host::{BOOT, Host, Memcg, drain_and_end, known_vm, kvm_guest, number, wait_for};
use crate::scenario::Scenario;
use crate::still::Still;

const MIB: u64 = 1 << 20;
const HOT_MIB: u64 = 16;
const SET_MIB: u64 = 80;

/// One memory node: pages go from there to swap.
fn scenario() -> Scenario {
    Scenario { nodes: "dram:2G", ..Scenario::default() }
}

/// As an operator leaves it, but for the idle time.
fn config(host: &Host) -> Result<String> {
    let config = host.config("10s");
    let (before, rest) = config.split_once("[policy]").context("a configuration without policy")?;
    let (_, rules) = rest.split_once("[[vm]]").context("a configuration without VMs")?;
    Ok(format!("{before}[policy]\ndemote_after = \"10s\"\n[[vm]]{rules}"))
}

/// What `tiering explain` says of who chooses the guest's pages.
fn chosen_by(agent: &Agent, name: &str) -> Result<String> {
    let answer: Value = serde_json::from_str(&agent.tiering(&["explain", name, "--json"])?)?;
    Ok(answer["pages_chosen_by"].as_str().context("nobody chooses")?.to_owned())
}

/// A KVM guest that is charged to a group of its own from its start. It touches 16 of 80 MiB all the time.
fn hot_and_cold(results: &mut Results) -> Result<(Guest, Memcg)> {
    let pattern = Pattern {
        mem_mib: SET_MIB as usize,
        touches_per_s: 2000,
        round_touches: 1000,
        access: Access::Uniform { set_mib: HOT_MIB as usize },
        ..Pattern::default()
    };
    let builder = kvm_guest("tt-lru", Backend::AnonymousSmall).pattern(pattern);
    let mut guest = builder.start()?;
    let group = Memcg::of("tt-lru", guest.pid())?;
    guest.wait_ready(BOOT)?;
    results.note("ready", guest.name());
    Ok((guest, group))
}

fn the_kernel_chooses(results: &mut Results) -> Result<()> {
    let host = Host::new()?;
    let (mut guest, group) = hot_and_cold(results)?;
    let agent = Agent::start(&config(&host)?, &[])?;
    known_vm(&agent, guest.name())?;
    let asked = wait_for("the kernel to be asked", || {
        Ok(Some(chosen_by(&agent, guest.name())?).filter(|by| by.starts_with("the kernel")))
    })?;
    results.note("pages chosen by", asked);
    let (charged, faults) = (group.bytes("memory.current")?, group.major_faults()?);
    let began = Instant::now();
    let mut by_minute = Vec::new();
    for minute in 1..=4 {
        std::thread::sleep((Duration::from_mins(minute)).saturating_sub(began.elapsed()));
        let now = group.bytes("memory.current")?;
        by_minute.push((charged.saturating_sub(now) / MIB, group.major_faults()? - faults));
    }
    results.note("MiB free and major faults after each of 4 minutes", format!("{by_minute:?}"));
    let (free, reads) = by_minute.last().copied().unwrap_or_default();
    let cold = SET_MIB - HOT_MIB;
    results.check(
        &format!("MiB free of {cold} never touched again"),
        free,
        "58 at least",
        free * 10 >= cold * 9,
    );
    // 0.2 % of some 30,000 pages a minute, and no step more.
    let most = 2 * 4 * 65;
    results.check("major faults meanwhile", reads, &format!("{most} at most"), reads <= most);
    let vm = known_vm(&agent, guest.name())?;
    results.note("limited by", vm["limited_by"].clone());
    let demoted = number(&vm["demoted_bytes_total"]) / MIB;
    results.check("MiB demoted, by the status", demoted, "58 at least", demoted * 10 >= cold * 9);
    results.note("in swap, by the map", vm["tier_bytes"].clone());
    let right = guest.finish()?.checksum_ok;
    results.check("memory right", right, "true", right);
    drop(guest);
    drain_and_end(results, agent, &host)
}

#[test]
fn of_a_vm_with_a_group_of_its_own_the_kernel_chooses() {
    scenario().run("asking::of_a_vm_with_a_group_of_its_own_the_kernel_chooses", the_kernel_chooses);
}

/// The longest that making and removing a group took, while `run` goes on.
fn longest_mkdir(run: impl FnOnce() -> Result<()>) -> Result<(Duration, u32)> {
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looker = scope.spawn(|| -> Result<(Duration, u32)> {
            let folder = Path::new("/sys/fs/cgroup/tt-mkdir");
            let (mut longest, mut times) = (Duration::ZERO, 0);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let began = Instant::now();
                fs::create_dir(folder)?;
                fs::remove_dir(folder)?;
                longest = longest.max(began.elapsed());
                times += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok((longest, times))
        });
        let ran = run();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let looked = looker.join().map_err(|_| anyhow::anyhow!("the looker panicked"))?;
        ran.and(looked)
    })
}

/// What can go wrong with a group, one after the other.
fn bad_groups(results: &mut Results) -> Result<()> {
    let host = Host::new()?;
    // Everything at once, so that steps are under way.
    let agent = Agent::start(&host.config("1s"), &[])?;

    let charged_elsewhere = Still::new(&agent, "elsewhere", Backend::AnonymousSmall)?;
    let late = Memcg::of("tt-elsewhere", charged_elsewhere.filled.guest().pid())?;
    let why = wait_for("the charge to be looked at", || {
        Ok(Some(chosen_by(&agent, &charged_elsewhere.name)?).filter(|by| by.contains("looked at")))
    })?;
    results.check("moved into its group when it was filled", why, "the agent: charged elsewhere", true);
    wait_for("it to go down all the same", || {
        Ok((number(&known_vm(&agent, &charged_elsewhere.name)?["demoted_bytes_total"]) >= 32 * MIB)
            .then_some(()))
    })?;
    charged_elsewhere.check_content(results)?;
    drop((charged_elsewhere, late));

    let (frozen, group) = Still::in_group(&agent, "frozen", &[("cgroup.freeze", 1)])?;
    let demoted = wait_for("a frozen group to go down", || {
        let demoted = number(&known_vm(&agent, &frozen.name)?["demoted_bytes_total"]);
        Ok((demoted >= 32 * MIB).then_some(demoted))
    })?;
    results.check("frozen: MiB demoted", demoted / MIB, "32 at least", true);
    group.set("cgroup.freeze", 0)?;
    frozen.check_content(results)?;
    drop((frozen, group));

    let (longest, times) = longest_mkdir(|| {
        let (killed, _group) = Still::in_group(&agent, "killed", &[])?;
        wait_for("a step", || {
            Ok((number(&known_vm(&agent, &killed.name)?["demoted_bytes_total"]) > 0).then_some(()))
        })?;
        drop(killed);
        std::thread::sleep(Duration::from_secs(2));
        Ok(())
    })?;
    let text = format!("{} ms, of {times} times", longest.as_millis());
    results.check(
        "a VM killed in a step: longest mkdir of another group",
        text,
        "200 ms",
        longest.as_millis() < 200,
    );
    drain_and_end(results, agent, &host)
}

#[test]
fn groups_that_are_not_the_vms_are_frozen_or_vanish_do_no_harm() {
    scenario().run("asking::groups_that_are_not_the_vms_are_frozen_or_vanish_do_no_harm", bad_groups);
}
