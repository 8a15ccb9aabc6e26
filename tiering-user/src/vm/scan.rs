//! Keeps track of which VMs there are. In: the process list, time and again. Out: what appeared, what changed, what
//! went.
//!
//! 1. A known process costs two reads a scan: its `stat`, and the size of its address space. Of any other one it is
//!    read
//!    where its `exe` link points, in the first scans and then in one of ten: it can become QEMU by `exec` without a new
//!    pid or start time.
//! 2. QEMU by executable and by command line is looked at in full.
//! 3. A VM that has not mapped its RAM yet is tried again; after a few scans it is reported to be watched only.
//! 4. A known VM is looked at again when its address space has another size (memory was plugged or unplugged), when it
//!    was refused for a reason that may pass, and once a minute. Shared RAM is looked at for other processes that map
//!    it.
//!
//! An unreadable process does not hide the others: each trouble is reported once, and tried again at each scan. A look
//! may hang, where the process is stuck: [`Scanner::copy`] says at which, and the scan can be done anew by a copy that
//! leaves it alone. Of a process whose owner is not trusted nothing is read but its name, and only so many of them are
//! told of.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use super::cmdline::{CommandLine, Role};
use super::images::images;
use super::mappers::{SharedMappings, mapped_twice};
use super::medium::Media;
use super::others::Others;
use super::parts;
use super::process::{Proc, VmError, pids};
use super::ram::{self, Layout};
use super::rare_flags::rare_flags;
use super::readconfig;
use super::refusal::{gravest, judge};
use super::runtime::Runtime;
use super::trust::{Owner, Trust};
use super::{Accel, Backing, ProcessKey, RamRegion, Refusal, Vm, cgroup};

/// Scans after which a layout that still does not add up is taken as it is. QEMU maps RAM in its first second.
pub(super) const SETTLE_SCANS: u32 = 5;
/// Scans between two looks at a VM that was refused for a reason that may pass, and at a few pages of shared RAM.
pub(super) const AGAIN_SCANS: u32 = 10;
/// Scans between two looks at the mappings of all processes, for a VM with vhost-user devices.
pub(super) const MAPPERS_SCANS: u32 = 30;
/// Scans between two looks at any VM: a DIMM may be plugged in the second in which one of its size is unplugged.
const ANYWAY_SCANS: u32 = 60;
/// More virtual processors than KVM has for a VM are not believed.
const MOST_VCPUS: u32 = 4096;
/// Processes of owners that are not trusted that are told of.
pub(super) const MOST_STRANGERS: usize = 64;
/// Where the name of such a process is looked for.
const STRANGER_CMDLINE_BYTES: u64 = 64 << 10;

/// What a scan found out.
#[derive(Debug, Default)]
pub struct Changes {
    pub appeared: Vec<Vm>,
    /// Known before, and not as they were: RAM was plugged or unplugged, or what is refused is another thing.
    pub changed: Vec<Vm>,
    pub gone: Vec<ProcessKey>,
    /// VMs that could not be read, each once.
    pub errors: Vec<VmError>,
    /// Processes of owners that are not trusted that were not told of, since there are too many.
    pub unlisted: usize,
    /// Why VMs cannot be read now.
    pub troubles: Vec<String>,
    /// Processes that are still making their RAM, and not told of yet.
    pub settling: usize,
}

/// Finds VMs and remembers which ones it has told of.
#[derive(Clone, Debug)]
pub struct Scanner {
    proc_root: PathBuf,
    cgroup_root: PathBuf,
    trust: Trust,
    /// Told of as appeared, not yet as gone.
    known: HashMap<i32, Known>,
    /// The same of processes whose owner is not trusted.
    strangers: HashMap<i32, (ProcessKey, Owner)>,
    /// What processes were started with: files that they read then may be gone by now.
    /// Beside it a hash of the arguments, which a process may rewrite.
    commands: HashMap<ProcessKey, (u64, CommandLine)>,
    scans: u32,
    others: Others,
    /// QEMU processes whose RAM is not mapped yet: scans so far.
    settling: HashMap<ProcessKey, u32>,
    /// Pids with trouble, and what was told of it.
    troubled: HashMap<i32, String>,
    /// Pids that are not looked at, since who does so hangs.
    left_alone: HashSet<i32>,
    /// The pid that is being looked at.
    at: Arc<AtomicI32>,
}

/// A VM as it was told of.
#[derive(Clone, Debug)]
struct Known {
    vm: Vm,
    owner: Owner,
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
    Stranger(Box<Vm>, Owner),
    Unlisted,
}

impl Scanner {
    /// `proc_root` is `/proc`, `cgroup_root` where cgroup v2 is mounted (`/sys/fs/cgroup`).
    pub fn new(proc_root: impl Into<PathBuf>, cgroup_root: impl Into<PathBuf>, trust: Trust) -> Scanner {
        Scanner {
            proc_root: proc_root.into(),
            cgroup_root: cgroup_root.into(),
            trust,
            known: HashMap::new(),
            strangers: HashMap::new(),
            commands: HashMap::new(),
            scans: 0,
            others: Others::default(),
            settling: HashMap::new(),
            troubled: HashMap::new(),
            left_alone: HashSet::new(),
            at: Arc::default(),
        }
    }

    /// One that knows the same, and the pid that it is at while it scans.
    pub fn copy(&self) -> (Scanner, Arc<AtomicI32>) {
        let at = Arc::<AtomicI32>::default();
        (Scanner { at: Arc::clone(&at), ..self.clone() }, at)
    }

    /// This process is not looked at any more, or is again.
    pub fn leave_alone(&mut self, pid: i32, yes: bool) {
        if yes {
            self.left_alone.insert(pid);
        } else {
            self.left_alone.remove(&pid);
        }
    }

    /// The VMs that were told of as appeared, not yet as gone, but for those whose owner is not trusted.
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
        let mut stays = |key: ProcessKey, owner: Owner| {
            let owner_now = Proc::open_key(proc_root, key).and_then(|process| Owner::of(&process));
            let stays = pids.contains(&key.pid)
                && match owner_now {
                    // QEMU gives up root once it has set itself up, where it is told to (-runas): then it is looked at
                    // anew.
                    Ok(now) => now == owner,
                    Err(error) => !matches!(error, VmError::Gone { .. }),
                };
            if !stays {
                changes.gone.push(key);
            }
            stays
        };
        self.known.retain(|_, known| stays(known.vm.key, known.owner));
        self.strangers.retain(|_, (key, owner)| stays(*key, *owner));
        self.settling.retain(|key, _| pids.contains(&key.pid));
        self.troubled.retain(|pid, _| pids.contains(pid));
        self.others.retain(&pids);
        self.commands.retain(|key, _| pids.contains(&key.pid) && !changes.gone.contains(key));

        let mut mappings = None;
        self.look_again(&mut mappings, &mut changes);
        let is_new = |pid: &i32| {
            !(self.known.contains_key(pid)
                || self.strangers.contains_key(pid)
                || self.left_alone.contains(pid)
                || self.others.rests(*pid, self.scans))
        };
        for pid in pids.into_iter().filter(is_new).collect::<Vec<_>>() {
            self.at.store(pid, Ordering::Relaxed);
            let looked = self.look(pid, &mut mappings);
            // Of a thread of the kernel nothing is found.
            let is_none = matches!(looked, Ok(Look::NoVm) | Err(VmError::Gone { .. }));
            self.others.note(pid, is_none, self.scans);
            match looked {
                Ok(Look::NoVm) | Err(VmError::Gone { .. }) => drop(self.troubled.remove(&pid)),
                Ok(Look::Settling(key)) => *self.settling.entry(key).or_default() += 1,
                Ok(Look::Found(known)) => {
                    self.settling.remove(&known.vm.key);
                    self.troubled.remove(&pid);
                    changes.appeared.push(known.vm.clone());
                    self.known.insert(pid, *known);
                }
                Ok(Look::Stranger(vm, owner)) => {
                    self.strangers.insert(pid, (vm.key, owner));
                    changes.appeared.push(*vm);
                }
                Ok(Look::Unlisted) => changes.unlisted += 1,
                Err(error) => changes.errors.extend(self.news(pid, error)),
            }
        }
        changes.appeared.sort_by_key(|vm| vm.key);
        changes.changed.sort_by_key(|vm| vm.key);
        changes.gone.sort();
        changes.troubles = self.troubled.values().cloned().collect();
        changes.settling = self.settling.len();
        Ok(changes)
    }

    /// The trouble with a process, if it was not told yet.
    fn news(&mut self, pid: i32, error: VmError) -> Option<VmError> {
        let text = error.to_string();
        let before = self.troubled.insert(pid, text.clone());
        before.is_none_or(|told| told != text).then_some(error)
    }

    /// Looks again at those of the known VMs for which there is a reason to.
    fn look_again(&mut self, mappings: &mut Mappings, changes: &mut Changes) {
        let all = self.known.keys().filter(|pid| !self.left_alone.contains(pid));
        for pid in all.copied().collect::<Vec<_>>() {
            self.at.store(pid, Ordering::Relaxed);
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
            match error {
                Some(error) => changes.errors.extend(self.news(pid, error)),
                None => drop(self.troubled.remove(&pid)),
            }
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
        Ok(Some(Known { vm, owner: known.owner, vhost_user: command.vhost_user, mapped_pages }))
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
        let owner = Owner::of(&process)?;
        let group = cgroup::path(&process.read("cgroup", procfs::process::Process::cgroups)?);
        if let Some(refusal) = self.trust.refusal(owner, group.as_deref()) {
            return self.look_at_stranger(&process, key, owner, refusal);
        }
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
        Ok(Look::Found(Box::new(Known { vm, owner, vhost_user: command.vhost_user, mapped_pages })))
    }

    /// What is told of a process whose owner is not trusted: its name, and why it is left alone.
    fn look_at_stranger(
        &self,
        process: &Proc,
        key: ProcessKey,
        owner: Owner,
        refusal: Refusal,
    ) -> Result<Look, VmError> {
        if self.strangers.len() >= MOST_STRANGERS {
            return Ok(Look::Unlisted);
        }
        let arguments = process.arguments_within(STRANGER_CMDLINE_BYTES)?;
        let unread = &mut |_: &str| Err("its owner is not trusted".to_owned());
        let Some(command) = CommandLine::parse(&arguments, unread) else {
            return Ok(Look::NoVm);
        };
        let vm = Vm {
            key,
            name: command.name.unwrap_or_else(|| format!("vm-{}", key.pid)),
            uuid: None,
            namespace: None,
            accel: Accel::Tcg,
            vcpus: 1,
            ram: Vec::new(),
            on_demand: Vec::new(),
            left_alone: Vec::new(),
            guest_ranges: Vec::new(),
            refusal: Some(refusal.clone()),
            fixed_refusal: Some(refusal),
            incoming: false,
            cgroup: None,
            numa_bound: false,
            free_page_reporting: false,
            images: BTreeMap::new(),
        };
        Ok(Look::Stranger(Box::new(vm), owner))
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
                None => {
                    let all = SharedMappings::read(&self.proc_root, &self.left_alone, &self.at)?;
                    self.at.store(key.pid, Ordering::Relaxed);
                    all
                }
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
            vcpus: command.vcpus.unwrap_or(1).clamp(1, MOST_VCPUS),
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

/// Makes sure that the number still is that of the process that was found.
///
/// # Errors
/// [`VmError::Gone`] where it is not; those of reading `/proc`.
pub fn check_key(proc_root: &Path, key: ProcessKey) -> Result<(), VmError> {
    Proc::open_key(proc_root, key).map(drop)
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
