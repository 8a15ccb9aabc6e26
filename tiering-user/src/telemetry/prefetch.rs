//! What was staged for a VM, why, and what became of it, as users and scripts see it.

use serde::{Deserialize, Serialize};

use super::latency::Latency;

/// Outcome of what was staged for a VM.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrefetchCounts {
    pub issued_pages: u64,
    /// Touched after they were staged.
    pub used_pages: u64,
    /// Evicted untouched.
    pub wasted_pages: u64,
    /// Asked for before the staging was done.
    pub late_pages: u64,
    /// Mapped before they were touched.
    pub mapped_pages: u64,
    /// Brought to a faster swap tier only, being doubtful.
    pub lifted_pages: u64,
    /// From another VM's touch until what is staged here was asked of the kernel.
    pub delay_ns: Option<Latency>,
    /// The same until it was mapped, where it was.
    pub mapping_delay_ns: Option<Latency>,
    /// Issued pages by what predicted them.
    pub from: PrefetchOrigins,
    /// What became of it by kind of match, of VMs that have gone too.
    pub by_match: Vec<PrefetchByMatch>,
    /// What was staged for each reason, and how sure the agent is of it now.
    pub origins: Vec<PrefetchOrigin>,
    /// What that was worth in the last 24 hours.
    pub last_day: PrefetchLastDay,
    /// Whether it was as sure as it should be.
    pub calibration: PrefetchCalibration,
}

/// What staging was worth in this hour of the agent's clock and the 23 before it, pages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrefetchLastDay {
    /// Waits for a read that the VM was spared.
    pub avoided_pages: u64,
    /// Read in vain.
    pub wasted_pages: u64,
    /// The same by whose touches predicted it.
    pub by: Vec<PrefetchLastDayBy>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrefetchLastDayBy {
    /// As in `origins`; none of a VM that has gone.
    pub leader: Option<String>,
    pub avoided_pages: u64,
    pub wasted_pages: u64,
}

/// How well the confidence at the time of staging agrees with what became of the pages.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrefetchCalibration {
    /// Mean square of the difference, 0 to 1; null before anything ended.
    pub brier: Option<f64>,
    /// Pages by their confidence, in tenths from 0 to 1, those without pages left out.
    pub bins: Vec<CalibrationBin>,
}

/// Pages that were thought about as likely to be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CalibrationBin {
    pub pages: u64,
    /// Mean of what was thought of them, 0 to 1.
    pub confidence: f64,
    /// Share that was used, 0 to 1.
    pub used: f64,
}

/// What was staged for a VM by one kind of match, since it was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrefetchByMatch {
    #[serde(rename = "match")]
    pub by: PrefetchMatch,
    pub issued_pages: u64,
    pub used_pages: u64,
    pub wasted_pages: u64,
    pub late_pages: u64,
    pub mapped_pages: u64,
    pub lifted_pages: u64,
    pub shadow_right_pages: u64,
    pub shadow_wrong_pages: u64,
}

/// One reason to stage pages of a VM.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrefetchOrigin {
    /// The VM whose accesses predict; its own id where these are its own, or its earlier self's.
    pub leader: String,
    pub way: PrefetchWay,
    /// How pages of the two correspond.
    #[serde(rename = "match")]
    pub by: PrefetchMatch,
    pub issued_pages: u64,
    pub used_pages: u64,
    pub wasted_pages: u64,
    pub late_pages: u64,
    /// Of what it predicted while it was not trusted, and nothing was staged for it: what was touched, and what was
    /// not.
    pub shadow_right_pages: u64,
    pub shadow_wrong_pages: u64,
    /// Probability, 0 to 1, that a page that is staged now will be used.
    pub confidence: f64,
    /// Most pages that may be staged and not yet used.
    pub window_pages: u32,
}

/// What about the leader predicts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrefetchWay {
    /// It touched the page just now.
    Touched,
    /// It touched it next, after the page that this VM touches now.
    #[default]
    Followed,
    /// This VM itself touched it next, before it was started anew.
    Earlier,
    /// This VM itself touched it a period ago.
    Season,
    /// It comes after a page that this VM itself touched, in the order of addresses.
    Readahead,
}

/// How pages of two VMs correspond.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PrefetchMatch {
    /// It is the same VM.
    #[default]
    #[serde(rename = "self")]
    Own,
    /// The same guest frame number; of the content of one nothing is known.
    Gfn,
    /// The same guest frame number, and different contents.
    GfnOnly,
    /// The same content.
    Tag,
}

/// Issued pages by kind of match.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrefetchOrigins {
    /// The VM's own touches: its past, its periods, and readahead by address.
    #[serde(rename = "self")]
    pub own: u64,
    /// The same guest frame number in a similar VM, or in this one before it was started anew.
    pub gfn: u64,
    /// The same file and offset.
    pub file: u64,
    /// The same content there.
    pub tag: u64,
}
