//! What a guest saves when another one of its tenant has read the same base image before, and the page cache has lost
//! it since.
//!
//! Emulated guests with a virtio disk that is a raw file on this machine's disk, read through the host's page cache and
//! past the guest's own. In each repeat, with no state on disk at first: one guest reads with an agent that looks at
//! files, and is switched off; the image is taken out of the page cache, and another guest reads the same in the same
//! order. Then the same guest once more with an agent that does not look at files, after the image was taken out again:
//! that is the kernel alone, with its own readahead; and last with all of it in the page cache, which is as fast as
//! this guest can read.

use crate::host::{self, Host};
use anyhow::{Context, Result, ensure};
use std::time::Duration;
use tiering_testkit::agent::Agent;
use tiering_testkit::disk_image::{self, DiskImage, fetched_bytes};
use tiering_testkit::guest::{Backend, Guest};
use tiering_testkit::pattern::{Access, PAGE_BYTES, Pattern};
use tiering_testkit::repeats::Repeats;
use tiering_testkit::results::Results;
use tiering_testkit::stop;

const MIB: usize = 256;
const IMAGE_SEED: u64 = 11;
const FIRST: &str = "tt-leader";
const SECOND: &str = "tt-follower";
const LIMIT: Duration = Duration::from_secs(120);
/// What an agent knows is in its status after this time.
const PUBLISHED: Duration = Duration::from_millis(1500);

/// One pass over the image.
struct Pass {
    ms: f64,
    /// Mean time of a read, as the guest sees it.
    read_us: f64,
    /// What the guest fetched from the disk itself, % of what it read.
    fetched: f64,
}

/// One repeat.
struct Round {
    cached: Pass,
    kernel: Pass,
    ours: Pass,
    asked_mib: f64,
    confidence: f64,
}

pub fn measure(results: &mut Results, quick: bool) -> Result<()> {
    let host = Host::new()?;
    let image = DiskImage::create(&host.folder(""), MIB, IMAGE_SEED)?;
    let random = |set_mib| Access::Follow { set_mib, order_seed: 5, overlap_percent: 100 };
    // The first one has about one page of each extent; the others read all pages.
    let cases = [
        ("random, few pages", random(MIB), 1024),
        ("random, all pages", random(16), 0),
        ("sequential", Access::Sequential { set_mib: 32 }, 0),
    ];
    for (what, access, round_touches) in cases {
        let pattern = Pattern { rounds_on_command: true, round_touches, access, ..Pattern::default() };
        let pattern = pattern.on_disk(MIB, IMAGE_SEED);
        let repeats = if quick { 2 } else { 5 };
        let rounds = (0..repeats).map(|_| round(&host, &image, &pattern)).collect::<Result<Vec<_>>>()?;
        show(results, what, &rounds);
    }
    Ok(())
}

fn round(host: &Host, image: &DiskImage, pattern: &Pattern) -> Result<Round> {
    host.forget_state()?;
    let agent = host.agent_that("by_file = true")?;
    let mut first = start(FIRST, &agent, image, pattern)?;
    image.leave_cache()?;
    pass(&mut first)?;
    first.poweroff()?;
    host::gone(&agent, FIRST)?;

    // Each guest begins the pattern anew: what it reads first is the same.
    let mut second = start(SECOND, &agent, image, pattern)?;
    image.leave_cache()?;
    let ours = pass(&mut second)?;
    stop::sleep(PUBLISHED)?;
    let status = agent.status()?;
    let images = status["images"].as_array().context("no image is known")?;
    let known =
        images.iter().find(|known| known["name"] == disk_image::NAME).context("the image is not known")?;
    let number = |field: &str| known[field].as_f64().with_context(|| format!("no {field} in {known}"));
    let (asked_mib, confidence) =
        (number("read_ahead_bytes_total")? / f64::from(1 << 20), number("confidence")?);
    second.poweroff()?;
    agent.interrupt()?;

    let agent = host.agent_that("by_file = false")?;
    let mut third = start(SECOND, &agent, image, pattern)?;
    image.leave_cache()?;
    let kernel = pass(&mut third)?;
    third.poweroff()?;
    host::gone(&agent, SECOND)?;
    let mut fourth = start(SECOND, &agent, image, pattern)?;
    std::io::copy(&mut std::fs::File::open(image.path())?, &mut std::io::sink())?;
    let cached = pass(&mut fourth)?;
    fourth.poweroff()?;
    agent.interrupt()?;
    Ok(Round { cached, kernel, ours, asked_mib, confidence })
}

fn start(name: &str, agent: &Agent, image: &DiskImage, pattern: &Pattern) -> Result<Guest> {
    let builder = Guest::builder(name).memory_mib(128).backend(Backend::AnonymousSmall);
    let mut guest = builder.pattern(pattern.clone()).disk(image.path()).start()?;
    guest.wait_ready(LIMIT)?;
    host::known_name(agent, name)?;
    Ok(guest)
}

fn pass(guest: &mut Guest) -> Result<Pass> {
    host::disk_at_rest()?;
    let before = fetched_bytes(guest.pid())?;
    guest.go()?;
    let phase = guest.wait_phase(1, LIMIT)?;
    ensure!(phase.ok, "{} read something else than the image holds", guest.name());
    let fetched = fetched_bytes(guest.pid())? - before;
    let read = phase.touches * PAGE_BYTES as u64;
    // A bucket counts as its largest value, the same for all.
    let reads_ns = phase.first_accesses_ns();
    Ok(Pass {
        ms: (phase.end_ns - phase.start_ns) as f64 / 1e6,
        read_us: reads_ns / phase.touches.max(1) as f64 / 1e3,
        fetched: fetched as f64 / read as f64 * 100.0,
    })
}

fn show(results: &mut Results, what: &str, rounds: &[Round]) {
    let row = |results: &mut Results, of: &str, each: &dyn Fn(&Round) -> f64| {
        let values: Vec<f64> = rounds.iter().map(each).collect();
        let repeats = Repeats::of(&values)?;
        results.note(&format!("{what}: {of}"), repeats);
        Some(repeats.median)
    };
    row(results, "all in the page cache, ms", &|round| round.cached.ms);
    row(results, "kernel alone, ms", &|round| round.kernel.ms);
    row(results, "agent, ms", &|round| round.ours.ms);
    let faster = row(results, "times as fast as the kernel", &|round| round.kernel.ms / round.ours.ms);
    row(results, "a read, all in the page cache, us", &|round| round.cached.read_us);
    row(results, "a read, kernel alone, us", &|round| round.kernel.read_us);
    row(results, "a read, agent, us", &|round| round.ours.read_us);
    row(results, "fetched by the guest, kernel, % of what it read", &|round| round.kernel.fetched);
    row(results, "fetched by the guest, agent, % of what it read", &|round| round.ours.fetched);
    row(results, "asked for ahead, MiB", &|round| round.asked_mib);
    row(results, "confidence", &|round| round.confidence);
    if let Some(faster) = faster {
        results.headline(format!("{what}: {faster:.1} x"));
    }
}
