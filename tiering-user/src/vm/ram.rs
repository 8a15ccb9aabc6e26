//! Finds guest RAM among a process's mappings. In: `/proc/PID/maps`, the memory objects of the command line, what the
//! files behind mappings are. Out: [`Layout`]. No page table is walked for it.
//!
//! The biggest mapping is not the answer (an emulator's code buffer can be bigger than RAM). RAM is what has a size
//! that the command line announces: private anonymous memory or a file, writable, not executable. QEMU maps each block
//! in front of a guard page (`qemu_ram_mmap`, util/mmap-alloc.c, QEMU 2.4 to 10.0), so of two mappings of one size the
//! one with a guard page counts. Something else may lie right below a block, and the kernel may split a block or merge
//! neighbouring ones: a block, or several in a row, is the upper part of a run of neighbouring mappings.
//!
//! Memory that is plugged by a monitor command is announced nowhere. In a VM with memory slots, an anonymous
//! mapping that begins at a multiple of 2 MiB, is as large as a DIMM and ends at a guard page is taken for one, and so
//! is a file that QEMU names as a memory object.
//!
//! # Limits
//! Blocks of one size and kind are told apart by address only: QEMU maps blocks as it creates them, and mmap hands out
//! addresses from the top down. Video memory of exactly the size of a missing RAM block would be taken for it. A DIMM
//! plugged with a file of its own choice (`mem-path` with a name outside /dev/shm) is not found.

use std::cmp::Reverse;

use procfs::process::{MMPermissions, MMapPath, MemoryMap, MemoryMaps};

use super::cmdline::{CommandLine, Kind, RamBlock, Role};
use super::options::round_up;
use super::{Backing, Hva, RamRegion, printable};

/// Where sizes do not add up, smaller mappings (video memory, firmware, tables) are not shown as RAM.
const LIKELY_RAM_BYTES: u64 = 32 << 20;
/// A DIMM has whole huge pages, and is not smaller than what Linux and Windows can plug. Video memory of QXL has twice
/// 64 MiB by default.
const DIMM_ALIGN_BYTES: u64 = 2 << 20;
const LEAST_DIMM_BYTES: u64 = 64 << 20;
const LEAST_DIMM_BESIDE_VIDEO_BYTES: u64 = 128 << 20;

/// The guard page, merged with one of a neighbour. What is left of a heap (malloc's arenas) is larger as a rule.
const GUARD_MOST_BYTES: u64 = 64 << 10;

/// What a file behind a mapping is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Medium {
    /// Pages that can be swapped: anonymous, memfd, tmpfs.
    Memory,
    /// Pages of this size from the hugetlb pool.
    Hugetlb { page_bytes: u64 },
    /// Anything that has a place of its own: a file system on a disk, DAX, a device.
    Storage,
}

/// What the mappings say.
#[derive(Debug)]
pub(super) struct Layout {
    /// In the order of the announced blocks, and behind them what was plugged later; when not `complete`, whatever is
    /// likely to be RAM. Objects that are no RAM are not in it.
    pub(super) found: Vec<Found>,
    /// All RAM that the VM begins with was found.
    pub(super) complete: bool,
    /// So was all that is plugged into slots by the command line.
    pub(super) slots_complete: bool,
}

/// One block of guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) region: RamRegion,
    /// Which of the announced blocks it is.
    pub(super) block: Option<usize>,
    pub(super) role: Role,
    pub(super) medium: Medium,
    /// The file behind it.
    pub(super) path: Option<String>,
    /// Its pages end at multiples of this many bytes.
    pub(super) align_bytes: u64,
}

/// One mapping.
#[derive(Debug, Clone)]
struct Piece {
    start: u64,
    end: u64,
    offset: u64,
}

/// Neighbouring mappings of one object.
#[derive(Debug, Clone)]
struct Run {
    pieces: Vec<Piece>,
    shared: bool,
    path: Option<String>,
    device: (i32, i32),
    inode: u64,
    medium: Medium,
    /// One page that nobody may access follows.
    guarded: bool,
}

/// Looks for the memory of `command` in `maps`; `medium` says what is behind a mapping with a path.
pub(super) fn find(
    maps: &MemoryMaps,
    command: &CommandLine,
    medium: &dyn Fn(&MemoryMap) -> Medium,
) -> Layout {
    let blocks = &command.blocks;
    let mut runs = runs(maps, medium);
    runs.sort_by_key(|run| Reverse(run.end()));
    let mut left: Vec<usize> = (0..blocks.len()).collect();
    left.sort_by_key(|block| blocks[*block].created);

    let mut found: Vec<Found> = Vec::new();
    while !left.is_empty() {
        let wanted: Vec<&RamBlock> = left.iter().map(|block| &blocks[*block]).collect();
        let Some((run, count)) = best_run(&runs, &wanted) else {
            left.remove(0);
            continue;
        };
        for block in left.drain(..count) {
            found.extend(runs[run].take(blocks[block].bytes, Some(block), blocks[block].role));
        }
    }
    let has = |block: &usize| found.iter().any(|found| found.block == Some(*block));
    let all = |wanted: &dyn Fn(Role) -> bool| {
        (0..blocks.len()).filter(|block| wanted(blocks[*block].role)).all(|block| has(&block))
    };
    let complete = command.unread.is_none() && all(&|role| role == Role::Main);
    let slots_complete = all(&|role| matches!(role, Role::Dimm | Role::VirtioMem));
    found.sort_by_key(|found| found.block);
    if !complete {
        // Whatever it is, it is shown as RAM.
        found.retain(|found| matches!(found.role, Role::Main | Role::Dimm | Role::VirtioMem));
        let likely = |run: &&mut Run| run.guarded && run.bytes() >= LIKELY_RAM_BYTES;
        found
            .extend(runs.iter_mut().filter(likely).filter_map(|run| run.take(run.bytes(), None, Role::Main)));
        found.sort_by_key(|found| found.region.start);
    } else if command.board.max_ram_bytes.is_some() {
        let least = if command.large_video { LEAST_DIMM_BESIDE_VIDEO_BYTES } else { LEAST_DIMM_BYTES };
        found.extend(runs.iter_mut().filter_map(|run| run.take_dimm(least)));
    }
    found.retain(|found| found.role != Role::Other);
    Layout { found, complete, slots_complete }
}

/// The run whose upper part holds exactly the first block, or exactly the first two, and so on: its index and the
/// number of blocks.
fn best_run(runs: &[Run], blocks: &[&RamBlock]) -> Option<(usize, usize)> {
    let fitting = |(index, run): (usize, &Run)| {
        let count = run.filled_by(blocks)?;
        // An image may lie on a disk; RAM as a rule does not.
        let unlikely =
            (run.medium == Medium::Storage) != (blocks[0].role == Role::Image || blocks[0].persistent);
        Some((!run.guarded, unlikely, count, index))
    };
    let best = runs.iter().enumerate().filter_map(fitting).min()?;
    Some((best.3, best.2))
}

fn runs(maps: &MemoryMaps, medium: &dyn Fn(&MemoryMap) -> Medium) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for map in maps {
        if let Some(last) = runs.last_mut()
            && last.end() == map.address.0
        {
            if is_guard(map) {
                last.guarded = true;
                continue;
            }
            if is_candidate(map) && last.continues_in(map) {
                last.pieces.push(Piece::of(map));
                continue;
            }
        }
        if is_candidate(map) {
            runs.push(Run::of(map, medium));
        }
    }
    runs
}

fn is_guard(map: &MemoryMap) -> bool {
    let access = MMPermissions::READ | MMPermissions::WRITE | MMPermissions::EXECUTE;
    !map.perms.intersects(access) && map.address.1 - map.address.0 <= GUARD_MOST_BYTES
}

fn is_candidate(map: &MemoryMap) -> bool {
    // The emulator's code buffer is mapped a second time, for writing.
    let named = match &map.pathname {
        MMapPath::Anonymous => true,
        MMapPath::Path(path) => !path.as_os_str().to_string_lossy().starts_with("/memfd:tcg-jit"),
        _ => false,
    };
    named
        && map.address.0 < map.address.1
        && map.perms.contains(MMPermissions::WRITE)
        && !map.perms.contains(MMPermissions::EXECUTE)
}

fn path_of(map: &MemoryMap) -> Option<String> {
    match &map.pathname {
        MMapPath::Path(path) => Some(printable(&path.to_string_lossy())),
        _ => None,
    }
}

impl Piece {
    fn of(map: &MemoryMap) -> Piece {
        Piece { start: map.address.0, end: map.address.1, offset: map.offset }
    }
}

impl Run {
    fn of(map: &MemoryMap, medium: &dyn Fn(&MemoryMap) -> Medium) -> Run {
        let path = path_of(map);
        Run {
            pieces: vec![Piece::of(map)],
            shared: map.perms.contains(MMPermissions::SHARED),
            medium: if path.is_some() { medium(map) } else { Medium::Memory },
            path,
            device: map.dev,
            inode: map.inode,
            guarded: false,
        }
    }

    fn start(&self) -> u64 {
        self.pieces.first().map_or(0, |piece| piece.start)
    }

    fn end(&self) -> u64 {
        self.pieces.last().map_or(0, |piece| piece.end)
    }

    fn bytes(&self) -> u64 {
        self.end() - self.start()
    }

    fn continues_in(&self, map: &MemoryMap) -> bool {
        let shared = map.perms.contains(MMPermissions::SHARED);
        let same = (self.shared, self.device, self.inode) == (shared, map.dev, map.inode);
        let offset_follows = self.path.is_none()
            || self
                .pieces
                .last()
                .is_some_and(|last| last.offset.checked_add(last.end - last.start) == Some(map.offset));
        same && self.path.is_some() == path_of(map).is_some() && offset_follows
    }

    fn page_bytes(&self) -> u64 {
        match self.medium {
            Medium::Hugetlb { page_bytes } => page_bytes,
            Medium::Memory | Medium::Storage => procfs::page_size(),
        }
    }

    fn is_of(&self, kind: Kind) -> bool {
        match (&self.path, kind) {
            (None, Kind::Anonymous) | (Some(_), Kind::File) => true,
            // Shared anonymous memory, and anonymous huge pages.
            (Some(path), Kind::Anonymous) => {
                path == "/dev/zero (deleted)" || path.starts_with("/anon_hugepage")
            }
            (None, Kind::File) => false,
        }
    }

    /// How many of the first blocks fill the upper part of this run exactly, if any do.
    fn filled_by(&self, blocks: &[&RamBlock]) -> Option<usize> {
        let mut wanted = blocks.iter();
        let (mut sum, mut count) = (0u64, 0);
        for piece in self.pieces.iter().rev() {
            let upper = self.end() - piece.start;
            while sum < upper {
                let block = wanted.next().filter(|block| self.is_of(block.kind))?;
                sum = sum.saturating_add(round_up(block.bytes, self.page_bytes()));
                count += 1;
            }
            if sum == upper {
                return Some(count);
            }
        }
        None
    }

    /// Cuts the uppermost `bytes` off; `None` if there is no more.
    fn take(&mut self, bytes: u64, block: Option<usize>, role: Role) -> Option<Found> {
        let bytes = round_up(bytes, self.page_bytes());
        let start = self.end().checked_sub(bytes).filter(|start| *start >= self.start() && bytes > 0)?;
        let found = Found {
            region: RamRegion { start: Hva(start), bytes, backing: self.backing(start) },
            block,
            role,
            medium: self.medium,
            path: self.path.clone(),
            align_bytes: if self.path.is_none() { DIMM_ALIGN_BYTES } else { self.page_bytes() },
        };
        self.pieces.retain(|piece| piece.start < start);
        if let Some(last) = self.pieces.last_mut() {
            last.end = last.end.min(start);
        }
        Some(found)
    }

    /// Takes what has the shape of a DIMM and is announced nowhere.
    fn take_dimm(&mut self, least_bytes: u64) -> Option<Found> {
        let last = self.pieces.last().filter(|_| self.guarded)?;
        let (start, bytes) = (last.start, last.end - last.start);
        let is_object = match &self.path {
            None => start.is_multiple_of(DIMM_ALIGN_BYTES),
            Some(path) => {
                ["/memfd:memory-backend-memfd", "/dev/shm/", "/anon_hugepage", "/dev/zero"]
                    .iter()
                    .any(|prefix| path.starts_with(prefix))
                    || path.contains("/qemu_back_mem.")
            }
        };
        let fits = is_object && bytes >= least_bytes && bytes.is_multiple_of(DIMM_ALIGN_BYTES);
        fits.then(|| self.take(bytes, None, Role::Dimm)).flatten()
    }

    fn backing(&self, start: u64) -> Backing {
        let piece = self.pieces.iter().find(|piece| (piece.start..piece.end).contains(&start));
        match (&self.path, piece) {
            _ if matches!(self.medium, Medium::Hugetlb { .. }) => Backing::Hugetlb,
            (Some(path), Some(piece)) if self.shared => Backing::Shared {
                path: path.clone(),
                device: self.device,
                inode: self.inode,
                offset: piece.offset.saturating_add(start - piece.start),
            },
            _ => Backing::Anonymous,
        }
    }
}
