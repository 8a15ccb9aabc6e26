//! How much room a VM's control groups leave. In: the mount point of the v2 hierarchy, the VM's path in it and its pid.
//! Out: [`GroupMemory`], plain values. Does not judge (`policy::room`).
//!
//! A limit of any group on the path up to the root holds for all below it, so each figure is the least along the path:
//!
//! | figure | of each group |
//! |---|---|
//! | swap | the smaller of `memory.swap.max` and `memory.swap.high`, less `memory.swap.current` |
//! | charge | the smaller of `memory.max` and `memory.high`, less `memory.current` without copies |
//! | unprotected | `memory.current` without copies, less the larger of `memory.min` and `memory.low` |
//!
//! A group's protection counts as far as those of all groups above it do (Documentation/admin-guide/cgroup-v2.rst,
//! Linux 6.1 to 6.18).
//!
//! Copies are what page-outs left in the swap cache. They are charged until the kernel lets go of them, for which it
//! needs no I/O: a group at its limit makes room by that, and they are as good as gone. `swapcached` of `memory.stat`
//! counts mapped pages too, those that were read back and not written since. But on the lists of anonymous memory
//! (`active_anon`, `inactive_anon`) are the mapped pages (`anon`), shared memory (`shmem`), and the copies
//! (include/linux/mmzone.h, Linux 6.1 to 6.18).
//!
//! How long the group waited for memory comes from its `memory.pressure`. That is the VM's own only where no other VM
//! is in the group or below it ([`keep_own_pressure`]); helpers of the VM (swtpm, virtiofsd, virt-launcher) are taken
//! for a part of it.
//!
//! Limits: a group's neighbours, which may have been promised more than their parent was, are not looked at. In a
//! cgroup namespace of its own the agent sees relative paths (`/../..`), of which nothing is concluded. Limits of
//! cgroup v1 are not read.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use procfs::{FromRead as _, MemoryPressure};

use super::ProcessKey;
use super::cgroup;
use super::process::Proc;

/// Helpers of a VM in its group (swtpm, virtiofsd, virtqemud, virt-launcher): no more memory, and no more of them.
const HELPERS_MOST_BYTES: u64 = 256 << 20;
const HELPERS_MOST: usize = 64;
/// Names of processes that are VMs.
const VM_COMMANDS: [&str; 4] = ["qemu", "kvm", "cloud-hyperviso", "firecracker"];

/// What may still be added, or taken away, before a limit is met.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Headroom {
    /// No group on the path has such a limit.
    #[default]
    Unlimited,
    Left {
        left_bytes: u64,
        limit_bytes: u64,
        group: String,
    },
    /// A group has the file, and it cannot be read.
    Unreadable {
        file: PathBuf,
    },
}

impl Headroom {
    /// The one that leaves less; what cannot be read may leave nothing.
    fn least(self, other: Self) -> Self {
        let rank = |headroom: &Self| match headroom {
            Self::Unreadable { .. } => None,
            Self::Left { left_bytes, .. } => Some(*left_bytes),
            Self::Unlimited => Some(u64::MAX),
        };
        if rank(&other) < rank(&self) { other } else { self }
    }
}

/// How long a group has waited for memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pressure {
    pub group: String,
    /// Time in which one of its tasks at least waited, since the group was made.
    pub some: Duration,
}

/// A limit on what may be charged to a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChargeLimit {
    pub group: String,
    pub limit_bytes: u64,
    /// What is charged to it, without what gives way without being written: copies, and page cache that is neither
    /// mapped nor dirty.
    pub held_bytes: u64,
}

/// What a VM's control groups say of its memory.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GroupMemory {
    /// The group that the process is in, whether it counts memory or not.
    pub path: Option<String>,
    /// The nearest group that counts memory: what the VM uses is charged there. None where no group does.
    pub group: Option<String>,
    pub swap: Headroom,
    pub charge: Headroom,
    /// Of all groups on the path that have one.
    pub charge_limits: Vec<ChargeLimit>,
    pub unprotected: Headroom,
    /// Of what one of the groups may use as swap, half is used: the kernel then takes the slot of a page that is mapped.
    pub swap_half_full: bool,
    /// Times that the kernel found no swap for the group (`fail` in `memory.swap.events`).
    pub swap_fails: Option<u64>,
    /// Of the group, mapped or shared memory: what is on its lists of anonymous memory, without copies.
    pub guest_bytes: Option<u64>,
    /// Page cache that is charged to the group, without shared memory.
    pub file_bytes: Option<u64>,
    /// Anonymous memory of the group that is mapped as huge pages.
    pub huge_bytes: Option<u64>,
    /// Pages of the group that were reclaimed and read back, whoever asked for them.
    pub refaults_total: Option<u64>,
    /// The group can be told to give memory back.
    pub can_reclaim: bool,
    /// Of the group, in the swap cache and not mapped.
    pub swap_cached_bytes: Option<u64>,
    /// Of the group that counts memory; where none does, of the nearest one that is no group of threads.
    pub pressure: Option<Pressure>,
    /// The group and those below it hold no other VM, and of other processes only small ones: helpers of the VM.
    /// Only where [`GroupMemory::with_owner`] looked.
    pub is_vms_own: bool,
}

impl GroupMemory {
    /// Reads the groups of a process; nothing is known of one that has ended.
    #[must_use]
    pub fn of(proc_root: &Path, cgroup_root: &Path, key: ProcessKey) -> Self {
        let groups = Proc::open_key(proc_root, key)
            .and_then(|process| process.read("cgroup", procfs::process::Process::cgroups));
        match groups.ok().as_ref().and_then(cgroup::path) {
            Some(path) => Self::read(cgroup_root, &path),
            None => Self::default(),
        }
    }

    fn read(cgroup_root: &Path, path: &str) -> Self {
        let mut this = Self::default();
        if path.split('/').any(|part| part == "..") {
            return this;
        }
        this.path = Some(path.to_owned());
        // The root itself has no limits.
        let own_path = Path::new(path.trim_start_matches('/'));
        let mut groups: Vec<&Path> =
            own_path.ancestors().filter(|group| !group.as_os_str().is_empty()).collect();
        groups.reverse();
        let mut promised_above = Promise { min: u64::MAX, low: u64::MAX };
        let mut nearest = None;
        for group in groups {
            let group = Group { folder: cgroup_root.join(group), name: format!("/{}", group.display()) };
            let swap = group.swap();
            this.swap_half_full |= match &swap {
                Headroom::Left { left_bytes, limit_bytes, .. } => {
                    left_bytes.saturating_mul(2) <= *limit_bytes
                }
                Headroom::Unreadable { .. } => true,
                Headroom::Unlimited => false,
            };
            this.swap = this.swap.least(swap);
            let charge = group.charge();
            this.charge_limits.extend(group.charge_limit(&charge));
            this.charge = this.charge.least(charge);
            // A group without the memory controller passes on what it was promised.
            if group.has("memory.current") {
                let (unprotected, promised) = group.unprotected(promised_above);
                this.unprotected = this.unprotected.least(unprotected);
                promised_above = promised;
                nearest = Some(group);
            }
        }
        if let Some(group) = nearest {
            this.swap_fails = group.field("memory.swap.events", "fail");
            let text = group.text("memory.stat").ok().flatten();
            let field = |name| text.as_deref().and_then(|text| number_behind(text, name));
            this.guest_bytes = field("anon").zip(field("shmem")).map(|(anon, shmem)| anon + shmem);
            this.file_bytes =
                field("file").zip(field("shmem")).map(|(file, shmem)| file.saturating_sub(shmem));
            this.huge_bytes = field("anon_thp");
            let refaults = ["workingset_refault_anon", "workingset_refault_file"].map(field);
            this.refaults_total = refaults[0].zip(refaults[1]).map(|(anon, file)| anon + file);
            this.can_reclaim = group.has("memory.reclaim");
            this.swap_cached_bytes = group.copies();
            this.group = Some(group.name);
        }
        let name = this.group.as_deref().or_else(|| domain(cgroup_root, path));
        let folder = |name: &str| cgroup_root.join(name.trim_start_matches('/'));
        this.pressure = name.and_then(|name| {
            // Empty where it is switched off.
            let pressure = MemoryPressure::from_file(folder(name).join("memory.pressure")).ok()?;
            Some(Pressure { group: name.to_owned(), some: Duration::from_micros(pressure.some.total) })
        });
        this
    }

    /// The same, with a look at the group's other processes: two files of each.
    #[must_use]
    pub fn with_owner(mut self, proc_root: &Path, cgroup_root: &Path, key: ProcessKey) -> Self {
        self.is_vms_own = self.group.as_deref().is_some_and(|group| {
            let folder = cgroup_root.join(group.trim_start_matches('/'));
            others_bytes(proc_root, &folder, key.pid).is_some_and(|bytes| bytes <= HELPERS_MOST_BYTES)
        });
        self
    }
}

/// What a group was promised as far as the groups above it were.
#[derive(Clone, Copy)]
struct Promise {
    min: u64,
    low: u64,
}

struct Group {
    folder: PathBuf,
    name: String,
}

impl Group {
    fn has(&self, file: &str) -> bool {
        self.folder.join(file).exists()
    }

    /// The text of a file; none where the group has none: no such controller, or an older kernel.
    fn text(&self, file: &str) -> Result<Option<String>, PathBuf> {
        let path = self.folder.join(file);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(_) => Err(path),
        }
    }

    /// A number of bytes; none for `max` and where there is no such file.
    fn bytes(&self, file: &str) -> Result<Option<u64>, PathBuf> {
        match self.text(file)?.as_deref().map(str::trim) {
            None | Some("max") => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| self.folder.join(file)),
        }
    }

    /// The number behind a word at the begin of a line.
    fn field(&self, file: &str, name: &str) -> Option<u64> {
        let text = self.text(file).ok()??;
        number_behind(&text, name)
    }

    fn swap(&self) -> Headroom {
        let used =
            || self.bytes("memory.swap.current")?.ok_or_else(|| self.folder.join("memory.swap.current"));
        self.below(["memory.swap.max", "memory.swap.high"], used)
    }

    fn charge(&self) -> Headroom {
        self.below(["memory.max", "memory.high"], || self.used())
    }

    fn charge_limit(&self, charge: &Headroom) -> Option<ChargeLimit> {
        let Headroom::Left { limit_bytes, .. } = charge else { return None };
        let text = self.text("memory.stat").ok()??;
        let sum = |names: &[&str]| names.iter().map(|name| number_behind(&text, name)).sum::<Option<u64>>();
        let page_cache = sum(&["inactive_file", "active_file"])?;
        let kept = sum(&["file_mapped", "file_dirty", "file_writeback"])?;
        let held_bytes = self.used().ok()?.saturating_sub(page_cache.saturating_sub(kept));
        Some(ChargeLimit { group: self.name.clone(), limit_bytes: *limit_bytes, held_bytes })
    }

    /// What page-outs left in the swap cache.
    fn copies(&self) -> Option<u64> {
        let text = self.text("memory.stat").ok()??;
        let field = |name| number_behind(&text, name);
        let listed = field("active_anon")?.saturating_add(field("inactive_anon")?);
        let used = field("anon")?.saturating_add(field("shmem")?);
        Some(listed.saturating_sub(used).min(field("swapcached")?))
    }

    /// What is charged to the group, without copies.
    fn used(&self) -> Result<u64, PathBuf> {
        let used = self.bytes("memory.current")?.ok_or_else(|| self.folder.join("memory.current"))?;
        Ok(used.saturating_sub(self.copies().unwrap_or(0)))
    }

    /// What is left below the smaller of two limits.
    fn below(&self, limits: [&str; 2], used: impl Fn() -> Result<u64, PathBuf>) -> Headroom {
        let read = || {
            let [hard, soft] = limits;
            let limit = [self.bytes(hard)?, self.bytes(soft)?].into_iter().flatten().min();
            let Some(limit_bytes) = limit else { return Ok(Headroom::Unlimited) };
            // Without that file the limit cannot be judged.
            let left_bytes = limit_bytes.saturating_sub(used()?);
            Ok(Headroom::Left { left_bytes, limit_bytes, group: self.name.clone() })
        };
        read().unwrap_or_else(|file| Headroom::Unreadable { file })
    }

    /// What the group has above what it was promised, and what it passes on of that.
    fn unprotected(&self, above: Promise) -> (Headroom, Promise) {
        let read = || {
            let min = self.bytes_or_all("memory.min")?.min(above.min);
            let low = self.bytes_or_all("memory.low")?.min(above.low);
            let limit_bytes = min.max(low);
            if limit_bytes == 0 {
                return Ok((Headroom::Unlimited, Promise { min, low }));
            }
            let left_bytes = self.used()?.saturating_sub(limit_bytes);
            let headroom = Headroom::Left { left_bytes, limit_bytes, group: self.name.clone() };
            Ok((headroom, Promise { min, low }))
        };
        read().unwrap_or_else(|file| (Headroom::Unreadable { file }, above))
    }

    /// A promise: `max` is all there is, no file is none.
    fn bytes_or_all(&self, file: &str) -> Result<u64, PathBuf> {
        if !self.has(file) {
            return Ok(0);
        }
        Ok(self.bytes(file)?.unwrap_or(u64::MAX))
    }
}

fn number_behind(text: &str, word: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' '))?.trim().parse().ok()
}

/// Memory of the processes of the group and of all below it, also what is in swap, without `pid`; none where one of
/// them is a VM or there are too many to look at. A threaded group does not list its processes; the one that it belongs
/// to does.
fn others_bytes(proc_root: &Path, folder: &Path, pid: i32) -> Option<u64> {
    let pids = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    let others: Vec<&str> = pids.lines().map(str::trim).filter(|line| line.parse() != Ok(pid)).collect();
    if others.len() > HELPERS_MOST {
        return None;
    }
    let mut bytes = 0;
    for other in others {
        let read = |file: &str| std::fs::read_to_string(proc_root.join(other).join(file)).unwrap_or_default();
        if VM_COMMANDS.iter().any(|name| read("comm").starts_with(name)) {
            return None;
        }
        // One that has ended meanwhile has none.
        let status = read("status");
        let kib = |name| {
            let value = status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
            value.and_then(|value| value.parse::<u64>().ok()).unwrap_or(0)
        };
        bytes += kib("VmRSS:").saturating_add(kib("VmSwap:")).saturating_mul(1024);
        if bytes > HELPERS_MOST_BYTES {
            return None;
        }
    }
    let children = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    for child in children.filter(|path| path.is_dir()) {
        bytes += others_bytes(proc_root, &child, pid)?;
    }
    Some(bytes)
}

/// The nearest group on the way up that holds whole processes: one of threads sees some of the tasks only.
fn domain<'a>(cgroup_root: &Path, path: &'a str) -> Option<&'a str> {
    let mut group = path;
    while group.len() > 1 {
        let kind =
            std::fs::read_to_string(cgroup_root.join(group.trim_start_matches('/')).join("cgroup.type"));
        if !kind.is_ok_and(|kind| kind.trim() == "threaded") {
            return Some(group);
        }
        group = &group[..group.rfind('/')?];
    }
    None
}

/// Of all VMs of the host: takes away the pressure of groups that hold more than one of them.
pub fn keep_own_pressure<'a>(memories: impl IntoIterator<Item = &'a mut GroupMemory>) {
    let mut memories: Vec<&mut GroupMemory> = memories.into_iter().collect();
    let mut vms: HashMap<PathBuf, u32> = HashMap::new();
    for path in memories.iter().filter_map(|memory| memory.path.as_deref()) {
        for group in Path::new(path).ancestors() {
            *vms.entry(group.to_owned()).or_default() += 1;
        }
    }
    for memory in &mut memories {
        memory.pressure.take_if(|pressure| vms.get(Path::new(&pressure.group)) != Some(&1));
    }
}

#[cfg(test)]
#[path = "group_memory_tests.rs"]
mod tests;
