//! Finds guest RAM among a process's mappings. In: smaps and the block sizes of the command line. Out: [`Layout`].
//!
//! The biggest mapping is not the answer (an emulator's code buffer can be bigger than RAM). QEMU marks guest memory
//! DONTFORK (`dc`): of the writable mappings with that mark and without `ex`, those are RAM whose sizes the command
//! line announces. The kernel may split a block into neighbouring mappings or merge neighbouring blocks into one, so
//! neighbours are joined first and then cut by the announced sizes.
//!
//! Limits: blocks of one size are told apart by address only. Video memory of exactly the size of a missing RAM block
//! would be taken for it.

use std::cmp::Reverse;

use procfs::process::{MMPermissions, MMapPath, MemoryMap, MemoryMaps, VmFlags};

use super::cmdline::RamBlock;
use super::options::round_up;
use super::{Backing, Hva, RamRegion, printable};

/// Where sizes do not add up, smaller mappings (video memory, firmware, tables) are not shown as RAM.
const LIKELY_RAM_BYTES: u64 = 32 << 20;

/// What the mappings say.
#[derive(Debug)]
pub(super) struct Layout {
    /// In the order of the announced blocks; when not `complete`, whatever is likely to be RAM.
    pub(super) regions: Vec<RamRegion>,
    /// Every announced block was found.
    pub(super) complete: bool,
    pub(super) locked: bool,
    pub(super) userfaultfd: bool,
    /// Files behind the regions other than memfd and hugetlb: path and device.
    pub(super) files: Vec<(String, (i32, i32))>,
}

/// Neighbouring mappings of one object.
#[derive(Debug, Clone)]
struct Run {
    start: u64,
    end: u64,
    page_bytes: u64,
    flags: VmFlags,
    shared: bool,
    path: Option<String>,
    device: (i32, i32),
    inode: u64,
    offset: u64,
}

/// Looks for `blocks` in `maps`.
pub(super) fn find(maps: &MemoryMaps, blocks: &[RamBlock]) -> Layout {
    let mut runs = candidates(maps);
    // QEMU maps blocks as it creates them, and mmap hands out addresses from the top down.
    runs.sort_by_key(|run| Reverse(run.start));
    let mut created: Vec<(usize, RamBlock)> = blocks.iter().copied().enumerate().collect();
    created.sort_by_key(|(_, block)| block.created);
    let sizes: Vec<u64> = created.iter().map(|(_, block)| block.bytes).collect();

    let mut taken: Vec<Run> = Vec::new();
    let mut found: Vec<RamRegion> = Vec::new();
    while let Some((index, count)) = match_prefix(&runs, &sizes[found.len()..]) {
        let run = runs.remove(index);
        found.extend(cut(&run, &sizes[found.len()..][..count]));
        taken.push(run);
    }
    let complete = !blocks.is_empty() && found.len() == blocks.len();
    let regions = if complete {
        let mut by_guest: Vec<(usize, RamRegion)> =
            created.iter().map(|&(guest_order, _)| guest_order).zip(found).collect();
        by_guest.sort_by_key(|&(guest_order, _)| guest_order);
        by_guest.into_iter().map(|(_, region)| region).collect()
    } else {
        taken.extend(runs.into_iter().filter(|run| run.bytes() >= LIKELY_RAM_BYTES));
        taken.sort_by_key(|run| run.start);
        taken.iter().flat_map(|run| cut(run, &[run.bytes()])).collect()
    };
    Layout {
        regions,
        complete,
        locked: taken.iter().any(|run| run.flags.contains(VmFlags::LO)),
        userfaultfd: taken.iter().any(|run| run.flags.intersects(VmFlags::UM | VmFlags::UW)),
        files: taken.iter().filter_map(Run::file).collect(),
    }
}

/// The run that holds exactly the first block, or exactly the first two, and so on: its index and the number of blocks.
fn match_prefix(runs: &[Run], blocks_bytes: &[u64]) -> Option<(usize, usize)> {
    let fitting = |(index, run): (usize, &Run)| Some((index, run.filled_by(blocks_bytes)?));
    runs.iter().enumerate().filter_map(fitting).min_by_key(|&(_, count)| count)
}

/// Regions of a run that holds these blocks, the first one topmost.
fn cut(run: &Run, blocks_bytes: &[u64]) -> Vec<RamRegion> {
    let mut end = run.end;
    let cut_one = |&block: &u64| {
        let bytes = round_up(block, run.page_bytes);
        let start = end - bytes;
        end = start;
        RamRegion { start: Hva(start), bytes, backing: run.backing(start) }
    };
    blocks_bytes.iter().map(cut_one).collect()
}

fn candidates(maps: &MemoryMaps) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for map in maps.iter().filter(|map| is_guest_memory(map)) {
        let next = Run::of(map);
        match runs.last_mut() {
            Some(last) if last.continues_in(&next) => {
                last.end = next.end;
                last.flags |= next.flags;
            }
            _ => runs.push(next),
        }
    }
    runs
}

fn is_guest_memory(map: &MemoryMap) -> bool {
    let flags = map.extension.vm_flags;
    map.address.0 < map.address.1
        && map.perms.contains(MMPermissions::WRITE)
        && !map.perms.contains(MMPermissions::EXECUTE)
        && flags.contains(VmFlags::DC)
        && !flags.contains(VmFlags::EX)
}

impl Run {
    fn of(map: &MemoryMap) -> Run {
        let path = match &map.pathname {
            MMapPath::Path(path) => Some(printable(&path.to_string_lossy())),
            _ => None,
        };
        Run {
            start: map.address.0,
            end: map.address.1,
            page_bytes: map.extension.map.get("KernelPageSize").copied().unwrap_or(0).max(4096),
            flags: map.extension.vm_flags,
            shared: map.perms.contains(MMPermissions::SHARED),
            path,
            device: map.dev,
            inode: map.inode,
            offset: map.offset,
        }
    }

    fn bytes(&self) -> u64 {
        self.end - self.start
    }

    /// How many of the first blocks fill this run exactly.
    fn filled_by(&self, blocks_bytes: &[u64]) -> Option<usize> {
        let mut sum = 0_u64;
        for (index, &block) in blocks_bytes.iter().enumerate() {
            sum = sum.saturating_add(round_up(block, self.page_bytes));
            if sum >= self.bytes() {
                return (sum == self.bytes()).then_some(index + 1);
            }
        }
        None
    }

    fn continues_in(&self, next: &Run) -> bool {
        let same_object = (self.shared, &self.path, self.device, self.inode, self.page_bytes)
            == (next.shared, &next.path, next.device, next.inode, next.page_bytes);
        let offset_follows =
            self.path.is_none() || self.offset.checked_add(self.bytes()) == Some(next.offset);
        self.end == next.start && same_object && offset_follows
    }

    fn is_hugetlb(&self) -> bool {
        self.flags.contains(VmFlags::HT) || self.page_bytes > procfs::page_size()
    }

    fn backing(&self, start: u64) -> Backing {
        match &self.path {
            _ if self.is_hugetlb() => Backing::Hugetlb,
            Some(path) if self.shared => Backing::Shared {
                path: path.clone(),
                device: self.device,
                inode: self.inode,
                offset: self.offset.saturating_add(start - self.start),
            },
            _ => Backing::Anonymous,
        }
    }

    /// The file behind the run unless it can only be memory: a memfd, or shared anonymous memory ("/dev/zero").
    fn file(&self) -> Option<(String, (i32, i32))> {
        let path = self.path.as_ref()?;
        let is_memory = self.is_hugetlb() || path.starts_with("/memfd:") || path == "/dev/zero (deleted)";
        (!is_memory).then(|| (path.clone(), self.device))
    }
}
