//! How long something takes, as users and scripts see it.

use serde::{Deserialize, Serialize};

/// Quantiles of a latency, nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Latency {
    pub p50: u64,
    pub p99: u64,
}
