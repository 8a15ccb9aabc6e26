//! What the kernel says about a process's pages and the swap areas: a look that owes the agent nothing.
//!
//! In: a pid, addresses, folders. Out: where pages are. Changes nothing.

use anyhow::{Context, Result};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of a base page.
pub const PAGE: u64 = 4096;

/// Where a page is, by pagemap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Nowhere,
    /// The kernel's shared page of zeroes, which takes no memory.
    Zero,
    Memory {
        pfn: u64,
    },
    Swap {
        area: u64,
        slot: u64,
    },
}

/// Reads `pages` entries of a process's pagemap.
///
/// # Errors
/// Where the process has ended, or without the right to see frames.
pub fn pagemap(pid: u32, hva: u64, pages: u64) -> Result<Vec<At>> {
    let file = File::open(format!("/proc/{pid}/pagemap")).context("opening pagemap")?;
    let mut bytes = vec![0; usize::try_from(pages * 8)?];
    file.read_exact_at(&mut bytes, hva / PAGE * 8).context("reading pagemap")?;
    let flags = File::open("/proc/kpageflags").context("opening /proc/kpageflags")?;
    let is_zero = |pfn: u64| -> Result<bool> {
        const KPF_ZERO_PAGE: u32 = 24;
        let mut bytes = [0; 8];
        flags.read_exact_at(&mut bytes, pfn * 8).context("reading /proc/kpageflags")?;
        Ok((u64::from_ne_bytes(bytes) >> KPF_ZERO_PAGE) & 1 == 1)
    };
    let entries = bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_ne_bytes(*bytes));
    entries
        .map(|entry| {
            let pfn = entry & ((1 << 55) - 1);
            Ok(match (entry >> 63, (entry >> 62) & 1) {
                (1, _) if is_zero(pfn)? => At::Zero,
                (1, _) => At::Memory { pfn },
                // Being moved to another frame: it shows as swapped into an area that cannot be, at the frame it
                // leaves.
                (0, 1) if entry & 31 >= 23 => At::Memory { pfn: (entry >> 5) & ((1 << 50) - 1) },
                (0, 1) => At::Swap { area: entry & 31, slot: (entry >> 5) & ((1 << 50) - 1) },
                _ => At::Nowhere,
            })
        })
        .collect()
}

/// A field of /proc/meminfo, bytes.
///
/// # Errors
/// Where there is no such field.
pub fn meminfo(field: &str) -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.map(|kib| kib << 10).with_context(|| format!("/proc/meminfo has no {field}"))
}

/// The kernel's numbers of the areas below `folder`: their lines in /proc/swaps, true as long as no area was switched
/// off since the first was switched on.
///
/// # Errors
/// Where /proc/swaps cannot be read.
pub fn area_numbers(folder: &Path) -> Result<Vec<u64>> {
    let swaps = std::fs::read_to_string("/proc/swaps").context("reading /proc/swaps")?;
    let below = |line: &str| line.starts_with(&*folder.to_string_lossy());
    let areas = (0..).zip(swaps.lines().skip(1));
    Ok(areas.filter(|(_, line)| below(line)).map(|(number, _)| number).collect())
}

/// Pages of a process that are mapped, and that are in swap, by pagemap. For anonymous memory only: of shared memory in
/// swap pagemap shows nothing.
///
/// # Errors
/// Where the process has ended.
pub fn mapped_and_swapped(pid: u32, range: &Range<u64>) -> Result<(u64, u64)> {
    let file = File::open(format!("/proc/{pid}/pagemap")).context("opening pagemap")?;
    let mut bytes = vec![0; usize::try_from((range.end - range.start) / PAGE * 8)?];
    file.read_exact_at(&mut bytes, range.start / PAGE * 8).context("reading pagemap")?;
    let entries = bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_ne_bytes(*bytes));
    Ok(entries.fold((0, 0), |(mapped, swapped), entry| {
        (mapped + (entry >> 63), swapped + u64::from(entry >> 62 == 1))
    }))
}
