//! How fast the touches of a round follow each other.
//!
//! In: the pattern, the time after each burst. Out: the size of a burst and the pause after it.

use std::time::Duration;
use tiering_testkit::pattern::{Access, Pattern};

/// Touches of one step, at most: commands are heard after each.
const BURST: u64 = 64;
/// The pace of the loop set, which leaves an emulated guest well below half a core: a walk of 48 MiB takes a second or
/// two.
const LOOP_PAUSE: Duration = Duration::from_millis(5);
/// A burst at a given rate, at most.
const SLICE_A_SECOND: u64 = 50;
/// What a guest that was held up catches up with, at most.
const DEBT: Duration = Duration::from_millis(100);

pub enum Pace {
    /// The same pause after each burst.
    Pause(Duration),
    /// A rate.
    Rate {
        per_s: u64,
        /// When the next burst is due.
        due: Duration,
    },
}

impl Pace {
    pub fn of(pattern: &Pattern) -> Self {
        match (pattern.access, pattern.touches_per_s) {
            (Access::HotAndLoop { .. }, _) => Self::Pause(LOOP_PAUSE),
            (_, 0) => Self::Pause(Duration::ZERO),
            (_, per_s) => Self::Rate { per_s, due: Duration::ZERO },
        }
    }

    pub fn burst(&self) -> u64 {
        match self {
            Self::Pause(_) => BURST,
            Self::Rate { per_s, .. } => (per_s / SLICE_A_SECOND).clamp(1, BURST),
        }
    }

    /// The pause after a burst that ended now.
    pub fn pause(&mut self, now: Duration) -> Duration {
        let burst = self.burst();
        match self {
            Self::Pause(pause) => *pause,
            Self::Rate { per_s, due } => {
                let period = Duration::from_nanos(burst * 1_000_000_000 / *per_s);
                *due = (*due).max(now.saturating_sub(DEBT)) + period;
                due.saturating_sub(now)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_whatever_the_bursts_take() {
        for per_s in [1, 30, 1000, 10_000] {
            let access = Access::Uniform { set_mib: 1 };
            let mut pace = Pace::of(&Pattern { touches_per_s: per_s, access, ..Pattern::default() });
            let (began, mut now, mut touches) = (Duration::from_secs(9), Duration::from_secs(9), 0);
            while now - began < Duration::from_secs(20) {
                touches += pace.burst();
                now += Duration::from_millis(1);
                now += pace.pause(now);
            }
            let expected = 20 * per_s;
            assert!(touches.abs_diff(expected) <= expected / 50 + 4, "{per_s}: {touches}");
        }
    }
}
