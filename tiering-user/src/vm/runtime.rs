//! Facts about a VM's process that can change at any time: devices, locks, threads, limits. In: `/proc/PID/fd`,
//! `status`, `task`, `cgroup`, `oom_score_adj` and the cgroup v2 mount. Out: [`Runtime`]. Does not judge (`refusal`)
//! and does not read smaps: a look costs three system calls for each file and thread of the process.

use std::path::Path;

use procfs::process::{FDTarget, Process, Stat};

use super::cgroup;
use super::process::{Proc, VmError};
use super::{Accel, printable};

/// A virtual CPU that has not run yet has used next to nothing for its own start; half a second (100 ticks a second
/// on every architecture that runs VMs) says the guest is running.
const VCPU_RAN_TICKS: u64 = 50;
/// A process that has used this much of a processor may have brought up and paged out any amount of memory.
const YOUNG_TICKS: u64 = 1000;
/// Thread names of outgoing and incoming migration, snapshots and dumps, as QEMU's sources have them (4.0 to 10.0).
const MIGRATION_THREADS: [&str; 6] =
    ["mig/", "live_migration", "multifd", "postcopy/", "bg_snapshot", "dump_thread"];
/// Files through which a device reads and writes guest RAM by itself.
const DEVICE_FILES: [&str; 4] = ["/dev/vfio/", "/dev/iommu", "/dev/vhost-vdpa", "/dev/infiniband/"];

#[derive(Debug, Default)]
pub(super) struct Runtime {
    pub(super) kvm: bool,
    /// Path or name of a file that gives a device access to guest RAM.
    pub(super) assigned_device: Option<String>,
    pub(super) confidential: bool,
    pub(super) userfaultfd: bool,
    /// A `guest_memfd` holds memory of the guest.
    pub(super) guest_memfd: bool,
    pub(super) locked_bytes: u64,
    pub(super) pinned_bytes: u64,
    pub(super) resident_bytes: u64,
    /// Private memory only.
    pub(super) swapped_bytes: u64,
    /// No virtual CPU has run yet, and the process has hardly worked.
    pub(super) is_young: bool,
    pub(super) migration_thread: Option<String>,
    pub(super) realtime: bool,
    pub(super) vcpus_ran: bool,
    pub(super) oom_score_adj: i16,
    pub(super) cgroup: Option<String>,
    /// The group whose `memory.swap.max` is 0.
    pub(super) swap_forbidden_by: Option<String>,
}

impl Runtime {
    pub(super) fn read(process: &Proc, cgroup_root: &Path) -> Result<Runtime, VmError> {
        let mut runtime = Runtime::default();
        // One by one: a process may have any number of either.
        process.read("fd", |p| p.fd()?.try_for_each(|fd| fd.map(|fd| runtime.see_file(&fd.target))))?;
        // A thread that ends while we look is no loss.
        process.read("task", |p| {
            for task in p.tasks()? {
                if let Ok(stat) = task?.stat() {
                    runtime.see_thread(&stat);
                }
            }
            Ok(())
        })?;
        let status = process.read("status", Process::status)?;
        runtime.locked_bytes = status.vmlck.unwrap_or(0).saturating_mul(1024);
        runtime.pinned_bytes = status.vmpin.unwrap_or(0).saturating_mul(1024);
        runtime.resident_bytes = status.vmrss.unwrap_or(0).saturating_mul(1024);
        runtime.swapped_bytes = status.vmswap.unwrap_or(0).saturating_mul(1024);
        let stat = process.stat()?;
        runtime.is_young = !runtime.vcpus_ran && stat.utime.saturating_add(stat.stime) < YOUNG_TICKS;
        runtime.oom_score_adj = process.read("oom_score_adj", Process::oom_score_adj)?;
        runtime.cgroup = cgroup::path(&process.read("cgroup", Process::cgroups)?);
        runtime.swap_forbidden_by =
            runtime.cgroup.as_deref().and_then(|path| cgroup::forbids_swap(cgroup_root, path));
        Ok(runtime)
    }

    pub(super) fn accel(&self) -> Accel {
        if self.kvm { Accel::Kvm } else { Accel::Tcg }
    }

    fn see_file(&mut self, target: &FDTarget) {
        match target {
            FDTarget::AnonInode(name) => match name.as_str() {
                "kvm-vm" => self.kvm = true,
                name if name.contains("kvm-gmem") || name.contains("guest_memfd") => self.guest_memfd = true,
                "[userfaultfd]" => self.userfaultfd = true,
                name if name.starts_with("[vfio") => self.assigned_device = Some(printable(name)),
                _ => {}
            },
            FDTarget::Path(path) => {
                let path = printable(&path.to_string_lossy());
                self.confidential |= path == "/dev/sev";
                if DEVICE_FILES.iter().any(|prefix| path.starts_with(prefix)) {
                    self.assigned_device = Some(path);
                }
            }
            _ => {}
        }
    }

    fn see_thread(&mut self, stat: &Stat) {
        if MIGRATION_THREADS.iter().any(|name| stat.comm.starts_with(name)) {
            self.migration_thread = Some(printable(&stat.comm));
        }
        // SCHED_FIFO, SCHED_RR, SCHED_DEADLINE.
        self.realtime |= matches!(stat.policy, Some(1 | 2 | 6));
        // QEMU names its threads only where it is told to (debug-threads=on); under KVM the kernel counts what a guest
        // runs.
        let named = stat.comm.starts_with("CPU ");
        let ran = if named { stat.utime.saturating_add(stat.stime) } else { stat.guest_time.unwrap_or(0) };
        self.vcpus_ran |= ran >= VCPU_RAN_TICKS;
    }
}
