//! How fast the agent moves pages, against the bare system calls on the same memory, by turns.
//!
//! A guest of 256 MiB that stands still. *Contiguous*: all of it. *Scattered*: every other page, the others being in
//! swap already. Before each measurement every page that is to move is written, so that it gives up its slot and must
//! be written out again, and the disk is at rest.
//! - down: `process_madvise(MADV_PAGEOUT)`, and `tiering move --to nvme`, which plans, re-checks, reads back and plugs
//! - up: `process_madvise(MADV_WILLNEED)` and one byte of each page read, and `tiering move --to dram`
//!
//! The agent's time is the one it tells: from the request's arrival to the last page's being where it should be.

use crate::host::{self, Host};
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};
use tiering_testkit::agent::Agent;
use tiering_testkit::filled::Filled;
use tiering_testkit::guest::Backend;
use tiering_testkit::observe::{At, PAGE, pagemap};
use tiering_testkit::repeats::Repeats;
use tiering_testkit::results::Results;
use tiering_user::sys::{Advice, MAX_RANGES_PER_CALL, Pidfd, Span, advise, touch_read};

const MEMORY_MIB: u32 = 256;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Contiguous,
    Scattered,
}

impl Shape {
    fn name(self) -> &'static str {
        match self {
            Self::Contiguous => "contiguous",
            Self::Scattered => "scattered",
        }
    }

    /// Share of the bare call's rate that one aims at.
    fn target_percent(self) -> f64 {
        match self {
            Self::Contiguous => 95.0,
            Self::Scattered => 90.0,
        }
    }
}

/// MiB a second of one round.
#[derive(Clone, Copy)]
struct Rates {
    down: f64,
    up: f64,
}

pub fn measure(results: &mut Results, repeats: u32) -> Result<()> {
    let host = Host::new()?;
    let plain = Subject::new("tt-plain")?;
    let tagged = Subject::new("tt-tagged-1")?;
    // Declared last, so that it ends first and brings everything back.
    let agent = host.agent(false)?;
    host::known(&agent, &plain.guest)?;
    host::known(&agent, &tagged.guest)?;

    for shape in [Shape::Contiguous, Shape::Scattered] {
        let (mut bare, mut ours, mut with_tags) = (Vec::new(), Vec::new(), Vec::new());
        // One round that does not count: the plugs and the page tables of the guests are made then.
        plain.by_agent(&agent, shape)?;
        for repeat in 0..repeats {
            // By turns, and each first every other time.
            if repeat % 2 == 0 {
                bare.push(plain.bare(&agent, shape)?);
            }
            ours.push(plain.by_agent(&agent, shape)?);
            with_tags.push(tagged.by_agent(&agent, shape)?);
            if repeat % 2 == 1 {
                bare.push(plain.bare(&agent, shape)?);
            }
        }
        show(results, shape, &bare, &ours, &with_tags);
    }
    for subject in [&plain, &tagged] {
        let changed = subject.guest.changed_pages(0)?;
        let what = format!("{}: pages whose content changed", subject.guest.guest().name());
        results.check(&what, changed, "0", changed == 0);
    }
    Ok(())
}

fn show(results: &mut Results, shape: Shape, bare: &[Rates], ours: &[Rates], with_tags: &[Rates]) {
    let name = shape.name();
    let down = |rates: &[Rates]| rates.iter().map(|rates| rates.down).collect::<Vec<_>>();
    let up = |rates: &[Rates]| rates.iter().map(|rates| rates.up).collect::<Vec<_>>();
    let rows = [
        ("MADV_PAGEOUT", down(bare)),
        ("agent, down", down(ours)),
        ("agent, down, tagged", down(with_tags)),
        ("MADV_WILLNEED and touch", up(bare)),
        ("agent, up", up(ours)),
    ];
    for (what, rates) in &rows {
        if let Some(rates) = Repeats::of(rates) {
            results.note(&format!("{name}: {what}, MiB/s"), format!("{rates:.0}"));
        }
    }
    let ratio = |ours: &[f64], bare: &[f64]| {
        let ratios: Vec<f64> = ours.iter().zip(bare).map(|(ours, bare)| ours / bare * 100.0).collect();
        Repeats::of(&ratios)
    };
    let target = shape.target_percent();
    if let Some(share) = ratio(&rows[1].1, &rows[0].1) {
        let wanted = format!("{target} %");
        results.figure(
            &format!("{name}: agent, share of the bare call, %"),
            share,
            &wanted,
            share.median >= target,
        );
        results.headline(format!("{name} {:.0} %", share.median));
    }
    if let Some(share) = ratio(&rows[2].1, &rows[0].1) {
        results.note(&format!("{name}: the same with tags, %"), share);
    }
    if let Some(share) = ratio(&rows[4].1, &rows[3].1) {
        results.note(&format!("{name}: up, share of the bare calls, %"), share);
    }
}

/// A guest, and the right to move its pages without the agent.
struct Subject {
    guest: Filled,
    process: Pidfd,
}

impl Subject {
    fn new(name: &str) -> Result<Self> {
        let guest = host::still(name, MEMORY_MIB, Backend::AnonymousSmall)?;
        let process = Pidfd::open(guest.guest().pid().try_into()?)?;
        Ok(Self { guest, process })
    }

    /// What is measured, in spans as the kernel takes them.
    fn spans(&self, shape: Shape) -> Vec<Span> {
        let ram = self.guest.ram();
        match shape {
            Shape::Contiguous => vec![Span { start: ram.start, bytes: ram.end - ram.start }],
            Shape::Scattered => self.every_other(0),
        }
    }

    fn every_other(&self, first: usize) -> Vec<Span> {
        let pages = self.guest.pages().skip(first).step_by(2);
        pages.map(|start| Span { start, bytes: PAGE }).collect()
    }

    /// All that is to move is in memory, and has no slot.
    fn prepare(&self, agent: &Agent, shape: Shape) -> Result<()> {
        self.guest.fill(0)?;
        if shape == Shape::Scattered {
            self.advise(&self.every_other(1), Advice::PageOut)?;
        }
        host::look(agent, &self.guest)?;
        host::disk_at_rest()
    }

    fn bare(&self, agent: &Agent, shape: Shape) -> Result<Rates> {
        self.prepare(agent, shape)?;
        let spans = self.spans(shape);
        let began = Instant::now();
        self.advise(&spans, Advice::PageOut)?;
        let down = began.elapsed();
        self.check_gone(shape)?;
        host::disk_at_rest()?;
        let pages: Vec<Span> = self.pages_of(shape);
        let began = Instant::now();
        self.advise(&spans, Advice::WillNeed)?;
        for chunk in pages.chunks(MAX_RANGES_PER_CALL) {
            touch_read(&self.process, chunk)?;
        }
        let up = began.elapsed();
        host::look(agent, &self.guest)?;
        Ok(Rates { down: rate(&pages, down), up: rate(&pages, up) })
    }

    fn by_agent(&self, agent: &Agent, shape: Shape) -> Result<Rates> {
        self.prepare(agent, shape)?;
        let down = elapsed(&host::move_to(agent, &self.guest, "nvme")?)?;
        self.check_gone(shape)?;
        host::disk_at_rest()?;
        let up = elapsed(&host::move_to(agent, &self.guest, "dram")?)?;
        let pages = self.pages_of(shape);
        // All of it came up, also what was not measured on its way down.
        Ok(Rates { down: rate(&pages, down), up: rate(&self.pages_of(Shape::Contiguous), up) })
    }

    fn pages_of(&self, shape: Shape) -> Vec<Span> {
        match shape {
            Shape::Contiguous => self.guest.pages().map(|start| Span { start, bytes: PAGE }).collect(),
            Shape::Scattered => self.every_other(0),
        }
    }

    fn advise(&self, spans: &[Span], advice: Advice) -> Result<()> {
        for chunk in spans.chunks(MAX_RANGES_PER_CALL) {
            advise(&self.process, chunk, advice)?;
        }
        Ok(())
    }

    /// A move that did not happen was not measured.
    fn check_gone(&self, shape: Shape) -> Result<()> {
        let ram = self.guest.ram();
        let at = pagemap(self.guest.guest().pid(), ram.start, self.guest.all_pages())?;
        let gone = at.iter().filter(|at| matches!(at, At::Swap { .. })).count() as u64;
        let all = self.guest.all_pages();
        ensure!(gone * 100 >= all * 98, "{}: {gone} of {all} pages are in swap", shape.name());
        Ok(())
    }
}

fn rate(pages: &[Span], time: Duration) -> f64 {
    (pages.len() as u64 * PAGE) as f64 / f64::from(1 << 20) / time.as_secs_f64()
}

fn elapsed(outcome: &serde_json::Value) -> Result<Duration> {
    let millis = outcome["elapsed_ms"].as_u64().unwrap_or(0);
    ensure!(millis > 0, "the move took no time: {outcome}");
    Ok(Duration::from_millis(millis))
}
