//! The kernel's demotion between memory nodes (`policy.kernel_demotion`): asked for memory of a VM's group the kernel
//! fills the tiers from above, and what is used comes back; it is off while a VM is bound to nodes, and at the end as
//! it was.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::Backend;
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::results::Results;

use crate::host::{
    BOOT, Host, Memcg, drain_and_end, known_vm, kvm_guest, move_to, number, shell, wait_at_most, wait_for,
};
use crate::scenario::Scenario;
use crate::still::Still;

const SETTING: &str = "/sys/kernel/mm/numa/demotion_enabled";
const MIB: u64 = 1 << 20;
const HOT_MIB: u64 = 8;
/// Page cache of the group goes first, and steps are small.
const FILL: Duration = Duration::from_mins(10);

fn setting() -> Result<String> {
    Ok(fs::read_to_string(SETTING)?.trim().to_owned())
}

fn with_demotion(host: &Host, demote_after: &str) -> String {
    host.config(demote_after).replacen("[policy]", "[policy]\nkernel_demotion = \"on\"", 1)
}

/// Waits until the kernel has this setting.
fn becomes(results: &mut Results, agent: &Agent, what: &str, value: &str) -> Result<()> {
    let is = wait_for(&format!("{what}: {value}"), || Ok(Some(setting()?).filter(|is| is == value)));
    results.check(what, setting()?, value, is.is_ok());
    let status = agent.status()?["kernel_demotion"].clone();
    results.note(&format!("{what}: status"), status);
    Ok(())
}

fn chosen_by(agent: &Agent, name: &str) -> Result<String> {
    let answer: Value = serde_json::from_str(&agent.tiering(&["explain", name, "--json"])?)?;
    Ok(answer["pages_chosen_by"].as_str().context("nobody chooses")?.to_owned())
}

/// A guest that uses 8 MiB of its 80 all the time.
fn fills_in_order(results: &mut Results) -> Result<()> {
    let host = Host::new()?;
    // Else it would bring pages up too.
    fs::write("/proc/sys/kernel/numa_balancing", "0")?;
    let before = setting()?;
    let pattern = Pattern {
        mem_mib: 80,
        touches_per_s: 2000,
        round_touches: 1000,
        access: Access::Uniform { set_mib: HOT_MIB as usize },
        ..Pattern::default()
    };
    let mut guest =
        kvm_guest("tt-order", Backend::AnonymousSmall).memory_mib(160).pattern(pattern).start()?;
    let group = Memcg::of("tt-order", guest.pid())?;
    guest.wait_ready(BOOT)?;
    let agent = Agent::start(&with_demotion(&host, "2s"), &[])?;
    known_vm(&agent, guest.name())?;
    becomes(results, &agent, "no VM is bound: demotion", "true")?;
    let by = wait_for("the kernel to be asked", || {
        Ok(Some(chosen_by(&agent, guest.name())?).filter(|by| by.starts_with("the kernel")))
    })?;
    results.check("pages chosen by", &by, "to lower memory tiers first", by.contains("lower memory tiers"));

    // By the status, in MiB.
    let tiers = |agent: &Agent| -> Result<[u64; 4]> {
        let vm = known_vm(agent, guest.name())?;
        Ok(["dram", "cxl", "nvme", "qlc"].map(|tier| number(&vm["tier_bytes"][tier]) / MIB))
    };
    let mut first = [None; 4];
    let mut step = 0;
    let filled = wait_at_most(FILL, "all tiers to have pages", || {
        step += 1;
        let now = tiers(&agent)?;
        for (first, mib) in first.iter_mut().zip(now) {
            if mib >= 4 {
                first.get_or_insert(step);
            }
        }
        if step % 150 == 0 {
            let demoted = pgdemote(&group)? * 4096 / MIB;
            println!("MiB in dram, cxl, nvme, qlc: {now:?}, demoted by the kernel: {demoted}");
        }
        Ok(first.iter().all(Option::is_some).then_some(now))
    });
    let last = tiers(&agent)?;
    results.check(
        "MiB in dram, cxl, nvme, qlc",
        format!("{last:?}"),
        "4 at least, each once",
        filled.is_ok(),
    );
    results.check("looks until each had 4 MiB", format!("{first:?}"), "in this order", first.is_sorted());
    results.note("demoted by the kernel, MiB", pgdemote(&group)? * 4096 / MIB);
    results.check("pages that the kernel demoted", pgdemote(&group)?, "> 2048", pgdemote(&group)? > 2048);

    // What it uses is in DRAM, or comes back there.
    let moved = move_to(&agent, guest.name(), "cxl", &[])?;
    let bytes = number(&moved["moved_bytes"]);
    results.check("MiB that were moved to cxl", bytes / MIB, "64 at least", bytes >= 64 * MIB);
    let back = wait_for("the hot set to come back", || Ok((tiers(&agent)?[0] >= HOT_MIB).then_some(())));
    let text = format!("{:?}", tiers(&agent)?);
    results.check("its hot set of 8 MiB is in dram again", text, ">= 8", back.is_ok());
    let right = guest.finish()?.checksum_ok;
    results.check("memory right", right, "true", right);
    drop(guest);
    drain_and_end(results, agent, &host)?;
    let after = setting()?;
    results.check("demotion after the agent", &after, &before, after == before);
    Ok(())
}

/// Pages of the group that reclaim has demoted, by the kernel's own count.
fn pgdemote(group: &Memcg) -> Result<u64> {
    let count = |by: &str| group.field("memory.stat", &format!("pgdemote_{by}"));
    Ok(count("kswapd")? + count("direct")?)
}

#[test]
#[ignore = "long: 15 minutes until all tiers have pages"]
fn with_the_kernels_demotion_tiers_fill_from_above() {
    Scenario::default().run("node_demotion::with_the_kernels_demotion_tiers_fill_from_above", fills_in_order);
}

/// A VM that is confined to node 0 by its cpuset.
fn bound(results: &mut Results) -> Result<()> {
    let host = Host::new()?;
    let mut agent = Agent::start(&with_demotion(&host, "1h"), &[])?;
    becomes(results, &agent, "no VM: demotion", "true")?;
    // Off again whenever processes cannot be looked at in time.
    wait_for("demotion to be on", || Ok((setting()? == "true").then_some(())))?;
    agent.kill9();
    results.check("after a kill: demotion", setting()?, "true", setting()? == "true");
    let next = Agent::start(&host.config("1h"), &[])?;
    let is = setting()?;
    results.check("the next agent, which leaves it: demotion", &is, "false", is == "false");
    next.interrupt()?;

    let agent = Agent::start(&with_demotion(&host, "1h"), &[])?;
    let (still, group) = Still::in_group(&agent, "bound", &[])?;
    becomes(results, &agent, "a VM that is not bound: demotion", "true")?;
    shell("echo +cpuset >/sys/fs/cgroup/cgroup.subtree_control")?;
    group.set("cpuset.mems", 0)?;
    becomes(results, &agent, "bound to node 0: demotion", "false")?;
    let refused = agent.status()?["kernel_demotion"]["refused"].as_str().unwrap_or_default().to_owned();
    let told = refused.contains("tt-bound") && refused.contains("cpuset");
    results.check("status", &refused, "tt-bound … cpuset", told);
    let warns = |line: &str| line.starts_with("warning:") && line.contains("tt-bound");
    let warned = wait_for("a warning", || Ok(agent.tiering(&["status"])?.lines().any(warns).then_some(())));
    results.check("a warning in the status", warned.is_ok(), "true", warned.is_ok());
    let by = chosen_by(&agent, &still.name)?;
    results.check(
        "explain",
        &by,
        "the agent: … cpuset",
        by.starts_with("the agent:") && by.contains("cpuset"),
    );
    let doctor = agent.tiering(&["doctor"])?;
    let told = doctor.lines().any(|line| line.starts_with("kernel demotion") && line.contains("cpuset"));
    results.check("doctor tells it", told, "true", told);
    still.check_content(results)?;
    drop((still, group));
    becomes(results, &agent, "that VM has gone: demotion", "true")?;
    drain_and_end(results, agent, &host)?;
    let is = setting()?;
    results.check("after the agent: demotion", &is, "false", is == "false");
    let mark = Path::new("/run/tiering/demotion").exists();
    results.check("a mark is left", mark, "false", !mark);
    Ok(())
}

#[test]
fn a_bound_vm_keeps_demotion_off_and_the_setting_is_put_back() {
    Scenario::default()
        .run("node_demotion::a_bound_vm_keeps_demotion_off_and_the_setting_is_put_back", bound);
}
