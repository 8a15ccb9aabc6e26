//! A guest of high priority beside one of low priority that thrashes, with too little memory for both.
//!
//! Both are in one control group with a limit. Three stretches of the same work: without the limit, so that all is in
//! DRAM; with it and the kernel alone; with it and the agent, which knows the priorities. What counts is the first
//! guest's touches.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use tiering_tests::agent::Agent;
use tiering_tests::pattern::{Access, Pattern};
use tiering_tests::results::Results;

use super::quick;
use super::window::{self, Member, Seen};
use crate::host::{Host, drain_and_end, known_vm, shell};
use crate::scenario::Scenario;

const PARENT: &str = "/sys/fs/cgroup/both";
/// Of what both use when they may, percent.
const LIMIT_PERCENT: u64 = 70;
const TARGET_SLOWDOWN_PERCENT: f64 = 3.0;

fn pattern(seed: u64, set_mib: usize, touches_per_s: u64) -> Pattern {
    Pattern {
        seed,
        mem_mib: 48,
        touches_per_s,
        round_touches: 2 * touches_per_s,
        access: Access::Uniform { set_mib },
        ..Pattern::default()
    }
}

fn priority(results: &mut Results) -> Result<()> {
    let time = Duration::from_secs(if quick() { 30 } else { 60 });
    let settle = Duration::from_secs(if quick() { 30 } else { 60 });
    let host = Host::new()?;
    std::fs::create_dir(PARENT).context("making the group of both")?;
    for folder in ["/sys/fs/cgroup", PARENT] {
        std::fs::write(Path::new(folder).join("cgroup.subtree_control"), "+memory")?;
    }
    let mut members = vec![
        Member::start_in(results, "tt-high", "both/high", pattern(1, 8, 60))?,
        Member::start_in(results, "tt-low", "both/low", pattern(2, 48, 250))?,
    ];
    let mut nothing = |_: &mut [Member]| Ok(());
    let free = window::watch(&mut members, time, &mut nothing)?;
    tell(results, "all in memory", &free);

    let used: u64 = std::fs::read_to_string(format!("{PARENT}/memory.current"))?.trim().parse()?;
    let limit = used * LIMIT_PERCENT / 100;
    let plain = host.swap_on("nvme", 384 << 20)?;
    limit_to(&limit.to_string())?;
    results.note("both use, and may use, MiB", format!("{}, {}", used >> 20, limit >> 20));
    window::watch(&mut members, settle, &mut nothing)?;
    let kernel = window::watch(&mut members, time, &mut nothing)?;
    tell(results, "the kernel alone", &kernel);
    limit_to("max")?;
    shell(&format!("swapoff {}", plain.display()))?;

    let priorities = "[[vm]]\nmatch = { name = \"tt-high\" }\npriority = 100\n\
        [[vm]]\nmatch = { name = \"tt-low\" }\npriority = 0\n";
    let config = host.config("10s").replacen("[[vm]]", &format!("{priorities}[[vm]]"), 1);
    let agent = Agent::start(&config, &[])?;
    for member in &members {
        known_vm(&agent, member.guest.name())?;
    }
    window::watch(&mut members, settle, &mut nothing)?;
    limit_to(&limit.to_string())?;
    window::watch(&mut members, settle, &mut nothing)?;
    let ours = window::watch(&mut members, time, &mut nothing)?;
    tell(results, "the agent", &ours);
    limit_to("max")?;
    drain_and_end(results, agent, &host)?;

    let slower = |seen: &[Seen]| window::slowdown_percent(&free[..1], &seen[..1]);
    let (with_agent, with_kernel) = (slower(&ours), slower(&kernel));
    let met = with_agent <= TARGET_SLOWDOWN_PERCENT;
    results.figure("tt-high: mean touch slower by, agent, %", format!("{with_agent:.1}"), "3 %", met);
    results.note("tt-high: the same, kernel alone, %", format!("{with_kernel:.1}"));
    results.note(
        "tt-high: major faults, agent and kernel",
        format!("{}, {}", ours[0].counts.major, kernel[0].counts.major),
    );
    results.headline(format!("priority: +{with_agent:.0} % (kernel +{with_kernel:.0} %)"));
    window::finish(results, &mut members)
}

fn tell(results: &mut Results, when: &str, seen: &[Seen]) {
    for seen in seen {
        results.note(&format!("{when}: {}", seen.name), seen);
    }
}

fn limit_to(bytes: &str) -> Result<()> {
    std::fs::write(format!("{PARENT}/memory.max"), bytes).context("limiting the group of both")
}

#[test]
#[ignore = "a benchmark: cargo xtask bench tiers --part priority"]
fn bench_priority() {
    let limit = Duration::from_secs(1200);
    let host = Scenario { nodes: "dram:2G", limit, ..Scenario::default() };
    host.run("bench::priority::bench_priority", priority);
}
