//! Writes what must outlive the agent, every half minute and at the end.
//!
//! In: records, as the [`Engine`] has them. Out: the same in the [`Store`], written by a thread of its own, since a
//! disk can take its time.
//!
//! Limits: an agent that is killed loses what it learned in the last half minute. Swap files are not written here:
//! their kernel numbers are, by those who make them, before they are used.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::engine::Engine;
use crate::store::{Record, Store};
use crate::sys::{self, Monotonic, unix_seconds};

const KEEP_EVERY: Duration = Duration::from_secs(30);
/// How long the last write may take, and how often it is looked after.
const FINISH_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Records by name, so that of one which waits for a slow disk the latest is written, and no other.
type Due = BTreeMap<String, Option<Vec<u8>>>;

/// Records that wait for a disk which cannot be written, at most.
const MOST_WAITING: usize = 16_384;

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
    pub(super) fn every_second(&mut self, engine: &mut Engine) {
        if sys::now().since(self.kept) >= KEEP_EVERY {
            self.kept = sys::now();
            let mut records = std::mem::take(&mut self.unsent);
            records.extend(engine.records(false));
            if let Err(mpsc::TrySendError::Full(records)) = self.records.try_send(records) {
                self.unsent = records;
            }
        }
    }

    /// When the state was last written, seconds since 1970.
    pub(super) fn kept_unix_s(&self) -> Option<u64> {
        Some(self.written_unix_s.load(Ordering::Relaxed)).filter(|time| *time > 0)
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
