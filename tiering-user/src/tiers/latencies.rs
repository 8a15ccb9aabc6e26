//! How long reads of one tier took lately.
//!
//! In: single times, and the clock. Out: quantiles, and counts by powers of two. What is older than ten minutes is
//! forgotten, five minutes at a time, so that a disk that has become slow shows.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::sys::Monotonic;

const HALF: Duration = Duration::from_mins(5);
/// A read that takes longer counts as this long.
const LONGEST_NS: u64 = 60_000_000_000;
/// Upper end of the first bucket that is told.
const FIRST_BUCKET_NS: u64 = 16;

/// Times of the last five to ten minutes.
#[derive(Clone, Debug)]
pub struct Latencies {
    now: Histogram<u64>,
    before: Histogram<u64>,
    /// When `now` began.
    began: Option<Monotonic>,
}

/// Median and 99th percentile, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantiles {
    pub p50_ns: u64,
    pub p99_ns: u64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self { now: empty(), before: empty(), began: None }
    }
}

impl Latencies {
    /// Adds one time.
    pub fn record(&mut self, took: Duration, now: Monotonic) {
        let began = *self.began.get_or_insert(now);
        if now.since(began) >= HALF {
            self.before = std::mem::replace(&mut self.now, empty());
            self.began = Some(now);
        }
        let ns = u64::try_from(took.as_nanos()).unwrap_or(LONGEST_NS);
        self.now.saturating_record(ns.clamp(1, LONGEST_NS));
    }

    /// Quantiles; none where nothing was recorded.
    pub fn quantiles(&self) -> Option<Quantiles> {
        let all = self.all();
        let at = |quantile| all.value_at_quantile(quantile);
        (!all.is_empty()).then(|| Quantiles { p50_ns: at(0.5), p99_ns: at(0.99) })
    }

    /// How many times are at most so long (and longer than the entry before says), in steps of twice the length.
    pub fn buckets(&self) -> Vec<(u64, u64)> {
        let all = self.all();
        let steps = all.iter_log(FIRST_BUCKET_NS, 2.0);
        let counted = steps.map(|step| (step.value_iterated_to(), step.count_since_last_iteration()));
        counted.filter(|(_, count)| *count > 0).collect()
    }

    fn all(&self) -> Histogram<u64> {
        let mut all = self.now.clone();
        // Both have the same bounds, so that all of it fits.
        all.add(&self.before).ok();
        all
    }
}

/// Two significant figures: what is measured here is not known better.
fn empty() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_NS, 2).expect("constant bounds that hdrhistogram takes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Monotonic {
        Monotonic(1).after(Duration::from_secs(seconds))
    }

    #[test]
    fn quantiles_and_buckets_tell_of_all_times() {
        let mut latencies = Latencies::default();
        assert_eq!((latencies.quantiles(), latencies.buckets()), (None, vec![]));
        for read in 0..100 {
            let ns = if read < 98 { 1_000 } else { 1_000_000 };
            latencies.record(Duration::from_nanos(ns), at(read));
        }
        let Quantiles { p50_ns, p99_ns } = latencies.quantiles().unwrap();
        assert!(
            (990..=1_010).contains(&p50_ns) && (990_000..=1_010_000).contains(&p99_ns),
            "{p50_ns} {p99_ns}"
        );
        let buckets = latencies.buckets();
        assert_eq!(buckets.iter().map(|(_, count)| count).collect::<Vec<_>>(), [&98, &2], "{buckets:?}");
        assert!(buckets[0].0 >= 1_000 && buckets[0].0 < 2_048, "{buckets:?}");
    }

    #[test]
    fn what_is_older_than_ten_minutes_is_forgotten() {
        let mut latencies = Latencies::default();
        let fast = Duration::from_micros(100);
        let slow = Duration::from_millis(10);
        latencies.record(fast, at(0));
        latencies.record(slow, at(301));
        assert_eq!(latencies.buckets().len(), 2, "the former half still counts");
        latencies.record(slow, at(602));
        assert_eq!(latencies.buckets().len(), 1, "{:?}", latencies.buckets());
        latencies.record(Duration::from_secs(3600), at(603));
        assert!(latencies.quantiles().unwrap().p99_ns <= 61_000_000_000);
    }
}
