//! What a follower saves that is a clone of the same memory snapshot as its leader: both have the same data at the same
//! guest-physical addresses.
//!
//! As in `prefetch`, in random order, by all names of data, by content alone, and by address alone.

use crate::host::Host;
use crate::prefetch::Pair;
use crate::walk::{Round, builder, follow, on_command, show};
use anyhow::Result;
use std::time::Duration;
use tiering_testkit::pattern::Pattern;
use tiering_testkit::readahead::Readahead;
use tiering_testkit::results::Results;

const BOOT: Duration = Duration::from_secs(120);

/// To the agent a guest that QEMU was to receive has arrived when its processor has run for half a second. These take a
/// second.
const WALKS_BEFORE: u32 = 100;

/// What is left of the names, in the words of the configuration.
const CASES: [(&str, &str); 3] = [
    ("clones", ""),
    ("clones, by content alone", "readahead = false\nown_past = false\nby_address = false"),
    ("clones, by address alone", "readahead = false\nown_past = false\nby_content = false"),
];

pub fn measure(results: &mut Results, quick: bool) -> Result<()> {
    let host = Host::new()?;
    let readahead = Readahead::keep()?;
    let pattern = on_command(&Pattern { seed: 1, access: follow(100), ..Pattern::default() });
    let mut original = builder("tt-original").pattern(pattern).savable().start()?;
    original.wait_ready(BOOT)?;
    let snapshot = original.save()?;
    let mut pair = Pair::of(&snapshot)?;
    let mut in_dram = pair.walk(Duration::ZERO)?.phase;
    for _ in 0..WALKS_BEFORE {
        in_dram = pair.walk(Duration::ZERO)?.phase;
    }
    let lags_ms: &[u64] = if quick { &[250] } else { &[250, 1000] };
    for lag_ms in lags_ms {
        let lag = Duration::from_millis(*lag_ms);
        let mut rounds: [Vec<Round>; CASES.len()] = Default::default();
        for _ in 0..if quick { 2 } else { 5 } {
            let kernel = pair.by_kernel(&host, &readahead, lag)?;
            for ((_, rules), rounds) in CASES.iter().zip(&mut rounds) {
                let (ours, staged) = pair.by_agent(&host, rules, 0, lag)?;
                rounds.push(Round { kernel: kernel.clone(), ours, staged });
            }
        }
        for ((name, _), rounds) in CASES.iter().zip(&rounds) {
            show(results, &format!("{name}, lag {lag_ms} ms"), &in_dram, rounds);
        }
    }
    pair.finish(results)
}
