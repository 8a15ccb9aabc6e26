//! What this host offers: each source of knowledge and each mechanism, whether it works, and what is lost without.
//!
//! In: the configuration, `/proc`, `/sys`, and short trials that leave nothing behind (programs are attached and
//! detached again, each tier's speed is measured, nothing is switched on). Out: a list of [`Check`]s. Decides nothing.

mod kernel;
mod ladder;
mod savings;
mod storage;

pub use ladder::demotion;
pub use savings::savings;
use serde::Serialize;

use crate::config::Config;
use crate::tiers::Proposal;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Ok,
    /// Works, but something is lost.
    Degraded,
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: String,
    pub state: State,
    /// What was found.
    pub detail: String,
    /// What is lost by it, and what to do.
    pub consequence: Option<String>,
}

impl Check {
    fn ok(name: &str, detail: impl Into<String>) -> Self {
        Self { name: name.to_owned(), state: State::Ok, detail: detail.into(), consequence: None }
    }

    fn degraded(name: &str, detail: impl Into<String>, consequence: impl Into<String>) -> Self {
        Self { state: State::Degraded, consequence: Some(consequence.into()), ..Self::ok(name, detail) }
    }

    fn missing(name: &str, detail: impl Into<String>, consequence: impl Into<String>) -> Self {
        Self { state: State::Missing, ..Self::degraded(name, detail, consequence) }
    }
}

/// Looks at everything. `proposal` is where the ladder in `config` comes from, if not from the operator.
pub fn doctor(config: &Config, proposal: Option<&Proposal>) -> Vec<Check> {
    let mut checks = kernel::checks();
    checks.extend(storage::checks(config));
    checks.extend(ladder::checks(config, proposal));
    checks
}
