//! How alike VMs are, as users and scripts see it.

use serde::{Deserialize, Serialize};

/// Pairs of VMs that were compared, the most alike first. Only VMs of one tenant are.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Similar {
    pub pairs: Vec<SimilarPair>,
}

/// A VM, and another one whose accesses may predict its own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SimilarPair {
    pub follower: String,
    pub leader: String,
    /// Probability, 0 to 1, that a page staged in the follower because of the leader is used; the weights of the parts
    /// are learned.
    pub score: f64,
    pub parts: SimilarParts,
    /// Staged in the follower because of the leader.
    pub issued_pages: u64,
    pub used_pages: u64,
    pub wasted_pages: u64,
    /// Whether pages are staged in the follower because of the leader now, and why so.
    pub why: String,
}

/// What the score follows from: shares of the follower's, 0 to 1, that the leader has too. Null where it cannot be
/// told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SimilarParts {
    /// Of the contents that went to swap.
    pub content: Option<f64>,
    /// The same, at the same guest-physical address.
    pub placed: Option<f64>,
    /// Of the base images it reads.
    pub files: Option<f64>,
    /// How alike their profiles are.
    pub behaviour: Option<f64>,
    /// Of what it touched lately: what the leader had touched by then.
    pub lagged: Option<f64>,
}
