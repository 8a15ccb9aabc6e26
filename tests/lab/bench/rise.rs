//! What it is worth to know that a load comes again.
//!
//! A KVM guest walks through the same pages once a minute, and does nothing in between. After each walk all of it goes
//! to the NVMe disk and out of the swap cache. By turns, each with a guest and an agent of its own: nothing is staged;
//! what came next last time is (the first walk is to learn from); and what was touched a period ago too, once that is
//! known to come again.

use std::time::Duration;

use anyhow::{Context, Result};
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::Backend;
use tiering_testkit::observe::meminfo;
use tiering_testkit::pattern::{Access, Pattern, PhaseResult};
use tiering_testkit::repeats::Repeats;
use tiering_testkit::results::Results;

use super::quick;
use crate::host::{BOOT, Host, Memcg, known_vm, kvm_guest, number};
use crate::scenario::Scenario;

const PERIOD: Duration = Duration::from_mins(1);
const SET_MIB: usize = 8;
const PACE: u64 = 400;
const RECLAIMS: u32 = 5;

struct Turn {
    name: &'static str,
    /// Of the guest: another one each time, so that nothing is known of it.
    vm: &'static str,
    rules: &'static str,
    /// Walks before those that are measured.
    learning: u64,
}

const TURNS: [Turn; 3] = [
    Turn { name: "nothing staged", vm: "tt-plain", rules: "enabled = false\n", learning: 1 },
    Turn {
        name: "after its own past",
        vm: "tt-past",
        rules: "readahead = false\nby_season = false\n",
        learning: 2,
    },
    // Three periods to be known, one to be right in the shadow, and one to begin with.
    Turn { name: "before it comes again", vm: "tt-season", rules: "", learning: 6 },
];

struct Walk {
    phase: PhaseResult,
    major_faults: u64,
}

fn pattern() -> Pattern {
    Pattern {
        mem_mib: 2 * SET_MIB,
        write_one_in: 0,
        touches_per_s: PACE,
        access: Access::Periodic { set_mib: SET_MIB, every_ms: PERIOD.as_millis() as u64 },
        ..Pattern::default()
    }
}

/// All of it to the disk, and what of it is not in use out of the kernel's cache of it. Returns what is left in that,
/// bytes.
fn push_down(agent: &Agent, vm: &str, group: &Memcg) -> Result<u64> {
    agent.tiering(&["move", vm, "--to", "nvme"])?;
    for _ in 0..RECLAIMS {
        group.reclaim(32 << 20);
        if meminfo("SwapCached")? < 256 << 10 {
            break;
        }
    }
    meminfo("SwapCached")
}

/// The walks of one turn: the first of all, which finds all in memory, and those to be measured.
fn take(turn: &Turn, host: &Host, results: &mut Results) -> Result<(PhaseResult, Vec<Walk>)> {
    let builder = kvm_guest(turn.vm, Backend::AnonymousSmall).memory_mib(112).pattern(pattern());
    let mut guest = builder.start()?;
    // Before it has much memory: what it has already stays with the group that it came from.
    let group = Memcg::of(turn.vm, guest.pid())?;
    guest.wait_ready(BOOT)?;
    // The lab's processors are emulated: what a round costs there says nothing.
    let config = host.config("1h")
        + "[tracking]\nrearm_pause = \"5s\"\nrearm_cost = \"100%\"\n[prefetch]\n"
        + turn.rules;
    let agent = Agent::start(&config, &[])?;
    known_vm(&agent, turn.vm)?;
    let in_memory = guest.wait_phase(1, 3 * PERIOD)?;
    let mut walks = Vec::new();
    for number in 2..=turn.learning + if quick() { 2 } else { 5 } {
        let cached = push_down(&agent, turn.vm, &group)?;
        let before = group.major_faults()?;
        let phase = guest.wait_phase(number, 3 * PERIOD)?;
        let walk = Walk { phase, major_faults: group.major_faults()? - before };
        println!(
            "      walk {number}: {:.0} ms in first accesses, {} major faults; {} KiB were in the swap cache",
            walk.phase.first_accesses_ns() / 1e6,
            walk.major_faults,
            cached >> 10
        );
        walks.push(walk);
    }
    let status = known_vm(&agent, turn.vm)?;
    println!("{}", agent.tiering(&["vm", "show", turn.vm])?);
    let origins = status["prefetch"]["origins"].as_array().context("no origins")?;
    let season = origins.iter().filter(|origin| origin["way"] == "season");
    let (issued, used) = season.fold((0, 0), |(issued, used), origin| {
        (issued + number(&origin["issued_pages"]), used + number(&origin["used_pages"]))
    });
    results
        .note(&format!("{}: staged for its period, of these used", turn.name), format!("{issued}, {used}"));
    agent.interrupt()?;
    let right = guest.finish()?.checksum_ok;
    results.check(&format!("{}: memory right", turn.name), right, "true", right);
    guest.kill();
    let learned = walks.split_off(usize::try_from(turn.learning - 1)?);
    Ok((in_memory, learned))
}

fn rises(results: &mut Results) -> Result<()> {
    let host = Host::new()?;
    let mut without = None;
    for turn in &TURNS {
        let (in_memory, walks) = take(turn, &host, results)?;
        let base = in_memory.first_accesses_ns();
        let stalls: Vec<f64> =
            walks.iter().map(|walk| (walk.phase.first_accesses_ns() - base).max(0.0) / 1e6).collect();
        let faults: Vec<f64> = walks.iter().map(|walk| walk.major_faults as f64).collect();
        let (stall, faults) =
            (Repeats::of(&stalls).context("no walks")?, Repeats::of(&faults).context("no walks")?);
        results.note(&format!("{}: stall of a walk, ms", turn.name), stall);
        results.note(&format!("{}: major faults of a walk", turn.name), faults);
        let first = *without.get_or_insert(stall.median);
        results.headline(format!("{}: {:.0} % of the stall", turn.name, stall.median / first * 100.0));
    }
    Ok(())
}

#[test]
#[ignore = "a benchmark: cargo xtask bench profile --part rise"]
fn bench_rise() {
    let limit = Duration::from_secs(2400);
    Scenario { limit, ..Scenario::default() }.run("bench::rise::bench_rise", rises);
}
