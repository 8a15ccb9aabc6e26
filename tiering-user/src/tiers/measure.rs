//! How fast each tier is, measured in a few tenths of a second.
//!
//! In: the ladder and its memory nodes. Out: for each tier times of single reads and a rate, or why there are none;
//! never a reason not to start. What that means is `verify`'s to say.
//!
//! 1. The time is shared evenly; each tier is measured by a thread of its own, one after the other, so that a disk that
//!    does not answer holds up nobody: it is left behind.
//! 2. A memory tier: memory that prefers the node is made present, and checked to be there. Read through once for the
//!    rate, then by loads each of which waits for the one before, from a processor near the node.
//! 3. A swap tier: a file of random bytes ([`ProbeFile`]) is written, read through, then read and written by single
//!    pages at random. Of a device pages that the agent has put there are read; none before it was made into swap.
//! 4. Where that says that the ladder is in the wrong order, all is done a second time and the faster figure of each
//!    tier counts: a busy host makes any tier look slow for a moment.
//!
//! # Limits
//! Of a memory tier the node with most free is measured. Memory is read in small pages, and what the processor needs to
//! find them is part of the figure. Caches larger than 64 MiB make memory look faster. Nothing else is
//! stopped meanwhile: a busy host measures slower.

use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use thiserror::Error;

use super::probe_file::{ProbeFile, bytes_per_s};
use super::verify::in_order;
use super::{Latencies, NodeFacts, Quantiles, SwapPlace, Tier, TierKind};
use crate::sys::{self, Buffer, Monotonic, PAGE_BYTES, PreferNodes, node_of, stay_on_cpus};

/// For all tiers together.
const BUDGET: Duration = Duration::from_millis(400);
/// How much longer a tier may take before it is left behind: one slow request.
const PATIENCE: Duration = Duration::from_secs(2);
/// Memory that is read: more than most caches hold.
const MEMORY_BYTES: u64 = 64 << 20;
/// Less would be measured in the cache.
const LEAST_MEMORY_BYTES: u64 = 8 << 20;
/// A node keeps this many times as much free.
const FREE_TIMES: u64 = 4;
/// Loads that are timed together: reading the clock takes as long as some loads.
const LOADS: u32 = 256;
const MOST_BATCHES: u32 = 400;
const MOST_ROUNDS: u32 = 256;
/// Addresses apart by at least a cache line, 64 bytes on x86-64.
const LINE_BYTES: usize = 64;

/// What was measured of one tier.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Of reads.
    pub latencies: Latencies,
    /// Of writes of single pages; none for memory and devices.
    pub write: Option<Quantiles>,
    /// Reading in sequence.
    pub bandwidth_bytes_per_s: u64,
}

/// Why a tier could not be measured.
#[derive(Debug, Error)]
pub enum NotMeasured {
    #[error("could not measure: {0}")]
    Io(#[from] io::Error),
    #[error("could not measure: node {node} has {free_mib} MiB free")]
    LittleFree { node: u32, free_mib: u64 },
    #[error("could not measure: memory for node {node} came from another node")]
    Elsewhere { node: u32 },
    #[error("could not measure: none of its nodes is here")]
    NoNode,
    #[error("could not measure: no answer within {} ms", .0.as_millis())]
    NoAnswer(Duration),
}

/// The outcome for one tier.
#[derive(Debug)]
pub struct Measurement {
    pub outcome: Result<Measured, NotMeasured>,
    /// To go on with: the file of a swap tier.
    pub probe: Option<ProbeFile>,
}

impl Measurement {
    /// The median of single reads; none where there is no measurement.
    pub fn p50_ns(&self) -> Option<u64> {
        Some(self.outcome.as_ref().ok()?.latencies.quantiles()?.p50_ns)
    }
}

/// Measures all tiers; one entry a tier, in order.
pub fn measure(tiers: &[Tier], nodes: &[NodeFacts]) -> Vec<Measurement> {
    let mut measured = measure_once(tiers, nodes);
    let p50_ns: Vec<_> = measured.iter().map(Measurement::p50_ns).collect();
    if !in_order(&p50_ns) {
        for (first, second) in measured.iter_mut().zip(measure_once(tiers, nodes)) {
            keep_faster(first, second);
        }
    }
    measured
}

fn keep_faster(first: &mut Measurement, second: Measurement) {
    if second.p50_ns().is_some_and(|ns| first.p50_ns().is_none_or(|before| ns < before)) {
        *first = second;
    }
}

fn measure_once(tiers: &[Tier], nodes: &[NodeFacts]) -> Vec<Measurement> {
    let share = BUDGET / u32::try_from(tiers.len()).unwrap_or(u32::MAX).max(1);
    tiers.iter().map(|tier| measure_apart(tier.clone(), nodes.to_vec(), share)).collect()
}

/// By a thread that is left behind if it does not answer.
fn measure_apart(tier: Tier, nodes: Vec<NodeFacts>, share: Duration) -> Measurement {
    let (answer, answered) = mpsc::channel();
    let failed = |error: NotMeasured| Measurement { outcome: Err(error), probe: None };
    let started = thread::Builder::new().name("tiering-measure".into()).spawn(move || {
        let measurement = match &tier.kind {
            TierKind::Node { nodes: of_tier } => {
                Measurement { outcome: measure_memory(of_tier, &nodes, share), probe: None }
            }
            TierKind::Swap { place, .. } => match measure_swap(place, share) {
                Ok((measured, probe)) => Measurement { outcome: Ok(measured), probe: Some(probe) },
                Err(error) => Measurement { outcome: Err(error.into()), probe: None },
            },
        };
        // Where nobody waits any more, nobody wants it.
        answer.send(measurement).ok();
    });
    match started {
        Ok(_) => answered
            .recv_timeout(share + PATIENCE)
            .unwrap_or_else(|_| failed(NotMeasured::NoAnswer(share + PATIENCE))),
        Err(error) => failed(error.into()),
    }
}

fn measure_memory(of_tier: &[u32], nodes: &[NodeFacts], share: Duration) -> Result<Measured, NotMeasured> {
    let end = sys::now().after(share);
    // A kernel without NUMA tells of no node and has one.
    let lonely = NodeFacts { free_bytes: u64::MAX, ..NodeFacts::default() };
    let here = nodes.iter().filter(|facts| of_tier.contains(&facts.node));
    let node = match here.max_by_key(|facts| facts.free_bytes) {
        Some(node) => node,
        None if nodes.is_empty() => &lonely,
        None => return Err(NotMeasured::NoNode),
    };
    let bytes = MEMORY_BYTES.min(1 << (node.free_bytes / FREE_TIMES).max(1).ilog2());
    if bytes < LEAST_MEMORY_BYTES {
        return Err(NotMeasured::LittleFree { node: node.node, free_mib: node.free_bytes >> 20 });
    }
    let near = node.nearest_cpus.and_then(|near| nodes.iter().find(|other| other.node == near.node));
    // This thread ends with the measurement. Where it may not choose its processors, it measures from where it is.
    if let Some(near) = near {
        stay_on_cpus(&near.cpus).ok();
    }
    // Where the kernel knows no policies, it knows no nodes, and the check below is content.
    let preferred = PreferNodes::set(&[node.node]).ok();
    let mut memory = Buffer::map((bytes / PAGE_BYTES) as usize).map_err(NotMeasured::Io)?;
    let made = make_present(&mut memory, sys::now().after(share / 2));
    drop(preferred);
    let there = |at: usize| node_of(&memory.bytes()[at]).map_or(true, |found| found == node.node);
    if !(0..made).step_by(made / 16).all(there) {
        return Err(NotMeasured::Elsewhere { node: node.node });
    }
    let memory = &memory.bytes()[..made];
    let bandwidth_bytes_per_s = copy_through(memory);
    Ok(Measured { latencies: chase(memory, end), write: None, bandwidth_bytes_per_s })
}

/// Touches page after page until all are present, or the time is up and enough are. Returns how many bytes are, a power
/// of two.
fn make_present(memory: &mut Buffer, end: Monotonic) -> usize {
    const BETWEEN_LOOKS: usize = 256;
    let mut pages = 0;
    for (page, bytes) in memory.bytes_mut().chunks_mut(PAGE_BYTES as usize).enumerate() {
        let enough = page as u64 * PAGE_BYTES >= LEAST_MEMORY_BYTES;
        if enough && page.is_multiple_of(BETWEEN_LOOKS) && sys::now() >= end {
            break;
        }
        bytes[0] = 0;
        pages = page + 1;
    }
    (pages * PAGE_BYTES as usize).checked_ilog2().map_or(0, |log| 1 << log)
}

/// Bytes a second of copying it into the cache.
fn copy_through(memory: &[u8]) -> u64 {
    let mut cached = vec![0; 64 << 10];
    let began = sys::now();
    for piece in memory.chunks_exact(cached.len()) {
        cached.copy_from_slice(piece);
        std::hint::black_box(&mut cached);
    }
    bytes_per_s(memory.len() as u64, sys::now().since(began))
}

/// Times of loads, each at an address that depends on what the one before found (which is zero: only the processor does
/// not know). `memory` is a power of two long.
fn chase(memory: &[u8], end: Monotonic) -> Latencies {
    // A full period modulo any power of two (Knuth, TAOCP 2, 3.2.1.2).
    const FACTOR: usize = 1_664_525;
    const STEP: usize = 1_013_904_223;
    let lines = memory.len() / LINE_BYTES;
    let mut latencies = Latencies::default();
    let mut line = 0;
    for batch in 0..MOST_BATCHES {
        let began = sys::now();
        for _ in 0..LOADS {
            let found = usize::from(memory[line * LINE_BYTES]);
            line = (line.wrapping_mul(FACTOR).wrapping_add(STEP) ^ found) & (lines - 1);
        }
        let now = sys::now();
        std::hint::black_box(line);
        latencies.record(now.since(began) / LOADS, now);
        if batch > 0 && now >= end {
            break;
        }
    }
    latencies
}

fn measure_swap(place: &SwapPlace, share: Duration) -> io::Result<(Measured, ProbeFile)> {
    match place {
        SwapPlace::Folder(folder) => measure_disk(folder, share),
        SwapPlace::Device { path, .. } => measure_device(path, share),
    }
}

/// Only reads: what is written there is pages of VMs.
fn measure_device(path: &Path, share: Duration) -> io::Result<(Measured, ProbeFile)> {
    let mut probe = ProbeFile::on_device(path, sys::now().0)?;
    let bandwidth_bytes_per_s = probe.read_through(sys::now().after(share / 2))?;
    let latencies = repeat(sys::now().after(share / 2), || probe.read_page())?;
    Ok((Measured { latencies, write: None, bandwidth_bytes_per_s }, probe))
}

fn measure_disk(folder: &Path, share: Duration) -> io::Result<(Measured, ProbeFile)> {
    let began = sys::now();
    let mut probe = ProbeFile::create(folder, began.0, began.after(share * 3 / 10))?;
    let bandwidth_bytes_per_s = probe.read_through(sys::now().after(share / 5))?;
    let latencies = repeat(sys::now().after(share * 2 / 5), || probe.read_page())?;
    let write = repeat(sys::now().after(share / 10), || probe.write_page())?.quantiles();
    Ok((Measured { latencies, write, bandwidth_bytes_per_s }, probe))
}

/// Times of the same again and again: twice at least, until `end` or until it was often enough.
fn repeat(end: Monotonic, mut once: impl FnMut() -> io::Result<Duration>) -> io::Result<Latencies> {
    let mut latencies = Latencies::default();
    for round in 0..MOST_ROUNDS {
        let took = once()?;
        let now = sys::now();
        latencies.record(took, now);
        if round > 0 && now >= end {
            break;
        }
    }
    Ok(latencies)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiers::{TierId, node_facts};

    fn tier(kind: TierKind) -> Tier {
        Tier { id: TierId(0), name: "t".into(), kind }
    }

    fn swap_in(folder: &Path) -> Tier {
        tier(TierKind::Swap {
            place: SwapPlace::Folder(folder.to_owned()),
            capacity_bytes: 1 << 30,
            write_limit: None,
            daily_writes: None,
        })
    }

    #[test]
    fn memory_and_a_disk_of_this_host_are_measured() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let nodes = node_facts(Path::new("/sys"));
        let share = Duration::from_millis(100);
        let memory = measure_memory(&[0], &nodes, share).unwrap();
        let (disk, _probe) = measure_disk(folder.path(), share).unwrap();
        for measured in [&memory, &disk] {
            let times = measured.latencies.quantiles().unwrap();
            assert!(times.p50_ns <= times.p99_ns && measured.bandwidth_bytes_per_s > 0, "{measured:?}");
        }
        assert_eq!([memory.write.is_some(), disk.write.is_some()], [false, true]);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
    }

    #[test]
    fn of_two_measurements_the_faster_one_counts() {
        let took = |ns| {
            let mut latencies = Latencies::default();
            latencies.record(Duration::from_nanos(ns), sys::now());
            let outcome = Ok(Measured { latencies, write: None, bandwidth_bytes_per_s: ns });
            Measurement { outcome, probe: None }
        };
        let failed = || Measurement { outcome: Err(NotMeasured::NoNode), probe: None };
        let kept = |mut first: Measurement, second| {
            keep_faster(&mut first, second);
            first.p50_ns()
        };
        assert_eq!([kept(took(90), took(50)), kept(took(50), took(90))], [Some(50); 2]);
        assert_eq!([kept(took(50), failed()), kept(failed(), took(50))], [Some(50); 2]);
        assert_eq!(kept(failed(), failed()), None);
    }

    #[test]
    fn what_cannot_be_measured_is_a_value() {
        let node = |node, free_bytes| NodeFacts { node, free_bytes, ..NodeFacts::default() };
        let nodes = [node(0, 1 << 30), node(1, 31 << 20)];
        let why = |tier: Tier| measure(&[tier], &nodes)[0].outcome.as_ref().unwrap_err().to_string();
        let little = why(tier(TierKind::Node { nodes: vec![1] }));
        assert_eq!(little, "could not measure: node 1 has 31 MiB free");
        assert!(why(tier(TierKind::Node { nodes: vec![977] })).contains("none of its nodes is here"));
        assert!(why(swap_in(Path::new("/proc/tiering"))).starts_with("could not measure: "));
    }
}
