//! What time it is.

use std::time::Duration;

use crate::sys::Monotonic;
use crate::tiermap::Seconds;

/// What time it is, and how many seconds that is since the agent's start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    start: Monotonic,
    pub now: Monotonic,
}

impl Clock {
    pub(super) fn start(now: Monotonic) -> Self {
        Self { start: now, now }
    }

    pub(super) fn uptime(self) -> Duration {
        self.now.since(self.start)
    }

    pub(super) fn seconds(self) -> Seconds {
        self.seconds_at(self.now)
    }

    pub(super) fn seconds_at(self, time: Monotonic) -> Seconds {
        // Wraps, as the table expects.
        Seconds((time.since(self.start).as_secs() & 0xffff) as u16)
    }
}
