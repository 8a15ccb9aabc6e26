//! What is counted while touches happen.
//!
//! In: counts of single touches. Out: what is told of a phase. It touches nothing itself.

use crate::histogram::Histogram;
use std::time::Duration;
use tiering_testkit::pattern::{Pattern, PhaseResult};

pub struct Phase {
    pub began: Duration,
    /// How many touches of the pattern there were before.
    pub first: u64,
    pub totals: Totals,
    pub max: u64,
}

pub struct Totals {
    pub rounds: u64,
    /// Touches of rounds.
    pub touches: u64,
    pub between_touches: u64,
    pub writes: u64,
    pub ok: bool,
    /// Of touches of rounds.
    pub latency: Histogram,
}

impl Totals {
    pub fn new() -> Self {
        Self { rounds: 0, touches: 0, between_touches: 0, writes: 0, ok: true, latency: Histogram::new() }
    }

    pub fn add(&mut self, other: &Self) {
        self.rounds += other.rounds;
        self.touches += other.touches;
        self.between_touches += other.between_touches;
        self.writes += other.writes;
        self.ok &= other.ok;
        self.latency.add(&other.latency);
    }
}

impl Phase {
    pub fn new(began: Duration, first: u64) -> Self {
        Self { began, first, totals: Totals::new(), max: 0 }
    }

    pub fn result(&self, number: u64, pattern: &Pattern, now: Duration) -> PhaseResult {
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let quantiles = self.totals.latency.quantiles();
        PhaseResult {
            number,
            name: pattern.access.name().to_owned(),
            start_ns: ns(self.began),
            end_ns: ns(now),
            rounds: self.totals.rounds,
            first: self.first,
            touches: self.totals.touches,
            writes: self.totals.writes,
            ok: self.totals.ok,
            latency: self.totals.latency.buckets(),
            p50: quantiles.p50,
            p99: quantiles.p99,
            max: self.max,
        }
    }
}
