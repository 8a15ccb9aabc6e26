//! The threads that read `/proc` for the agent: one looks for VMs, one sweeps their page tables.

use std::io;
use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::Duration;

use tiering_common::Frame;
use tokio::sync::mpsc;

use super::helpers::{Helpers, Subject};
use super::lookups::Lookups;
use super::scans::Scans;
use crate::actuate::{Busy, NowAt, Roots, Target};
use crate::engine::{Compared, Gauge, Look, Looked, Rearmed, Swept};
use crate::sys::{self, PageState, Pagemap};
use crate::tiermap::{self, PageRun, Places};
use crate::vm::{
    Changes, GroupMemory, Hva, ProcessKey, Scanner, Trust, VmError, bindings, keep_own_pressure, ksm_bytes,
    usage,
};

const SCAN_EVERY: Duration = Duration::from_secs(1);

/// Looks for VMs; the thread ends soon after this is dropped.
pub(super) struct Scanning {
    /// Closed to end the thread.
    _stop: std_mpsc::Sender<()>,
}

impl Scanning {
    /// Reads control groups by `helpers`: a process that is stuck does not hold up the others. With `several` memory
    /// tiers what binds VMs to nodes is looked at.
    pub(super) fn start(
        roots: Roots,
        trust: Trust,
        several: bool,
        helpers: &Helpers,
        found: mpsc::Sender<Result<Changes, VmError>>,
        gauged: mpsc::Sender<Vec<Gauge>>,
    ) -> io::Result<Self> {
        let (stop, stopped) = std_mpsc::channel::<()>();
        let mut lookups = Lookups::new(helpers);
        thread::Builder::new().name("tiering-scanner".into()).spawn(move || {
            let mut scans = Scans::new(Scanner::new(&roots.proc, &roots.cgroup, trust));
            loop {
                if found.blocking_send(scans.scan()).is_err() {
                    return;
                }
                // The next ones are as good where nobody has taken these.
                gauged.try_send(gauges(&roots, several, scans.known(), &mut lookups)).ok();
                if stopped.recv_timeout(SCAN_EVERY) != Err(std_mpsc::RecvTimeoutError::Timeout) {
                    return;
                }
            }
        })?;
        Ok(Self { _stop: stop })
    }
}

fn gauges(
    roots: &Roots,
    several: bool,
    vms: impl Iterator<Item = ProcessKey>,
    lookups: &mut Lookups<Gauge>,
) -> Vec<Gauge> {
    for key in vms {
        let roots = roots.clone();
        let what = format!("reading control groups and memory use of process {}", key.pid);
        let subject = Subject { what, without: "its limits are not known" };
        lookups.ask(key.pid, subject, move || gauge(&roots, several, key));
    }
    let mut gauges = lookups.collect();
    keep_own_pressure(gauges.iter_mut().map(|gauge| &mut gauge.memory));
    gauges
}

fn gauge(roots: &Roots, several: bool, key: ProcessKey) -> Gauge {
    let at = sys::now();
    let memory = GroupMemory::of(&roots.proc, &roots.cgroup, key);
    let memory = memory.with_owner(&roots.proc, &roots.cgroup, key);
    let (ksm_bytes, usage) = (ksm_bytes(&roots.proc, key), usage(&roots.proc, key));
    let bindings = several.then(|| bindings(&roots.proc, key)).flatten();
    Gauge { key, memory, ksm_bytes, usage, bindings, at }
}

/// Goes through the page tables of the VMs it is sent.
#[derive(Debug)]
pub(super) struct Sweeping {
    targets: std_mpsc::Sender<(Target, Look)>,
    now_at: NowAt,
}

impl Sweeping {
    pub(super) fn start(places: Places, looked: mpsc::UnboundedSender<Looked>) -> io::Result<Self> {
        let (targets, queue) = std_mpsc::channel::<(Target, Look)>();
        let now_at = NowAt::default();
        let at = now_at.clone();
        thread::Builder::new().name("tiering-sweeper".into()).spawn(move || {
            // Whoever waits for the lock of a VM's page tables would also wait until this thread has a processor
            // again.
            sys::run_ahead();
            for (target, look) in queue {
                at.begin(look.what(&target.info.vm.name));
                let result = match look {
                    Look::Sweep(part) => Looked::Swept(sweep(&target, part, &places)),
                    Look::Rearm => Looked::Rearmed(rearm(&target)),
                    Look::Compare(frames) => Looked::Compared(compare(&target, frames)),
                };
                at.end();
                if looked.send(result).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { targets, now_at })
    }

    /// What it is at now.
    pub(super) fn busy(&self) -> Option<Busy> {
        self.now_at.get()
    }

    pub(super) fn send(&self, target: Target, look: Look) {
        // The thread lives as long as this value.
        self.targets.send((target, look)).ok();
    }
}

fn sweep(target: &Target, part: PageRun, places: &Places) -> Swept {
    let began = sys::now();
    let sweep = tiermap::sweep(&target.process, &target.info.layout, part, places);
    // Of a process that has ended there is nothing left to read, which is no error.
    let ended = || Err(io::Error::from_raw_os_error(libc::ESRCH));
    let sweep = if target.process.is_alive() { sweep } else { ended() };
    Swept { vm: target.info.id, began, sweep }
}

fn rearm(target: &Target) -> Rearmed {
    let written = tiermap::written(&target.process, &target.info.layout);
    let began = sys::now();
    let took = sys::rearm(&target.process).map(|()| sys::now().since(began));
    Rearmed { vm: target.info.id, began, took, written }
}

fn compare(target: &Target, frames: Vec<(Frame, Hva)>) -> Compared {
    // A process that has just ended proves nothing.
    let pagemap = target.process.pagemap().ok();
    let frame_at = |hva| frame_at(pagemap.as_ref()?, hva);
    Compared {
        vm: target.info.id,
        found: frames.into_iter().map(|(frame, hva)| (frame, hva, frame_at(hva))).collect(),
    }
}

/// The frame that the process has at this address; none where nothing is mapped, or frames may not be seen.
fn frame_at(pagemap: &Pagemap, hva: Hva) -> Option<u64> {
    match pagemap.read(hva.0, 1).as_deref() {
        Ok([PageState::Present { pfn: pfn @ 1.. }]) => Some(*pfn),
        _ => None,
    }
}
