//! What outlives the agent: as records, and back.
//!
//! In: the state as the last agent wrote it down. Out: what is not written yet.
//!
//! Limits: swap files are not written down here: their kernel numbers are, by those who make them, before they are
//! used.

mod histories;
mod memory;
mod tapes;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use memory::Memory;

use super::Engine;
use super::classes::Classes;
use super::images::Images;
use crate::store::{Record, Store};
use crate::tiers::{SpentToday, TierId};

const BUDGETS: &str = "budgets";
const HELD: &str = "held";

/// What was written to a tier in its running day.
#[derive(Debug, Serialize, Deserialize)]
struct BudgetRecord {
    tier: String,
    spent_bytes: u64,
    day_ends_unix_s: u64,
}

/// What the swap files of the tiers held.
#[derive(Debug, Default, Serialize, Deserialize)]
struct HeldRecord {
    boot_id: String,
    areas: Vec<HeldArea>,
}

#[derive(Debug, Serialize, Deserialize)]
struct HeldArea {
    tier: String,
    path: PathBuf,
    used_bytes: u64,
}

impl Engine {
    /// Begins with what the last agent wrote down.
    pub fn begin_with(&mut self, store: &Store, boot_id: String, unix_s: u64) {
        let now = unix_s;
        let names = store.names("");
        (self.memory, self.tenants) = Memory::load(boot_id.clone(), &names, |name| store.read(name), now);
        self.images = Images::load(&names, |name| store.read(name));
        self.classes = Classes::load(|name| store.read(name), self.clock.now);
        let budgets: Vec<BudgetRecord> = read(store, BUDGETS).unwrap_or_default();
        for record in budgets {
            let spent = SpentToday {
                bytes: record.spent_bytes,
                left: Duration::from_secs(record.day_ends_unix_s.saturating_sub(now)),
            };
            let tier = self.ladder.by_name(&record.tier).map(|tier| tier.id);
            if let Some(TierId(level)) = tier
                && let Some(budget) = self.budgets.get_mut(usize::from(level))
            {
                budget.restore(spent, self.clock.now);
            }
        }
        let held: HeldRecord = read(store, HELD).unwrap_or_default();
        let since_then = held.boot_id == boot_id;
        (self.boot_id, self.facts.unix_s) = (boot_id, unix_s);
        for HeldArea { tier, path, used_bytes } in held.areas {
            let (path, used_mib) = (path.display(), used_bytes >> 20);
            if since_then {
                tracing::info!(tier, %path, used_mib, "held when the last agent wrote it down");
            } else {
                tracing::info!(tier, %path, used_mib, "held before the host was started anew, and lost with its VMs");
            }
        }
    }

    /// All that must outlive the agent and is not written yet; of the tapes, what is little, only if it is the `last`
    /// time.
    pub fn records(&mut self, last: bool) -> Vec<Record> {
        let now = self.facts.unix_s;
        let mut records = self.memory.records(self.vms.values_mut(), now, last);
        records.extend(self.images.records(now, last));
        records.extend(self.classes.record(last, self.clock.now));
        let tiers = self.ladder.tiers().iter().zip(&mut self.budgets);
        let budgets = tiers.map(|(tier, budget)| {
            let spent = budget.spent_today(self.clock.now);
            BudgetRecord {
                tier: tier.name.clone(),
                spent_bytes: spent.bytes,
                day_ends_unix_s: now.saturating_add(spent.left.as_secs()),
            }
        });
        records.extend(self.tenants.records());
        records.extend(record(BUDGETS, &budgets.collect::<Vec<_>>()));
        records.extend(record(HELD, &self.held()));
        records
    }

    fn held(&self) -> HeldRecord {
        let swap = &self.facts.swap;
        let areas = swap.areas.iter().map(|area| HeldArea {
            tier: self.ladder.get(area.tier).map_or_else(String::new, |tier| tier.name.clone()),
            used_bytes: swap.used_bytes(area),
            path: area.path.clone(),
        });
        HeldRecord { boot_id: self.boot_id.clone(), areas: areas.collect() }
    }
}

fn read<T: for<'a> Deserialize<'a>>(store: &Store, name: &str) -> Option<T> {
    serde_json::from_slice(&store.read(name)?).ok()
}

fn record(name: &str, content: &impl Serialize) -> Option<Record> {
    // What is no text cannot be written as JSON: only a path can be that.
    let bytes =
        serde_json::to_vec(content).inspect_err(|error| tracing::debug!(name, %error, "not kept")).ok()?;
    Some((name.to_owned(), Some(bytes)))
}
