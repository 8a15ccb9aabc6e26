//! What each part of staging ahead of need is worth: the same pair of guests, with some of it switched off.
//!
//! As in `prefetch`, the random walk 250 ms after the leader's; each agent newly started and without state, but for
//! that with the own past alone, which saw the walk before. The kernel's readahead at page-cluster 0, 3 and 5 is
//! measured once in each repeat.

use crate::host::Host;
use crate::prefetch::Pair;
use crate::walk::{Round, follow, show};
use anyhow::Result;
use std::time::Duration;
use tiering_testkit::readahead::Readahead;
use tiering_testkit::results::Results;

const LAG: Duration = Duration::from_millis(250);

/// What is left of it, in the words of the configuration.
struct Case {
    name: &'static str,
    rules: &'static str,
    /// Walks that the agent saw before.
    seen: u32,
}

const CASES: [Case; 8] = [
    Case { name: "all of it", rules: "", seen: 0 },
    Case { name: "content alone", rules: "readahead = false\nown_past = false\nby_address = false", seen: 0 },
    Case { name: "address alone", rules: "readahead = false\nown_past = false\nby_content = false", seen: 0 },
    Case {
        name: "own past alone",
        rules: "readahead = false\nby_content = false\nby_address = false",
        seen: 1,
    },
    Case {
        name: "own past alone, on disk in the order of addresses",
        rules: "readahead = false\nby_content = false\nby_address = false\nin_tape_order = false",
        seen: 1,
    },
    Case { name: "push alone", rules: "readahead = false\npull = false", seen: 0 },
    Case { name: "pull alone", rules: "readahead = false\npush = false", seen: 0 },
    Case { name: "without feedback", rules: "feedback = false", seen: 0 },
];

pub fn measure(results: &mut Results, quick: bool) -> Result<()> {
    let host = Host::new()?;
    let readahead = Readahead::keep()?;
    let mut pair = Pair::start(follow(100), follow(100), false)?;
    let in_dram = pair.walk(Duration::from_secs(1))?.phase;
    let mut rounds: [Vec<Round>; CASES.len()] = Default::default();
    for _ in 0..if quick { 2 } else { 5 } {
        let kernel = pair.by_kernel(&host, &readahead, LAG)?;
        for (case, rounds) in CASES.iter().zip(&mut rounds) {
            let (ours, staged) = pair.by_agent(&host, case.rules, case.seen, LAG)?;
            rounds.push(Round { kernel: kernel.clone(), ours, staged });
        }
    }
    for (case, rounds) in CASES.iter().zip(&rounds) {
        show(results, case.name, &in_dram, rounds);
    }
    pair.finish(results)
}
