//! What only smaps tells of guest RAM: a mapping that is locked, or whose page faults are handled in another process.
//!
//! Reading smaps walks the page tables of the whole process and holds its lock meanwhile: 35 ms for 4 GiB in small
//! pages (Linux 6.18), in which the guest's page faults wait. So it is read of a process that has next to no pages: one
//! that has just started.
//!
//! # Limits
//! A larger process that was there before the agent is not looked at. What it has locked shows in its `VmLck`, its own
//! userfaultfd among its files; a userfaultfd that lives in another process stays unseen.

use super::process::Proc;
use super::runtime::Runtime;
use super::{Backing, RamRegion};

/// 32,768 pages: about 1 ms.
const MOST_BYTES: u64 = 128 << 20;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct RareFlags {
    pub(super) locked: bool,
    pub(super) userfaultfd: bool,
}

/// The flags of these regions; `None` where looking would hold up the guest, or is not possible.
pub(super) fn rare_flags(process: &Proc, runtime: &Runtime, regions: &[RamRegion]) -> Option<RareFlags> {
    // Of shared memory that was swapped the process's numbers say nothing.
    let shared = |region: &&RamRegion| matches!(region.backing, Backing::Shared { .. });
    let shared_bytes: u64 = regions.iter().filter(shared).map(|region| region.bytes).sum();
    if runtime.resident_bytes.saturating_add(runtime.swapped_bytes) > MOST_BYTES
        || shared_bytes > MOST_BYTES && !runtime.is_young
    {
        return None;
    }
    // A kernel may have no smaps (CONFIG_PROC_PAGE_MONITOR).
    Some(flags_in(&process.text("smaps").ok()?, regions))
}

fn flags_in(smaps: &str, regions: &[RamRegion]) -> RareFlags {
    let mut flags = RareFlags::default();
    let mut in_ram = false;
    for line in smaps.lines() {
        if let Some(of_mapping) = line.strip_prefix("VmFlags:").filter(|_| in_ram) {
            for flag in of_mapping.split_ascii_whitespace() {
                flags.locked |= flag == "lo";
                // Missing pages, write protection, and read-write protection of pages that are there.
                flags.userfaultfd |= matches!(flag, "um" | "uw" | "ui" | "ur");
            }
        } else if let Some(range) = line.split(' ').next().and_then(|word| word.split_once('-')) {
            let address = |text| u64::from_str_radix(text, 16).ok();
            let (start, end) = (address(range.0), address(range.1));
            in_ram = start.zip(end).is_some_and(|(start, end)| {
                regions.iter().any(|region| start < region.end().0 && region.start.0 < end)
            });
        }
    }
    flags
}
