//! The threads that read `/proc` for the agent: one looks for machines, one sweeps their page tables.

use std::io;
use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::actuate::{Roots, Target};
use crate::sys::{self, Monotonic};
use crate::tiermap::{self, Places, Sweep};
use crate::track::VmId;
use crate::vm::{Changes, Refusal, Scanner, Scope, Vm, VmError};

const SCAN_EVERY: Duration = Duration::from_secs(1);

/// Scans between two looks at machines that were refused for a reason that may pass.
const REFRESH_EVERY: u32 = 10;

/// Looks for machines; the thread ends soon after this is dropped.
pub(super) struct Scanning {
    /// Closed to end the thread.
    _stop: std_mpsc::Sender<()>,
}

impl Scanning {
    pub(super) fn start(roots: Roots, found: mpsc::Sender<Result<Changes, VmError>>) -> io::Result<Self> {
        let (stop, stopped) = std_mpsc::channel::<()>();
        thread::Builder::new().name("tiering-scanner".into()).spawn(move || {
            let mut scanner = Scanner::new(roots.proc, roots.cgroup);
            let mut refused = Vec::new();
            for scan in 1u32.. {
                let mut changes = scanner.scan();
                if let Ok(changes) = &mut changes {
                    refused.retain(|vm: &Vm| !changes.gone.contains(&vm.key));
                    if scan.is_multiple_of(REFRESH_EVERY) {
                        changes.appeared.extend(refresh(&scanner, &refused));
                    }
                    refused.retain(|vm| changes.appeared.iter().all(|new| new.key != vm.key));
                    refused.extend(changes.appeared.iter().filter(|vm| may_pass(vm)).cloned());
                }
                if found.blocking_send(changes).is_err() {
                    return;
                }
                if stopped.recv_timeout(SCAN_EVERY) != Err(std_mpsc::RecvTimeoutError::Timeout) {
                    return;
                }
            }
        })?;
        Ok(Self { _stop: stop })
    }
}

/// Whether a machine is refused for a reason that may be over some time.
fn may_pass(vm: &Vm) -> bool {
    let scope = vm.refusal.as_ref().map(Refusal::scope);
    matches!(scope, Some(Scope::ForNow | Scope::WatchOnly))
}

/// Those of the machines for which the reason is another one by now, or none. They are taken in anew.
fn refresh(scanner: &Scanner, refused: &[Vm]) -> Vec<Vm> {
    let looked_at = refused.iter().filter_map(|vm| Some((vm, scanner.refresh(vm.key).ok()?)));
    looked_at.filter(|(old, new)| old.refusal != new.refusal).map(|(_, new)| new).collect()
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
    pub(super) fn start(places: Places, swept: mpsc::UnboundedSender<Swept>) -> io::Result<Self> {
        let (targets, queue) = std_mpsc::channel::<Target>();
        thread::Builder::new().name("tiering-sweeper".into()).spawn(move || {
            for target in queue {
                let began = sys::now();
                let pid = target.process.pid();
                let sweep = tiermap::sweep(pid, &target.layout, &places);
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
