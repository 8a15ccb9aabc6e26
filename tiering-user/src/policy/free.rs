//! How much of the first tier should be free, ahead of need.
//!
//! What is kept available is the configured share, and as much as was used up in the last [`AHEAD`] seconds or as VMs
//! are expected to need soon, whichever is more.

use std::collections::VecDeque;

/// Seconds that are looked ahead: it takes as long until more of a block may go.
const AHEAD: usize = 10;

/// Watches how fast the first tier fills; asked once a second.
#[derive(Clone, Debug, Default)]
pub struct FreeSpace {
    /// What was available in the last seconds, bytes; the latest last.
    available: VecDeque<u64>,
}

impl FreeSpace {
    /// Takes in what is `available` now (free, page cache, and copies in the swap cache, which all give way without
    /// being written) and what more is expected to be needed, bytes. Returns how much is missing to what should be
    /// available.
    pub fn missing(&mut self, available: u64, target: u64, expected: u64) -> u64 {
        self.available.push_back(available);
        if self.available.len() > AHEAD + 1 {
            self.available.pop_front();
        }
        // From end to end: what is used and given back within that time is not used up.
        let used_up = self.available.front().map_or(0, |first| first.saturating_sub(available));
        target.saturating_add(used_up.max(expected)).saturating_sub(available)
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

    #[test]
    fn what_comes_and_goes_is_not_used_up() {
        let mut free = FreeSpace::default();
        let mut most = 0;
        for second in 0..100 {
            let available = if second % 2 == 0 { 20_000 } else { 15_000 };
            most = most.max(free.missing(available, 10_000, 0));
        }
        assert_eq!(most, 0);
    }
}
