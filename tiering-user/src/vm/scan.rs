//! Keeps track of which VMs there are. In: the process list, time and again. Out: what appeared and what went.
//!
//! 1. A known process costs one `stat` a scan; any other one costs reading where its `exe` link points. (The verdict on
//!    a process that is no VM is not remembered: it can become QEMU by `exec` without a new pid or start time.)
//! 2. QEMU by executable and by command line is looked at in full, once.
//! 3. A VM that has not mapped its RAM yet is tried again; after a few scans it is reported to be watched only.
//!
//! An unreadable process does not hide the others: each trouble is reported once.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::cmdline::CommandLine;
use super::gpa::{Board, guest_ranges};
use super::images::images;
use super::mappers::SharedMappings;
use super::process::{Proc, VmError, pids};
use super::ram::{self, Layout};
use super::refusal::{gravest, judge};
use super::runtime::Runtime;
use super::{Backing, ProcessKey, Refusal, Vm};

/// Scans after which a layout that still does not add up is taken as it is. QEMU maps RAM in its first second.
pub(super) const SETTLE_SCANS: u32 = 5;

/// What a scan found out.
#[derive(Debug, Default)]
pub struct Changes {
    pub appeared: Vec<Vm>,
    pub gone: Vec<ProcessKey>,
    /// VMs that could not be read, each once.
    pub errors: Vec<VmError>,
}

/// Finds VMs and remembers which ones it has told of.
#[derive(Debug)]
pub struct Scanner {
    proc_root: PathBuf,
    cgroup_root: PathBuf,
    /// Told of as appeared, not yet as gone.
    known: HashMap<i32, ProcessKey>,
    /// QEMU processes whose RAM is not mapped yet: scans so far.
    settling: HashMap<ProcessKey, u32>,
    /// Pids whose trouble was told.
    troubled: HashSet<i32>,
}

/// One process, looked at.
enum Look {
    NoVm,
    Settling(ProcessKey),
    Found(Box<Vm>),
}

impl Scanner {
    /// `proc_root` is `/proc`, `cgroup_root` where cgroup v2 is mounted (`/sys/fs/cgroup`).
    pub fn new(proc_root: impl Into<PathBuf>, cgroup_root: impl Into<PathBuf>) -> Scanner {
        Scanner {
            proc_root: proc_root.into(),
            cgroup_root: cgroup_root.into(),
            known: HashMap::new(),
            settling: HashMap::new(),
            troubled: HashSet::new(),
        }
    }

    /// The VMs that were told of as appeared, not yet as gone.
    pub fn known(&self) -> impl Iterator<Item = ProcessKey> {
        self.known.values().copied()
    }

    /// Compares the process list with the last one.
    ///
    /// # Errors
    /// [`VmError::ProcRoot`] if there is no process list; trouble with one process is part of [`Changes`].
    pub fn scan(&mut self) -> Result<Changes, VmError> {
        let pids: HashSet<i32> = pids(&self.proc_root)?.into_iter().collect();
        let mut changes = Changes::default();
        let proc_root = &self.proc_root;
        self.known.retain(|pid, key| {
            let alive =
                pids.contains(pid) && !matches!(Proc::open_key(proc_root, *key), Err(VmError::Gone { .. }));
            if !alive {
                changes.gone.push(*key);
            }
            alive
        });
        self.settling.retain(|key, _| pids.contains(&key.pid));
        self.troubled.retain(|pid| pids.contains(pid));

        let mut mappings = None;
        for pid in pids.into_iter().filter(|pid| !self.known.contains_key(pid)).collect::<Vec<_>>() {
            match self.look(pid, &mut mappings) {
                Ok(Look::NoVm) | Err(VmError::Gone { .. }) => {}
                Ok(Look::Settling(key)) => *self.settling.entry(key).or_default() += 1,
                Ok(Look::Found(vm)) => {
                    self.settling.remove(&vm.key);
                    self.troubled.remove(&pid);
                    self.known.insert(pid, vm.key);
                    changes.appeared.push(*vm);
                }
                Err(error) => {
                    if self.troubled.insert(pid) {
                        changes.errors.push(error);
                    }
                }
            }
        }
        changes.appeared.sort_by_key(|vm| vm.key);
        changes.gone.sort();
        Ok(changes)
    }

    /// Reads everything about a VM again, smaps too: now and then for a VM with a `fixed_refusal` that may have passed
    /// ([`super::Scope::ForNow`], [`super::Scope::WatchOnly`]) or with shared RAM, whose daemons may come and go.
    ///
    /// # Errors
    /// [`VmError::Gone`] if the process ended, [`VmError::Permission`] or [`VmError::Read`] naming the file.
    pub fn refresh(&self, key: ProcessKey) -> Result<Vm, VmError> {
        let process = Proc::open_key(&self.proc_root, key)?;
        let command = CommandLine::parse(&process.arguments()?).ok_or(VmError::Gone { pid: key.pid })?;
        let layout = layout(&process, &command)?;
        self.build(&process, key, command, layout, &mut None)
    }

    fn look(&self, pid: i32, mappings: &mut Option<SharedMappings>) -> Result<Look, VmError> {
        let process = Proc::open(&self.proc_root, pid)?;
        match process.executable() {
            Ok(name) if is_qemu(&name) => {}
            Ok(_) => return Ok(Look::NoVm),
            // Without the right to see it, most processes are none of our business: only a name that smells of QEMU
            // is worth an error.
            Err(error @ VmError::Permission { .. }) => {
                let comm = process.stat()?.comm;
                return if is_qemu(&comm) { Err(error) } else { Ok(Look::NoVm) };
            }
            Err(error) => return Err(error),
        }
        let Some(command) = CommandLine::parse(&process.arguments()?) else {
            return Ok(Look::NoVm);
        };
        let key = process.key()?;
        let layout = layout(&process, &command)?;
        if !layout.complete && self.settling.get(&key).is_none_or(|&scans| scans < SETTLE_SCANS) {
            return Ok(Look::Settling(key));
        }
        Ok(Look::Found(Box::new(self.build(&process, key, command, layout, mappings)?)))
    }

    fn build(
        &self,
        process: &Proc,
        key: ProcessKey,
        command: CommandLine,
        layout: Layout,
        mappings: &mut Option<SharedMappings>,
    ) -> Result<Vm, VmError> {
        let runtime = Runtime::read(process, &self.cgroup_root)?;
        let mut refusals = fixed_refusals(process, &command, &layout)?;
        if command.vhost_user && layout.regions.iter().any(|r| matches!(r.backing, Backing::Shared { .. })) {
            let all = match mappings.take() {
                Some(all) => all,
                None => SharedMappings::read(&self.proc_root)?,
            };
            let other = all.other_than(key.pid, &layout.regions);
            refusals.extend(other.map(|pid| Refusal::SharedMapper { pid }));
            *mappings = Some(all);
        }
        let board = Board {
            machine: command.machine.as_deref(),
            max_ram_below_4g_bytes: command.max_ram_below_4g_bytes,
            dimms: command.dimm_blocks,
        };
        let guest_ranges = guest_ranges(&layout.regions, layout.complete.then_some(&board));
        let mut vm = Vm {
            key,
            name: command.name.unwrap_or_else(|| format!("vm-{}", key.pid)),
            uuid: command.uuid,
            namespace: command.namespace,
            accel: runtime.accel(),
            ram: layout.regions,
            guest_ranges,
            refusal: None,
            fixed_refusal: gravest(refusals),
            incoming: command.incoming,
            cgroup: runtime.cgroup.clone(),
            numa_bound: command.numa_bound,
            free_page_reporting: command.free_page_reporting,
            images: images(process),
        };
        vm.refusal = judge(vm.fixed_refusal.as_ref(), &runtime, vm.ram_bytes(), vm.incoming);
        Ok(vm)
    }
}

/// Whether the VM's RAM may be moved at this moment: devices, locks, migrations and limits begin at any time. Reads no
/// mappings. What cannot be read is refused.
#[must_use]
pub fn recheck(proc_root: &Path, cgroup_root: &Path, vm: &Vm) -> Option<Refusal> {
    let runtime = Proc::open_key(proc_root, vm.key).and_then(|process| Runtime::read(&process, cgroup_root));
    match runtime {
        Ok(runtime) => judge(vm.fixed_refusal.as_ref(), &runtime, vm.ram_bytes(), vm.incoming),
        Err(VmError::Gone { .. }) => Some(Refusal::Gone),
        Err(error) => gravest(
            vm.fixed_refusal.clone().into_iter().chain([Refusal::Unreadable { why: error.to_string() }]),
        ),
    }
}

fn is_qemu(executable: &str) -> bool {
    executable.starts_with("qemu-system-") || executable == "qemu-kvm" || executable == "kvm"
}

fn layout(process: &Proc, command: &CommandLine) -> Result<Layout, VmError> {
    Ok(ram::find(&process.mappings("smaps")?, &command.ram_blocks))
}

/// What command line and mappings forbid.
fn fixed_refusals(process: &Proc, command: &CommandLine, layout: &Layout) -> Result<Vec<Refusal>, VmError> {
    let mut refusals = Vec::new();
    if command.confidential {
        refusals.push(Refusal::Confidential);
    }
    if command.mem_lock || layout.locked {
        refusals.push(Refusal::MemoryLocked);
    }
    if command.persistent {
        refusals.push(Refusal::PersistentMemory { what: "on the command line".to_owned() });
    }
    if !layout.files.is_empty() {
        let tmpfs = process.tmpfs_devices()?;
        let file = layout.files.iter().find(|(_, device)| !tmpfs.contains(device));
        refusals.extend(file.map(|(path, _)| Refusal::PersistentMemory { what: path.clone() }));
    }
    if !layout.complete {
        refusals.push(Refusal::LayoutUnclear {
            announced_bytes: command.ram_blocks.iter().fold(0, |sum, block| block.bytes.saturating_add(sum)),
            found_bytes: layout.regions.iter().map(|region| region.bytes).sum(),
        });
    }
    if layout.userfaultfd {
        refusals.push(Refusal::Userfaultfd);
    }
    if command.virtio_mem {
        refusals.push(Refusal::VirtioMem);
    }
    if layout.regions.iter().any(|region| region.backing == Backing::Hugetlb) {
        refusals.push(Refusal::Hugetlb);
    }
    Ok(refusals)
}
