//! A ladder of two memory tiers and two swap tiers: pages go where they were sent, idle ones go down by themselves, and
//! what a running guest uses comes back.

use anyhow::Result;
use serde_json::Value;
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::Backend;
use tiering_testkit::observe::PAGE;
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::results::Results;

use crate::host::{BOOT, Host, drain_and_end, known_vm, kvm_guest, move_to, number, wait_for};
use crate::scenario::Scenario;
use crate::still::Still;

/// Pages that stand still go through all tiers and end as they began.
pub fn through_the_ladder(results: &mut Results, host: &Host) -> Result<()> {
    let agent = Agent::start(&host.config("1h"), &[])?;
    let still = Still::new(&agent, "ladder", Backend::Anonymous)?;
    for tier in ["cxl", "dram", "cxl", "nvme", "cxl", "qlc", "dram"] {
        still.check_move(results, &agent, host, tier)?;
        let told = number(&known_vm(&agent, &still.name)?["tier_bytes"][tier]) / PAGE;
        let ok = told * 100 >= still.all_pages() * 99;
        results.check(&format!("pages in {tier}, by the status"), told, "99 % of all", ok);
    }
    still.check_content(results)?;
    drop(still);
    drain_and_end(results, agent, host)
}

#[test]
fn pages_go_down_and_up_through_memory_and_swap_tiers() {
    Scenario::default()
        .run("memory_tiers::pages_go_down_and_up_through_memory_and_swap_tiers", |results: &mut Results| {
            through_the_ladder(results, &Host::new()?)
        });
}

/// Nobody asks for it: what is idle goes one tier down.
fn idle_pages(results: &mut Results, host: &Host) -> Result<()> {
    // Four times that is how long they stay there: long enough to be seen on a slow machine.
    let agent = Agent::start(&host.config("30s"), &[])?;
    let still = Still::new(&agent, "idle", Backend::Anonymous)?;
    let spread = wait_for("idle pages in cxl", || {
        let spread = still.spread()?;
        Ok((spread.node[1] * 2 > spread.all).then_some(spread))
    })?;
    results.check("idle pages in cxl", spread.node[1], "more than half", true);
    let swapped = spread.swapped.values().sum::<u64>();
    results.check(
        "idle pages in swap: one tier at a time",
        format!("{swapped}; {spread}"),
        "0",
        swapped == 0,
    );
    let used = wait_for("the status to tell", || {
        let used = number(&agent.status()?["tiers"][1]["used_bytes"]) >> 20;
        Ok((used > 32).then_some(used))
    })?;
    results.note("MiB used in cxl, by the status", used);
    still.check_content(results)?;
    drop(still);
    drain_and_end(results, agent, host)
}

/// A guest that runs while its pages change nodes.
fn hot_set(results: &mut Results, host: &Host) -> Result<()> {
    let access = Access::HotAndLoop { hot_mib: 4, loop_mib: 16, loop_every_ms: 6000 };
    let pattern = Pattern { mem_mib: 48, access, ..Pattern::default() };
    let mut guest = kvm_guest("tt-runs", Backend::Anonymous).pattern(pattern).start()?;
    guest.wait_ready(BOOT)?;
    let agent = Agent::start(&host.config("1h"), &[])?;
    known_vm(&agent, "tt-runs")?;
    for tier in ["cxl", "nvme", "dram", "cxl"] {
        let there = number(&move_to(&agent, "tt-runs", tier, &[])?["in_tier_pages"]);
        results.check(&format!("running, to {tier}: pages there"), there, "> 8192", there > 8192);
    }
    let back = wait_for("the hot set to come back", || {
        let vm = known_vm(&agent, "tt-runs")?;
        Ok((number(&vm["tier_bytes"]["dram"]) >= 4 << 20).then_some(vm))
    });
    let known = agent.status()?["vms"].as_array().and_then(|vms| vms.first().cloned());
    let bytes = known.as_ref().map_or(&Value::Null, |vm| &vm["tier_bytes"]);
    results.check("running: its hot set of 4 MiB is in dram again", bytes, ">= 4 MiB", back.is_ok());
    let result = guest.finish()?;
    results.check("running: memory right", result.checksum_ok, "true", result.checksum_ok);
    drain_and_end(results, agent, host)
}

#[test]
#[ignore = "long: half a minute of idling, and a KVM guest"]
fn idle_pages_go_down_by_themselves_and_what_a_guest_uses_comes_back() {
    Scenario::default().run(
        "memory_tiers::idle_pages_go_down_by_themselves_and_what_a_guest_uses_comes_back",
        |results: &mut Results| {
            let host = Host::new()?;
            idle_pages(results, &host)?;
            hot_set(results, &host)
        },
    );
}
