//! The operator's configuration: one TOML file, in which every key has a default.
//!
//! In: the text of the file. Out: a [`Config`] that has passed [`Config::validate`], or an [`Error`] with
//! file, line and column. Not here: whether the host really has these nodes and devices (`host` finds out),
//! and what orchestrators say about a VM (`vm` reads that and lets it override [`VmSettings`]).

mod class;
mod glob;
mod keys;
mod load;
mod validate;
mod values;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use keys::{SwapKeys, TierKeys};

pub use class::{Class, ClassPriors, Priors};
pub use glob::Glob;
pub use load::Error;
pub use validate::{MAX_TIERS, MIN_SWAP_BYTES, Problem};
pub use values::{Listen, Percent, Period, Rate, Size, ValueError};

/// Priority of a VM to which neither a rule nor its class gives one.
pub const DEFAULT_PRIORITY: u8 = 50;

/// Everything the operator can decide.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub agent: Agent,
    /// The ladder, fastest first; none where it is to be proposed from what the host has (`tiers::propose_here`).
    #[serde(rename = "tier", skip_serializing_if = "Vec::is_empty")]
    pub tiers: Vec<Tier>,
    pub telemetry: Telemetry,
    pub discover: Discover,
    pub tracking: Tracking,
    pub policy: Policy,
    pub prefetch: Prefetch,
    /// What each class of VMs changes.
    #[serde(rename = "class")]
    pub classes: ClassPriors,
    /// Rules for VMs; the first one that matches counts, see [`Config::vm_settings`].
    #[serde(rename = "vm", skip_serializing_if = "Vec::is_empty")]
    pub vms: Vec<VmRule>,
}

/// The agent itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Agent {
    /// Folder for what outlives the agent: learned profiles and keys.
    pub state_dir: PathBuf,
    /// Plan and report, but move nothing.
    pub dry_run: bool,
    /// The control socket.
    pub socket: PathBuf,
    /// Memory of the agent itself above which it forgets what it learned longest ago. None: by the host's RAM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<Size>,
}

/// What is told beside the control socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// Where `/metrics` and `/healthz` are served over TCP; none: nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<Listen>,
}

/// One rung of the ladder. Its level is its place in [`Config::tiers`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "TierKeys", into = "TierKeys")]
pub struct Tier {
    /// One to fifteen of `a-z`, `0-9`, `-`; unique.
    pub name: String,
    pub backing: Backing,
}

/// What holds a tier's pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// Memory of these NUMA nodes.
    Nodes(Vec<u32>),
    /// Swap files that the agent creates, or a device.
    Swap(Swap),
}

/// The swap of a tier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "SwapKeys", into = "SwapKeys")]
pub struct Swap {
    pub place: SwapPlace,
    /// Most that is written to it at any time.
    pub write_limit: Option<Rate>,
    /// Most that is written to it in one day, against flash wear.
    pub daily_writes: Option<Size>,
}

/// Where a tier's swap is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SwapPlace {
    /// In files of the agent's in this folder, `size` bytes together.
    Folder { path: PathBuf, size: Size },
    /// On a whole block device. Its size is the device's.
    Device {
        path: PathBuf,
        /// Also on a device on which swap can hang the host.
        allow_unsafe: bool,
    },
}

/// Which processes are VMs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Discover {
    /// QEMU processes, however they were started.
    pub qemu: bool,
    /// Users whose processes are managed, by name or number, beside root, the pods, and those that usually run VMs.
    pub users: Vec<String>,
}

/// How much is seen of the VMs' accesses.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tracking {
    /// Most events a second of all VMs together; who has few keeps all of them.
    pub events: u64,
    /// Most events a second of one VM.
    pub vm_events: u64,
    /// Have the mapped pages of KVM guests show their accesses anew, now and then.
    pub rearm: bool,
    /// Longest that this may hold up a VM's page faults.
    pub rearm_pause: Period,
    /// Share of its time that a VM may lose by it.
    pub rearm_cost: Percent,
    /// Have DAMON watch the other VMs, where nobody else uses it.
    pub damon: bool,
}

/// When pages go down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Least idle time of a page before it is demoted.
    pub demote_after: Period,
    /// Share of tier 0 that is kept free.
    pub free_target: Percent,
    /// Share of a VM's touched memory that stays in tier 0 when room there is taken from it for others.
    pub floor: Percent,
    /// How much longer than by itself a VM may wait for memory before its demotion backs off.
    pub psi_limit: Percent,
    /// Who chooses the pages that leave tier 0.
    pub reclaim: ReclaimBy,
    /// Whether reclaim demotes to slower memory nodes.
    pub kernel_demotion: KernelDemotion,
    /// Mean time of a read below which a tier's disk is never taken for slow.
    pub slow_read: Period,
    /// Of what a VM has in tier 0, how much it may wait for a minute because it had been demoted.
    pub refault_limit: Percent,
    /// CPU time that watching and planning may take, of one core, before they are done less often.
    pub cpu_limit: Percent,
    /// What a VM seems to be by its profile changes what is done with it, as if somebody had said so.
    pub act_on_guesses: bool,
}

/// Who chooses the pages that leave tier 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReclaimBy {
    /// The kernel, of VMs that have a control group (v2) of their own; of others the agent.
    Group,
    /// The kernel of all VMs: of those without a control group of their own it reclaims memory of the whole host.
    Host,
    /// The agent.
    Off,
}

/// What becomes of the kernel's demotion between memory nodes while the agent runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelDemotion {
    /// It stays as it is.
    Leave,
    /// It is on, unless a VM is there that is bound to nodes.
    On,
}

/// What becomes of a VM's huge pages (THP) that would leave memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Huge {
    /// They go to swap like all others, and come back in small pages.
    #[default]
    Split,
    /// They stay in memory as a whole.
    Keep,
}

impl Huge {
    /// As it stands in the file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Split => "split",
            Self::Keep => "keep",
        }
    }

    /// `skip_serializing_if` passes a reference.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the form serde wants")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// When pages come up before they are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own in the file")]
pub struct Prefetch {
    pub enabled: bool,
    /// Probability, 0 to 1, under which nothing is staged.
    pub threshold: f64,
    /// Probability, 0 to 1, from which on a page is staged into tier 0; below it, one tier lower.
    pub tier0_threshold: f64,
    /// Stage what other VMs have just touched.
    pub push: bool,
    /// Stage what came next, last time or in other VMs.
    pub pull: bool,
    /// What came next: after the VM's own past.
    pub own_past: bool,
    /// What the VM touched a period ago, where its load comes again.
    pub by_season: bool,
    /// What comes after a touched page in the order of addresses.
    pub readahead: bool,
    /// Of other VMs: what has the same content.
    pub by_content: bool,
    /// Of other VMs: what has the same guest-physical address.
    pub by_address: bool,
    /// What comes next in base images, into the page cache.
    pub by_file: bool,
    /// What goes to swap goes in the order in which it was touched, so that it comes back by sequential reads.
    pub in_tape_order: bool,
    /// Most that is read ahead of need, from swap and from images together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_limit: Option<Rate>,
    /// Learn from what became of it. Off only to measure what that is worth.
    pub feedback: bool,
}

/// Settings for the VMs whose name matches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmRule {
    #[serde(rename = "match")]
    pub matches: VmMatch,
    /// 0 to 100; the higher, the longer a VM keeps its pages in fast tiers. None: as its class has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// Overrides what labels say, and what is guessed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
    /// Trust domain: VMs of one tenant may learn from each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// `false`: watch the VM, but never move its pages.
    #[serde(default = "yes")]
    pub managed: bool,
    /// Whether its huge pages may be sent to a swap tier, which splits them.
    #[serde(default, skip_serializing_if = "Huge::is_default")]
    pub huge: Huge,
}

/// What a [`VmRule`] looks at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmMatch {
    pub name: Glob,
}

/// What the configuration says about one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSettings {
    /// `None`: as its class has it.
    pub priority: Option<u8>,
    pub class: Option<Class>,
    /// `None`: the VM is its own tenant.
    pub tenant: Option<String>,
    pub managed: bool,
    pub huge: Huge,
}

impl Config {
    /// The settings of the VM called `name`: those of the first matching rule, else the defaults.
    #[must_use]
    pub fn vm_settings(&self, name: &str) -> VmSettings {
        match self.vms.iter().find(|rule| rule.matches.name.matches(name)) {
            Some(rule) => VmSettings {
                priority: rule.priority,
                class: rule.class,
                tenant: rule.tenant.clone(),
                managed: rule.managed,
                huge: rule.huge,
            },
            None => {
                VmSettings { priority: None, class: None, tenant: None, managed: true, huge: Huge::default() }
            }
        }
    }
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            state_dir: PathBuf::from("/var/lib/tiering"),
            dry_run: false,
            socket: PathBuf::from("/run/tiering/tiering.sock"),
            memory_limit: None,
        }
    }
}

impl Default for Discover {
    fn default() -> Self {
        Self { qemu: true, users: Vec::new() }
    }
}

impl Default for Tracking {
    fn default() -> Self {
        Self {
            events: 200_000,
            vm_events: 100_000,
            rearm: true,
            rearm_pause: Period(Duration::from_millis(10)),
            rearm_cost: Percent(0.5),
            damon: true,
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            demote_after: Period(Duration::from_mins(2)),
            free_target: Percent(10.0),
            floor: Percent(10.0),
            psi_limit: Percent(0.5),
            reclaim: ReclaimBy::Group,
            kernel_demotion: KernelDemotion::Leave,
            slow_read: Period(Duration::from_millis(1)),
            refault_limit: Percent(0.2),
            cpu_limit: Percent(5.0),
            act_on_guesses: false,
        }
    }
}

impl Default for Prefetch {
    fn default() -> Self {
        Self {
            enabled: true,
            threshold: 0.5,
            tier0_threshold: 0.8,
            push: true,
            pull: true,
            own_past: true,
            by_season: true,
            readahead: true,
            by_content: true,
            by_address: true,
            by_file: true,
            in_tape_order: true,
            read_limit: None,
            feedback: true,
        }
    }
}

fn yes() -> bool {
    true
}
