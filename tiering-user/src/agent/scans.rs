//! Scans for VMs that go on where a process is stuck.
//!
//! In: a scanner. Out: what has changed. Who looks at a process that is stuck may hang for ever, and nothing can wake
//! it. So a worker scans, with a copy of the scanner. When it has been at one process for longer than [`DEADLINE`] it
//! is left behind, and another one scans without that process. It is looked at again when the worker comes back. At
//! most [`MOST_STUCK`] workers are left behind.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use super::helpers::MOST_STUCK;
use crate::sys;
use crate::vm::{Changes, ProcessKey, Scanner, VmError};

/// The page tables of a large VM in small pages take tenths of a second.
const DEADLINE: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(super) struct Scans {
    scanner: Scanner,
    worker: Option<Worker>,
    /// Workers that hang, each with the process that it is at.
    stuck: Vec<(Worker, i32)>,
}

type Scanned = (Scanner, Result<Changes, VmError>);

/// A thread that ends with this value, unless it hangs.
struct Worker {
    scanners: mpsc::Sender<Scanner>,
    scanned: mpsc::Receiver<Scanned>,
}

impl Worker {
    fn start() -> io::Result<Self> {
        let (scanners, jobs) = mpsc::channel::<Scanner>();
        let (done, scanned) = mpsc::channel();
        thread::Builder::new().name("tiering-scan".into()).spawn(move || {
            for mut scanner in jobs {
                let changes = scanner.scan();
                if done.send((scanner, changes)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { scanners, scanned })
    }

    /// Scans with a copy. The process at which it hangs, if it does; `patient`: waits however long it takes.
    fn scan(&self, scanner: &Scanner, patient: bool) -> Result<Scanned, i32> {
        let (copy, at) = scanner.copy();
        // The thread lives as long as this value; one that has panicked ends the agent.
        self.scanners.send(copy).ok();
        let (mut pid, mut since) = (0, sys::now());
        loop {
            match self.scanned.recv_timeout(LOOK_EVERY) {
                Ok(scanned) => return Ok(scanned),
                Err(RecvTimeoutError::Disconnected) => {
                    return Ok((scanner.copy().0, Ok(Changes::default())));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now_at = at.load(Ordering::Relaxed);
            // 0: it has not begun with any process, as on a host whose processors are busy. Listing them cannot hang.
            if now_at != pid || now_at == 0 {
                (pid, since) = (now_at, sys::now());
            } else if !patient && sys::now().since(since) > DEADLINE {
                return Err(pid);
            }
        }
    }
}

impl Scans {
    pub(super) fn new(scanner: Scanner) -> Self {
        Self { scanner, worker: None, stuck: Vec::new() }
    }

    /// The VMs that were told of as appeared, not yet as gone.
    pub(super) fn known(&self) -> impl Iterator<Item = ProcessKey> {
        self.scanner.known()
    }

    /// Compares the process list with the last one.
    ///
    /// # Errors
    /// [`VmError`] if there is no process list.
    pub(super) fn scan(&mut self) -> Result<Changes, VmError> {
        let (back, stuck): (Vec<_>, Vec<_>) = std::mem::take(&mut self.stuck)
            .into_iter()
            .partition(|(worker, _)| !matches!(worker.scanned.try_recv(), Err(mpsc::TryRecvError::Empty)));
        self.stuck = stuck;
        for (_, pid) in back {
            tracing::info!(pid, "looking at it no longer hangs");
            self.scanner.leave_alone(pid, false);
        }
        loop {
            let worker = match self.worker.take().map_or_else(Worker::start, Ok) {
                Ok(worker) => worker,
                Err(error) => {
                    tracing::warn!(%error, "no thread to look for VMs");
                    return Ok(Changes { troubles: self.troubles(), ..Changes::default() });
                }
            };
            match worker.scan(&self.scanner, self.stuck.len() >= MOST_STUCK) {
                Ok((scanner, changes)) => {
                    self.scanner = scanner;
                    self.worker = Some(worker);
                    let mut changes = changes?;
                    changes.troubles.extend(self.troubles());
                    return Ok(changes);
                }
                Err(pid) => {
                    tracing::warn!("{}", hangs(pid));
                    self.scanner.leave_alone(pid, true);
                    self.stuck.push((worker, pid));
                }
            }
        }
    }

    fn troubles(&self) -> Vec<String> {
        self.stuck.iter().map(|(_, pid)| hangs(*pid)).collect()
    }
}

fn hangs(pid: i32) -> String {
    format!(
        "looking at process {pid} hangs: it is left as it is; other VMs are not held up. Look what it waits for (/proc/{pid}/stack)"
    )
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;
    use crate::vm::testing::{FakeHost, Guest};

    fn names(changes: &Changes) -> Vec<&str> {
        changes.appeared.iter().map(|vm| vm.name.as_str()).collect()
    }

    #[test]
    fn a_process_at_which_a_look_hangs_does_not_keep_others_from_being_found() {
        let host = FakeHost::new();
        host.start(7, &Guest::kvm("stuck", 64));
        host.start(8, &Guest::kvm("well", 64));
        let arguments = host.proc_root().join("7/cmdline");
        let text = std::fs::read(&arguments).unwrap();
        std::fs::remove_file(&arguments).unwrap();
        mkfifo(&arguments, Mode::S_IRWXU).unwrap();
        let mut scans = Scans::new(host.scanner());
        let changes = scans.scan().unwrap();
        assert_eq!(names(&changes), ["well"]);
        assert!(changes.troubles[0].starts_with("looking at process 7 hangs"), "{:?}", changes.troubles);

        let changes = scans.scan().unwrap();
        assert_eq!((changes.appeared.len(), changes.gone.len(), changes.troubles.len()), (0, 0, 1));
        assert_eq!(scans.stuck.len(), 1, "nobody else is sent there");

        let release = OpenOptions::new().write(true).open(&arguments).unwrap();
        std::fs::remove_file(&arguments).unwrap();
        std::fs::write(&arguments, text).unwrap();
        drop(release);
        let mut changes = scans.scan().unwrap();
        while changes.appeared.is_empty() {
            changes = scans.scan().unwrap();
        }
        assert_eq!(names(&changes), ["stuck"]);
        assert_eq!(changes.troubles, [""; 0]);
    }
}
