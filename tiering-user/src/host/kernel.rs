//! What the kernel can do for tracking and moving.

use std::fs;
use std::path::Path;

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::Check;
use crate::bpf::{Delivery, Faults, PROBE_ATTACH_KINDS, Source};
use crate::sys::{PageState, Pagemap, ZeroPages};

/// Oldest kernel that the agent is meant for.
const OLDEST: (u32, u32) = (6, 1);
/// First kernel that swaps zero pages without I/O.
const ZERO_SWAP: (u32, u32) = (6, 12);

pub(super) fn checks() -> Vec<Check> {
    let before = [root(), release(), lockdown(), btf(), bpffs(), page_faults()];
    let after = [frames(), pagemap_scan(), pressure(), cgroup()];
    before.into_iter().chain(other_sources()).chain(after).collect()
}

fn root() -> Check {
    const NAME: &str = "privileges";
    if nix::unistd::geteuid().is_root() {
        Check::ok(NAME, "root")
    } else {
        Check::missing(NAME, "not root", "the agent does not start; run it as root")
    }
}

fn release() -> Check {
    const NAME: &str = "kernel";
    let release = read("/proc/sys/kernel/osrelease");
    let mut numbers = release.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= OLDEST && version < ZERO_SWAP {
        let cost = "zero pages are written to swap before 6.12: each file of a lower tier is written once when it is \
                    first used";
        return Check::degraded(NAME, release, cost);
    }
    if version >= OLDEST {
        Check::ok(NAME, release)
    } else {
        Check::degraded(NAME, release, format!("untested before {}.{}", OLDEST.0, OLDEST.1))
    }
}

fn lockdown() -> Check {
    const NAME: &str = "lockdown";
    let text = read("/sys/kernel/security/lockdown");
    let mode = text.split(['[', ']']).nth(1).unwrap_or("none");
    match mode {
        "confidentiality" => Check::degraded(
            NAME,
            mode,
            "the kernel refuses BPF programs that read its memory: see the sources",
        ),
        _ => Check::ok(NAME, mode),
    }
}

fn btf() -> Check {
    const NAME: &str = "BTF";
    let path = "/sys/kernel/btf/vmlinux";
    if Path::new(path).exists() {
        Check::ok(NAME, path)
    } else {
        Check::degraded(
            NAME,
            "missing",
            "raw or classic tracepoints serve; `bpftool map dump` shows bytes, not fields",
        )
    }
}

fn bpffs() -> Check {
    const NAME: &str = "bpffs";
    if statfs("/sys/fs/bpf").is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC) {
        Check::ok(NAME, "/sys/fs/bpf")
    } else {
        Check::ok(NAME, "not mounted: the agent mounts /sys/fs/bpf while it runs")
    }
}

fn page_faults() -> Check {
    const NAME: &str = "source page_fault";
    let tried: Vec<_> = PROBE_ATTACH_KINDS
        .map(|attach_kind| (attach_kind, Faults::attach(&[attach_kind], None)))
        .into_iter()
        .collect();
    let works: Vec<_> = tried
        .iter()
        .filter(|(_, result)| result.is_ok())
        .map(|(attach_kind, _)| attach_kind.name())
        .collect();
    match (works.first(), tried.first()) {
        (Some(first), _) => Check::ok(NAME, format!("{first} (works here: {})", works.join(", "))),
        (None, Some((_, Err(error)))) => {
            Check::missing(NAME, error.to_string(), "no access is seen: the agent does not start")
        }
        (None, _) => Check::missing(NAME, "nothing to try", "no access is seen: the agent does not start"),
    }
}

/// All sources but page faults.
fn other_sources() -> Vec<Check> {
    // Without page faults there is nothing to try the others with; that is told already.
    let Ok(mut faults) = Faults::attach(&PROBE_ATTACH_KINDS, None) else { return Vec::new() };
    faults.probe_reads();
    faults.probe_regions();
    let check = |source: &&dyn Source| {
        let name = format!("source {}", source.name());
        match source.delivery() {
            Delivery::Active(how) | Delivery::Idle(how) => Check::ok(&name, how),
            Delivery::Partly(how) => Check::degraded(&name, how, source.lost_without()),
            Delivery::Unavailable(why) => Check::missing(&name, why, source.lost_without()),
        }
    };
    faults.sources().iter().skip(1).map(check).collect()
}

fn frames() -> Check {
    const NAME: &str = "pagemap";
    match own_page() {
        Ok(Some(PageState::Present { pfn: 0 })) => Check::degraded(
            NAME,
            "without frame numbers",
            "`tiering map` shows no frames; needs CAP_SYS_ADMIN",
        ),
        Ok(_) => Check::ok(NAME, "with frame numbers"),
        Err(error) => Check::missing(
            NAME,
            error.to_string(),
            "where pages are cannot be read: the agent does not start",
        ),
    }
}

fn own_page() -> std::io::Result<Option<PageState>> {
    let value = Box::new(1u8);
    let address = std::ptr::from_ref(&*value).addr() as u64;
    Ok(Pagemap::of_self()?.read(address, 1)?.first().copied())
}

fn pagemap_scan() -> Check {
    const NAME: &str = "PAGEMAP_SCAN";
    let tried = ZeroPages::map(1).and_then(|page| {
        let start = page.start() as u64;
        Pagemap::of_self()?.scan(start, start + crate::sys::PAGE_BYTES, |_| ())
    });
    match tried {
        Ok(()) => Check::ok(NAME, "works"),
        Err(error) => {
            Check::degraded(NAME, error.to_string(), "sweeps read all of pagemap, which costs more CPU")
        }
    }
}

fn pressure() -> Check {
    const NAME: &str = "PSI";
    if Path::new("/proc/pressure/memory").exists() {
        Check::ok(NAME, "/proc/pressure/memory")
    } else {
        Check::degraded(
            NAME,
            "off",
            "whether a VM stalls is told by the pages it waits for alone; boot with psi=1",
        )
    }
}

fn cgroup() -> Check {
    const NAME: &str = "cgroup v2";
    let mounts = read("/proc/self/mounts");
    let lost = "limits of a VM's control group are not seen, nor what of it is in the swap cache";
    match mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")) {
        Some(line) => {
            let mount = line.split(' ').nth(1).unwrap_or_default();
            let controllers = read(&format!("{mount}/cgroup.controllers"));
            if controllers.split(' ').any(|name| name == "memory") {
                Check::ok(NAME, mount)
            } else {
                Check::degraded(NAME, format!("{mount}, without the memory controller"), lost)
            }
        }
        None => Check::degraded(NAME, "not mounted", lost),
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}
