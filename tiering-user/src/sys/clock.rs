//! The one clock: `CLOCK_MONOTONIC`, the clock that samples from the kernel carry; and the time of day, for what
//! outlives a boot.

use std::time::Duration;

/// A point in time, nanoseconds since an arbitrary start; comparable with [`tiering_common::Sample::time_ns`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Monotonic(pub u64);

impl Monotonic {
    /// Time since `earlier`; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This time plus `duration`.
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// The time now.
pub fn now() -> Monotonic {
    // Cannot fail: Linux always has CLOCK_MONOTONIC; zero would only make everything look new.
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map(Duration::from);
    Monotonic(time.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)))
}

/// The time of day, seconds since 1970; 0 where the clock is set before that.
pub fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
