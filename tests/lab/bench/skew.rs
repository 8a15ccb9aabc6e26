//! Four guests of different skew on one host: how much of their memory is off tier 0, and what that costs them.
//!
//! The same guests three times over, in one lab:
//! 1. without any agent, all in DRAM: what their touches take;
//! 2. with the agent and a short `demote_after`: a stretch to settle, then one that is measured;
//! 3. without the agent, the kernel's `memory.reclaim` keeping as many pages of each in swap as the agent had: settled
//!    and measured for as long. That is what a daemon does that leaves the choice of pages to the kernel.

use std::time::Duration;

use anyhow::{Result, ensure};
use tiering_testkit::agent::Agent;
use tiering_testkit::observe::meminfo;
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::results::Results;

use super::quick;
use super::window::{self, Counts, Member, Seen};
use crate::host::{Host, drain_and_end, known_vm, number, shell, vm};
use crate::scenario::Scenario;

const MEM_MIB: usize = 48;
const TOUCHES_PER_S: u64 = 60;
const TARGET_OFF_PERCENT: f64 = 35.0;
const TARGET_SLOWDOWN_PERCENT: f64 = 1.0;
const TARGET_PROMOTED_PERCENT: f64 = 0.2;
const TARGET_FEWER: f64 = 3.0;

fn patterns() -> [(&'static str, Pattern); 4] {
    let paced = |seed, access| Pattern {
        seed,
        mem_mib: MEM_MIB,
        touches_per_s: TOUCHES_PER_S,
        // Two seconds: what a phase tells is told soon.
        round_touches: 2 * TOUCHES_PER_S,
        access,
        ..Pattern::default()
    };
    let part = Access::PhaseChange { part_mib: 8, every_touches: 40 * TOUCHES_PER_S };
    let hot = Access::HotAndLoop { hot_mib: 2, loop_mib: 4, loop_every_ms: 10_000 };
    [
        ("tt-zipf", paced(1, Access::Zipf { set_mib: MEM_MIB, skew_percent: 130 })),
        ("tt-loop", Pattern { touches_per_s: 0, round_touches: 0, ..paced(2, hot) }),
        ("tt-phase", paced(3, part)),
        (
            "tt-idle",
            Pattern { round_touches: 0, ..paced(4, Access::Periodic { set_mib: 1, every_ms: 12_000 }) },
        ),
    ]
}

fn skew(results: &mut Results) -> Result<()> {
    let (settle, measured) = if quick() {
        (Duration::from_secs(45), Duration::from_secs(30))
    } else {
        (Duration::from_secs(150), Duration::from_secs(90))
    };
    let host = Host::new()?;
    let mut members = Vec::new();
    for (name, pattern) in patterns() {
        members.push(Member::start(results, name, pattern)?);
    }
    let mut nothing = |_: &mut [Member]| Ok(());
    let alone = window::watch(&mut members, measured, &mut nothing)?;
    tell(results, "no agent", &alone);

    let config = host.config("10s");
    // They have nothing in common: each is its own tenant, as is the default; so is the limit of refaults.
    let config = config.replace("tenant = \"test\"\n", "").replace("refault_limit = \"100%\"\n", "");
    // What is compared is swap: on the node below DRAM pages would stay mapped.
    let config = config.replace("[[tier]]\nname = \"cxl\"\nnodes = [1]\n", "");
    let left = ["tenant", "refault_limit", "cxl"].iter().find(|word| config.contains(**word));
    ensure!(left.is_none(), "the configuration has changed: it has {left:?}");
    let agent = Agent::start(&config, &[])?;
    for member in &members {
        known_vm(&agent, member.guest.name())?;
    }
    window::watch(&mut members, settle, &mut nothing)?;
    let before = moved(&agent, &members)?;
    let with_agent = window::watch(&mut members, measured, &mut nothing)?;
    let after = moved(&agent, &members)?;
    tell(results, "agent", &with_agent);
    let swapped = sizes(&members)?;
    placed(results, &swapped, &with_agent);
    results.note("agent: in swap and still in the swap cache, MiB", meminfo("SwapCached")? >> 20);
    moves(results, &before, &after, &with_agent, measured);
    drain_and_end(results, agent, &host)?;

    let plain = host.swap_on("nvme", 640 << 20)?;
    let mut same_size = |members: &mut [Member]| {
        members.iter().zip(&swapped).try_for_each(|(member, (_, swapped))| member.reclaim_to(*swapped))
    };
    window::watch(&mut members, settle, &mut same_size)?;
    let by_kernel = window::watch(&mut members, measured, &mut same_size)?;
    tell(results, "memory.reclaim", &by_kernel);
    let reached = sizes(&members)?;
    results.note(
        "memory.reclaim: pages in swap",
        format!("{:?}, the agent had {:?}", of_swap(&reached), of_swap(&swapped)),
    );
    shell(&format!("swapoff {}", plain.display()))?;

    compare(results, &alone, &with_agent, &by_kernel);
    window::finish(results, &mut members)
}

fn tell(results: &mut Results, when: &str, seen: &[Seen]) {
    for seen in seen {
        results.note(&format!("{when}: {}", seen.name), seen);
    }
}

/// Mapped and swapped pages of each guest.
fn sizes(members: &[Member]) -> Result<Vec<(u64, u64)>> {
    members.iter().map(Member::mapped_and_swapped).collect()
}

fn of_swap(sizes: &[(u64, u64)]) -> Vec<u64> {
    sizes.iter().map(|(_, swapped)| *swapped).collect()
}

fn placed(results: &mut Results, sizes: &[(u64, u64)], seen: &[Seen]) {
    let (mapped, swapped) = sizes.iter().fold((0, 0), |sum, size| (sum.0 + size.0, sum.1 + size.1));
    let off = swapped as f64 / (mapped + swapped) as f64 * 100.0;
    let (touched, pages) = seen.iter().fold((0, 0), |sum, seen| (sum.0 + seen.touched, sum.1 + seen.pages));
    let cold = (pages - touched) as f64 / pages as f64 * 100.0;
    let met = off >= TARGET_OFF_PERCENT;
    results.figure("VM memory off tier 0, %", format!("{off:.1}"), "35 %", met);
    results.note("of the patterns' memory not touched meanwhile, %", format!("{cold:.1}"));
    results.headline(format!("off tier 0 {off:.0} % (cold {cold:.0} %)"));
}

/// What the agent tells of its moves: pages demoted, promoted, moved back and forth.
#[derive(Default)]
struct Moved {
    demoted: u64,
    promoted: u64,
    /// None where the agent does not tell.
    ping_pong: Option<u64>,
    /// Pages brought up ahead of need, of which touched in time, and not.
    staged: [u64; 3],
}

fn moved(agent: &Agent, members: &[Member]) -> Result<Moved> {
    let mut moved = Moved::default();
    for member in members {
        let vm = vm(agent, member.guest.name())?.unwrap_or_default();
        moved.demoted += number(&vm["demoted_bytes_total"]) / 4096;
        moved.promoted += number(&vm["promoted_bytes_total"]) / 4096;
        for (sum, field) in moved.staged.iter_mut().zip(["issued_pages", "used_pages", "wasted_pages"]) {
            *sum += number(&vm["prefetch"][field]);
        }
        if let Some(pages) = vm["ping_pong_pages"].as_u64() {
            moved.ping_pong = Some(moved.ping_pong.unwrap_or(0) + pages);
        }
    }
    Ok(moved)
}

fn moves(results: &mut Results, before: &Moved, after: &Moved, seen: &[Seen], time: Duration) {
    let demoted = after.demoted - before.demoted;
    let promoted = after.promoted - before.promoted;
    // A page that is faulted in came up too, whoever asked for it.
    let came_up = promoted + total(seen).major;
    let working_set: usize = seen.iter().map(|seen| seen.touched).sum();
    let a_minute = came_up as f64 / working_set as f64 * 100.0 / (time.as_secs_f64() / 60.0);
    let met = a_minute <= TARGET_PROMOTED_PERCENT;
    results.note("agent: pages demoted and promoted meanwhile", format!("{demoted}, {promoted}"));
    let staged: Vec<_> =
        after.staged.iter().zip(before.staged).map(|(after, before)| after - before).collect();
    results.note("agent: staged, of which used, wasted", format!("{staged:?}"));
    results.figure("agent: came up a minute, % of the working set", format!("{a_minute:.2}"), "0.2 %", met);
    results.headline(format!("came up {a_minute:.2} %/min"));
    match (before.ping_pong, after.ping_pong) {
        (Some(before), Some(after)) => {
            let share = (after - before) as f64 / (demoted + promoted).max(1) as f64 * 100.0;
            results.figure("agent: moved back within 60 s, %", format!("{share:.2}"), "1 %", share <= 1.0);
            results.headline(format!("ping-pong {share:.1} %"));
        }
        _ => results.note("agent: moved back within 60 s", "not told"),
    }
}

fn total(seen: &[Seen]) -> Counts {
    seen.iter().fold(Counts::default(), |sum, seen| Counts {
        refaults: sum.refaults + seen.counts.refaults,
        major: sum.major + seen.counts.major,
    })
}

fn compare(results: &mut Results, alone: &[Seen], with_agent: &[Seen], by_kernel: &[Seen]) {
    let slower = window::slowdown_percent(alone, with_agent);
    let met = slower <= TARGET_SLOWDOWN_PERCENT;
    results.figure("agent: mean touch slower by, %", format!("{slower:.1}"), "1 %", met);
    let kernel = window::slowdown_percent(alone, by_kernel);
    results.note("memory.reclaim: mean touch slower by, %", format!("{kernel:.1}"));
    results.headline(format!("touch +{slower:.0} % (memory.reclaim +{kernel:.0} %)"));
    let (ours, theirs) = (total(with_agent), total(by_kernel));
    // Moves between swap tiers are counted as refaults too, so what the guests waited for is told by major faults.
    let fewer = theirs.major as f64 / ours.major.max(1) as f64;
    results.note("workingset_refault_anon", format!("{}, {}", ours.refaults, theirs.refaults));
    results.note("major faults, agent and memory.reclaim", format!("{}, {}", ours.major, theirs.major));
    results.figure("major faults: fewer by a factor of", format!("{fewer:.1}"), "3", fewer >= TARGET_FEWER);
    results.headline(format!("major faults {} against {}", ours.major, theirs.major));
}

#[test]
#[ignore = "a benchmark: cargo xtask bench tiers --part skew"]
fn bench_skew() {
    let limit = Duration::from_secs(1500);
    let host = Scenario { nodes: "dram:3G", nvme: "2G", limit, ..Scenario::default() };
    host.run("bench::skew::bench_skew", skew);
}
