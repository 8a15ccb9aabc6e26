//! What staging ahead of need costs guests that it cannot help, and whether it is as sure as it should be.
//!
//! Five emulated guests of one tenant walk at once, all of each in the nvme tier's swap file and nowhere else: two that
//! are alike in 70 % of their walk, one random, one that changes its phase, one skewed; the last three hold nothing in
//! common but their kernel. By turns: an agent that stages nothing, and one that does, newly started. After each walk
//! the deadline of all stages is waited for.

use crate::host::Host;
use crate::walk::{Member, SET_MIB, follow, send_down};
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;
use tiering_testkit::agent::Agent;
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::repeats::Repeats;
use tiering_testkit::results::Results;
use tiering_testkit::stop;

/// A stage that was not used by then is wasted, and the status tells so.
const SETTLED: Duration = Duration::from_secs(13);
const TOUCHES: u64 = 4096;
/// In the order in which they are started; the first two can be helped.
const NAMES: [&str; 5] = ["tt-mate-one", "tt-mate-two", "tt-mate-random", "tt-mate-phases", "tt-mate-skewed"];
const ALIKE: usize = 2;

pub fn measure(results: &mut Results, quick: bool) -> Result<()> {
    let host = Host::new()?;
    let mut guests = guests()?;
    let (mut slower, mut wasted): (BTreeMap<usize, Vec<f64>>, Vec<f64>) = Default::default();
    let mut bins: BTreeMap<usize, Bin> = BTreeMap::new();
    for _ in 0..if quick { 3 } else { 9 } {
        let agent = host.agent(false)?;
        let without = walk(&agent, &mut guests)?;
        agent.interrupt()?;
        host.forget_state()?;
        let agent = host.agent(true)?;
        let with = walk(&agent, &mut guests)?;
        stop::sleep(SETTLED)?;
        wasted.push(judge(&agent, &guests, &with, &mut bins)?);
        agent.interrupt()?;
        for (number, (with, without)) in with.iter().zip(&without).enumerate() {
            slower.entry(number).or_default().push((with.time_ns / without.time_ns - 1.0) * 100.0);
        }
    }
    let mut worst = f64::NEG_INFINITY;
    for (number, values) in &slower {
        let Some(repeats) = Repeats::of(values) else { continue };
        let what = format!("{}: slower by, %", NAMES[*number]);
        if *number < ALIKE {
            results.note(&what, repeats);
        } else {
            results.figure(&what, repeats, "at most 1", repeats.median <= 1.0);
            worst = worst.max(repeats.median);
        }
    }
    let wasted = Repeats::of(&wasted).context("no repeats")?;
    results.figure("staged in vain, % of all pages read", wasted, "at most 2", wasted.median <= 2.0);
    let brier = show_calibration(results, &bins);
    results.headline(format!(
        "worst slowdown of guests that cannot be helped {worst:.1} %, {:.1} % read in vain, Brier score {brier:.3}",
        wasted.median
    ));
    guests.iter_mut().try_for_each(|guest| guest.finish(results))
}

fn guests() -> Result<Vec<Member>> {
    let set_mib = SET_MIB;
    let accesses = [
        follow(100),
        follow(70),
        Access::Uniform { set_mib },
        Access::PhaseChange { part_mib: SET_MIB / 2, every_touches: TOUCHES / 4 },
        Access::Zipf { set_mib, skew_percent: 80 },
    ];
    let start = |(number, (name, access)): (u64, (&str, Access))| {
        let walk = matches!(access, Access::Follow { .. });
        let round_touches = if walk { 0 } else { TOUCHES };
        Member::start_pattern(name, &Pattern { seed: number, round_touches, access, ..Pattern::default() })
    };
    (1..).zip(NAMES.into_iter().zip(accesses)).map(start).collect()
}

struct Walked {
    time_ns: f64,
    major_faults: u64,
}

/// All of them at once.
fn walk(agent: &Agent, guests: &mut [Member]) -> Result<Vec<Walked>> {
    send_down(agent, &guests.iter().collect::<Vec<_>>())?;
    let before = guests.iter().map(Member::major_faults).collect::<Result<Vec<_>>>()?;
    guests.iter_mut().try_for_each(Member::begin)?;
    let ended = guests.iter_mut().zip(before).map(|(guest, before)| {
        let phase = guest.end()?;
        let time_ns = (phase.end_ns - phase.start_ns) as f64;
        Ok(Walked { time_ns, major_faults: guest.major_faults()? - before })
    });
    ended.collect()
}

/// Pages that were thought about as likely to be used.
#[derive(Default)]
struct Bin {
    pages: f64,
    confidence: f64,
    used: f64,
    squares: f64,
}

/// Adds up how sure the agent was. Returns which share of all pages that were read was staged in vain, %.
fn judge(
    agent: &Agent,
    guests: &[Member],
    walked: &[Walked],
    bins: &mut BTreeMap<usize, Bin>,
) -> Result<f64> {
    let status = agent.status()?;
    let vms = status["vms"].as_array().context("a status without VMs")?;
    let number = |value: &Value| value.as_f64().context("no number");
    let (mut issued, mut wasted) = (0.0, 0.0);
    for vm in vms.iter().filter(|vm| guests.iter().any(|guest| vm["name"] == guest.name())) {
        let prefetch = &vm["prefetch"];
        issued += number(&prefetch["issued_pages"])?;
        wasted += number(&prefetch["wasted_pages"])?;
        for told in prefetch["calibration"]["bins"].as_array().context("no calibration")? {
            let (pages, confidence, used) =
                (number(&told["pages"])?, number(&told["confidence"])?, number(&told["used"])?);
            let bin = bins
                .entry((1..10).filter(|tenths| confidence * 10.0 >= f64::from(*tenths)).count())
                .or_default();
            bin.pages += pages;
            bin.confidence += pages * confidence;
            bin.used += pages * used;
            // As if all pages of a bin had had its mean.
            bin.squares += pages * (used * (1.0 - confidence).powi(2) + (1.0 - used) * confidence.powi(2));
        }
    }
    let read = issued + walked.iter().map(|walked| walked.major_faults as f64).sum::<f64>();
    Ok(wasted / read.max(1.0) * 100.0)
}

/// A reliability diagram; returns the Brier score.
fn show_calibration(results: &mut Results, bins: &BTreeMap<usize, Bin>) -> f64 {
    for bin in bins.values() {
        let (thought, was) = (bin.confidence / bin.pages * 100.0, bin.used / bin.pages * 100.0);
        let what = format!("of pages thought to be used with {thought:.0} %, used");
        results.note(&what, format!("{was:.0} % of {}", bin.pages));
    }
    let (squares, pages) = bins.values().fold((0.0, 0.0), |(s, p), bin| (s + bin.squares, p + bin.pages));
    let brier = squares / f64::max(pages, 1.0);
    results.note("Brier score", format!("{brier:.3}"));
    brier
}
