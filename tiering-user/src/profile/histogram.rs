//! Weights by value on a logarithmic scale: four buckets to each power of two, so a value is known to a quarter of
//! itself.

const BUCKETS_AN_OCTAVE_LOG2: u32 = 2;
/// Less than a thousandth of an access is none.
const LEAST: f32 = 1e-3;
const BUCKETS: usize = 40 << BUCKETS_AN_OCTAVE_LOG2;

/// How much weight each value has.
#[derive(Clone, Debug)]
pub struct LogHistogram {
    weights: Box<[f32; BUCKETS]>,
}

impl Default for LogHistogram {
    fn default() -> Self {
        Self { weights: Box::new([0.0; BUCKETS]) }
    }
}

impl LogHistogram {
    pub fn add(&mut self, value: u64, weight: f32) {
        if let Some(bucket) = self.weights.get_mut(bucket(value).min(BUCKETS - 1)) {
            *bucket += weight;
        }
    }

    /// Multiplies all weights, so that what is older counts less, and nothing in the end.
    pub fn fade(&mut self, by: f32) {
        for weight in self.weights.iter_mut() {
            *weight = if *weight < LEAST { 0.0 } else { *weight * by };
        }
    }

    pub fn total(&self) -> f64 {
        self.weights.iter().copied().map(f64::from).sum()
    }

    /// Weight of all values of at least `value`, which is rounded to where its bucket begins.
    pub fn from(&self, value: u64) -> f64 {
        self.weights.iter().skip(bucket(value)).copied().map(f64::from).sum()
    }

    /// Where the bucket begins below which at most this share of the weight lies; none while there is no weight.
    pub fn quantile(&self, share: f64) -> Option<u64> {
        let total = self.total();
        let mut below = 0.0;
        let reaches = |(_, weight): &(usize, &f32)| {
            below += f64::from(**weight);
            **weight > 0.0 && below >= share * total
        };
        self.weights.iter().enumerate().find(reaches).map(|(bucket, _)| start(bucket))
    }
}

fn bucket(value: u64) -> usize {
    match value.checked_ilog2() {
        Some(octave) if octave >= BUCKETS_AN_OCTAVE_LOG2 => {
            let part = value >> (octave - BUCKETS_AN_OCTAVE_LOG2) & 3;
            (((octave - 1) << BUCKETS_AN_OCTAVE_LOG2) as u64 + part) as usize
        }
        _ => value as usize,
    }
}

/// The least value of a bucket.
fn start(bucket: usize) -> u64 {
    let (octave, part) = (bucket as u64 >> BUCKETS_AN_OCTAVE_LOG2, bucket as u64 & 3);
    match octave {
        0 => part,
        _ => (4 + part) << (octave - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_known_to_a_quarter_of_itself() {
        for value in (0..2000).chain([1 << 20, (1 << 30) + 12_345, (1 << 40) - 1]) {
            let start = start(bucket(value));
            assert!(start <= value && value < start + (start / 4).max(1), "{value} in the bucket of {start}");
        }
    }

    #[test]
    fn quantiles_and_tails_follow_the_weights() {
        let mut histogram = LogHistogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        histogram.add(8, 3.0);
        histogram.add(1024, 1.0);
        histogram.add(u64::MAX, 0.0);
        assert_eq!((histogram.quantile(0.5), histogram.quantile(0.99)), (Some(8), Some(1024)));
        assert!((histogram.from(9) - 4.0).abs() < 1e-6, "9 is in the bucket of 8");
        assert!((histogram.from(10) - 1.0).abs() < 1e-6);
        histogram.fade(0.5);
        assert!((histogram.total() - 2.0).abs() < 1e-6);
    }
}
