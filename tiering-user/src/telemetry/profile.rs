//! How a VM behaves, as the status tells it. Shapes and units; what they mean is in docs/profile.md.

use serde::{Deserialize, Serialize};

/// As far as accesses of the VM are seen (docs/tracking.md).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProfileStatus {
    /// Accesses, means of the last minute or so.
    pub reads_per_s: f64,
    pub writes_per_s: f64,
    /// Share of accesses, 0 to 1, to the page next to the last one of a walk; `None` where there are none.
    pub sequential: Option<f64>,
    /// And to the page as far from the last one as that was from the one before.
    pub strided: Option<f64>,
    /// Shortest first. One is there once the VM was watched for so long.
    pub working_sets: Vec<WorkingSet>,
    /// Smallest first; empty while there are no accesses.
    pub miss_ratios: Vec<MissRatio>,
    pub reuse_ms: Option<ReuseTimes>,
    /// Of the accesses of the last 10 s over blocks of 2 MiB: n bits are as if spread evenly over 2 to the power of n.
    pub entropy_bits: Option<f64>,
    /// After how long the rate of accesses comes and goes again.
    pub period_ms: Option<u64>,
    /// Correlation of the rate with itself a period earlier, 0.5 to 1.
    pub period_correlation: Option<f64>,
    /// Soonest first; what can be said with what there is.
    pub ahead: Vec<AheadStatus>,
    /// Times that most accesses moved to other parts of RAM.
    pub phase_changes_total: u64,
    /// Since the last of these, or since the VM was found.
    pub phase_ms: u64,
    /// Processors that its process keeps busy; 1 is one.
    pub cpus: f64,
    /// Of its process, from and to disks.
    pub read_bytes_per_s: f64,
    pub written_bytes_per_s: f64,
    /// Resident memory of its process, by kind.
    pub anonymous_bytes: u64,
    pub file_bytes: u64,
    pub shared_bytes: u64,
    /// Accesses a second, a mean a minute, oldest first: the last hour.
    pub hour: Vec<f64>,
}

/// What will be, some time from now.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AheadStatus {
    pub after_ms: u64,
    pub accesses_per_s: ForecastStatus,
    /// Guest RAM that will have been used within a minute.
    pub used_bytes: ForecastStatus,
}

/// One in twenty is below `lower`, one in twenty above `upper`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ForecastStatus {
    pub expected: f64,
    pub lower: f64,
    pub upper: f64,
    /// How it is made; it was the best so far.
    pub method: String,
    /// The mean error so far, by that of taking the present value; `None` where that was never wrong.
    pub error: Option<f64>,
}

/// Guest RAM that was used within a time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkingSet {
    pub within_ms: u64,
    pub bytes: u64,
}

/// The share of accesses, 0 to 1, that would have to wait with so much memory, least recently used going first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MissRatio {
    pub bytes: u64,
    pub ratio: f64,
}

/// Time until a page is used again: quantiles.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReuseTimes {
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
}
