//! Of a VM that has a control group of its own the kernel chooses which pages leave DRAM, as its LRU has them; where it
//! cannot be asked the agent says why, and chooses itself.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use tiering_testkit::agent::Agent;
use tiering_testkit::filled::Filled;
use tiering_testkit::guest::{Backend, Guest};
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::results::Results;

use crate::host::{BOOT, Host, Memcg, drain_and_end, known_vm, kvm_guest, longest_mkdir, number, wait_for};
use crate::scenario::Scenario;
use crate::still::Still;

const MIB: u64 = 1 << 20;
pub const HOT_MIB: u64 = 16;
const SET_MIB: u64 = 80;
/// Until then what is cold must be free.
const MOST: Duration = Duration::from_mins(6);

/// One memory node: pages go from there to swap.
fn scenario() -> Scenario {
    Scenario { nodes: "dram:2G", ..Scenario::default() }
}

/// One swap tier, and all else as an operator leaves it, but for the idle time, and for the share of the processor: the
/// lab's is emulated.
pub fn config(host: &Host) -> Result<String> {
    let config = host.config("10s");
    let (before, rest) =
        config.split_once("[[tier]]\nname = \"qlc\"").context("a configuration without qlc")?;
    let (_, rules) = rest.split_once("[[vm]]").context("a configuration without VMs")?;
    Ok(format!("{before}[policy]\ndemote_after = \"10s\"\ncpu_limit = \"100%\"\n[[vm]]{rules}"))
}

/// What the group has of guest memory: mapped, and copies in the swap cache.
pub fn held(group: &Memcg) -> Result<u64> {
    Ok(group.field("memory.stat", "anon")? + group.field("memory.stat", "swapcached")?)
}

/// What `tiering explain` says of who chooses the guest's pages.
fn chosen_by(agent: &Agent, name: &str) -> Result<String> {
    let answer: Value = serde_json::from_str(&agent.tiering(&["explain", name, "--json"])?)?;
    Ok(answer["pages_chosen_by"].as_str().context("nobody chooses")?.to_owned())
}

/// A KVM guest that is charged to a group of its own from its start. It touches 16 of 80 MiB all the time.
pub fn hot_and_cold(results: &mut Results) -> Result<(Guest, Memcg)> {
    let pattern = Pattern {
        mem_mib: SET_MIB as usize,
        touches_per_s: 2000,
        round_touches: 1000,
        access: Access::Uniform { set_mib: HOT_MIB as usize },
        ..Pattern::default()
    };
    let builder = kvm_guest("tt-lru", Backend::AnonymousSmall).memory_mib(160).pattern(pattern);
    let mut guest = builder.start()?;
    let group = Memcg::of("tt-lru", guest.pid())?;
    guest.wait_ready(BOOT)?;
    results.note("ready", guest.name());
    Ok((guest, group))
}

fn the_kernel_chooses(results: &mut Results) -> Result<()> {
    let host = Host::new()?;
    let (mut guest, group) = hot_and_cold(results)?;
    // Of QEMU's files: the lab's root has no page cache of its own.
    let faults = group.major_faults()?;
    std::thread::sleep(Duration::from_secs(30));
    let before = (group.major_faults()? - faults) * 2;
    let agent = Agent::start(&config(&host)?, &[])?;
    known_vm(&agent, guest.name())?;
    let asked = wait_for("the kernel to be asked", || {
        Ok(Some(chosen_by(&agent, guest.name())?).filter(|by| by.starts_with("the kernel")))
    })?;
    results.note("pages chosen by", asked);
    let faults = group.major_faults()?;
    let held = held(&group)?;
    let cold = (SET_MIB - HOT_MIB) * MIB;
    let began = Instant::now();
    let mut by_minute = Vec::new();
    let free = loop {
        std::thread::sleep(Duration::from_secs(30));
        let free = held.saturating_sub(self::held(&group)?);
        by_minute.push(free / MIB);
        if free * 10 >= cold * 9 || began.elapsed() > MOST {
            break free;
        }
    };
    results.note("MiB free after each half minute", format!("{by_minute:?}"));
    let what = format!("MiB free of {} never touched again", cold / MIB);
    results.check(&what, free / MIB, "58 at least", free * 10 >= cold * 9);
    let minutes = began.elapsed().as_secs().div_ceil(60);
    let reads = group.major_faults()?.saturating_sub(faults);
    // 0.2 % of some 40,000 pages a minute, and no step more.
    let most = (before + 80) * minutes * 2;
    let what = format!("major faults in {minutes} minutes, {before} a minute before");
    results.check(&what, reads, &format!("{most} at most"), reads <= most);
    let vm = known_vm(&agent, guest.name())?;
    results.note("limited by", vm["limited_by"].clone());
    let demoted = number(&vm["demoted_bytes_total"]) / MIB;
    results.check("MiB demoted, by the status", demoted, "58 at least", demoted * MIB * 10 >= cold * 9);
    results.note("in swap, by the map", vm["tier_bytes"].clone());
    let right = guest.finish()?.checksum_ok;
    results.check("memory right", right, "true", right);
    drop(guest);
    agent.tiering(&["drain", "nvme"])?;
    let ended = agent.interrupt()?;
    results.check("agent's exit code", format!("{:?}", ended.code), "Some(0)", ended.code == Some(0));
    Ok(())
}

#[test]
#[ignore = "long: until all that is cold is free"]
fn of_a_vm_with_a_group_of_its_own_the_kernel_chooses() {
    scenario().run("asking::of_a_vm_with_a_group_of_its_own_the_kernel_chooses", the_kernel_chooses);
}

/// What can go wrong with a group, one after the other.
fn bad_groups(results: &mut Results) -> Result<()> {
    let host = Host::new()?;
    let (alone, _) = longest_mkdir(|| {
        let pattern = Pattern { mem_mib: 16, access: Access::Idle, ..Pattern::default() };
        let guest =
            Guest::builder("tt-alone").memory_mib(64).pattern(pattern).backend(Backend::AnonymousSmall);
        let mut group = None;
        let killed = Filled::placed(guest, |pid| {
            group = Some(Memcg::of("tt-alone", pid)?);
            Ok(())
        })?;
        drop((killed, group));
        std::thread::sleep(Duration::from_secs(2));
        Ok(())
    })?;
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
    })
    .with_context(|| agent.tiering(&["explain", &charged_elsewhere.name]).unwrap_or_default())?;
    charged_elsewhere.check_content(results)?;
    drop((charged_elsewhere, late));

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
        &format!("200 ms, or twice the {} ms without an agent", alone.as_millis()),
        longest < (alone * 2).max(Duration::from_millis(200)),
    );
    drain_and_end(results, agent, &host)
}

#[test]
#[ignore = "long: three guests, one after the other"]
fn groups_that_are_not_the_vms_or_vanish_do_no_harm() {
    scenario().run("asking::groups_that_are_not_the_vms_or_vanish_do_no_harm", bad_groups);
}

/// The memory of a VM that does not run at all, and cannot be woken by a signal.
fn frozen_group(results: &mut Results) -> Result<()> {
    let host = Host::new()?;
    let agent = Agent::start(&config(&host)?, &[])?;
    let (frozen, group) = Still::in_group(&agent, "frozen", &[])?;
    group.set("cgroup.freeze", 1)?;
    let down = wait_for("a frozen VM to go down", || {
        let bytes = number(&known_vm(&agent, &frozen.name)?["demoted_bytes_total"]);
        Ok(Some(bytes).filter(|bytes| *bytes >= 16 * MIB))
    });
    let down = down.with_context(|| agent.tiering(&["explain", &frozen.name]).unwrap_or_default())?;
    results.note("MiB that went down while it was frozen", down / MIB);
    results.note("pages chosen by", chosen_by(&agent, &frozen.name)?);
    group.set("cgroup.freeze", 0)?;
    frozen.check_content(results)?;
    drop((frozen, group));
    agent.tiering(&["drain", "nvme"])?;
    let ended = agent.interrupt()?;
    results.check("agent's exit code", format!("{:?}", ended.code), "Some(0)", ended.code == Some(0));
    Ok(())
}

#[test]
#[ignore = "long: the kernel finds little at a time"]
fn of_a_vm_whose_group_is_frozen_memory_goes_all_the_same() {
    scenario().run("asking::of_a_vm_whose_group_is_frozen_memory_goes_all_the_same", frozen_group);
}
