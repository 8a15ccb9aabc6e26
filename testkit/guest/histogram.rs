//! Durations in a fixed, small space: buckets of an eighth of an octave, so a quantile is at most an eighth too high.

use tiering_testkit::pattern::TouchNs;

/// Three bits behind the leading one.
const SUB_BITS: u32 = 3;
const SUB: usize = 1 << SUB_BITS;

#[derive(Debug)]
pub struct Histogram {
    counts: [u64; 64 * SUB],
}

impl Histogram {
    pub fn new() -> Self {
        Self { counts: [0; 64 * SUB] }
    }

    pub fn record(&mut self, ns: u64) {
        self.counts[bucket(ns)] += 1;
    }

    /// Takes all values of another in.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
    }

    /// The buckets that are not empty: largest value and count.
    pub fn buckets(&self) -> Vec<(u64, u64)> {
        let counts = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        counts.map(|(bucket, count)| (upper(bucket), *count)).collect()
    }

    pub fn quantiles(&self) -> TouchNs {
        TouchNs { p50: self.quantile(50), p99: self.quantile(99) }
    }

    /// The upper end of the bucket below which `percent` of the values are; 0 without values.
    fn quantile(&self, percent: u64) -> u64 {
        let total: u64 = self.counts.iter().sum();
        let wanted = (total * percent).div_ceil(100);
        let mut seen = 0;
        let at = self.counts.iter().position(|count| {
            seen += count;
            seen > 0 && seen >= wanted
        });
        at.map_or(0, upper)
    }
}

/// Values below 8 have a bucket each; from there on 8 buckets a doubling.
fn bucket(ns: u64) -> usize {
    let Some(exponent) = ns.checked_ilog2().filter(|log| *log >= SUB_BITS) else {
        return usize::try_from(ns).expect("it is below 8");
    };
    let shift = exponent - SUB_BITS;
    let mantissa = usize::try_from(ns >> shift).expect("four bits are left");
    shift as usize * SUB + mantissa
}

/// The largest value of a bucket.
fn upper(bucket: usize) -> u64 {
    if bucket < 2 * SUB {
        return bucket as u64;
    }
    let (shift, mantissa) = (bucket / SUB - 1, bucket % SUB + SUB);
    ((mantissa as u64 + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_a_bucket_that_ends_at_most_an_eighth_above_it() {
        let values = (0..70).chain((3..63).flat_map(|log| [(1 << log) - 1, 1 << log, (1 << log) + 1]));
        for value in values {
            let end = upper(bucket(value));
            assert!(end >= value && end - value <= value / 8, "{value} is in a bucket that ends at {end}");
        }
        assert!(bucket(u64::MAX) < 64 * SUB);
    }

    #[test]
    fn quantiles_of_one_slow_touch_among_a_hundred() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.quantiles(), TouchNs { p50: 0, p99: 0 });
        for _ in 0..98 {
            histogram.record(5);
        }
        histogram.record(1_000_000);
        histogram.record(1_000_000);
        let TouchNs { p50, p99 } = histogram.quantiles();
        assert_eq!(p50, 5);
        assert!((1_000_000..=1_125_000).contains(&p99), "{p99}");
        assert_eq!(histogram.buckets(), [(5, 98), (p99, 2)]);

        let mut sum = Histogram::new();
        sum.add(&histogram);
        sum.add(&histogram);
        assert_eq!(sum.buckets(), [(5, 196), (p99, 4)]);
    }
}
