//! The agent ends, by a signal or a crash, while pages of a running KVM guest are in swap: the guest goes on, and the
//! next agent takes over what is there.

use std::path::PathBuf;

use anyhow::{Context, Result};
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::{Backend, Guest};
use tiering_testkit::observe::{At, PAGE, area_numbers, pagemap};
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::results::Results;
use tiering_testkit::scratch::swap_areas_below;

use crate::host::{BOOT, Host, drain_and_end, known_vm, kvm_guest, move_to, number, runs, wait_for};
use crate::scenario::Scenario;
use crate::spread::Spread;

const NAME: &str = "tt-goes-on";
/// Alternately in both swap tiers.
const SLICE: u64 = 16 << 20;

fn areas() -> Result<Vec<PathBuf>> {
    swap_areas_below("/".as_ref())
}

/// Puts the guest into both swap tiers, slice by slice; notes how much is there.
fn into_both(results: &mut Results, agent: &Agent, host: &Host, guest: &Guest) -> Result<()> {
    let ram = guest.ram()?;
    guest.stop()?;
    move_to(agent, NAME, "nvme", &[])?;
    for start in ram.clone().step_by(2 * usize::try_from(SLICE)?) {
        let range = format!("{start:#x}..{:#x}", start + SLICE);
        move_to(agent, NAME, "qlc", &["--hva", &range])?;
    }
    let spread = Spread::of(guest.pid(), &ram)?;
    for tier in ["nvme", "qlc"] {
        let there = spread.in_tier(host, tier)?;
        results.check(&format!("pages in {tier}"), there, "> 4096", there > 4096);
    }
    guest.cont()
}

/// The guest touches all that it uses, twice, and finds it right.
fn goes_on(results: &mut Results, guest: &mut Guest, when: &str) -> Result<()> {
    let rounds =
        |guest: &Guest| Ok::<u64, anyhow::Error>(guest.phases()?.iter().map(|phase| phase.rounds).sum());
    let before = rounds(guest)?;
    wait_for("two rounds of the guest", || {
        guest.check_alive()?;
        Ok((rounds(guest)? >= before + 2).then_some(()))
    })?;
    let bad = guest.console().text().lines().filter(|line| line.contains("bad page")).count();
    results.check(&format!("{when}: bad pages of two rounds"), bad, "0", bad == 0);
    Ok(())
}

/// A new agent knows which file is which: what its map says of each page is what pagemap says.
fn taken_over(results: &mut Results, host: &Host, before: &[PathBuf], guest: &Guest) -> Result<Agent> {
    let agent = Agent::start(&host.config("1h"), &[])?;
    let log = agent.log().text();
    let taken = before.iter().filter(|area| {
        let path = format!("path={}", area.display());
        log.lines().any(|line| line.contains("taking over a swap file") && line.contains(&path))
    });
    let taken = taken.count();
    results.check("swap files taken over", taken, &before.len().to_string(), taken == before.len());
    let now = areas()?;
    let stay = before.iter().all(|area| now.contains(area));
    results.check("areas that were on stay on", stay, "true", stay);

    known_vm(&agent, NAME)?;
    guest.stop()?;
    let (mut in_swap, mut differ) = (0u64, 0u64);
    let numbers =
        [("nvme", area_numbers(&host.folder("nvme"))?), ("qlc", area_numbers(&host.folder("qlc"))?)];
    for run in runs(&agent, NAME)? {
        let told = run["tier"].as_str().context("a run without tier")?;
        for at in pagemap(guest.pid(), number(&run["hva"]), number(&run["pages"]))? {
            if let At::Swap { area, .. } = at {
                in_swap += 1;
                let found = numbers.iter().find(|(_, areas)| areas.contains(&area)).map(|(tier, _)| *tier);
                differ += u64::from(found != Some(told));
            } else {
                differ += u64::from(["nvme", "qlc"].contains(&told));
            }
        }
    }
    guest.cont()?;
    results.check("pages in swap, by pagemap", in_swap, "> 4096", in_swap > 4096);
    results.check("pages of which the map says otherwise", differ, "0", differ == 0);
    Ok(agent)
}

fn dies_twice(results: &mut Results) -> Result<()> {
    let host = Host::new()?;
    let access = Access::HotAndLoop { hot_mib: 2, loop_mib: 8, loop_every_ms: 3000 };
    let pattern = Pattern { mem_mib: 48, access, ..Pattern::default() };
    let mut guest = kvm_guest(NAME, Backend::Anonymous).pattern(pattern).start()?;
    guest.wait_ready(BOOT)?;
    let agent = Agent::start(&host.config("1h"), &[])?;
    known_vm(&agent, NAME)?;
    into_both(results, &agent, &host, &guest)?;

    let before = areas()?;
    let ended = agent.interrupt()?;
    results.check("interrupted: exit code", format!("{:?}", ended.code), "Some(0)", ended.code == Some(0));
    let kept = areas()?;
    results.check("interrupted: areas still on", kept.len(), &before.len().to_string(), kept == before);
    goes_on(results, &mut guest, "no agent, after SIGINT")?;
    let mut agent = taken_over(results, &host, &before, &guest)?;

    let before = areas()?;
    agent.kill9();
    results.note("killed with -9: areas still on", areas()?.len());
    goes_on(results, &mut guest, "no agent, after SIGKILL")?;
    drop(agent);
    let agent = taken_over(results, &host, &before, &guest)?;

    guest.stop()?;
    for tier in ["nvme", "qlc"] {
        let outcome = move_to(&agent, NAME, tier, &[])?;
        let spread = Spread::of(guest.pid(), &guest.ram()?)?;
        let (all, there) = (spread.all - spread.nowhere, spread.in_tier(&host, tier)?);
        let ok = there * 100 >= all * 99;
        if !results.check(
            &format!("moved by the third agent to {tier}"),
            there,
            &format!("99 % of {all}"),
            ok,
        ) {
            println!("{spread}; {outcome}");
        }
    }
    guest.cont()?;
    let log = agent.log().text();
    let warnings: Vec<_> =
        log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect();
    results.note("warnings of the third agent", format!("{warnings:?}"));
    drain_and_end(results, agent, &host)?;
    let result = guest.finish()?;
    results.check("memory right in the end", result.checksum_ok, "true", result.checksum_ok);
    let checked = (result.pages_verified * PAGE) >> 20;
    results.check("MiB that the guest compared", checked, "48", checked == 48);
    Ok(())
}

#[test]
#[ignore = "long: three agents and a KVM guest"]
fn a_guest_goes_on_without_an_agent_and_the_next_one_takes_over() {
    Scenario::default()
        .run("agent_dies::a_guest_goes_on_without_an_agent_and_the_next_one_takes_over", dies_twice);
}
