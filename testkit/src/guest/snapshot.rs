//! A guest as a file, and clones of it: the same data at the same guest-physical addresses.
//!
//! In: a guest that was built to be [savable](super::Builder::savable) and is ready. Out: its state, from which any
//! number of guests are started, each with memory of its own. QEMU's migration writes and reads it.

use super::{Guest, POLL};
use crate::kernel;
use crate::qemu::Machine;
use crate::qmp::Qmp;
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

const SAVE_LIMIT: Duration = Duration::from_secs(120);

/// A guest that was stopped at one moment.
#[derive(Debug)]
pub struct Snapshot {
    machine: Machine,
    state: NamedTempFile,
    initramfs: Arc<NamedTempFile>,
}

/// Where the guest of this name listens, beside the files of all guests; removed when it is saved, or killed.
pub(super) fn monitor_of(name: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("tiering-guest-{}-{count}-{name}.qmp", std::process::id()))
}

impl Guest {
    /// Writes its state to a file, and ends it.
    ///
    /// # Errors
    /// Where it was not built to be saved, or QEMU cannot.
    pub fn save(mut self) -> Result<Snapshot> {
        let monitor = self.machine.monitor.take().context("this guest was not built to be saved")?;
        let state = NamedTempFile::with_prefix("tiering-snapshot-")?;
        let saved = write_state(&monitor, state.path());
        std::fs::remove_file(&monitor).ok();
        saved.with_context(|| format!("saving guest {}", self.name()))?;
        self.kill();
        let initramfs = Arc::clone(&self.initramfs);
        Ok(Snapshot { machine: self.machine.clone(), state, initramfs })
    }
}

impl Snapshot {
    /// Starts a guest from here; it goes on where the saved one was, when it is [ready](Guest::wait_ready).
    ///
    /// # Errors
    /// Where QEMU cannot be started.
    pub fn start(&self, name: &str) -> Result<Guest> {
        let state = Some(self.state.path().to_owned());
        let machine = Machine { name: name.to_owned(), state, ..self.machine.clone() };
        Guest::launch(machine, &kernel::find()?, Arc::clone(&self.initramfs))
    }
}

fn write_state(monitor: &Path, file: &Path) -> Result<()> {
    let mut qmp = Qmp::connect(monitor)?;
    // Not stopped before: its clones would be too.
    qmp.run(&json!({"execute": "migrate", "arguments": {"uri": format!("exec:cat > {}", file.display())}}))?;
    let began = Instant::now();
    loop {
        let migration = qmp.run(&json!({"execute": "query-migrate"}))?;
        match migration["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") => bail!("QEMU says {migration}"),
            _ => ensure!(began.elapsed() < SAVE_LIMIT, "not done after {SAVE_LIMIT:?}: {migration}"),
        }
        std::thread::sleep(POLL);
    }
}
