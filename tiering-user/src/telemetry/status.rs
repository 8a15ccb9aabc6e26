//! The status: one snapshot of tiers, VMs, event accounting and access sources, as JSON shows it.
//!
//! In: nothing; the agent fills it in. Out: serde types whose field names scripts rely on: fields are added,
//! never renamed, and a reader takes the default for one that it misses. Sizes are bytes. Not here: history.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::latency::Latency;
use super::prefetch::PrefetchCounts;
use super::profile::ProfileStatus;
use super::savings::{HostSavingsStatus, SavingsStatus};

/// One snapshot.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    pub uptime_s: f64,
    /// Whether plans are only reported.
    pub dry_run: bool,
    pub agent: AgentStatus,
    /// In the swap cache of the host: paged out, or read back and not written since, and still in memory.
    pub swap_cached_bytes: u64,
    /// The ladder, fastest first.
    pub tiers: Vec<TierStatus>,
    pub vms: Vec<VmStatus>,
    /// What is saved of the VMs' memory, and how much more can be freed.
    pub savings: HostSavingsStatus,
    pub events: EventCounts,
    pub sources: Vec<SourceStatus>,
    /// What contradicts the order of the ladder or stands in its way, as found at start, and what keeps the agent from
    /// a part of its work now; each with what to do.
    pub warnings: Vec<String>,
    pub blocks: BlockCounts,
    /// What the kernel, or anybody else but the agent, has moved on this host since the agent runs.
    pub moved_by_others: KernelMovesStatus,
    /// The same of the agent's own doing, where the kernel tells.
    pub moved_by_agent: KernelMovesStatus,
    pub kernel_demotion: KernelDemotionStatus,
    /// Base images that VMs have open, once for each tenant.
    pub images: Vec<ImageStatus>,
    /// When the agent's state was last written to disk, seconds since 1970; `None` if it was not yet.
    pub state_saved_unix_s: Option<u64>,
    /// CPU time that watching and planning took in the last seconds, percent of one core.
    pub cpu_percent: f64,
    /// Reads of base images that were not seen, since there was no room for them on the way to the agent.
    pub image_reads_lost_total: u64,
}

/// What the agent itself takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AgentStatus {
    /// Resident, its program and the rings included.
    pub memory_bytes: u64,
    /// `agent.memory_limit`, or its default.
    pub memory_limit_bytes: u64,
    /// Tapes, orders of images and others that it forgot, to stay below.
    pub forgotten_total: u64,
    /// Pages of VMs that it did not take in, since the limit left no room for them.
    pub left_out_pages_total: u64,
}

/// Memory that was moved, of whatever process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KernelMovesStatus {
    /// Taken by reclaim, but for page cache. What was demoted on purpose is not in it.
    pub reclaimed_bytes_total: u64,
    /// Moved within memory: between nodes, or to make room for huge pages.
    pub migrated_bytes_total: u64,
    /// Made into huge pages.
    pub collapsed_bytes_total: u64,
}

/// The kernel's demotion between memory nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KernelDemotionStatus {
    /// It is on, whoever has switched it on.
    pub enabled: bool,
    /// Why it is not, where `policy.kernel_demotion` is `on`.
    pub refused: Option<String>,
}

/// A file that VMs of one tenant read through the host's page cache.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageStatus {
    /// The file's name, without its folder.
    pub name: String,
    /// Trust domain of those VMs.
    pub tenant: String,
    /// Major and minor number of the file system's device, and the inode number there.
    pub device: String,
    pub inode: u64,
    pub bytes: u64,
    /// Ids of the VMs that have it open.
    pub vms: Vec<String>,
    /// Of which it is known in which order they were read.
    pub known_bytes: u64,
    /// Read into the page cache ahead of need.
    pub read_ahead_bytes_total: u64,
    /// Probability, 0 to 1, that what comes next in that order is read.
    pub confidence: f64,
    /// How far ahead is read.
    pub window_bytes: u64,
}

/// Blocks of 2 MiB in the BPF map `tier_map`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlockCounts {
    pub shown: u64,
    /// Times that a block did not fit into the map.
    pub left_out_total: u64,
}

/// One tier.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TierStatus {
    pub name: String,
    /// 0 is the fastest.
    pub level: u32,
    pub kind: TierKind,
    /// NUMA nodes; empty for a swap tier.
    pub nodes: Vec<u32>,
    pub capacity_bytes: u64,
    /// In use by anybody.
    pub used_bytes: u64,
    /// In use by the VMs' guest RAM.
    pub vm_bytes: u64,
    /// Of a memory tier as measured at start, of a swap tier in the last minutes; `None` if it could not be measured.
    pub read_latency_ns: Option<Latency>,
    /// Written to the tier by the agent's moves since it started.
    pub written_bytes_total: u64,
    /// Why nothing is sent to it for a while; `None` while it works.
    pub trouble: Option<String>,
    /// Of guest RAM that came up from the tier since the agent started, as far as the agent saw it.
    pub read_bytes_total: u64,
    /// Writing single pages to a swap tier, as measured at start.
    pub write_latency_ns: Option<Latency>,
    /// What `read_latency_ns` is made of: how many reads took at most so many nanoseconds, and longer than the entry
    /// before.
    pub latency_histogram: Vec<(u64, u64)>,
    /// Reading in sequence, as measured at start.
    pub bandwidth_bytes_per_s: Option<u64>,
    /// A swap tier's disks, a memory tier's CXL regions or dax devices.
    pub device: Option<String>,
    /// What the disk of a swap tier did in the last second, whoever asked for it.
    pub device_load: Option<DeviceLoad>,
}

/// Means over one second, nanoseconds; `None` where nothing was read or written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceLoad {
    pub read_latency_ns: Option<u64>,
    pub write_latency_ns: Option<u64>,
    /// Requests not answered yet.
    pub in_flight: u64,
}

/// What a tier is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TierKind {
    #[default]
    Node,
    Swap,
}

/// One VM.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VmStatus {
    /// The UUID, or a generated identity where the VM has none.
    pub id: String,
    pub name: String,
    pub namespace: Option<String>,
    pub pid: u32,
    /// Trust domain; a VM without a configured one is its own.
    pub tenant: String,
    pub priority: u8,
    pub class: ClassStatus,
    pub movable: bool,
    /// Why it is not movable; for one that is, why it is moved between memory tiers only.
    pub reason: Option<String>,
    /// What holds its demotion back now, if something does.
    pub limited_by: Option<String>,
    /// Without what is left alone.
    pub ram_bytes: u64,
    /// Memory of the guest that is left alone, or moved less far than the rest, also where the VM is movable.
    pub left_alone: Vec<LeftAloneStatus>,
    /// Guest RAM by tier name, and `swap` where the device is not known.
    pub tier_bytes: BTreeMap<String, u64>,
    /// Whether `tier_bytes` comes from its page tables. Those of a VM that is not moved are read only when somebody
    /// asks for its map: until then it is what its process has in memory.
    pub page_tables_read: bool,
    /// Highest value of each entry of `tier_bytes` so far.
    pub tier_bytes_peak: BTreeMap<String, u64>,
    /// Guest RAM in huge pages.
    pub huge_bytes: u64,
    /// Guest RAM that was in huge pages and is in small ones, or in swap, now.
    pub huge_lost_bytes: u64,
    /// Memory that is held by huge pages which are kept (`huge = "keep"`): they do not go to swap.
    pub huge_kept_bytes: u64,
    /// In huge pages before a step, of the agent or of the kernel that it asked, and in none after it.
    pub huge_split_bytes_total: u64,
    /// Made into huge pages again by the agent.
    pub collapsed_bytes_total: u64,
    /// Of its process: merged with equal pages by KSM; `None` where the kernel does not tell.
    pub ksm_bytes: Option<u64>,
    /// Copies that page-outs left in the swap cache: of its control group, where it is alone there, else by what the
    /// agent knows of its own page-outs. `None` where the agent does not tell.
    pub swap_cached_bytes: Option<u64>,
    /// Memory that is free because its pages are in swap, without those copies.
    pub freed_bytes: u64,
    /// How lasting that is, and how much more can be freed.
    pub savings: SavingsStatus,
    /// Whether the guest gives back what it has free; `None` where the agent does not tell.
    pub free_page_reporting: Option<bool>,
    /// Guest RAM that was never touched and is in no tier.
    pub untouched_bytes: u64,
    /// Working set.
    pub wss_bytes: u64,
    /// `None` in the first seconds.
    pub profile: Option<ProfileStatus>,
    pub reads_total: u64,
    pub writes_total: u64,
    pub faults_total: u64,
    /// Of these, those that were looked at: all, but for VMs that fault faster than `tracking` allows.
    pub sampled_total: u64,
    /// Of so many of its faults one is looked at now.
    pub sampled_one_in: u32,
    pub rearm: RearmStatus,
    /// Time the VM waited for pages; `None` where no source can tell.
    pub stall_ns_total: Option<u64>,
    pub demoted_bytes_total: u64,
    pub promoted_bytes_total: u64,
    /// Pages that came back soon after they went down: within ten minutes, or where it is not known when they went,
    /// within half of `demote_after` (a minute at most) of the moment they had become old enough.
    pub ping_pong_pages: u64,
    pub prefetch: PrefetchCounts,
}

/// A part of a VM's memory.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LeftAloneStatus {
    pub bytes: u64,
    pub reason: String,
}

/// Rounds in which a VM's mapped pages show their accesses anew.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RearmStatus {
    /// Why there are none now.
    pub why_not: Option<String>,
    pub rounds_total: u64,
    /// Time between two of them, as things are.
    pub every_ns: u64,
    /// How long the last one held up the VM's page faults at most.
    pub pause_ns: Option<u64>,
    /// What the last one that is over showed to be in use.
    pub used_bytes: u64,
}

/// The class of a VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassStatus {
    pub name: String,
    /// 0 to 1.
    pub confidence: f64,
    /// On whose word: `operator`, `label` or, a guess, `profile`; `None` where it is unknown.
    pub source: Option<String>,
}

impl Default for ClassStatus {
    fn default() -> Self {
        Self { name: "unknown".to_owned(), confidence: 0.0, source: None }
    }
}

/// Access events; `produced = consumed + dropped` once the agent has shut down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventCounts {
    /// Accesses seen in guest RAM; of a VM that makes too many only some are put into the ring.
    pub seen: u64,
    pub produced: u64,
    pub consumed: u64,
    pub dropped: u64,
}

/// One way to see accesses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SourceStatus {
    pub name: String,
    pub state: SourceState,
    /// How it is attached, or why it is not.
    pub detail: String,
}

/// Whether a source delivers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceState {
    Active,
    /// There is nothing for it to tell of.
    Idle,
    #[default]
    Unavailable,
}

impl Status {
    /// The VMs that `vm` can mean: a UUID, a pid, `NAMESPACE/NAME`, else a name.
    ///
    /// More than one only where a plain name is used twice.
    #[must_use]
    pub fn find_vms(&self, vm: &str) -> Vec<&VmStatus> {
        let exact = |candidate: &&VmStatus| {
            candidate.id == vm
                || candidate.pid.to_string() == vm
                || candidate.namespace.as_ref().is_some_and(|ns| format!("{ns}/{}", candidate.name) == vm)
        };
        match self.vms.iter().find(exact) {
            Some(found) => vec![found],
            None => self.vms.iter().filter(|candidate| candidate.name == vm).collect(),
        }
    }

    /// Whether there are VMs that could learn from each other, but no two share a tenant.
    #[must_use]
    pub fn sharing_is_off(&self) -> bool {
        let tenants: BTreeSet<_> = self.vms.iter().map(|vm| &vm.tenant).collect();
        self.vms.len() > 1 && tenants.len() == self.vms.len()
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
