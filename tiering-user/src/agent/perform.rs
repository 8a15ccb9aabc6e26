//! Carries commands out: hands jobs to the threads that do them, and writes to the kernel side.
//!
//! In: commands. Out: jobs for the lanes, the sweeper, the helpers and DAMON's worker; entries of BPF maps. What
//! becomes of them arrives on the channels of those who do them. A command about a VM that is not tracked any more is
//! dropped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use procfs::process::Process;
use procfs::{Current as _, Meminfo};
use tokio::sync::mpsc;

use super::aside::Aside;
use super::page_tables::{find_frame, tell_explanation, tell_map};
use super::survey::Survey;
use super::watch::Sweeping;
use crate::actuate::{Busy, Job, Lanes, Order, Target, VmInfo};
use crate::bpf::{BpfError, Counters, Delivery, Faults, KvmSource, Source as _, Watching, Worker};
use crate::engine::{Command, Demote, DemotionFacts, Facts, SwapFacts};
use crate::sys::{self, Pidfd};
use crate::tiermap::Places;
use crate::tiers::{Demotion, NodeMemory, TierId, read_proc_swaps};
use crate::track::VmId;
use crate::vm::{ProcessKey, Vm};

/// Threads whose CPU time is that of the moves: those have brakes of their own.
const MOVING_THREADS: [&str; 6] = [
    "tiering-mover",
    "tiering-stager",
    "tiering-mapper",
    "tiering-freer",
    "tiering-reclaim",
    "tiering-reader",
];

/// How often the CPU time of all threads is read: that takes longer than all the rest.
const CPU_EVERY_S: u64 = 5;

/// All that acts.
pub(super) struct Hands {
    pub faults: Faults,
    pub lanes: Lanes,
    pub sweeper: Sweeping,
    pub damon: Worker,
    /// Where the worker for DAMON says what is watched.
    pub watching: mpsc::UnboundedSender<Watching>,
    /// What may hang is done there.
    pub aside: Aside,
    /// The kernel's setting.
    pub demotion: Demotion,
    pub places: Places,
    /// VMs that are tracked.
    pub processes: BTreeMap<VmId, (Arc<Pidfd>, Vm)>,
    /// That orders for memory of the host may be carried out.
    pub may_reclaim_nodes: Arc<AtomicBool>,
    /// Since the start.
    pub seconds: u64,
}

impl Hands {
    pub(super) fn perform(&mut self, command: Command) {
        match command {
            Command::Step(vm, step) => self.send(vm, |target| Job::Step(target, step)),
            Command::Reclaim(vm, bytes) => self.send(vm, |target| Job::Reclaim(target, bytes)),
            Command::Drain(tier, vms) => {
                let targets = vms.into_iter().filter_map(|vm| self.target(vm)).collect();
                self.lanes.send(Job::Drain(tier, targets));
            }
            Command::ReclaimNodes(vms, bytes) => {
                let vms = vms.into_iter().filter_map(|vm| self.target(vm)).collect();
                let allowed = Arc::clone(&self.may_reclaim_nodes);
                self.lanes.send(Job::ReclaimNodes(Order { vms, bytes, allowed, given: Instant::now() }));
            }
            Command::AllowNodeReclaim(allowed) => self.may_reclaim_nodes.store(allowed, Ordering::Relaxed),
            Command::Look(vm, look) => {
                if let Some(target) = self.target(vm) {
                    self.sweeper.send(target, look);
                }
            }
            Command::WantFrames(vm) => {
                if let Err(error) = self.faults.want_frames(vm.id) {
                    tracing::warn!(vm = vm.vm.name, %error, "accesses of the guest are not seen");
                }
            }
            Command::EnoughFrames(id) => self.faults.enough_frames(id),
            // Its process may have ended.
            Command::SampleOneIn(VmInfo { vm, .. }, log2) => match self.faults.sample_one_in(&vm, log2) {
                Ok(()) => tracing::debug!(vm = vm.name, one_in = 1u64 << log2, "sampled"),
                Err(error) => tracing::debug!(vm = vm.name, %error, "not sampled anew"),
            },
            Command::ShowMoves(id, moves) => self.faults.show_moves(id, moves),
            Command::ShowBlock(id, block, value) => self.faults.show_block(id, block, value),
            Command::WatchImage(key, number) => {
                if let Err(error) = self.faults.watch_image(key, number) {
                    tracing::warn!(inode = key.inode, %error, "an image is not watched");
                }
            }
            Command::UnwatchImage(key) => self.faults.reads.unwatch(key),
            Command::WatchRegions(ids, setup) => {
                if self.faults.attach_regions() {
                    self.damon.watch(ids, setup);
                } else {
                    let why = match self.faults.regions.delivery() {
                        Delivery::Unavailable(why) => why,
                        _ => "what it finds cannot be seen".to_owned(),
                    };
                    self.watching.send(Watching::Failed(why)).ok();
                }
            }
            Command::KernelDemotion(Demote::Leave(why)) => self.demotion.leave(why),
            Command::KernelDemotion(Demote::Keep(why_not)) => self.demotion.keep(why_not),
            Command::OpenImage { vm, id, fd } => self.aside.open_image(&vm, id, fd),
            Command::CloseImage { name, id, file } => self.aside.close_image(&name, id, file),
            Command::ReadAhead(ahead) => self.aside.read_ahead(ahead),
            Command::ReadLabels(vm) => self.aside.read_labels(vm),
            Command::ReadPageAges(groups) => self.aside.read_page_ages(groups),
            // Who asked for a VM that is gone is told so, as the reply is dropped.
            Command::FindFrame { vm, pfn, reply } => {
                if let Some(target) = self.target(vm) {
                    find_frame(target, pfn, reply);
                }
            }
            Command::TellMap { vm, map, reply } => {
                if let Some(target) = self.target(vm) {
                    tell_map(target, map, reply);
                }
            }
            Command::TellExplanation { vm, explanation, reply } => {
                if let Some(target) = self.target(vm) {
                    tell_explanation(target, *explanation, reply);
                }
            }
            Command::GiveBackFreed => sys::give_back_freed(),
        }
    }

    fn send(&self, vm: VmInfo, job: impl FnOnce(Target) -> Job) {
        if let Some(target) = self.target(vm) {
            self.lanes.send(job(target));
        }
    }

    fn target(&self, info: VmInfo) -> Option<Target> {
        let (process, _) = self.processes.get(&info.id)?;
        Some(Target { process: Arc::clone(process), info })
    }

    /// The VMs that are tracked.
    pub(super) fn tracked(&self) -> impl Iterator<Item = VmId> {
        self.processes.keys().copied()
    }

    /// Begins to track a VM.
    ///
    /// # Errors
    /// Where the kernel side has no room for it; then nothing of it is tracked.
    pub(super) fn track(&mut self, id: VmId, vm: &Vm, process: Pidfd) -> Result<(), BpfError> {
        if let Err(error) = self.faults.track(id, vm) {
            // Half of it may be there.
            self.faults.untrack(id, vm);
            return Err(error);
        }
        self.processes.insert(id, (Arc::new(process), vm.clone()));
        Ok(())
    }

    /// Ends it. Returns the VM's number and its last counters, if it was tracked.
    pub(super) fn untrack(&mut self, key: ProcessKey) -> Option<(VmId, Counters)> {
        let id = self.processes.iter().find(|(_, (_, vm))| vm.key == key).map(|(id, _)| *id)?;
        let (_, vm) = self.processes.remove(&id)?;
        Some((id, self.faults.untrack(id, &vm)))
    }

    /// What threads are at now.
    pub(super) fn busy(&self) -> impl Iterator<Item = Busy> {
        self.lanes.busy().into_iter().chain(self.sweeper.busy())
    }

    pub(super) fn swap(&self) -> SwapFacts {
        SwapFacts { lines: read_proc_swaps().unwrap_or_default(), areas: self.places.areas.list() }
    }

    /// What is so on the host now.
    pub(super) fn facts(
        &mut self,
        survey: &Survey,
        left_out: Option<(String, String)>,
        reclaims_host: bool,
    ) -> Facts {
        let reads_cpu = self.seconds.is_multiple_of(CPU_EVERY_S);
        self.seconds += 1;
        let memory = Meminfo::current().ok();
        let nodes = &self.places.nodes;
        let memory_tiers = (0..nodes.tiers().0).map(TierId);
        let files = nodes.reclaim_files(TierId(0));
        let [moved_by_others, _] = self.faults.kernel_moves.totals();
        Facts {
            unix_s: sys::unix_seconds(),
            memory: memory.as_ref().and_then(NodeMemory::of_host),
            tier_memory: memory_tiers.map(|tier| (tier, nodes.memory(tier))).collect(),
            swap_cached_bytes: memory.as_ref().map_or(0, |memory| memory.swap_cached),
            swap_half_full: memory
                .is_some_and(|memory| memory.swap_free.saturating_mul(2) < memory.swap_total),
            swap: self.swap(),
            tier_loads: survey.tier_loads(),
            refaults_total: reclaims_host.then(refaults_total).flatten(),
            cpu_s: reads_cpu.then(cpu_seconds).flatten(),
            own_memory_bytes: sys::own_memory().ok(),
            shown_access: self.faults.rearming().cost(),
            moved_by_others,
            moves_show: self.faults.kernel_moves.shows_all(),
            kvm_shows: matches!(self.faults.kvm(), KvmSource::Active(_)),
            reclaims_nodes: files.iter().all(|file| file.exists()),
            left_out,
            demotion: DemotionFacts {
                is_on: self.demotion.is_on(),
                refused: self.demotion.refused().map(str::to_owned),
                of_no_use: self.demotion.is_of_no_use().map(str::to_owned),
            },
        }
    }
}

/// Anonymous and shared pages of the host that were read from swap so far.
fn refaults_total() -> Option<u64> {
    u64::try_from(*procfs::vmstat().ok()?.get("workingset_refault_anon")?).ok()
}

/// CPU time of the agent's threads so far, without those that move pages; none where it cannot be told.
fn cpu_seconds() -> Option<f64> {
    let threads = Process::myself().and_then(|agent| agent.tasks()).ok()?;
    let stats = threads.flatten().filter_map(|thread| thread.stat().ok());
    let watching = stats.filter(|stat| !MOVING_THREADS.contains(&stat.comm.as_str()));
    let ticks: u64 = watching.map(|stat| stat.utime + stat.stime).sum();
    Some(ticks as f64 / procfs::ticks_per_second() as f64)
}
