//! How well the policy chooses what goes down, and how fast that is found out: recorded accesses, replayed. No guests:
//! what the patterns of the test guests touch is written as a trace, as if every access had shown.

use std::time::Instant;

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::repeats::Repeats;
use tiering_testkit::results::Results;
use tiering_user::config::Config;
use tiering_user::replay::{Outcome, Replay};
use tiering_user::sys::Monotonic;
use tiering_user::trace::{Appeared, Block, Event, MAGIC, Reader};
use tiering_user::track::VmId;

const TOUCHES_PER_S: u64 = 1000;
const CONFIG: &str = "[policy]\ndemote_after = \"30s\"\nrefault_limit = \"100%\"";
/// Of what the best has ahead of the least recently used.
const GAP_LEAST: f64 = 0.25;

fn patterns() -> [(&'static str, Access); 5] {
    [
        ("skewed (Zipf of 1.2)", Access::Zipf { set_mib: 96, skew_percent: 120 }),
        ("less skewed (Zipf of 0.8)", Access::Zipf { set_mib: 96, skew_percent: 80 }),
        ("evenly", Access::Uniform { set_mib: 96 }),
        ("again and again in order", Access::Sequential { set_mib: 160 }),
        ("jumps", Access::PhaseChange { part_mib: 16, every_touches: 120 * TOUCHES_PER_S }),
    ]
}

fn trace(access: Access, seconds: u64) -> Vec<u8> {
    let pattern = Pattern { mem_mib: 192, access, ..Pattern::default() };
    let mut bytes = MAGIC.to_vec();
    let mut block = Block::default();
    let vm = VmId(1);
    let pages = u32::try_from(pattern.pages()).unwrap_or(u32::MAX);
    let appeared = Appeared { vm, name: access.name().to_owned(), pages, priority: 50, node_tiers: 1 };
    block.push(Monotonic(0), &Event::Appeared(appeared));
    let touches = pattern.touches().take((seconds * TOUCHES_PER_S) as usize);
    for (number, touch) in (0u64..).zip(touches) {
        let page = u32::try_from(touch.page).unwrap_or(u32::MAX);
        let event = Event::Accessed { vm, page, write: touch.write, weight_log2: 0 };
        block.push(Monotonic(number * 1_000_000_000 / TOUCHES_PER_S), &event);
        if block.is_full() {
            bytes.extend(block.take());
        }
    }
    bytes.extend(block.take());
    bytes
}

fn replay(trace: &[u8]) -> Result<Outcome> {
    let mut reader = Reader::new(trace)?;
    let config = Config::parse(CONFIG, "bench")?;
    let mut replay = Replay::new(&config, BTreeSet::new());
    let mut fits = Ok(());
    reader.for_each(|event| fits = fits.clone().and_then(|()| replay.take(event, |_| ())))?;
    fits?;
    replay.end(|_| ()).pop().context("no VM in the trace")
}

pub fn measure(results: &mut Results, quick: bool) -> Result<()> {
    let seconds = if quick { 600 } else { 3600 };
    let (mut speeds, mut sizes, mut gaps) = (Vec::new(), Vec::new(), Vec::new());
    for (name, access) in patterns() {
        let trace = trace(access, seconds);
        let began = Instant::now();
        let outcome = replay(&trace)?;
        speeds.push(outcome.accesses as f64 / began.elapsed().as_secs_f64());
        sizes.push(trace.len() as f64 / outcome.accesses as f64);
        let Outcome { came_back, came_back_lru, came_back_best, gap_closed, mean_bytes, .. } = outcome;
        results.note(
            &format!("{name}: came back, if LRU, at best"),
            format!("{came_back}, {came_back_lru}, {came_back_best}; {} MiB in tier 0", mean_bytes >> 20),
        );
        if let Some(gap) = gap_closed {
            gaps.push(gap);
            results.figure(
                "   of the gap between LRU and the best closed, %",
                format!("{:.0}", gap * 100.0),
                &format!("at least {:.0}", GAP_LEAST * 100.0),
                gap >= GAP_LEAST,
            );
        }
    }
    let speed = Repeats::of(&speeds).context("no speeds")?;
    results.note(
        "accesses replayed a second",
        format!("{:.0} ({:.0} to {:.0})", speed.median, speed.least, speed.most),
    );
    results.note("bytes an access", Repeats::of(&sizes).context("no sizes")?);
    let gap = Repeats::of(&gaps).context("no gaps")?;
    results.headline(format!(
        "replacement: {:.0} % ({:.0} to {:.0}) of the gap between LRU and the best closed",
        gap.median * 100.0,
        gap.least * 100.0,
        gap.most * 100.0
    ));
    Ok(())
}
