//! How well the agent knows which pages are hot: against what the guest itself did, page by page.
//!
//! A KVM guest touches pages by a pattern, and says what it did. The agent only watches (`--dry-run`). Asked for its
//! map, its hottest pages are compared with those that the guest touched most. One guest after the other: skewed
//! (zipf), one that jumps to another part of its memory, and one whose hot set is polluted by a walk through much more.
//! Each with re-arming, and with DAMON alone.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::{Backend, Guest};
use tiering_testkit::locate::locate;
use tiering_testkit::observe::PAGE;
use tiering_testkit::pattern::{Access, Pattern, PhaseResult};
use tiering_testkit::results::Results;

use super::quick;
use crate::host::{Host, known_vm, kvm_guest, number, ready, runs, wait_for};
use crate::scenario::Scenario;

const PAGES_A_MIB: usize = 256;
const TOUCHES_PER_S: u64 = 1000;
/// Touches that count for what is hot: those of so long before the agent is asked.
const WINDOW: Duration = Duration::from_secs(15);
const TARGET: f64 = 0.90;
const TARGET_WEIGHTED: f64 = 0.97;
const TARGET_AGAIN: Duration = Duration::from_secs(10);
/// The guest that jumps does so after this time.
const JUMP_S: u64 = 40;
const PART_MIB: usize = 4;

struct Case {
    name: &'static str,
    pattern: Pattern,
    /// Pages that fit the first tier.
    hot: usize,
}

fn cases() -> [Case; 3] {
    let paced = |seed, access| Pattern {
        seed,
        mem_mib: 24,
        write_one_in: 0,
        touches_per_s: TOUCHES_PER_S,
        round_touches: TOUCHES_PER_S,
        access,
        ..Pattern::default()
    };
    let jumps = Access::PhaseChange { part_mib: PART_MIB, every_touches: JUMP_S * TOUCHES_PER_S };
    let polluted = Access::HotAndLoop { hot_mib: 2, loop_mib: 16, loop_every_ms: 12_000 };
    [
        Case {
            name: "zipf",
            pattern: paced(1, Access::Zipf { set_mib: 16, skew_percent: 120 }),
            hot: 2 * PAGES_A_MIB,
        },
        Case { name: "jumps", pattern: paced(2, jumps), hot: PART_MIB * PAGES_A_MIB },
        Case {
            name: "polluted",
            pattern: Pattern { touches_per_s: 0, round_touches: 0, ..paced(3, polluted) },
            hot: 2 * PAGES_A_MIB,
        },
    ]
}

/// How the agent's hottest pages compare with those that were touched most.
#[derive(Clone, Copy, Debug, Default)]
struct Score {
    /// Of the pages that the agent calls hot, those that are.
    precision: f64,
    /// Of the hot pages, those that the agent calls hot.
    recall: f64,
    /// Touches of the former by touches of the latter.
    weighted: f64,
    /// Touches of the least touched of them.
    least: u64,
}

impl std::fmt::Display for Score {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { precision, recall, weighted, least } = self;
        write!(
            f,
            "precision {precision:.2}, recall {recall:.2}, weighted {weighted:.2}; {least} touches at least"
        )
    }
}

/// Heat and idle time of each page of the pattern, by its number.
fn heat(agent: &Agent, guest: &Guest, page_at: &HashMap<u64, usize>) -> Result<HashMap<usize, (u64, u64)>> {
    let mut heat = HashMap::new();
    for run in runs(agent, guest.name())? {
        let (start, pages) = (number(&run["hva"]), number(&run["pages"]));
        for hva in (start..start + pages * PAGE).step_by(4096) {
            if let Some(page) = page_at.get(&hva) {
                heat.insert(*page, (number(&run["heat"]), run["idle_ms"].as_u64().unwrap_or(u64::MAX)));
            }
        }
    }
    Ok(heat)
}

fn score(heat: &HashMap<usize, (u64, u64)>, touched: &HashMap<usize, u64>, most: usize) -> Score {
    let mut called: Vec<_> = heat.iter().filter(|(_, (heat, _))| *heat > 0).collect();
    called.sort_by_key(|(page, (heat, idle))| (u64::MAX - heat, *idle, **page));
    called.truncate(most);
    let mut truly: Vec<_> = touched.iter().collect();
    truly.sort_by_key(|(page, touches)| (u64::MAX - **touches, **page));
    truly.truncate(most);
    // Pages touched as often as the last of them are as good.
    let least = truly.last().map_or(1, |(_, touches)| **touches);
    let touches = |page: &usize| touched.get(page).copied().unwrap_or(0);
    let right = called.iter().filter(|(page, _)| touches(page) >= least).count();
    let sum: u64 = truly.iter().map(|(_, touches)| **touches).sum();
    let had: u64 = called.iter().map(|(page, _)| touches(page)).sum();
    Score {
        precision: right as f64 / called.len().max(1) as f64,
        recall: right as f64 / truly.len().max(1) as f64,
        weighted: had as f64 / sum.max(1) as f64,
        least,
    }
}

/// How often each page was touched in the last so many seconds, by what the guest told.
fn touched(phases: &[PhaseResult], pattern: &Pattern, window: Duration) -> HashMap<usize, u64> {
    let mut counts = HashMap::new();
    let end = phases.last().map_or(0, |phase| phase.end_ns);
    let recent = phases.iter().filter(|phase| u128::from(end - phase.start_ns) <= window.as_nanos());
    for touch in recent.flat_map(|phase| phase.truth(pattern)) {
        *counts.entry(touch.page).or_default() += 1;
    }
    // What it touches between its walks it does not tell of: each page as often as the others, far more often than a
    // walk does.
    if let Access::HotAndLoop { hot_mib, .. } = pattern.access {
        let often = 640 * window.as_secs() / (hot_mib * PAGES_A_MIB) as u64;
        counts.extend((0..hot_mib * PAGES_A_MIB).map(|page| (page, often)));
    }
    counts
}

/// How likely each page is to be touched, as heat: nobody can know more of what the guest will have done by chance.
fn probabilities(pattern: &Pattern) -> HashMap<usize, (u64, u64)> {
    let mut counts = HashMap::new();
    for touch in pattern.touches().take(1_000_000) {
        counts.entry(touch.page).or_insert((0, 0)).0 += 1;
    }
    counts
}

fn watch(results: &mut Results, case: &Case, what: &str, config: &str) -> Result<Score> {
    let builder = kvm_guest("tt-hot", Backend::AnonymousSmall).memory_mib(96).pattern(case.pattern.clone());
    let mut guest = ready(builder, results)?;
    let page_at: HashMap<u64, usize> = locate(guest.pid(), guest.ram()?, &case.pattern)?
        .into_iter()
        .map(|(page, hva)| (hva, page))
        .collect();
    let agent = Agent::start(config, &["--dry-run"])?;
    known_vm(&agent, guest.name())?;
    let settle = Duration::from_secs(if quick() { 30 } else { 45 });
    std::thread::sleep(settle);
    let mut scores = Vec::new();
    let name = format!("{}, {what}", case.name);
    if let Access::PhaseChange { .. } = case.pattern.access {
        scores.push(after_a_jump(results, &agent, &guest, case, &page_at, &name)?);
    } else {
        let mut told = HashMap::new();
        for _ in 0..3 {
            std::thread::sleep(Duration::from_secs(5));
            let heat = heat(&agent, &guest, &page_at)?;
            told = touched(&guest.phases()?, &case.pattern, WINDOW);
            scores.push(score(&heat, &told, case.hot));
        }
        if let Access::Zipf { .. } = case.pattern.access {
            let best = score(&probabilities(&case.pattern), &told, case.hot);
            results.note(&format!("{name}: who knows each page's probability"), best);
        }
    }
    scores.sort_by(|a, b| a.recall.total_cmp(&b.recall));
    let median = scores[scores.len() / 2];
    let met = median.precision >= TARGET && median.recall >= TARGET && median.weighted >= TARGET_WEIGHTED;
    results.figure(&format!("{name}: hottest {} pages", case.hot), median, "0.90, 0.90, 0.97", met);
    let status = known_vm(&agent, guest.name())?;
    results.note(&format!("{name}: rounds"), rounds(&status["rearm"]));
    let sources = agent.status()?["sources"].clone();
    let damon = sources.as_array().into_iter().flatten().find(|source| source["name"] == "damon");
    results.note(
        &format!("{name}: DAMON"),
        damon.map_or("no such source", |source| source["detail"].as_str().unwrap_or("")),
    );
    agent.interrupt()?;
    let right = guest.finish()?.checksum_ok;
    results.check(&format!("{name}: memory right"), right, "true", right);
    guest.kill();
    Ok(median)
}

fn rounds(rearm: &Value) -> String {
    match rearm["why_not"].as_str() {
        Some(why_not) => why_not.to_owned(),
        None => format!(
            "{}, every {:.1} s, the last took {:.1} ms",
            rearm["rounds_total"],
            number(&rearm["every_ns"]) as f64 / 1e9,
            number(&rearm["pause_ns"]) as f64 / 1e6
        ),
    }
}

/// Waits for the next jump, and then until the agent's hottest pages are those of the new part. Returns the score at
/// its end.
fn after_a_jump(
    results: &mut Results,
    agent: &Agent,
    guest: &Guest,
    case: &Case,
    page_at: &HashMap<u64, usize>,
    name: &str,
) -> Result<Score> {
    let every = JUMP_S * TOUCHES_PER_S;
    let part = || -> Result<u64> {
        let phases = guest.phases()?;
        let last = phases.last().context("no phase yet")?;
        Ok((last.first + last.touches) / every)
    };
    let before = part()?;
    wait_for("the jump", || Ok((part()? > before).then_some(())))?;
    let jumped = Instant::now();
    let mut again = None;
    let mut last = Score::default();
    while jumped.elapsed() < Duration::from_secs(JUMP_S / 2) {
        std::thread::sleep(Duration::from_secs(1));
        let heat = heat(agent, guest, page_at)?;
        let mut phases = guest.phases()?;
        // Of the part before the jump nothing counts any more.
        phases.retain(|phase| phase.first / every > before);
        last = score(&heat, &touched(&phases, &case.pattern, WINDOW), case.hot);
        println!("      {:>4.1} s after the jump: {last}", jumped.elapsed().as_secs_f64());
        if again.is_none() && last.precision >= TARGET && last.recall >= TARGET {
            again = Some(jumped.elapsed());
        }
    }
    let met = again.is_some_and(|time| time <= TARGET_AGAIN);
    let told = again.map_or("not at all".to_owned(), |time| format!("after {:.0} s", time.as_secs_f64()));
    results.figure(&format!("{name}: again good when it has jumped"), &told, "10 s", met);
    results.headline(format!("{name}: again good {told}"));
    Ok(last)
}

fn hot_pages(results: &mut Results) -> Result<()> {
    let host = Host::new()?;
    // The lab's processors are emulated: what a round costs there says nothing.
    let with = |rearm: bool| {
        let config = host.config("10s");
        format!(
            "{config}\n[tracking]\nrearm = {rearm}\ndamon = {}\nrearm_pause = \"5s\"\nrearm_cost = \"100%\"\n",
            !rearm
        )
    };
    for case in &cases() {
        let armed = watch(results, case, "re-armed", &with(true))?;
        let damon = watch(results, case, "DAMON alone", &with(false))?;
        results.headline(format!(
            "{} {:.2}/{:.2}/{:.2} (DAMON alone {:.2}/{:.2}/{:.2})",
            case.name,
            armed.precision,
            armed.recall,
            armed.weighted,
            damon.precision,
            damon.recall,
            damon.weighted
        ));
    }
    Ok(())
}

#[test]
#[ignore = "a benchmark: cargo xtask bench tracking --part hot"]
fn bench_hot_pages() {
    let limit = Duration::from_secs(1500);
    let host = Scenario { nodes: "dram:2G", limit, ..Scenario::default() };
    host.run("bench::hot::bench_hot_pages", hot_pages);
}
