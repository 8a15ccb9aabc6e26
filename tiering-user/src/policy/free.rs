//! How much of the first tier should be free, ahead of need.
//!
//! What is kept free is the configured share and, while memory is being used up, what the next [`AHEAD_S`] seconds will take
//! at the rate of the last ones, or what machines are expected to need soon, whichever is more.

/// Seconds that are looked ahead: a demotion by trial takes several.
const AHEAD_S: f64 = 10.0;
/// Weight of the last second in the rate.
const LATEST: f64 = 0.25;

/// Watches how fast the first tier fills; asked once a second.
#[derive(Clone, Copy, Debug, Default)]
pub struct FreeSpace {
    last: Option<u64>,
    /// Moving average, bytes a second; never negative.
    used_up_a_second: f64,
}

impl FreeSpace {
    /// Takes in what is `available` now and what more is expected to be needed, bytes. Returns how much is missing to what should be available.
    pub fn missing(&mut self, available: u64, target: u64, expected: u64) -> u64 {
        let used_up = self.last.map_or(0, |last| last.saturating_sub(available));
        self.last = Some(available);
        self.used_up_a_second += (used_up as f64 - self.used_up_a_second) * LATEST;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive, and bytes of a host"
        )]
        let ahead = (self.used_up_a_second * AHEAD_S) as u64;
        target.saturating_add(ahead.max(expected)).saturating_sub(available)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_rest_the_target_counts() {
        let mut free = FreeSpace::default();
        assert_eq!(free.missing(500, 100, 0), 0);
        assert_eq!(free.missing(500, 600, 0), 100);
    }

    #[test]
    fn room_is_made_for_what_is_expected() {
        let mut free = FreeSpace::default();
        assert_eq!(free.missing(500, 100, 300), 0);
        assert_eq!(free.missing(500, 100, 600), 200);
    }

    #[test]
    fn a_tier_that_fills_is_relieved_before_it_is_full() {
        let mut free = FreeSpace::default();
        let mut available = 100_000;
        let first_missing = (0..200).find_map(|_| {
            available -= 1000;
            (free.missing(available, 10_000, 0) > 0).then_some(available)
        });
        let first_missing = first_missing.unwrap();
        assert!((18_000..20_000).contains(&first_missing), "{first_missing}: 10 s ahead of the target");
        // What stops filling needs no more than the target, after a while.
        let missing: Vec<u64> = (0..40).map(|_| free.missing(15_000, 10_000, 0)).collect();
        assert_eq!(missing.last(), Some(&0));
    }
}
