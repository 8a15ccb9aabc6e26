//! What the agent tells, and takes as an order: the status, the control socket and its client, and metrics.
//!
//! In: the agent's [`status::Status`], published whenever it changes. Out: HTTP with JSON on a unix socket ([`api`]),
//! metrics there and on a TCP address ([`metrics`], [`tcp`]), requests for the agent ([`request`]), and typed answers
//! for the command line ([`client`]). Not here: deciding or doing anything; the agent's task answers each request.

pub mod api;
pub mod client;
pub mod explain;
mod host_savings;
pub mod latency;
mod location;
pub mod metrics;
pub mod prefetch;
pub mod profile;
mod record;
pub mod request;
pub mod savings;
pub mod similar;
pub mod socket;
pub mod status;
pub mod tcp;

use std::path::PathBuf;
use std::time::Duration;

/// How one run of the agent differs from an endless one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunOptions {
    /// Plan and report, but move nothing: asked for by the command line or the configuration.
    pub dry_run: bool,
    /// Stop after this time; `None` runs until a signal comes.
    pub duration: Option<Duration>,
    /// Write the status there as JSON, every 10 s and at the end.
    pub report: Option<PathBuf>,
}
