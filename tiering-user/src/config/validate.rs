//! Rules that no single value can tell: what the parts of a configuration must be to each other.
//!
//! In: a [`Config`]. Out: the first [`Problem`], with the key it is about. Not here: syntax, types, units and
//! unknown keys, which the parser refuses.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use super::{Backing, Config, Size, Swap, SwapPlace, Tier};

/// The longest ladder.
pub const MAX_TIERS: usize = 8;
/// Smallest swap tier, bytes: each CPU allocates from a cluster of 2 MiB of its own, so a smaller one would
/// be full before it is used.
pub const MIN_SWAP_BYTES: u64 = 16 << 20;
const MAX_NAME_CHARS: usize = 15;
const MIN_DEMOTE_AFTER: Duration = Duration::from_secs(1);
/// Longest idle time that can be asked for: beyond about 14 hours the mapping table tells no difference.
const MAX_DEMOTE_AFTER: Duration = Duration::from_secs(12 * 3600);
const MAX_PRIORITY: u8 = 100;
/// What a class may multiply a setting by.
const MIN_FACTOR: f64 = 0.01;
const MAX_FACTOR: f64 = 100.0;
const MIN_EVENTS: u64 = 1000;
/// What the agent itself takes, with its program and its rings, and as much again for what it learns.
const MIN_MEMORY_LIMIT_BYTES: u64 = 64 << 20;
/// What the mapping table calls pages that are in no known tier.
const RESERVED_NAMES: [&str; 2] = ["swap", "untouched"];

/// A rule that the configuration breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// The key, as steps from the root: table names, and indexes of arrays (`tier.1.name`).
    pub key: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

fn problem(key: impl Into<String>, message: impl Into<String>) -> Problem {
    Problem { key: key.into(), message: message.into() }
}

fn validate_priority(table: &str, priority: Option<u8>) -> Result<(), Problem> {
    match priority.filter(|priority| *priority > MAX_PRIORITY) {
        Some(priority) => Err(problem(
            format!("{table}.priority"),
            format!("`priority` must be from 0 to {MAX_PRIORITY}, not {priority}"),
        )),
        None => Ok(()),
    }
}

impl Config {
    /// Checks the rules between values.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn validate(&self) -> Result<(), Problem> {
        if !self.agent.state_dir.is_absolute() {
            return Err(problem("agent.state_dir", "`state_dir` must be an absolute path"));
        }
        if !self.agent.socket.is_absolute() {
            return Err(problem("agent.socket", "`socket` must be an absolute path"));
        }
        if let Some(limit) = self.agent.memory_limit.filter(|limit| limit.0 < MIN_MEMORY_LIMIT_BYTES) {
            return Err(problem(
                "agent.memory_limit",
                format!(
                    "`memory_limit` is {limit}: the agent needs at least {} to watch anything",
                    Size(MIN_MEMORY_LIMIT_BYTES)
                ),
            ));
        }
        for (index, user) in self.discover.users.iter().enumerate() {
            if user.is_empty() || user.contains(|c: char| c == ':' || c.is_whitespace() || c.is_control()) {
                return Err(problem(
                    format!("discover.users.{index}"),
                    format!("{user:?} is no user: write a name or a number, such as \"alice\" or \"1000\""),
                ));
            }
        }
        self.validate_ladder()?;
        for (key, value) in [("events", self.tracking.events), ("vm_events", self.tracking.vm_events)] {
            if value < MIN_EVENTS {
                return Err(problem(
                    format!("tracking.{key}"),
                    format!("`{key}` is events a second: it must be at least {MIN_EVENTS}, not {value}"),
                ));
            }
        }
        if self.tracking.rearm_cost.0 <= 0.0 {
            return Err(problem(
                "tracking.rearm_cost",
                "`rearm_cost` must be more than 0%; to switch re-arming off say `rearm = false`",
            ));
        }
        if self.policy.demote_after.0 < MIN_DEMOTE_AFTER {
            return Err(problem("policy.demote_after", "`demote_after` must be at least \"1s\""));
        }
        if self.policy.demote_after.0 > MAX_DEMOTE_AFTER {
            return Err(problem("policy.demote_after", "`demote_after` must be at most \"12h\""));
        }
        let prefetch = &self.prefetch;
        for (key, value) in [("threshold", prefetch.threshold), ("tier0_threshold", prefetch.tier0_threshold)]
        {
            if !(0.0..=1.0).contains(&value) {
                return Err(problem(
                    format!("prefetch.{key}"),
                    format!("`{key}` is a probability: it must be from 0 to 1, not {value}"),
                ));
            }
        }
        if prefetch.tier0_threshold < prefetch.threshold {
            return Err(problem(
                "prefetch.tier0_threshold",
                format!(
                    "`tier0_threshold` ({}) must not be below `threshold` ({})",
                    prefetch.tier0_threshold, prefetch.threshold
                ),
            ));
        }
        self.validate_classes()?;
        for (index, rule) in self.vms.iter().enumerate() {
            if rule.matches.name.0.is_empty() {
                return Err(problem(
                    format!("vm.{index}.match.name"),
                    "the pattern is empty and matches no VM: write a name, with `*` and `?` where it varies",
                ));
            }
            validate_priority(&format!("vm.{index}"), rule.priority)?;
            if rule.tenant.as_deref() == Some("") {
                return Err(problem(
                    format!("vm.{index}.tenant"),
                    "`tenant` is empty: name one, or leave the key out so that the VM is its own tenant",
                ));
            }
        }
        Ok(())
    }

    fn validate_classes(&self) -> Result<(), Problem> {
        for (class, priors) in &self.classes.0 {
            let table = format!("class.{}", class.name());
            validate_priority(&table, Some(priors.priority))?;
            let factors = [
                ("idle_age", priors.idle_age),
                ("floor", priors.floor),
                ("first_window", priors.first_window),
            ];
            for (key, value) in factors {
                if !(MIN_FACTOR..=MAX_FACTOR).contains(&value) {
                    return Err(problem(
                        format!("{table}.{key}"),
                        format!(
                            "`{key}` multiplies: it must be from {MIN_FACTOR} to {MAX_FACTOR}, not {value}"
                        ),
                    ));
                }
            }
            let value = priors.first_confidence;
            if !(0.0..=1.0).contains(&value) {
                return Err(problem(
                    format!("{table}.first_confidence"),
                    format!("`first_confidence` is a probability: it must be from 0 to 1, not {value}"),
                ));
            }
        }
        Ok(())
    }

    fn validate_ladder(&self) -> Result<(), Problem> {
        match self.tiers.first() {
            Some(Tier { backing: Backing::Nodes(_), .. }) => {}
            Some(first) => {
                return Err(problem(
                    "tier.0",
                    format!("tier `{}` comes first, so it must have `nodes`, not `swap`", first.name),
                ));
            }
            // It is proposed from what the host has.
            None => return Ok(()),
        }
        if self.tiers.len() > MAX_TIERS {
            return Err(problem(
                format!("tier.{MAX_TIERS}"),
                format!("{} tiers are too many: at most {MAX_TIERS} are possible", self.tiers.len()),
            ));
        }
        let (mut names, mut nodes_seen, mut paths) = (HashSet::new(), HashSet::new(), HashSet::new());
        let (mut swap_above, mut device_above) = (None, None);
        for (index, tier) in self.tiers.iter().enumerate() {
            let name_key = format!("tier.{index}.name");
            let name = tier.name.as_str();
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            if name.is_empty() || name.len() > MAX_NAME_CHARS || !name.bytes().all(plain) {
                return Err(problem(
                    name_key,
                    format!("tier name `{name}`: use 1 to {MAX_NAME_CHARS} of the characters a-z, 0-9 and -"),
                ));
            }
            if RESERVED_NAMES.contains(&name) {
                return Err(problem(
                    name_key,
                    format!("tier name `{name}` has a meaning of its own in reports: choose another"),
                ));
            }
            if !names.insert(name) {
                return Err(problem(name_key, format!("two tiers are called `{name}`: rename one")));
            }
            match &tier.backing {
                Backing::Nodes(nodes) => {
                    let key = format!("tier.{index}.nodes");
                    if nodes.is_empty() {
                        return Err(problem(key, format!("tier `{name}` has no node: name at least one")));
                    }
                    if let Some(above) = swap_above {
                        return Err(problem(
                            key,
                            format!(
                                "tier `{name}` is memory and comes after the swap tier `{above}`: put it above all swap tiers"
                            ),
                        ));
                    }
                    if let Some(node) = nodes.iter().find(|node| !nodes_seen.insert(**node)) {
                        return Err(problem(key, format!("node {node} is listed twice: list it once")));
                    }
                }
                Backing::Swap(swap) => {
                    swap_above = Some(name);
                    if let Some(device) = device_above {
                        return Err(problem(
                            format!("tier.{index}.swap"),
                            format!(
                                "tier `{name}` is below tier `{device}`, which is a device: a faster swap tier \
                                 grows by files as it fills, which a device cannot; put `{device}` last, or give \
                                 it a folder (`path`)"
                            ),
                        ));
                    }
                    if matches!(swap.place, SwapPlace::Device { .. }) {
                        device_above = Some(name);
                    }
                    let place_key = format!("tier.{index}.swap");
                    validate_swap(name, &place_key, swap, &mut paths)?;
                }
            }
        }
        Ok(())
    }
}

/// The rules of one swap tier. `paths` are those of the tiers above it.
fn validate_swap<'a>(
    name: &str,
    table: &str,
    swap: &'a Swap,
    paths: &mut HashSet<&'a PathBuf>,
) -> Result<(), Problem> {
    let (key, path) = match &swap.place {
        SwapPlace::Folder { path, .. } => ("path", path),
        SwapPlace::Device { path, .. } => ("device", path),
    };
    if !path.is_absolute() {
        return Err(problem(format!("{table}.{key}"), format!("`{key}` of tier `{name}` must be absolute")));
    }
    if !paths.insert(path) {
        return Err(problem(
            format!("{table}.{key}"),
            format!("another tier has the path {} too: choose another", path.display()),
        ));
    }
    match swap.place {
        SwapPlace::Folder { size, .. } if size.0 < MIN_SWAP_BYTES => Err(problem(
            format!("{table}.size"),
            format!("`size` of tier `{name}` is {size}: at least 16MiB are needed"),
        )),
        _ => Ok(()),
    }
}
