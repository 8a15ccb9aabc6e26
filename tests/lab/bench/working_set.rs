//! How right a machine's working set is: against what the guest itself did.
//!
//! A KVM guest touches pages by a pattern and says what it did; the agent watches it in rounds (`--dry-run`). Of the
//! pages of the pattern, those that the agent's map says were accessed in the last minute are compared with those that
//! the guest touched then.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::Result;
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::{Backend, Guest};
use tiering_testkit::locate::locate;
use tiering_testkit::observe::PAGE;
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::results::Results;

use super::quick;
use crate::host::{Host, known_vm, kvm_guest, number, ready, runs};
use crate::scenario::Scenario;

const TOUCHES_PER_S: u64 = 1000;
const MINUTE: Duration = Duration::from_mins(1);
/// Until the agent has watched for longer than a minute.
const SETTLE: Duration = Duration::from_secs(90);
const TARGET_PERCENT: f64 = 5.0;

fn patterns() -> [(&'static str, Access); 3] {
    [
        ("a quarter of it, evenly", Access::Uniform { set_mib: 6 }),
        ("skewed", Access::Zipf { set_mib: 16, skew_percent: 120 }),
        ("jumps", Access::PhaseChange { part_mib: 4, every_touches: 30 * TOUCHES_PER_S }),
    ]
}

/// Pages of the pattern that the agent takes for used within a minute.
fn told(agent: &Agent, guest: &Guest, page_at: &HashMap<u64, usize>) -> Result<HashSet<usize>> {
    let mut pages = HashSet::new();
    let minute = MINUTE.as_millis() as u64;
    for run in
        runs(agent, guest.name())?.iter().filter(|run| run["idle_ms"].as_u64().is_some_and(|ms| ms < minute))
    {
        let (start, count) = (number(&run["hva"]), number(&run["pages"]));
        pages.extend((start..start + count * PAGE).step_by(4096).filter_map(|hva| page_at.get(&hva)));
    }
    Ok(pages)
}

fn watch(results: &mut Results, name: &str, access: Access, config: &str) -> Result<f64> {
    let pattern = Pattern {
        mem_mib: 24,
        write_one_in: 8,
        touches_per_s: TOUCHES_PER_S,
        round_touches: TOUCHES_PER_S,
        access,
        ..Pattern::default()
    };
    let builder = kvm_guest("tt-set", Backend::AnonymousSmall).memory_mib(96).pattern(pattern.clone());
    let mut guest = ready(builder, results)?;
    let page_at: HashMap<u64, usize> =
        locate(guest.pid(), guest.ram()?, &pattern)?.into_iter().map(|(page, hva)| (hva, page)).collect();
    let agent = Agent::start(config, &["--dry-run"])?;
    known_vm(&agent, guest.name())?;
    std::thread::sleep(SETTLE);
    let mut errors = Vec::new();
    for _ in 0..if quick() { 1 } else { 5 } {
        std::thread::sleep(Duration::from_secs(7));
        let told = told(&agent, &guest, &page_at)?;
        let phases = guest.phases()?;
        let end = phases.last().map_or(0, |phase| phase.end_ns);
        let recent = phases.iter().filter(|phase| u128::from(end - phase.start_ns) <= MINUTE.as_nanos());
        let did: HashSet<usize> =
            recent.flat_map(|phase| phase.truth(&pattern)).map(|touch| touch.page).collect();
        let wrong = told.symmetric_difference(&did).count();
        let percent = (told.len() as f64 / did.len().max(1) as f64 - 1.0) * 100.0;
        println!(
            "      told {}, did {}: {percent:.1} %; {wrong} pages are in one of them only",
            told.len(),
            did.len()
        );
        errors.push(percent);
    }
    errors.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    let median = errors[errors.len() / 2];
    results.figure(
        &format!("{name}: wrong by, %"),
        format!("{median:.1}"),
        "at most 5",
        median.abs() <= TARGET_PERCENT,
    );
    let profile = &known_vm(&agent, guest.name())?["profile"];
    results.note(&format!("{name}: profile"), profile["working_sets"].to_string());
    println!("{}", agent.tiering(&["vm", "show", guest.name()])?);
    agent.interrupt()?;
    let right = guest.finish()?.checksum_ok;
    results.check(&format!("{name}: memory right"), right, "true", right);
    guest.kill();
    Ok(median)
}

fn working_sets(results: &mut Results) -> Result<()> {
    let host = Host::new()?;
    // The lab's processors are emulated: what a round costs there says nothing.
    let config = host.config("20s") + "[tracking]\nrearm_pause = \"5s\"\nrearm_cost = \"100%\"\n";
    for (name, access) in patterns() {
        let error = watch(results, name, access, &config)?;
        results.headline(format!("working set, {name}: wrong by {error:.1} %"));
    }
    Ok(())
}

#[test]
#[ignore = "a benchmark: cargo xtask bench profile --part working-set"]
fn bench_working_set() {
    let limit = Duration::from_secs(1500);
    let host = Scenario { nodes: "dram:2G", limit, ..Scenario::default() };
    host.run("bench::working_set::bench_working_set", working_sets);
}
