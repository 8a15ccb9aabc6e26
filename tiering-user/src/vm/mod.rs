//! VMs as the host sees them: which processes are QEMU guests, where their RAM lies in the process's
//! address space, and whether it may be moved.
//!
//! In: `/proc` and the cgroup v2 hierarchy, both given as paths. Out: [`Vm`] values, what appeared and what went
//! ([`Scanner`]), and before each batch of moves one cheap answer to "still allowed?" ([`recheck`]).
//! Nothing here moves memory, talks to a monitor socket or asks an orchestrator.
//!
//! | file | step |
//! |---|---|
//! | `scan` | compares the process list with what is known, builds a `Vm` |
//! | `process` | reads one process's files, tells "ended" from "not allowed" |
//! | `options`, `arguments`, `readconfig`, `cmdline` | QEMU's option syntax, where options come from, and those that matter here |
//! | `ram`, `medium` | picks guest RAM out of the mappings, and what it is made of |
//! | `parts` | what of it is managed, what is left alone |
//! | `gpa` | where guest-physical addresses lie in it |
//! | `libvirt` | labels that an operator gave it |
//! | `images` | which base images it reads |
//! | `runtime`, `cgroup`, `mappers`, `rare_flags` | facts that change while a VM runs |
//! | `trust` | whose processes may be managed at all |
//! | `refusal` | judges the facts |
//! | `binding` | which memory nodes it is bound to |
//! | `group_memory`, `ksm`, `usage` | how much room its control groups leave, what is merged of it, what its process uses |
//! | `by_node` | what of its control group is on which memory nodes |
//!
//! Limits: guests of other hypervisors are not found. A migration shows only where QEMU names its threads (libvirt,
//! KubeVirt and Proxmox ask it to). Where several memory blocks have one size, which is which is an educated guess
//! ([`Vm::ram`]). Memory that was plugged before the agent started has no guest-physical address.

mod arguments;
mod binding;
mod by_node;
mod cgroup;
mod cmdline;
mod gpa;
mod group_memory;
mod images;
mod ksm;
pub mod libvirt;
mod mappers;
mod medium;
mod options;
mod others;
mod page_ages;
mod parts;
mod process;
mod ram;
mod rare_flags;
mod readconfig;
mod refusal;
mod runtime;
mod scan;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod trust;
mod usage;

use std::collections::BTreeMap;
use std::fmt;

pub use binding::{Binding, bindings};
pub use by_node::OnNodes;
pub use gpa::{Gpa, GuestRange, Proof, Verdict};
pub use group_memory::{ChargeLimit, GroupMemory, Headroom, Pressure, keep_own_pressure};
pub use images::FileId;
pub use ksm::ksm_bytes;
pub use page_ages::{GroupAges, Idle, NoAges, PageAges};
pub use process::VmError;
pub use refusal::{Apart, LeftAlone, Refusal, Scope};
pub use scan::{Changes, Scanner, check_key, recheck};
pub use trust::Trust;
pub use usage::{Usage, usage};

/// A host virtual address inside a VM's process, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hva(pub u64);

impl Hva {
    /// The start of the page of `page_bytes` (a power of two) that holds this address.
    #[must_use]
    pub fn page_start(self, page_bytes: u64) -> Hva {
        debug_assert!(page_bytes.is_power_of_two());
        Hva(self.0 & !(page_bytes - 1))
    }

    /// This address plus `bytes`; `None` past the end of the address space.
    #[must_use]
    pub fn checked_add(self, bytes: u64) -> Option<Hva> {
        self.0.checked_add(bytes).map(Hva)
    }
}

impl fmt::Display for Hva {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A process for as long as it lives: process ids are reused, the pair is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessKey {
    pub pid: i32,
    /// Clock ticks after boot, field 22 of `/proc/PID/stat`.
    pub start_time_ticks: u64,
}

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The kernel: guest faults arrive as `kvm_page_fault`.
    Kvm,
    /// QEMU's emulator: guest faults are ordinary faults of the process.
    Tcg,
}

/// What stands behind a RAM region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// Private memory; a private mapping of a tmpfs file counts too, since written pages are copies.
    Anonymous,
    /// A shared memfd or tmpfs file. `device` (major, minor) and `inode` identify it; `offset` (bytes) is where in the
    /// file the region begins; `path` is the kernel's text, for people.
    Shared { path: String, device: (i32, i32), inode: u64, offset: u64 },
    /// Pages from the hugetlb pool: cannot be swapped.
    Hugetlb,
}

/// One block of guest RAM, contiguous in the process and (but for the hole below 4 GiB) in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamRegion {
    pub start: Hva,
    pub bytes: u64,
    pub backing: Backing,
}

impl RamRegion {
    /// The first address behind the region.
    #[must_use]
    pub fn end(&self) -> Hva {
        Hva(self.start.0.saturating_add(self.bytes))
    }

    /// Whether `address` lies in the region.
    #[must_use]
    pub fn contains(&self, address: Hva) -> bool {
        self.start <= address && address < self.end()
    }
}

/// A VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    pub key: ProcessKey,
    /// Without control characters, at most 128 characters; `vm-PID` where the command line gives none.
    pub name: String,
    /// Lower case. Two processes can carry the same one (a local migration, a careless copy): [`Vm::key`] cannot clash.
    pub uuid: Option<String>,
    /// KubeVirt only.
    pub namespace: Option<String>,
    pub accel: Accel,
    /// Virtual processors that it began with.
    pub vcpus: u32,
    /// In guest-physical order. Equal-sized blocks are told apart by address (blocks that QEMU creates later lie lower
    /// as a rule), which is a guess: prove it before trusting a guest-physical address. Empty or approximate under
    /// [`Refusal::LayoutUnclear`].
    pub ram: Vec<RamRegion>,
    /// Those of the regions that have room for more than is plugged (virtio-mem): what of them was never touched is not
    /// there.
    pub on_demand: Vec<RamRegion>,
    /// Memory of the guest that is not in `ram`, or is moved less far than the rest of it.
    pub left_alone: Vec<LeftAlone>,
    /// The same RAM with its guest-physical addresses, by rule and not proved.
    pub guest_ranges: Vec<GuestRange>,
    /// Why the RAM may not be moved, as of the last look; [`recheck`] brings it up to date.
    pub refusal: Option<Refusal>,
    /// The part of `refusal` that command line, mappings and other mapping processes decide; only
    /// [`Scanner::scan`] looks at it again.
    pub fixed_refusal: Option<Refusal>,
    /// Started to receive a migration; over once its virtual CPUs run.
    pub incoming: bool,
    /// Path below the cgroup mount, of the v2 hierarchy if it has one, else of the v1 memory controller.
    pub cgroup: Option<String>,
    /// RAM is strictly bound to NUMA nodes: moves must stay inside the set.
    pub numa_bound: bool,
    /// Its balloon gives back what the guest has free.
    pub free_page_reporting: bool,
    /// Base images that it had open when it was found, each with a descriptor of its.
    pub images: BTreeMap<FileId, i32>,
}

impl Vm {
    /// An emulated one with one virtual processor, whose anonymous RAM is one range from guest-physical address 0.
    pub fn plain(key: ProcessKey, name: &str, start: Hva, bytes: u64) -> Self {
        Self {
            key,
            name: name.to_owned(),
            uuid: None,
            namespace: None,
            accel: Accel::Tcg,
            vcpus: 1,
            ram: vec![RamRegion { start, bytes, backing: Backing::Anonymous }],
            on_demand: Vec::new(),
            left_alone: Vec::new(),
            guest_ranges: vec![GuestRange { start, bytes, gpa: Some(Gpa(0)) }],
            refusal: None,
            fixed_refusal: None,
            incoming: false,
            cgroup: None,
            numa_bound: false,
            free_page_reporting: false,
            images: BTreeMap::new(),
        }
    }

    /// Sum of the RAM regions.
    #[must_use]
    pub fn ram_bytes(&self) -> u64 {
        self.ram.iter().map(|region| region.bytes).sum()
    }

    /// Without room that is filled on demand: most of it may never be.
    fn lasting_bytes(&self) -> u64 {
        self.ram_bytes() - self.on_demand.iter().map(|region| region.bytes).sum::<u64>()
    }

    /// The UUID, else a name that no other process on this host has had since boot.
    #[must_use]
    pub fn id(&self) -> String {
        match &self.uuid {
            Some(uuid) => uuid.clone(),
            None => format!("{}@{}-{}", self.name, self.key.pid, self.key.start_time_ticks),
        }
    }

    /// What it is called when its process is another one.
    #[must_use]
    pub fn identity(&self) -> String {
        match (&self.uuid, &self.namespace) {
            (Some(uuid), Some(namespace)) => format!("uuid/{namespace}/{uuid}"),
            (Some(uuid), None) => format!("uuid/{uuid}"),
            (None, Some(namespace)) => format!("name/{namespace}/{}", self.name),
            (None, None) => format!("name/{}", self.name),
        }
    }

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

/// Text that others chose, for terminals, logs and labels: without control characters, at most 128 characters.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(128).collect()
}
