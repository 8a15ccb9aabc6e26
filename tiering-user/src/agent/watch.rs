//! The threads that read `/proc` for the agent: one looks for machines, one sweeps their page tables.

use std::io;
use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::actuate::{Roots, Target};
use crate::sys::{self, Monotonic};
use crate::tiermap::{self, Sweep};
use crate::tiers::Areas;
use crate::track::VmId;
use crate::vm::{Changes, Scanner, VmError};

const SCAN_EVERY: Duration = Duration::from_secs(1);

/// Looks for machines until dropped.
pub(super) struct Scanning {
    /// Closed to end the thread.
    stop: Option<std_mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Scanning {
    pub(super) fn start(roots: Roots, found: mpsc::Sender<Result<Changes, VmError>>) -> io::Result<Self> {
        let (stop, stopped) = std_mpsc::channel::<()>();
        let thread = thread::Builder::new().name("tiering-scanner".into()).spawn(move || {
            let mut scanner = Scanner::new(roots.proc, roots.cgroup);
            loop {
                if found.blocking_send(scanner.scan()).is_err() {
                    return;
                }
                if stopped.recv_timeout(SCAN_EVERY) != Err(std_mpsc::RecvTimeoutError::Timeout) {
                    return;
                }
            }
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Scanning {
    fn drop(&mut self) {
        self.stop = None;
        // The thread may be waiting for room in the channel, which the agent no longer reads; it ends with that.
        drop(self.thread.take());
    }
}

/// What a sweep found.
#[derive(Debug)]
pub(super) struct Swept {
    pub vm: VmId,
    pub began: Monotonic,
    pub sweep: io::Result<Sweep>,
    /// Anonymous huge pages of the process, bytes.
    pub huge_bytes: u64,
}

/// Sweeps the machines it is sent.
#[derive(Debug)]
pub(super) struct Sweeping {
    targets: std_mpsc::Sender<Target>,
}

impl Sweeping {
    pub(super) fn start(areas: Areas, swept: mpsc::UnboundedSender<Swept>) -> io::Result<Self> {
        let (targets, queue) = std_mpsc::channel::<Target>();
        thread::Builder::new().name("tiering-sweeper".into()).spawn(move || {
            for target in queue {
                let began = sys::now();
                let pid = target.process.pid();
                let sweep = tiermap::sweep(pid, &target.layout, &areas);
                let huge_bytes = huge_bytes(pid);
                if swept.send(Swept { vm: target.id, began, sweep, huge_bytes }).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { targets })
    }

    pub(super) fn send(&self, target: Target) {
        // The thread lives as long as this value.
        self.targets.send(target).ok();
    }
}

/// Anonymous huge pages of a process; 0 where it cannot be told.
fn huge_bytes(pid: i32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("AnonHugePages:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}
