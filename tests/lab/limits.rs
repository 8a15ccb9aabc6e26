//! What a guest's control group allows is kept to, what holds demotion back is told, and copies that page-outs leave in
//! the swap cache are counted and, if wanted, freed.

use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tiering_testkit::agent::Agent;
use tiering_testkit::results::Results;

use crate::host::{Host, Memcg, drain_and_end, known_vm, move_to, number, wait_for};
use crate::scenario::Scenario;
use crate::still::Still;

const MIB: u64 = 1 << 20;

/// One memory node: pages go from there to swap.
fn scenario() -> Scenario {
    Scenario { nodes: "dram:2G", ..Scenario::default() }
}

/// The agent chooses the pages: the kernel would take page cache of the group first, and nothing else of so little.
fn config(host: &Host) -> String {
    host.config("1s").replacen("[policy]", "[policy]\nreclaim = \"off\"", 1)
}

/// Ended when dropped.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        // An error means that it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until the status says that demotion of the guest is held back by something with this word.
fn held_back(agent: &Agent, name: &str, word: &str) -> Result<String> {
    let mut last = known_vm(agent, name)?;
    let why = wait_for(&format!("{name} to be held back by {word}"), || {
        last = known_vm(agent, name)?;
        Ok(last["limited_by"].as_str().filter(|why| why.contains(word)).map(str::to_owned))
    });
    why.with_context(|| format!("last it was {last}"))
}

fn demoted(agent: &Agent, name: &str) -> Result<u64> {
    Ok(number(&known_vm(agent, name)?["demoted_bytes_total"]))
}

fn wait_until_demoted(agent: &Agent, name: &str, bytes: u64) -> Result<u64> {
    wait_for(&format!("{} MiB of {name} to go down", bytes / MIB), || {
        Ok(Some(demoted(agent, name)?).filter(|demoted| *demoted >= bytes))
    })
}

/// `memory.swap.max`: no more than that goes, and the kernel never has to refuse.
fn swap_limit(results: &mut Results, agent: &Agent) -> Result<(Still, Memcg)> {
    let (still, group) = Still::in_group(agent, "swapmax", &[("memory.swap.max", 16 * MIB)])?;
    let why = held_back(agent, &still.name, "memory.swap.max")?;
    results.check("swap.max 16 MiB: held back by", why, "memory.swap.max", true);
    // Time enough to do wrong.
    std::thread::sleep(Duration::from_secs(5));
    let used = group.bytes("memory.swap.current")?;
    let ok = (8 * MIB..=16 * MIB).contains(&used);
    results.check("swap.max 16 MiB: MiB in swap", used / MIB, "8 to 16", ok);
    let fails = group.field("memory.swap.events", "fail")?;
    results.check("swap.max 16 MiB: times the kernel refused", fails, "0", fails == 0);

    group.set("memory.swap.max", "max")?;
    let demoted = wait_until_demoted(agent, &still.name, 40 * MIB)?;
    results.check("limit lifted: MiB demoted", demoted / MIB, ">= 40", true);
    Ok((still, group))
}

/// `memory.max`: what comes up is charged to the guest, and nothing in it is killed.
fn charge_limit(results: &mut Results, agent: &Agent, still: &Still, group: &Memcg) -> Result<()> {
    // On its way from one swap tier to the next a page is charged for a moment.
    wait_for("all of it to reach the last tier", || {
        let tiers = known_vm(agent, &still.name)?["tier_bytes"].clone();
        Ok((number(&tiers["qlc"]) >= 40 * MIB && number(&tiers["nvme"]) <= MIB).then_some(()))
    })?;
    // Copies that the page-outs left would come up without being charged once more.
    group.reclaim(64 * MIB);
    let copies = copies(group)?;
    let used = group.bytes("memory.current")?;
    group.set("memory.max", used + 8 * MIB)?;
    let outcome = move_to(agent, &still.name, "dram", &[])?;
    let up = number(&outcome["moved_bytes"]);
    let text = format!("{}, {} of copies", up / MIB, copies / MIB);
    let ok = (MIB..=8 * MIB + copies).contains(&up);
    results.check("memory.max 8 MiB above: MiB that came up", text, "1 to 8 and the copies", ok);
    let skipped = outcome["skipped"].as_object().context("an outcome without skips")?;
    let told = skipped.keys().any(|why| why.contains("memory.max"));
    results.check("memory.max: the others stay because", format!("{skipped:?}"), "memory.max", told);
    let (max, kills) = (group.field("memory.events", "max")?, group.field("memory.events", "oom_kill")?);
    results.check("memory.max: met, killed", format!("{max}, {kills}"), "-, 0", kills == 0);
    group.set("memory.max", "max")
}

/// `memory.min`: the guest keeps what it was promised.
fn promise(results: &mut Results, agent: &Agent) -> Result<(Still, Memcg)> {
    let (still, group) = Still::in_group(agent, "min", &[("memory.min", 1024 * MIB)])?;
    let why = held_back(agent, &still.name, "memory.min")?;
    results.check("memory.min 1 GiB: held back by", why, "memory.min", true);
    let went = demoted(agent, &still.name)?;
    results.check("memory.min 1 GiB: bytes demoted", went, "0", went == 0);
    // What counts is all that the group uses: QEMU's own memory, and what it was the first to read of its files.
    let promised = group.bytes("memory.current")? - copies(&group)? - 8 * MIB;
    group.set("memory.min", promised)?;
    let went = wait_until_demoted(agent, &still.name, MIB)?;
    // Time enough to do wrong.
    std::thread::sleep(Duration::from_secs(5));
    let stays = group.bytes("memory.current")? - copies(&group)?;
    let wanted = format!("{} at least", promised / MIB);
    results.check("8 MiB above memory.min: MiB that stay", stays / MIB, &wanted, stays >= promised);
    results.check("8 MiB above memory.min: MiB demoted", went / MIB, "1 at least", true);
    let why = held_back(agent, &still.name, "memory.min")?;
    results.check("8 MiB above memory.min: held back by", why, "memory.min", true);
    Ok((still, group))
}

#[test]
#[ignore = "long: a guest goes down two tiers"]
fn what_a_control_group_allows_is_kept_to() {
    scenario().run("limits::what_a_control_group_allows_is_kept_to", |results: &mut Results| {
        let host = Host::new()?;
        let agent = Agent::start(&config(&host), &[])?;
        let (still, group) = swap_limit(results, &agent)?;
        charge_limit(results, &agent, &still, &group)?;
        still.check_content(results)?;
        drop(still);
        drain_and_end(results, agent, &host)
    });
}

#[test]
fn what_was_promised_stays() {
    scenario().run("limits::what_was_promised_stays", |results: &mut Results| {
        let host = Host::new()?;
        let agent = Agent::start(&config(&host), &[])?;
        let (still, _group) = promise(results, &agent)?;
        still.check_content(results)?;
        drop(still);
        drain_and_end(results, agent, &host)
    });
}

/// What the host and the group say of memory, MiB: free, page cache, swap cache; the group's own.
fn memory(group: &Memcg) -> Result<[u64; 4]> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let mib = |name: &str| -> Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib = line.and_then(|value| value.split_whitespace().next()).context("no such line")?;
        Ok(kib.parse::<u64>()? >> 10)
    };
    Ok([mib("MemFree")?, mib("Cached")?, mib("SwapCached")?, group.bytes("memory.current")? / MIB])
}

/// What is in the swap cache of the group and, the guest standing still, not mapped.
fn copies(group: &Memcg) -> Result<u64> {
    group.field("memory.stat", "swapcached")
}

fn cached(vm: &Value) -> u64 {
    number(&vm["swap_cached_bytes"])
}

/// Two guests are paged out; one is alone in its group, the other has a helper there.
fn swap_cache(results: &mut Results) -> Result<()> {
    let host = Host::new()?;
    let agent = Agent::start(&host.config("1h"), &[])?;
    let (alone, own) = Still::in_group(&agent, "alone", &[])?;
    let (beside, shared) = Still::in_group(&agent, "beside", &[])?;
    let other = Ends(Command::new("sleep").arg("600").spawn()?);
    shared.add(other.0.id())?;
    for still in [&alone, &beside] {
        move_to(&agent, &still.name, "nvme", &[])?;
    }
    let (before, memory_before) = (copies(&own)?, memory(&own)?);
    results.note("paged out, alone: MiB in the swap cache", before / MIB);
    results.check("the same by the status", "", "within 1 MiB", {
        let told = wait_for("the status to tell", || {
            Ok(Some(cached(&known_vm(&agent, &alone.name)?)).filter(|told| told.abs_diff(before) <= MIB))
        });
        told.is_ok()
    });
    let told = cached(&known_vm(&agent, &beside.name)?);
    let right = told.abs_diff(before) <= MIB;
    results.check("beside a helper, by the status: MiB", told / MIB, "the same", right);
    let on_host = number(&agent.status()?["swap_cached_bytes"]);
    results.check("on the host, by the status: MiB", on_host / MIB, "at least that", on_host >= before);

    let faults = own.major_faults()?;
    let left = wait_for("the swap cache to be freed", || {
        Ok(Some(copies(&own)?).filter(|left| *left * 10 <= before))
    })?;
    let memory_after = memory(&own)?;
    results.check("freed: MiB left in the swap cache", left / MIB, "a tenth at most", true);
    let text = format!("{memory_before:?} then {memory_after:?}");
    results.note("MiB free, in page cache, in swap cache; charged to the group", text);
    let left = wait_for("the swap cache to be freed where there is a helper", || {
        Ok(Some(copies(&shared)?).filter(|left| *left * 10 <= before))
    })?;
    results.check("freed beside a helper: MiB left in the swap cache", left / MIB, "a tenth at most", true);
    let caused = own.major_faults()? - faults;
    results.check("major faults meanwhile: the guest stands still", caused, "0", caused == 0);

    let before = [own.major_faults()?, shared.major_faults()?];
    for still in [&alone, &beside] {
        still.check_content(results)?;
    }
    let reads = [own.major_faults()? - before[0], shared.major_faults()? - before[1]];
    let all = alone.all_pages();
    results.note(&format!("major faults for {all} pages of each read back"), format!("{reads:?}"));
    drop((alone, beside, other));
    drain_and_end(results, agent, &host)
}

#[test]
#[ignore = "long: copies stay in the swap cache for half a minute"]
fn copies_in_the_swap_cache_are_counted_and_freed() {
    scenario().run("limits::copies_in_the_swap_cache_are_counted_and_freed", swap_cache);
}
