//! DAMON is used where it is free, given back however the agent ends, and left alone where somebody else has it.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::Backend;
use tiering_testkit::locate::locate;
use tiering_testkit::observe::PAGE;
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::results::Results;

use crate::host::{Host, known_vm, kvm_guest, number, ready, runs, shell, wait_for};
use crate::scenario::Scenario;

const NAME: &str = "tt-hot";
const HOT_PAGES: usize = 2 * 256;
const KDAMONDS: &str = "/sys/kernel/mm/damon/admin/kdamonds";

fn kdamonds() -> Result<String> {
    let path = Path::new(KDAMONDS).join("nr_kdamonds");
    Ok(std::fs::read_to_string(&path)
        .with_context(|| format!("reading {}", path.display()))?
        .trim()
        .to_owned())
}

/// State and detail of the source.
fn source(agent: &Agent) -> Result<(String, String)> {
    let status = agent.status()?;
    let sources = status["sources"].as_array().context("a status without sources")?;
    let source = sources.iter().find(|source| source["name"] == "damon").context("no source damon")?;
    let text = |field: &str| source[field].as_str().unwrap_or_default().to_owned();
    Ok((text("state"), text("detail")))
}

fn is_active(agent: &Agent) -> Result<Option<String>> {
    let (state, detail) = source(agent)?;
    Ok((state == "active").then_some(detail))
}

/// Mean heat of the pages in use, and of the others.
fn heat(agent: &Agent, page_at: &HashMap<u64, usize>) -> Result<(f64, f64)> {
    let mut sums = [(0u64, 0u64); 2];
    for run in runs(agent, NAME)? {
        let (start, pages) = (number(&run["hva"]), number(&run["pages"]));
        for page in (start..start + pages * PAGE).step_by(4096).filter_map(|hva| page_at.get(&hva)) {
            let sum = &mut sums[usize::from(*page >= HOT_PAGES)];
            *sum = (sum.0 + number(&run["heat"]), sum.1 + 1);
        }
    }
    let mean = |(heat, pages): (u64, u64)| heat as f64 / pages.max(1) as f64;
    ensure!(sums.iter().all(|(_, pages)| *pages > 0), "the map has not all pages: {sums:?}");
    Ok((mean(sums[0]), mean(sums[1])))
}

fn damon_is_shared(results: &mut Results) -> Result<()> {
    let host = Host::new()?;
    let access = Access::Uniform { set_mib: 2 };
    let pattern =
        Pattern { mem_mib: 24, touches_per_s: 1000, round_touches: 1000, access, ..Pattern::default() };
    let mut guest =
        ready(kvm_guest(NAME, Backend::AnonymousSmall).memory_mib(96).pattern(pattern.clone()), results)?;
    let page_at: HashMap<u64, usize> =
        locate(guest.pid(), guest.ram()?, &pattern)?.into_iter().map(|(page, hva)| (hva, page)).collect();
    let config = host.config("10s") + "[tracking]\nrearm = false\n";

    let mut agent = Agent::start(&config, &["--dry-run"])?;
    known_vm(&agent, NAME)?;
    let detail = wait_for("DAMON to watch", || is_active(&agent))?;
    results.note("source damon", detail);
    let mut last = (0.0, 0.0);
    wait_for("the pages in use to be the hotter ones", || {
        last = heat(&agent, &page_at)?;
        println!("      mean heat of pages in use, and of others: {:.1}, {:.1}", last.0, last.1);
        Ok((last.0 > 2.0 * last.1 + 1.0).then_some(()))
    })?;
    results.note("mean heat of pages in use, and of others", format!("{:.1}, {:.1}", last.0, last.1));

    agent.kill9();
    let left = kdamonds()?;
    results.check("kdamonds that a killed agent leaves", &left, "1", left == "1");
    let agent = Agent::start(&config, &["--dry-run"])?;
    known_vm(&agent, NAME)?;
    let detail = wait_for("DAMON to watch again", || is_active(&agent))?;
    results.note("source damon, of the next agent", detail);
    agent.interrupt()?;
    let left = kdamonds()?;
    results.check("kdamonds that it leaves", &left, "0", left == "0");

    // Somebody else sets one up and has not started it yet: to write their number would delete it.
    shell(&format!("echo 1 > {KDAMONDS}/nr_kdamonds && echo 1 > {KDAMONDS}/0/contexts/nr_contexts"))?;
    let agent = Agent::start(&config, &["--dry-run"])?;
    known_vm(&agent, NAME)?;
    let detail = wait_for("the agent to say that DAMON is taken", || {
        let (state, detail) = source(&agent)?;
        Ok((state == "unavailable").then_some(detail))
    })?;
    results.check(
        "source damon, in use by somebody else",
        &detail,
        "says so",
        detail.contains("somebody else"),
    );
    agent.interrupt()?;
    let theirs = Path::new(KDAMONDS).join("0/contexts/0").exists();
    results.check("theirs is as it was", theirs, "true", theirs && kdamonds()? == "1");

    let right = guest.finish()?.checksum_ok;
    results.check("memory right", right, "true", right);
    guest.kill();
    Ok(())
}

#[test]
#[ignore = "long: three agents start in an emulated host"]
fn damon_is_used_where_it_is_free_and_given_back() {
    let host = Scenario { nodes: "dram:1G", ..Scenario::default() };
    host.run("damon::damon_is_used_where_it_is_free_and_given_back", damon_is_shared);
}
