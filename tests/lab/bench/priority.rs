//! Guests in one control group that is too small for all of them.
//!
//! Two pairs, one after the other: a guest of high priority beside one of low priority that thrashes; and two equals.
//! Three stretches of the same work of each pair: without a limit, so that all is in DRAM; with it and the kernel alone;
//! with it and the agent in its default configuration, but for its CPU time, since the lab's processor is emulated.
//! What counts of the first pair is the time that the guest of high priority loses, of the second how evenly both get
//! on.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use tiering_testkit::agent::Agent;
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::results::Results;

use super::quick;
use super::window::{self, Member, Seen};
use crate::host::{Host, drain_and_end, known_vm, shell};
use crate::scenario::Scenario;

const PARENT: &str = "/sys/fs/cgroup/both";
/// Of what both use when they may, percent.
const LIMIT_PERCENT: u64 = 36;
const TARGET_LOST_PERCENT: f64 = 3.0;
const TARGET_EVENNESS: f64 = 1.06;

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

/// What a pair of guests did in each stretch.
struct Stretches {
    free: Vec<Seen>,
    kernel: Vec<Seen>,
    agent: Vec<Seen>,
}

/// How long each stretch is.
fn time() -> Duration {
    Duration::from_secs(if quick() { 30 } else { 60 })
}

/// How long it takes until next to nothing is left of what the kernel took when the limit came: pages of the guest of
/// high priority are touched every 34 s.
const SETTLE: Duration = Duration::from_secs(60);

/// Runs a pair of guests, each with its priority, through all stretches.
fn run(results: &mut Results, host: &Host, guests: &[(&str, u8, Pattern); 2]) -> Result<Stretches> {
    std::fs::create_dir(PARENT).context("making the group of both")?;
    for folder in ["/sys/fs/cgroup", PARENT] {
        std::fs::write(Path::new(folder).join("cgroup.subtree_control"), "+memory")?;
    }
    let start = |(name, _, pattern): &(&str, u8, Pattern)| {
        Member::start_in(results, name, &format!("both/{name}"), pattern.clone())
    };
    let mut members = guests.iter().map(start).collect::<Result<Vec<_>>>()?;
    let mut nothing = |_: &mut [Member]| Ok(());
    let free = window::watch(&mut members, time(), &mut nothing)?;
    tell(results, "all in memory", &free);

    let used: u64 = std::fs::read_to_string(format!("{PARENT}/memory.current"))?.trim().parse()?;
    let limit = used * LIMIT_PERCENT / 100;
    let plain = host.swap_on("nvme", 384 << 20)?;
    limit_to(&limit.to_string())?;
    results.note("both use, and may use, MiB", format!("{}, {}", used >> 20, limit >> 20));
    window::watch(&mut members, SETTLE, &mut nothing)?;
    let kernel = window::watch(&mut members, time(), &mut nothing)?;
    tell(results, "the kernel alone", &kernel);
    limit_to("max")?;
    shell(&format!("swapoff {} && rm {}", plain.display(), plain.display()))?;

    let priorities = guests.iter().map(|(name, priority, _)| {
        format!("[[vm]]\nmatch = {{ name = \"{name}\" }}\npriority = {priority}\n")
    });
    let policy = "[policy]\ncpu_limit = \"100%\"\n";
    let config = format!("{}{policy}{}", host.ladder(), priorities.collect::<String>());
    let agent = Agent::start(&config, &[])?;
    for member in &members {
        known_vm(&agent, member.guest.name())?;
    }
    window::watch(&mut members, time(), &mut nothing)?;
    limit_to(&limit.to_string())?;
    window::watch(&mut members, SETTLE, &mut nothing)?;
    let ours = window::watch(&mut members, time(), &mut nothing)?;
    tell(results, "the agent", &ours);
    for member in &members {
        let vm = known_vm(&agent, member.guest.name())?;
        results.note(
            &format!("{}: in tiers, demoted, limited by", member.guest.name()),
            format!("{}, {}, {}", vm["tier_bytes"], vm["demoted_bytes_total"], vm["limited_by"]),
        );
    }
    let group = format!("cd {PARENT} && cat memory.current && head -3 memory.stat && cat */memory.current");
    results.note("bytes: the group, its memory.stat, each guest", shell(&group)?.replace('\n', " "));
    limit_to("max")?;
    drain_and_end(results, agent, host)?;
    window::finish(results, &mut members)?;
    let groups: Vec<String> = members.iter().map(|member| member.group().to_owned()).collect();
    drop(members);
    for group in groups.iter().map(|group| format!("/sys/fs/cgroup/{group}")).chain([PARENT.to_owned()]) {
        std::fs::remove_dir(&group).with_context(|| format!("removing {group}"))?;
    }
    Ok(Stretches { free, kernel, agent: ours })
}

/// Of the time that its rounds took, the share in which a guest waited longer for its touches than it does with all in
/// memory, percent.
fn lost_percent(free: &Seen, seen: &Seen) -> f64 {
    let touches: u64 = seen.latency.values().sum();
    (seen.mean_ns() - free.mean_ns()) * touches as f64 / seen.rounds_ns.max(1) as f64 * 100.0
}

fn tell(results: &mut Results, when: &str, seen: &[Seen]) {
    for seen in seen {
        results.note(&format!("{when}: {}", seen.name), seen);
    }
}

fn limit_to(bytes: &str) -> Result<()> {
    std::fs::write(format!("{PARENT}/memory.max"), bytes).context("limiting the group of both")
}

fn priority(results: &mut Results) -> Result<()> {
    let host = Host::new()?;
    let guests = [("tt-high", 100, pattern(1, 8, 60)), ("tt-low", 0, pattern(2, 48, 250))];
    let Stretches { free, kernel, agent } = run(results, &host, &guests)?;
    let lost = |seen: &[Seen]| lost_percent(&free[0], &seen[0]);
    let (with_agent, with_kernel) = (lost(&agent), lost(&kernel));
    let met = with_agent <= TARGET_LOST_PERCENT;
    results.figure("tt-high: time lost, agent, %", format!("{with_agent:.2}"), "3 %", met);
    results.note("tt-high: the same, kernel alone, %", format!("{with_kernel:.2}"));
    results.note(
        "tt-high: major faults, agent and kernel",
        format!("{}, {}", agent[0].counts.major, kernel[0].counts.major),
    );

    let guests = [("tt-one", 50, pattern(3, 40, 1000)), ("tt-other", 50, pattern(4, 40, 1000))];
    let equals = run(results, &host, &guests)?;
    let touches = |seen: &Seen| seen.latency.values().sum::<u64>() as f64;
    let evenness = |seen: &[Seen]| {
        let [one, other] = [&seen[0], &seen[1]].map(touches);
        one.max(other) / one.min(other).max(1.0)
    };
    let even = evenness(&equals.agent);
    let met = even <= TARGET_EVENNESS;
    results.figure(
        "equals: touches of the one by those of the other, agent",
        format!("{even:.3}"),
        "1.06",
        met,
    );
    results.note("equals: the same, kernel alone", format!("{:.3}", evenness(&equals.kernel)));
    results.headline(format!(
        "priority: {with_agent:.1} % of the time lost (kernel {with_kernel:.1} %), equals {even:.2}"
    ));
    Ok(())
}

#[test]
#[ignore = "a benchmark: cargo xtask bench tiers --part priority"]
fn bench_priority() {
    let limit = Duration::from_secs(2400);
    let host = Scenario { nodes: "dram:2G", limit, ..Scenario::default() };
    host.run("bench::priority::bench_priority", priority);
}
