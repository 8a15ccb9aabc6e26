//! What it costs KVM guests to be watched: eight patterns, as fast as they can, with an agent that only watches and
//! without one.
//!
//! All guests are there all the time, and one works at a time. By turns, so that whatever drifts cancels out: no agent,
//! an agent twice, no agent. How far the two turns of a kind are apart is the noise. The lab has one processor under
//! emulation, which the agent takes from the guests while it works; anywhere else it has another one. So its processor
//! time is taken off.

use std::time::Duration;

use anyhow::{Context, Result};
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::{Backend, Guest};
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::repeats::Repeats;
use tiering_testkit::results::Results;

use super::quick;
use crate::host::{BOOT, Host, known_vm, kvm_guest, number, ready};
use crate::scenario::Scenario;

const SET_MIB: usize = 8;
const TARGET_MEAN: f64 = 0.5;
const TARGET_WORST: f64 = 1.5;
/// Until the agent's rounds have found the distance that they may have.
const SETTLE: Duration = Duration::from_secs(30);

fn patterns() -> [(&'static str, Pattern); 8] {
    let set_mib = SET_MIB;
    let zipf = |skew_percent| Access::Zipf { set_mib, skew_percent };
    let of = |access, write_one_in| Pattern {
        mem_mib: 2 * set_mib,
        write_one_in,
        round_touches: if quick() { 600_000 } else { 1_200_000 },
        rounds_on_command: true,
        access,
        ..Pattern::default()
    };
    [
        ("random", of(Access::Uniform { set_mib }, 0)),
        ("random writes", of(Access::Uniform { set_mib }, 1)),
        ("skewed", of(zipf(80), 8)),
        ("much skewed", of(zipf(120), 8)),
        ("sequential", of(Access::Sequential { set_mib }, 8)),
        ("stride", of(Access::Stride { set_mib, stride_pages: 16 }, 8)),
        ("jumps", of(Access::PhaseChange { part_mib: set_mib / 2, every_touches: 100_000 }, 8)),
        ("random walk", of(Access::Follow { set_mib, order_seed: 5, overlap_percent: 100 }, 0)),
    ]
}

/// A round of a guest: how long it took, and the agent's processor time meanwhile, ns.
#[derive(Clone, Copy, Debug)]
struct Took {
    ns: f64,
    agent_ns: f64,
}

fn turn(guests: &mut [Guest], round: u64, agent: Option<&Agent>) -> Result<Vec<Took>> {
    let cpu_ns = || -> Result<f64> {
        let Some(agent) = agent else { return Ok(0.0) };
        let stat = procfs::process::Process::new(agent.pid().cast_signed())?.stat()?;
        Ok((stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64 * 1e9)
    };
    let one = |guest: &mut Guest| {
        let before = cpu_ns()?;
        guest.go()?;
        let phase = guest.wait_phase(round, BOOT)?;
        Ok(Took { ns: (phase.end_ns - phase.start_ns) as f64, agent_ns: cpu_ns()? - before })
    };
    guests.iter_mut().map(one).collect()
}

fn slowdown(results: &mut Results) -> Result<()> {
    let host = Host::new()?;
    let mut guests = Vec::new();
    for (number, (name, pattern)) in patterns().into_iter().enumerate() {
        let name = format!("tt-{}", name.replace(' ', "-"));
        let pattern = Pattern { seed: number as u64 + 1, ..pattern };
        guests
            .push(ready(kvm_guest(&name, Backend::AnonymousSmall).memory_mib(88).pattern(pattern), results)?);
    }
    // The lab's processors are emulated: to arm a machine takes longer than it may anywhere else. Its share of the time
    // is what it always is.
    let config = host.config("10s") + "[tracking]\nrearm_pause = \"5s\"\n";
    // What was never touched faults once.
    turn(&mut guests, 1, None)?;
    let mut round = 1;
    let mut next = |guests: &mut [Guest], agent: Option<&Agent>| {
        round += 1;
        turn(guests, round, agent)
    };
    let nothing = vec![Vec::new(); guests.len()];
    let (mut slower, mut without_its_time, mut noise) = (nothing.clone(), nothing.clone(), nothing);
    for _ in 0..if quick() { 1 } else { 3 } {
        let before = next(&mut guests, None)?;
        let agent = Agent::start(&config, &["--dry-run"])?;
        for guest in &guests {
            known_vm(&agent, guest.name())?;
        }
        std::thread::sleep(SETTLE);
        let (first, second) = (next(&mut guests, Some(&agent))?, next(&mut guests, Some(&agent))?);
        for guest in &guests {
            let rearm = &known_vm(&agent, guest.name())?["rearm"];
            println!("      {}: {} rounds, {}", guest.name(), rearm["rounds_total"], rearm["why_not"]);
            let rounds = number(&rearm["rounds_total"]);
            results.check(&format!("{}: watched in rounds", guest.name()), rounds, "1 or more", rounds > 0);
        }
        agent.interrupt()?;
        // What it armed last shows once more.
        next(&mut guests, None)?;
        let after = next(&mut guests, None)?;
        for guest in 0..guests.len() {
            let without = before[guest].ns + after[guest].ns;
            let with = first[guest].ns + second[guest].ns;
            let agent = first[guest].agent_ns + second[guest].agent_ns;
            slower[guest].push((with / without - 1.0) * 100.0);
            without_its_time[guest].push(((with - agent) / without - 1.0) * 100.0);
            noise[guest].push((after[guest].ns / before[guest].ns - 1.0).abs() * 100.0);
        }
    }
    let mut found = Vec::new();
    for (number, (name, _)) in patterns().iter().enumerate() {
        let median = |of: &[Vec<f64>]| Repeats::of(&of[number]).context("no repeats");
        let (slower, rest, noise) = (median(&slower)?, median(&without_its_time)?, median(&noise)?);
        let what =
            format!("{name}: slower by, %; but for the agent's processor time; apart without an agent");
        results.note(&what, format!("{slower}; {rest}; {noise}"));
        found.push(rest.median);
    }
    let mean = found.iter().sum::<f64>() / found.len() as f64;
    let worst = found.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    results.figure("slower in the mean, %", format!("{mean:.1}"), "0.5", mean <= TARGET_MEAN);
    results.figure("slower in the worst case, %", format!("{worst:.1}"), "1.5", worst <= TARGET_WORST);
    results.headline(format!("watched guests are slower by {mean:.1} % in the mean, {worst:.1} % at worst"));
    for mut guest in guests {
        let right = guest.finish()?.checksum_ok;
        results.check(&format!("{}: memory right", guest.name()), right, "true", right);
        guest.kill();
    }
    Ok(())
}

#[test]
#[ignore = "a benchmark: cargo xtask bench tracking --part slowdown"]
fn bench_slowdown() {
    let limit = Duration::from_secs(2400);
    let host = Scenario { nodes: "dram:2G", limit, ..Scenario::default() };
    host.run("bench::slowdown::bench_slowdown", slowdown);
}
