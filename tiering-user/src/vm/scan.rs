//! Keeps track of which VMs there are. In: the process list, time and again. Out: what appeared, what changed, what went.
//!
//! 1. A known process costs two reads a scan: its `stat`, and the size of its address space. Any other one costs reading
//!    where its `exe` link points. (The verdict on a process that is no VM is not remembered: it can become QEMU by
//!    `exec` without a new pid or start time.)
//! 2. QEMU by executable and by command line is looked at in full.
//! 3. A VM that has not mapped its RAM yet is tried again; after a few scans it is reported to be watched only.
//! 4. A known VM is looked at again when its address space has another size (memory was plugged or unplugged), when it
//!    was refused for a reason that may pass, and once a minute. Shared RAM is looked at for other processes that map it.
//!
//! An unreadable process does not hide the others: each trouble is reported once.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};

use super::cmdline::{CommandLine, Role};
use super::images::images;
use super::mappers::{SharedMappings, mapped_twice};
use super::medium::Media;
use super::parts;
use super::process::{Proc, VmError, pids};
use super::ram::{self, Layout};
use super::rare_flags::rare_flags;
use super::readconfig;
use super::refusal::{gravest, judge};
use super::runtime::Runtime;
use super::{Backing, ProcessKey, RamRegion, Refusal, Scope, Vm};

/// Scans after which a layout that still does not add up is taken as it is. QEMU maps RAM in its first second.
pub(super) const SETTLE_SCANS: u32 = 5;
/// Scans between two looks at a VM that was refused for a reason that may pass, and at a few pages of shared RAM.
pub(super) const AGAIN_SCANS: u32 = 10;
/// Scans between two looks at the mappings of all processes, for a VM with vhost-user devices.
pub(super) const MAPPERS_SCANS: u32 = 30;
/// Scans between two looks at any VM: a DIMM may be plugged in the second in which one of its size is unplugged.
const ANYWAY_SCANS: u32 = 60;

/// What a scan found out.
#[derive(Debug, Default)]
pub struct Changes {
    pub appeared: Vec<Vm>,
    /// Known before, and not as they were: RAM was plugged or unplugged, or what is refused is another thing.
    pub changed: Vec<Vm>,
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
    known: HashMap<i32, Known>,
    /// What processes were started with: files that they read then may be gone by now.
    /// Beside it a hash of the arguments, which a process may rewrite.
    commands: HashMap<ProcessKey, (u64, CommandLine)>,
    scans: u32,
    /// QEMU processes whose RAM is not mapped yet: scans so far.
    settling: HashMap<ProcessKey, u32>,
    /// Pids whose trouble was told.
    troubled: HashSet<i32>,
}

/// A VM as it was told of.
#[derive(Debug)]
struct Known {
    vm: Vm,
    vhost_user: bool,
    /// Size of its address space, in pages.
    mapped_pages: u64,
}

/// Mappings of all processes, read when they are first needed.
type Mappings = Option<SharedMappings>;

/// One process, looked at.
enum Look {
    NoVm,
    Settling(ProcessKey),
    Found(Box<Known>),
}

impl Vm {
    /// Whether it is refused for a reason that may be over some time.
    fn may_pass(&self) -> bool {
        let scope = self.refusal.as_ref().map(Refusal::scope);
        matches!(scope, Some(Scope::ForNow | Scope::WatchOnly))
    }

    /// Whether it must be taken in anew. What begins and ends while a VM runs is looked at before each batch.
    fn differs_from(&self, before: &Vm) -> bool {
        let lasting = |vm: &Vm| {
            let parts = (vm.ram.clone(), vm.on_demand.clone(), vm.guest_ranges.clone());
            (parts, vm.left_alone.clone(), vm.fixed_refusal.clone())
        };
        lasting(self) != lasting(before) || before.may_pass() && self.refusal != before.refusal
    }
}

impl Scanner {
    /// `proc_root` is `/proc`, `cgroup_root` where cgroup v2 is mounted (`/sys/fs/cgroup`).
    pub fn new(proc_root: impl Into<PathBuf>, cgroup_root: impl Into<PathBuf>) -> Scanner {
        Scanner {
            proc_root: proc_root.into(),
            cgroup_root: cgroup_root.into(),
            known: HashMap::new(),
            commands: HashMap::new(),
            scans: 0,
            settling: HashMap::new(),
            troubled: HashSet::new(),
        }
    }

    /// The VMs that were told of as appeared, not yet as gone.
    pub fn known(&self) -> impl Iterator<Item = ProcessKey> {
        self.known.values().map(|known| known.vm.key)
    }

    /// Compares the process list with the last one.
    ///
    /// # Errors
    /// [`VmError::ProcRoot`] if there is no process list; trouble with one process is part of [`Changes`].
    pub fn scan(&mut self) -> Result<Changes, VmError> {
        let pids: HashSet<i32> = pids(&self.proc_root)?.into_iter().collect();
        self.scans = self.scans.wrapping_add(1);
        let mut changes = Changes::default();
        let proc_root = &self.proc_root;
        self.known.retain(|pid, known| {
            let key = known.vm.key;
            let alive =
                pids.contains(pid) && !matches!(Proc::open_key(proc_root, key), Err(VmError::Gone { .. }));
            if !alive {
                changes.gone.push(key);
            }
            alive
        });
        self.settling.retain(|key, _| pids.contains(&key.pid));
        self.troubled.retain(|pid| pids.contains(pid));
        self.commands.retain(|key, _| pids.contains(&key.pid) && !changes.gone.contains(key));

        let mut mappings = None;
        self.look_again(&mut mappings, &mut changes);
        for pid in pids.into_iter().filter(|pid| !self.known.contains_key(pid)).collect::<Vec<_>>() {
            match self.look(pid, &mut mappings) {
                Ok(Look::NoVm) | Err(VmError::Gone { .. }) => {}
                Ok(Look::Settling(key)) => *self.settling.entry(key).or_default() += 1,
                Ok(Look::Found(known)) => {
                    self.settling.remove(&known.vm.key);
                    self.troubled.remove(&pid);
                    changes.appeared.push(known.vm.clone());
                    self.known.insert(pid, *known);
                }
                Err(error) => {
                    if self.troubled.insert(pid) {
                        changes.errors.push(error);
                    }
                }
            }
        }
        changes.appeared.sort_by_key(|vm| vm.key);
        changes.changed.sort_by_key(|vm| vm.key);
        changes.gone.sort();
        Ok(changes)
    }

    /// Looks again at those of the known VMs for which there is a reason to.
    fn look_again(&mut self, mappings: &mut Mappings, changes: &mut Changes) {
        for pid in self.known.keys().copied().collect::<Vec<_>>() {
            let Some(known) = self.known.remove(&pid) else { continue };
            let (known, error) = match self.looked_again(&known, mappings) {
                Ok(None) => (known, None),
                Ok(Some(new)) if new.vm.differs_from(&known.vm) => {
                    changes.changed.push(new.vm.clone());
                    (new, None)
                }
                Ok(Some(new)) => (Known { mapped_pages: new.mapped_pages, ..known }, None),
                // The next scan says so.
                Err(VmError::Gone { .. }) => (known, None),
                Err(error) => (known, Some(error)),
            };
            self.known.insert(pid, known);
            changes.errors.extend(error.filter(|_| self.troubled.insert(pid)));
        }
    }

    fn looked_again(&mut self, known: &Known, mappings: &mut Mappings) -> Result<Option<Known>, VmError> {
        let process = Proc::open_key(&self.proc_root, known.vm.key)?;
        // Not all of them in one scan.
        let turn = self.scans.wrapping_add(known.vm.key.pid.cast_unsigned());
        let due = |every: u32| turn.is_multiple_of(every);
        let fixed = known.vm.fixed_refusal.as_ref();
        let may_pass = known.vm.may_pass();
        let is_shared = known.vm.ram.iter().any(|region| matches!(region.backing, Backing::Shared { .. }));
        let has_mapper = matches!(fixed, Some(Refusal::SharedMapper { .. }));
        let find_mappers = is_shared
            && (due(MAPPERS_SCANS) && (known.vhost_user || has_mapper)
                || due(AGAIN_SCANS) && !has_mapper && mapped_twice(&process, &known.vm.ram));
        let mapped_pages = process.mapped_pages()?;
        let resized = mapped_pages != known.mapped_pages;
        if !(resized || find_mappers || due(AGAIN_SCANS) && may_pass || due(ANYWAY_SCANS)) {
            return Ok(None);
        }
        let Some(command) = self.command(&process, known.vm.key)? else {
            return Err(VmError::Gone { pid: known.vm.key.pid });
        };
        let mappers = find_mappers.then_some(mappings);
        let layout = layout(&process, &command)?;
        let vm = self.build(&process, known.vm.key, &command, &layout, mappers, Some(&known.vm))?;
        Ok(Some(Known { vm, vhost_user: command.vhost_user, mapped_pages }))
    }

    fn look(&mut self, pid: i32, mappings: &mut Mappings) -> Result<Look, VmError> {
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
        let key = process.key()?;
        let Some(command) = self.command(&process, key)? else {
            return Ok(Look::NoVm);
        };
        // Before its mappings: what is mapped from now on makes for another look.
        let mapped_pages = process.mapped_pages()?;
        let layout = layout(&process, &command)?;
        let settled = layout.complete && layout.slots_complete || command.unread.is_some();
        if !settled && self.settling.get(&key).is_none_or(|&scans| scans < SETTLE_SCANS) {
            return Ok(Look::Settling(key));
        }
        let mappers = command.vhost_user.then_some(mappings);
        let vm = self.build(&process, key, &command, &layout, mappers, None)?;
        Ok(Look::Found(Box::new(Known { vm, vhost_user: command.vhost_user, mapped_pages })))
    }

    /// What the process was started with; `None` if that is no VM.
    fn command(&mut self, process: &Proc, key: ProcessKey) -> Result<Option<CommandLine>, VmError> {
        let arguments = process.arguments()?;
        let mut hasher = DefaultHasher::new();
        arguments.hash(&mut hasher);
        let hash = hasher.finish();
        if let Some((_, command)) = self.commands.get(&key).filter(|(known, _)| *known == hash) {
            return Ok(Some(command.clone()));
        }
        let command = CommandLine::parse(&arguments, &mut |path| readconfig::text(process, path));
        if let Some(command) = &command {
            self.commands.insert(key, (hash, command.clone()));
        }
        Ok(command)
    }

    /// `mappers`: other processes that map its RAM are looked for, else those of `before` stay.
    fn build(
        &self,
        process: &Proc,
        key: ProcessKey,
        command: &CommandLine,
        layout: &Layout,
        mappers: Option<&mut Mappings>,
        before: Option<&Vm>,
    ) -> Result<Vm, VmError> {
        let runtime = Runtime::read(process, &self.cgroup_root)?;
        let is_amd = command.board.is_amd(runtime.kvm, || self.host_is_amd());
        let parts = parts::sort(layout, command, is_amd, before.map(|vm| vm.guest_ranges.as_slice()));
        let mut refusals = fixed_refusals(command, layout, &parts.ram);
        refusals.extend(parts.refusal);
        let fixed_before = before.and_then(|vm| vm.fixed_refusal.clone());
        match rare_flags(process, &runtime, &parts.ram) {
            Some(flags) => {
                refusals.extend(flags.locked.then_some(Refusal::MemoryLocked));
                refusals.extend(flags.userfaultfd.then_some(Refusal::Userfaultfd));
            }
            // What cannot be looked at again stays as it was.
            None => refusals.extend(fixed_before.clone().filter(|refusal| *refusal == Refusal::Userfaultfd)),
        }
        if let Some(mappings) = mappers {
            let all = match mappings.take() {
                Some(all) => all,
                None => SharedMappings::read(&self.proc_root)?,
            };
            let other = all.other_than(key.pid, &parts.ram);
            refusals.extend(other.map(|pid| Refusal::SharedMapper { pid }));
            *mappings = Some(all);
        } else {
            refusals.extend(fixed_before.filter(|refusal| matches!(refusal, Refusal::SharedMapper { .. })));
        }
        let mut vm = Vm {
            key,
            name: command.name.clone().unwrap_or_else(|| format!("vm-{}", key.pid)),
            uuid: command.uuid.clone(),
            namespace: command.namespace.clone(),
            accel: runtime.accel(),
            ram: parts.ram,
            on_demand: parts.on_demand,
            left_alone: parts.left_alone,
            guest_ranges: parts.guest_ranges,
            refusal: None,
            fixed_refusal: gravest(refusals),
            incoming: command.incoming,
            cgroup: runtime.cgroup.clone(),
            numa_bound: command.numa_bound,
            free_page_reporting: command.free_page_reporting,
            images: before.map_or_else(|| images(process), |vm| vm.images.clone()),
        };
        vm.refusal = judge(vm.fixed_refusal.as_ref(), &runtime, vm.lasting_bytes(), vm.incoming);
        Ok(vm)
    }

    fn host_is_amd(&self) -> bool {
        std::fs::read_to_string(self.proc_root.join("cpuinfo"))
            .is_ok_and(|text| text.contains("AuthenticAMD"))
    }
}

/// Whether the VM's RAM may be moved at this moment: devices, locks, migrations and limits begin at any time. Reads no
/// mappings. What cannot be read is refused.
#[must_use]
pub fn recheck(proc_root: &Path, cgroup_root: &Path, vm: &Vm) -> Option<Refusal> {
    let runtime = Proc::open_key(proc_root, vm.key).and_then(|process| Runtime::read(&process, cgroup_root));
    match runtime {
        Ok(runtime) => judge(vm.fixed_refusal.as_ref(), &runtime, vm.lasting_bytes(), vm.incoming),
        Err(VmError::Gone { .. }) => Some(Refusal::Gone),
        Err(error) => gravest(
            vm.fixed_refusal.clone().into_iter().chain([Refusal::Unreadable { why: error.to_string() }]),
        ),
    }
}

fn is_qemu(executable: &str) -> bool {
    // Nix starts `.qemu-system-x86_64-wrapped`.
    let name = executable.trim_start_matches('.');
    name.starts_with("qemu-system-") || name.starts_with("qemu-kvm") || name == "kvm"
}

fn layout(process: &Proc, command: &CommandLine) -> Result<Layout, VmError> {
    let media = Media::new(process);
    Ok(ram::find(&process.mappings()?, command, &|map| media.of(map)))
}

/// What the command line and the sizes of mappings forbid.
fn fixed_refusals(command: &CommandLine, layout: &Layout, ram: &[RamRegion]) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    if command.confidential {
        refusals.push(Refusal::Confidential);
    }
    if command.mem_lock {
        refusals.push(Refusal::MemoryLocked);
    }
    if let Some(why) = &command.unread {
        refusals.push(Refusal::LayoutUnknown { why: why.clone() });
    } else if !layout.complete {
        let announced = command.blocks.iter().filter(|block| matches!(block.role, Role::Main | Role::Dimm));
        refusals.push(Refusal::LayoutUnclear {
            announced_bytes: announced.fold(0, |sum, block| block.bytes.saturating_add(sum)),
            found_bytes: ram.iter().map(|region| region.bytes).sum(),
        });
    }
    refusals
}
