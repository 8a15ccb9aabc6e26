//! Mapped pages show their accesses: what a guest keeps using stays in memory though it never faults by itself, and all
//! the rest goes down.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::{Backend, Guest};
use tiering_testkit::locate::locate;
use tiering_testkit::observe::PAGE;
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::results::Results;

use crate::host::{Host, drain_and_end, known_vm, kvm_guest, number, ready, runs, wait_for};
use crate::scenario::Scenario;

const NAME: &str = "tt-hot";
const HOT_PAGES: usize = 4 * 256;
const PAGES: usize = 24 * 256;

fn pattern() -> Pattern {
    let access = Access::Uniform { set_mib: 4 };
    Pattern { mem_mib: 24, touches_per_s: 1000, round_touches: 1000, access, ..Pattern::default() }
}

/// Pages of the pattern that are in the first tier: of those that are in use, and of the others.
fn in_dram(agent: &Agent, page_at: &HashMap<u64, usize>) -> Result<(usize, usize)> {
    let (mut hot, mut cold) = (0, 0);
    for run in runs(agent, NAME)?.iter().filter(|run| run["tier"] == "dram") {
        let (start, pages) = (number(&run["hva"]), number(&run["pages"]));
        for page in (start..start + pages * PAGE).step_by(4096).filter_map(|hva| page_at.get(&hva)) {
            *(if *page < HOT_PAGES { &mut hot } else { &mut cold }) += 1;
        }
    }
    Ok((hot, cold))
}

fn explained(agent: &Agent, hva: u64) -> Result<Value> {
    let answer = agent.tiering(&["explain", NAME, "--hva", &format!("{hva:#x}"), "--json"])?;
    serde_json::from_str(&answer).context("an explanation")
}

fn what_is_used_stays(results: &mut Results) -> Result<()> {
    let host = Host::new()?;
    let mut guest: Guest =
        ready(kvm_guest(NAME, Backend::AnonymousSmall).memory_mib(96).pattern(pattern()), results)?;
    let pages = locate(guest.pid(), guest.ram()?, &pattern())?;
    let page_at: HashMap<u64, usize> = pages.iter().map(|(page, hva)| (*hva, *page)).collect();
    // The lab's processors are emulated: nothing is as fast as the limits expect.
    let config = host.config("16s") + "[tracking]\nrearm_pause = \"5s\"\nrearm_cost = \"100%\"\n";
    let agent = Agent::start(&config, &[])?;
    known_vm(&agent, NAME)?;
    let mut hot_least = HOT_PAGES;
    let cold = wait_for("what is not used to go down", || {
        let (hot, cold) = in_dram(&agent, &page_at)?;
        hot_least = hot_least.min(hot);
        Ok((cold <= (PAGES - HOT_PAGES) / 20).then_some(cold))
    })?;
    results.note("pages not in use that are still in memory", cold);
    // All pages of the hot set have been old enough to go, had they not shown that they are in use.
    for _ in 0..5 {
        std::thread::sleep(Duration::from_secs(3));
        hot_least = hot_least.min(in_dram(&agent, &page_at)?.0);
    }
    // Evidence alone would have eight of each of their blocks out at a time.
    let wanted = HOT_PAGES - 4;
    results.check(
        "pages in use that were in memory all the time",
        hot_least,
        "all but 4",
        hot_least >= wanted,
    );

    let vm = known_vm(&agent, NAME)?;
    let rounds = number(&vm["rearm"]["rounds_total"]);
    results.check("rounds", rounds, ">= 5", rounds >= 5 && vm["rearm"]["why_not"].is_null());
    let status = agent.status()?;
    let sources = status["sources"].as_array().context("a status without sources")?;
    let source = sources.iter().find(|source| source["name"] == "rearming").context("no source rearming")?;
    results.check("source rearming", &source["state"], "active", source["state"] == "active");
    let answer = explained(&agent, *pages.get(&0).context("page 0 was not found")?)?;
    let shown = number(&answer["seen_by"]["rearming"]);
    results.check("accesses seen by re-arming", shown, ">= one of each page", shown >= HOT_PAGES as u64);
    results
        .note("pages written in a round that had shown no access", number(&answer["seen_by"]["soft_dirty"]));
    let idle = answer["page"]["idle_ms"].as_u64();
    results.check(
        "a page in use was accessed, ms ago",
        format!("{idle:?}"),
        "<= 40000",
        idle.is_some_and(|ms| ms <= 40_000),
    );
    println!("{}", agent.tiering(&["vm", "show", NAME])?);
    println!("{}", agent.tiering(&["explain", NAME, "--hva", &format!("{:#x}", pages[&0])])?);

    let right = guest.finish()?.checksum_ok;
    results.check("memory right", right, "true", right);
    guest.kill();
    drain_and_end(results, agent, &host)
}

#[test]
#[ignore = "long: 90 MiB go down in an emulated host"]
fn what_is_used_stays_and_the_rest_goes() {
    let host = Scenario { nodes: "dram:1G", ..Scenario::default() };
    host.run("rearming::what_is_used_stays_and_the_rest_goes", what_is_used_stays);
}
