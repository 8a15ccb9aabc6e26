//! The mapping table under load: while a guest works and the agent moves its pages through four tiers, the guest is
//! stopped again and again, and every page is compared with pagemap.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::{Backend, Guest};
use tiering_testkit::observe::pagemap;
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::results::Results;

use crate::host::{Host, drain_and_end, known_vm, kvm_guest, number, ready, runs, vm, wait_for};
use crate::scenario::Scenario;
use crate::spread::Tiers;

const NAME: &str = "tt-map";
const LOOKS: usize = 8;
/// A page can move between the map and the look at pagemap: the agent does not stop with the guest.
const TRIES: usize = 20;

/// Pages by the map's runs, and those that pagemap has elsewhere.
fn compare(agent: &Agent, guest: &Guest, host: &Host) -> Result<(u64, Vec<String>)> {
    let map = runs(agent, NAME)?;
    let tiers = Tiers::now(host)?;
    let (mut pages, mut differences) = (0, Vec::new());
    for run in map {
        let tier = run["tier"].as_str().context("a run without a tier")?;
        let found = pagemap(guest.pid(), number(&run["hva"]), number(&run["pages"]))?;
        pages += found.len() as u64;
        for (page, at) in found.into_iter().enumerate() {
            let there = tiers.of(at)?;
            if there != tier {
                differences.push(format!("page {page} of {run} is in {there}"));
            }
        }
    }
    Ok((pages, differences))
}

fn every_page(results: &mut Results) -> Result<()> {
    let host = Host::new()?;
    let access = Access::Zipf { set_mib: 12, skew_percent: 80 };
    let pattern = Pattern { mem_mib: 24, access, ..Pattern::default() };
    let mut guest = ready(kvm_guest(NAME, Backend::Anonymous).memory_mib(96).pattern(pattern), results)?;
    let agent = Agent::start(&host.config("2s"), &[])?;
    known_vm(&agent, NAME)?;
    let in_tier = |vm: &Value, tier: &str| number(&vm["tier_bytes"][tier]);
    wait_for("pages in all four tiers", || {
        let all = |vm: &Value| ["dram", "cxl", "nvme", "qlc"].iter().all(|tier| in_tier(vm, tier) > 0);
        Ok(vm(&agent, NAME)?.filter(all))
    })?;
    let mut tries = 0;
    for look in 1..=LOOKS {
        guest.stop()?;
        let (mut pages, mut differences) = compare(&agent, &guest, &host)?;
        for _ in 0..TRIES {
            if differences.is_empty() {
                break;
            }
            tries += 1;
            std::thread::sleep(Duration::from_millis(500));
            (pages, differences) = compare(&agent, &guest, &host)?;
        }
        guest.cont()?;
        let what = format!("look {look}: pages compared; differ");
        let ok = differences.is_empty() && pages == 96 * 256;
        results.check(&what, format!("{pages}; {}", differences.len()), "24576; 0", ok);
        differences.first().into_iter().for_each(|first| println!("{first}"));
        // The guest works on, and so does the agent.
        std::thread::sleep(Duration::from_secs(2));
    }
    results.note("looks that had to be repeated, since a page moved meanwhile", tries);
    let vm = known_vm(&agent, NAME)?;
    results.note(
        "demoted, promoted MiB",
        format!(
            "{}, {}",
            number(&vm["demoted_bytes_total"]) >> 20,
            number(&vm["promoted_bytes_total"]) >> 20
        ),
    );
    let right = guest.finish()?.checksum_ok;
    results.check("memory right", right, "true", right);
    drain_and_end(results, agent, &host)
}

#[test]
#[ignore = "long: a KVM guest and half a minute under load"]
fn every_page_is_where_the_map_says_while_pages_move() {
    Scenario::default().run("map::every_page_is_where_the_map_says_while_pages_move", every_page);
}
