//! Whether a VM's RAM may be moved. In: facts of the command line, the mappings and the running process. Out: the
//! gravest [`Refusal`], or none. Pure.

use super::cgroup::is_guaranteed_pod;
use super::runtime::Runtime;

/// The kubelet gives critical and Guaranteed pods at most this.
const CRITICAL_OOM_SCORE_ADJ: i16 = -997;

/// How far a refusal reaches, mildest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Between NUMA nodes only, never to swap.
    NodesOnly,
    /// Nothing moves until it passes; ask again.
    ForNow,
    /// Nothing moves; accesses may be observed.
    WatchOnly,
    /// Nothing moves.
    Never,
}

/// Why a VM's RAM is not moved. The text is what users see as `reason`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("its RAM is locked in memory (mlock)")]
    MemoryLocked,
    #[error("a device has direct access to its RAM ({what})")]
    DeviceAssigned { what: String },
    #[error("it is a confidential guest (SEV, TDX or alike)")]
    Confidential,
    #[error("its memory is in a guest_memfd, which the kernel can neither swap nor move to another node")]
    GuestMemfd,
    #[error(
        "its RAM is the file {what} on storage, not memory, and page-out would write to it: give it a memory backend, or a \
         file on /dev/shm, to have it managed"
    )]
    OnStorage { what: String },
    #[error("it has real-time threads")]
    Realtime,
    #[error("it runs in a Guaranteed pod")]
    GuaranteedPod,
    #[error("it is critical to the host (oom_score_adj {oom_score_adj})")]
    Critical { oom_score_adj: i16 },
    #[error("its process has ended")]
    Gone,
    #[error(
        "it runs as user \"{user}\", who is not known to run virtual machines here: it is only listed, and its memory is left alone; \
         to have it managed add \"{user}\" to discover.users"
    )]
    Untrusted { user: String },
    #[error(
        "its memory layout is not understood: {announced_bytes} bytes announced on the command line, {found_bytes} found"
    )]
    LayoutUnclear { announced_bytes: u64, found_bytes: u64 },
    #[error(
        "its memory layout is unknown, so it is only watched: its options cannot be read ({why}); have files that -readconfig \
         names stay where they are while the VM runs"
    )]
    LayoutUnknown { why: String },
    #[error("it is being migrated, saved or dumped (thread {thread})")]
    Migrating { thread: String },
    #[error("it waits for an incoming migration")]
    Incoming,
    #[error("its page faults are handled by userfaultfd")]
    Userfaultfd,
    #[error("its state cannot be read: {why}")]
    Unreadable { why: String },
    #[error("its RAM comes from the hugetlb pool, which cannot be swapped")]
    Hugetlb,
    #[error("process {pid} maps its RAM too (vhost-user)")]
    SharedMapper { pid: i32 },
    #[error("its control group {cgroup} forbids swap")]
    SwapForbidden { cgroup: String },
}

impl Refusal {
    /// The kernel, too, cannot take any of its memory: what is reclaimed of the whole host does not hurt it. Locked
    /// memory, and what devices have access to, may be a part of the RAM only.
    #[must_use]
    pub fn binds_the_kernel(&self) -> bool {
        matches!(self, Refusal::Hugetlb | Refusal::SwapForbidden { .. } | Refusal::Gone)
    }

    /// What is still allowed.
    #[must_use]
    pub fn scope(&self) -> Scope {
        match self {
            Refusal::MemoryLocked
            | Refusal::DeviceAssigned { .. }
            | Refusal::Confidential
            | Refusal::GuestMemfd
            | Refusal::OnStorage { .. }
            | Refusal::Realtime
            | Refusal::GuaranteedPod
            | Refusal::Critical { .. }
            | Refusal::Gone => Scope::Never,
            Refusal::LayoutUnclear { .. } | Refusal::LayoutUnknown { .. } | Refusal::Untrusted { .. } => {
                Scope::WatchOnly
            }
            Refusal::Migrating { .. }
            | Refusal::Incoming
            | Refusal::Userfaultfd
            | Refusal::Unreadable { .. } => Scope::ForNow,
            Refusal::Hugetlb | Refusal::SharedMapper { .. } | Refusal::SwapForbidden { .. } => {
                Scope::NodesOnly
            }
        }
    }
}

/// A part of a VM's memory that is left alone, or moved less far than the rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftAlone {
    pub bytes: u64,
    pub why: Apart,
}

/// Why a part of a VM's memory is left alone. The text is what users see as `reason`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Apart {
    #[error("the image of a persistent device (NVDIMM, virtio-pmem; {what}), which is no RAM")]
    Image { what: String },
    #[error(
        "RAM in the file {what} on storage, not memory: page-out would write to it; give it a memory backend, or a file on \
         /dev/shm, to have it managed"
    )]
    OnStorage { what: String },
    #[error("RAM from the hugetlb pool, which cannot be swapped: it moves between memory tiers only")]
    Hugetlb,
    #[error("RAM in more parts than can be watched: plug fewer and larger DIMMs to have it managed")]
    TooManyParts,
}

/// The refusal that reaches furthest, the first one among equals.
pub(super) fn gravest(refusals: impl IntoIterator<Item = Refusal>) -> Option<Refusal> {
    refusals.into_iter().min_by_key(|refusal| std::cmp::Reverse(refusal.scope()))
}

/// Judges what changes while a VM runs, on top of what is `fixed`.
pub(super) fn judge(
    fixed: Option<&Refusal>,
    runtime: &Runtime,
    ram_bytes: u64,
    incoming: bool,
) -> Option<Refusal> {
    // Small locked or pinned buffers are normal (io_uring); RAM is all or nothing.
    let about_ram = |bytes: u64| ram_bytes > 0 && bytes >= ram_bytes / 2;
    let mut refusals: Vec<Refusal> = fixed.cloned().into_iter().collect();
    let mut add_if = |applies: bool, refusal: Refusal| {
        if applies {
            refusals.push(refusal);
        }
    };
    add_if(runtime.confidential, Refusal::Confidential);
    add_if(runtime.guest_memfd, Refusal::GuestMemfd);
    if let Some(what) = &runtime.assigned_device {
        add_if(true, Refusal::DeviceAssigned { what: what.clone() });
    }
    add_if(about_ram(runtime.locked_bytes), Refusal::MemoryLocked);
    add_if(about_ram(runtime.pinned_bytes), Refusal::DeviceAssigned { what: "pinned memory".to_owned() });
    add_if(runtime.realtime, Refusal::Realtime);
    add_if(runtime.cgroup.as_deref().is_some_and(is_guaranteed_pod), Refusal::GuaranteedPod);
    let oom_score_adj = runtime.oom_score_adj;
    add_if(oom_score_adj <= CRITICAL_OOM_SCORE_ADJ, Refusal::Critical { oom_score_adj });
    if let Some(thread) = &runtime.migration_thread {
        add_if(true, Refusal::Migrating { thread: thread.clone() });
    }
    add_if(incoming && !runtime.vcpus_ran, Refusal::Incoming);
    add_if(runtime.userfaultfd, Refusal::Userfaultfd);
    if let Some(cgroup) = &runtime.swap_forbidden_by {
        add_if(true, Refusal::SwapForbidden { cgroup: cgroup.clone() });
    }
    gravest(refusals)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAM: u64 = 1 << 30;

    #[test]
    fn an_ordinary_vm_may_be_moved() {
        assert_eq!(judge(None, &Runtime::default(), RAM, false), None);
    }

    #[test]
    fn the_gravest_reason_is_told() {
        let runtime = Runtime {
            locked_bytes: RAM,
            migration_thread: Some("mig/src/main".to_owned()),
            swap_forbidden_by: Some("/a".to_owned()),
            ..Runtime::default()
        };
        let reason = judge(Some(&Refusal::Hugetlb), &runtime, RAM, false).unwrap();
        assert_eq!(reason, Refusal::MemoryLocked);
        assert_eq!(reason.to_string(), "its RAM is locked in memory (mlock)");
    }

    #[test]
    fn small_locked_buffers_do_not_count() {
        let runtime = Runtime { locked_bytes: 64 << 20, pinned_bytes: 64 << 20, ..Runtime::default() };
        assert_eq!(judge(None, &runtime, RAM, false), None);
        let pinned = Runtime { pinned_bytes: RAM, ..Runtime::default() };
        assert_eq!(judge(None, &pinned, RAM, false).unwrap().scope(), Scope::Never);
    }

    #[test]
    fn an_incoming_vm_waits_until_its_cpus_run() {
        let waiting = judge(None, &Runtime::default(), RAM, true).unwrap();
        assert_eq!(waiting.scope(), Scope::ForNow);
        assert_eq!(judge(None, &Runtime { vcpus_ran: true, ..Runtime::default() }, RAM, true), None);
    }

    #[test]
    fn critical_and_guaranteed_workloads_are_left_alone() {
        let critical = Runtime { oom_score_adj: -997, ..Runtime::default() };
        assert_eq!(judge(None, &critical, RAM, false), Some(Refusal::Critical { oom_score_adj: -997 }));
        let pod = Runtime { cgroup: Some("/kubepods/pod1/c".to_owned()), ..Runtime::default() };
        assert_eq!(judge(None, &pod, RAM, false), Some(Refusal::GuaranteedPod));
    }
}
