//! What a guest says about its touches.
//!
//! In: the guest's JSON. Out: the same as values, and the touches that a phase claims. Whether they are good is for
//! tests.

use super::{Pattern, Touch};
use serde::{Deserialize, Serialize};

/// What a guest says at the end of a round, or of several short ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseResult {
    /// From 1.
    pub number: u64,
    /// The access, as it is called on the command line.
    pub name: String,
    /// When its first round began, on the guest's monotonic clock.
    pub start_ns: u64,
    /// When its last round ended.
    pub end_ns: u64,
    /// Complete rounds in it; 1 where rounds are on command.
    pub rounds: u64,
    /// Where in [`Pattern::touches`] it begins.
    pub first: u64,
    /// How many of [`Pattern::touches`] it did.
    pub touches: u64,
    /// How many of them wrote.
    pub writes: u64,
    /// Every page was what it should be.
    pub ok: bool,
    /// How long the first access of each touch took: (largest value of a bucket in ns, touches), no empty buckets.
    pub latency: Vec<(u64, u64)>,
    /// Half of the touches took at most this, up to an eighth too high.
    pub p50: u64,
    /// 99 % of the touches took at most this, up to an eighth too high.
    pub p99: u64,
    /// The longest, exactly.
    pub max: u64,
}

impl PhaseResult {
    /// All first accesses together, ns. A bucket counts as its largest value.
    pub fn first_accesses_ns(&self) -> f64 {
        self.latency.iter().map(|(ns, touches)| *ns as f64 * *touches as f64).sum()
    }

    /// The touches of this phase, recomputed.
    pub fn truth(&self, pattern: &Pattern) -> impl Iterator<Item = Touch> + use<> {
        let count = |number| usize::try_from(number).unwrap_or(usize::MAX);
        pattern.touches().skip(count(self.first)).take(count(self.touches))
    }
}

/// What a guest says about its memory when it is told to finish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestResult {
    /// Every page was what it should be, each time it was looked at.
    pub checksum_ok: bool,
    /// Pages compared by the final pass.
    pub pages_verified: u64,
    /// All touches, compared as well.
    pub touches: u64,
    /// How many of them are of [`Pattern::touches`]; the others are of [`Pattern::between`].
    pub round_touches: u64,
    /// How many of all touches wrote.
    pub writes: u64,
    /// Complete rounds: walks of the loop set.
    pub loops: u64,
    /// How long the first access to a page took in the rounds.
    pub touch_ns: TouchNs,
}

/// Quantiles in nanoseconds, from a histogram with steps of an eighth of an octave; 0 where nothing was touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TouchNs {
    /// Half of the touches took at most this.
    pub p50: u64,
    /// 99 % of the touches took at most this.
    pub p99: u64,
}
