//! Writes what must outlive the agent, every half minute and at the end.
//!
//! In: the state of the agent. Out: records in the [`Store`], written by a thread of its own, since a disk can take its
//! time; and at the start the state as the last agent left it.
//!
//! Limits: an agent that is killed loses what it learned in the last half minute. Swap files are not written here: their
//! kernel numbers are, by those who make them, before they are used.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::classes::Classes;
use super::images::Images;
use super::knowledge::Memory;
use super::state::State;
use crate::store::{Record, Store};
use crate::sys::{self, Monotonic, boot_id, unix_seconds};
use crate::tiers::{SpentToday, TierId, read_proc_swaps};

const KEEP_EVERY: Duration = Duration::from_secs(30);
/// How long the last write may take, and how often it is looked after.
const FINISH_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Records by name, so that of one which waits for a slow disk the latest is written, and no other.
type Due = BTreeMap<String, Option<Vec<u8>>>;

/// Records that wait for a disk which cannot be written, at most.
const MOST_WAITING: usize = 16_384;
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

/// The writing thread; it ends when this is finished.
pub(super) struct Keeper {
    records: mpsc::SyncSender<Due>,
    /// Did not fit into the channel.
    unsent: Due,
    thread: JoinHandle<()>,
    kept: Monotonic,
    /// When the last write was done, seconds since 1970; 0 before the first one.
    written_unix_s: Arc<AtomicU64>,
}

impl Keeper {
    pub(super) fn start(store: Arc<Store>) -> io::Result<Self> {
        let written_unix_s = Arc::new(AtomicU64::new(0));
        let written = Arc::clone(&written_unix_s);
        // Where the disk is so slow that one more waits, they go with those of the next half minute.
        let (records, due) = mpsc::sync_channel::<Due>(1);
        let thread = thread::Builder::new().name("tiering-keeper".into()).spawn(move || {
            let mut waiting = Due::new();
            for records in due {
                waiting.extend(records);
                let records: Vec<Record> = std::mem::take(&mut waiting).into_iter().collect();
                if store.write(&records) {
                    written.store(unix_seconds(), Ordering::Relaxed);
                } else if records.len() <= MOST_WAITING {
                    // More are dropped, since most come again: a disk that stays full must not fill memory too.
                    waiting.extend(records);
                }
            }
        })?;
        Ok(Self { records, unsent: Due::new(), thread, kept: sys::now(), written_unix_s })
    }

    /// Writes what is due, if it is time.
    pub(super) fn every_second(&mut self, state: &mut State) {
        if sys::now().since(self.kept) >= KEEP_EVERY {
            self.kept = sys::now();
            let mut records = std::mem::take(&mut self.unsent);
            records.extend(state.records(false));
            if let Err(mpsc::TrySendError::Full(records)) = self.records.try_send(records) {
                self.unsent = records;
            }
        }
        state.kept_unix_s = Some(self.written_unix_s.load(Ordering::Relaxed)).filter(|time| *time > 0);
    }

    /// Writes these records, and ends. Waits for the disk, but not for ever.
    pub(super) fn finish(mut self, last: Vec<Record>) {
        self.unsent.extend(last);
        let began = sys::now();
        // While the thread is stuck there is no room for more.
        while let Err(mpsc::TrySendError::Full(records)) = self.records.try_send(self.unsent) {
            self.unsent = records;
            if sys::now().since(began) >= FINISH_WITHIN {
                tracing::error!(
                    "the disk of the state folder does not answer: what was learned last is lost"
                );
                return;
            }
            thread::sleep(LOOK_EVERY);
        }
        drop(self.records);
        while !self.thread.is_finished() && sys::now().since(began) < FINISH_WITHIN {
            thread::sleep(LOOK_EVERY);
        }
        if !self.thread.is_finished() {
            tracing::error!(
                "the disk of the state folder does not answer: what was learned last may be lost"
            );
        }
    }
}

impl State {
    /// Begins with what the last agent wrote down.
    pub(super) fn begin_with(&mut self, store: &Store) {
        let now = unix_seconds();
        let names = store.names("");
        (self.memory, self.tenants) = Memory::load(boot_id(), &names, |name| store.read(name), now);
        self.images = Images::load(&names, |name| store.read(name));
        self.classes = Classes::load(|name| store.read(name));
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
                budget.restore(spent, sys::now());
            }
        }
        let held: HeldRecord = read(store, HELD).unwrap_or_default();
        let since_then = held.boot_id == boot_id();
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
    pub(super) fn records(&mut self, last: bool) -> Vec<Record> {
        let now = unix_seconds();
        let mut records = self.memory.records(self.machines.values_mut(), now, last);
        records.extend(self.images.records(now, last));
        records.extend(self.classes.record(last));
        let tiers = self.ladder.tiers().iter().zip(&mut self.budgets);
        let budgets = tiers.map(|(tier, budget)| {
            let spent = budget.spent_today(sys::now());
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
        let on = read_proc_swaps().unwrap_or_default();
        let areas = self.places.areas.list().into_iter().map(|area| {
            let used_bytes = on.iter().find(|line| line.path == area.path).map_or(0, |line| line.used_bytes);
            HeldArea {
                tier: self.ladder.get(area.tier).map_or_else(String::new, |tier| tier.name.clone()),
                used_bytes: used_bytes.saturating_sub(area.covered_pages * sys::PAGE_BYTES),
                path: area.path,
            }
        });
        HeldRecord { boot_id: boot_id(), areas: areas.collect() }
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
