//! How long it takes from what one VM touches to what is staged for it in another.
//!
//! In: times. Out: their quantiles.

use std::time::Duration;

use hdrhistogram::Histogram;

const LONGEST_NS: u64 = 60_000_000_000;

/// A histogram of times, made when the first one comes.
#[derive(Clone, Debug, Default)]
pub struct Delays(Option<Histogram<u64>>);

impl Delays {
    pub(super) fn note(&mut self, delay: Duration) {
        if self.0.is_none() {
            // Refuses only bounds that make no sense.
            self.0 = Histogram::new_with_bounds(1, LONGEST_NS, 2).ok();
        }
        if let Some(histogram) = &mut self.0 {
            let delay_ns = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
            histogram.saturating_record(delay_ns);
        }
    }

    /// Nanoseconds that this share of them did not exceed; of none there is nothing to tell.
    pub fn quantile_ns(&self, share: f64) -> Option<u64> {
        self.0.as_ref().map(|histogram| histogram.value_at_quantile(share))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_what_was_noted() {
        let mut delays = Delays::default();
        assert_eq!(delays.quantile_ns(0.5), None);
        (1..=100).for_each(|ms| delays.note(Duration::from_millis(ms)));
        delays.note(Duration::from_secs(1000));
        let near = |share, ms: u64| delays.quantile_ns(share).unwrap().abs_diff(ms * 1_000_000) < ms * 10_000;
        assert!(near(0.5, 51) && near(0.99, 100) && near(1.0, 60_000));
    }
}
