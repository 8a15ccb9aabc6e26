//! Has the kernel reclaim memory of a VM's own control group (`memory.reclaim`, Linux 5.19 and later).
//!
//! In: a VM whose control group is its own, a number of bytes. Out: by how much the group's mapped memory, its
//! page cache, its copies in the swap cache, its huge pages and what it has in the first tier fell ([`Reclaimed`]):
//! what the kernel says of its own success is not used. Not here: whether it should be done (`reclaim`).
//!
//! 1. *Proof*: of frames of guest RAM, looked at here and there, nearly all must be charged to the group and mapped by
//!    nobody else. The kernel does not see who else uses a page that is charged elsewhere.
//! 2. It is asked for little at a time, as much as takes some tens of milliseconds: whoever makes or removes a control
//!    group may wait for the write. Before each it is looked whether the VM may still be touched, and whether a
//!    lower tier is being filled.
//!
//! # Limits
//! The kernel takes what it finds oldest, page cache of the group too. How far it keeps to anonymous memory is up to
//! the version: `swappiness=max` from 6.16 on, `swappiness=200` from 6.8 on, else as the host's `vm.swappiness` says. A
//! write to a disk that hangs cannot be interrupted.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::target::{Roots, Target};
use crate::sys::{PAGE_BYTES, PageState};
use crate::tiermap::PageIndex;
use crate::tiers::{Nodes, Passage};
use crate::track::VmId;
use crate::vm::{GroupMemory, OnNodes};

/// Asked for at a time.
const CHUNK_LEAST: u64 = 256 << 10;
const CHUNK_FIRST: u64 = 1 << 20;
const CHUNK_MOST: u64 = 16 << 20;
/// A write that takes less is followed by one for twice as much; one that takes more, by one for half.
const CHUNK_FAST: Duration = Duration::from_millis(20);
const CHUNK_SLOW: Duration = Duration::from_millis(50);
/// Others wait for the lane too: what an order does not get in so long comes with the next.
const ORDER_MOST: Duration = Duration::from_secs(2);
/// Frames that are looked at.
const SAMPLES: usize = 256;
/// How long a proof counts.
const PROVE_EVERY: Duration = Duration::from_mins(10);
/// Of them, so many percent must be the group's alone.
const PROOF_PERCENT: usize = 95;

/// By how much a group's memory fell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// What was asked for: less than was ordered where it took too long.
    pub asked_bytes: u64,
    /// Mapped and shared memory.
    pub memory_bytes: u64,
    /// Of the first tier, wherever it went: with the kernel's demotion on, to lower memory tiers too.
    pub first_tier: OnNodes,
    /// Page cache, of files that the VM's processes were the first to read.
    pub file_bytes: u64,
    /// Copies in the swap cache.
    pub copies_bytes: u64,
    /// Anonymous huge pages, which were split or went as a whole. Those that went are a part of `memory_bytes` too.
    pub huge_bytes: u64,
}

impl Reclaimed {
    /// All of it that became free, or left the first tier.
    pub fn bytes(&self) -> u64 {
        let file = self.file_bytes.max(self.first_tier.file_bytes);
        self.moved_bytes() + file + self.copies_bytes
    }

    /// Guest memory that went down, at least: what went from the first tier to a lower memory tier and what went from
    /// there to swap may be the same.
    pub fn moved_bytes(&self) -> u64 {
        self.memory_bytes.max(self.first_tier.guest_bytes)
    }
}

/// Why the kernel cannot be asked for pages of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoReclaim {
    /// It was not asked: it may be so in a moment.
    Now(String),
    /// It was, and found nothing.
    Found(String),
    /// It was not proved that the group's memory is the VM's, or there is no such file.
    NotThere(String),
}

/// Has the kernel reclaim so many bytes of the VM's group, or as much as it finds.
pub(super) fn reclaim(
    target: &Target,
    roots: &Roots,
    nodes: &Nodes,
    passage: &Passage,
    bytes: u64,
    stop: &AtomicBool,
) -> Result<Reclaimed, NoReclaim> {
    let look = || GroupMemory::of(&roots.proc, &roots.cgroup, target.info.vm.key);
    let before = look().with_owner(&roots.proc, &roots.cgroup, target.info.vm.key);
    let Some(name) = before.group.clone().filter(|_| before.is_vms_own) else {
        return Err(NoReclaim::NotThere("it has no control group of its own".to_owned()));
    };
    let folder = roots.cgroup.join(name.trim_start_matches('/'));
    // With one memory tier what leaves it is what the group has less of.
    let several = nodes.tiers().0 > 1;
    let first_tier = || {
        let of_first_tier = |node| nodes.is_of_first_tier(node);
        several.then(|| OnNodes::of(&folder, of_first_tier)).flatten()
    };
    let first_before = first_tier();
    let may = || target.refusal(roots, false).map(|skip| skip.to_string());
    let (done, result) = ask(&[folder.join("memory.reclaim")], bytes, may, passage, stop);
    let (after, first_after) = (look(), first_tier());
    let fell = |of: fn(&GroupMemory) -> Option<u64>| {
        of(&before).unwrap_or(0).saturating_sub(of(&after).unwrap_or(u64::MAX))
    };
    let reclaimed = Reclaimed {
        asked_bytes: done,
        memory_bytes: fell(|memory| memory.guest_bytes),
        first_tier: first_before
            .zip(first_after)
            .map_or_else(OnNodes::default, |(before, after)| before.less(after)),
        file_bytes: fell(|memory| memory.file_bytes),
        copies_bytes: fell(|memory| memory.swap_cached_bytes),
        huge_bytes: fell(|memory| memory.huge_bytes),
    };
    // What was reclaimed before an error counts.
    match result {
        Err(error) if reclaimed.bytes() == 0 => Err(error),
        _ => Ok(reclaimed),
    }
}

/// Writes so many bytes to these files in turn, a little at a time, until all of it is asked for, or something speaks
/// against it: `may_not` says what, before each write. Returns what was asked for.
pub(super) fn ask(
    orders: &[PathBuf],
    bytes: u64,
    may_not: impl Fn() -> Option<String>,
    passage: &Passage,
    stop: &AtomicBool,
) -> (u64, Result<(), NoReclaim>) {
    let (mut chunk, mut done) = (CHUNK_FIRST, 0);
    let began = Instant::now();
    let mut orders_left = orders.iter().cycle();
    while done < bytes && began.elapsed() < ORDER_MOST && !stop.load(Ordering::Relaxed) {
        let Some(order) = orders_left.next() else { break };
        if let Some(why) = may_not() {
            return (done, Err(NoReclaim::Now(why)));
        }
        let asked = chunk.min(bytes - done).max(PAGE_BYTES);
        let Some((written, took)) = passage.pass(|| {
            let began = Instant::now();
            (write(order, asked), began.elapsed())
        }) else {
            return (done, Err(NoReclaim::Now("a lower tier is being filled".to_owned())));
        };
        done += asked;
        if let Err(error) = written {
            return (done, Err(refused(order, &error)));
        }
        chunk = match took {
            took if took < CHUNK_FAST => (chunk * 2).min(CHUNK_MOST),
            took if took > CHUNK_SLOW => (chunk / 2).max(CHUNK_LEAST),
            _ => chunk,
        };
    }
    (done, Ok(()))
}

fn write(order: &Path, bytes: u64) -> io::Result<()> {
    let mut last = Ok(());
    for word in [" swappiness=max", " swappiness=200", ""] {
        // One that is not there is not made.
        let file = fs::OpenOptions::new().write(true).open(order)?;
        last = file.write_at(format!("{bytes}{word}").as_bytes(), 0).map(drop);
        if !matches!(&last, Err(error) if error.kind() == io::ErrorKind::InvalidInput) {
            break;
        }
    }
    last
}

fn refused(order: &Path, error: &io::Error) -> NoReclaim {
    let text = format!("{}: {error}", order.display());
    match error.raw_os_error() {
        // It found less than that.
        Some(libc::EAGAIN | libc::EINTR | libc::EBUSY) => NoReclaim::Found(text),
        _ => NoReclaim::NotThere(text),
    }
}

/// What was proved, and when.
#[derive(Debug, Default)]
pub(super) struct Proofs(BTreeMap<VmId, (Instant, Result<(), NoReclaim>)>);

impl Proofs {
    /// The proof of a VM, looked at anew now and then.
    pub(super) fn of(&mut self, target: &Target, roots: &Roots) -> Result<(), NoReclaim> {
        self.0.retain(|_, (at, _)| at.elapsed() < PROVE_EVERY);
        self.0.entry(target.info.id).or_insert_with(|| (Instant::now(), prove(target, roots))).1.clone()
    }
}

/// Whether the VM's memory is charged to its group and mapped by nobody else, as far as samples tell.
///
/// # Errors
/// Why not.
fn prove(target: &Target, roots: &Roots) -> Result<(), NoReclaim> {
    let memory = GroupMemory::of(&roots.proc, &roots.cgroup, target.info.vm.key);
    let not_there = |why: String| Err(NoReclaim::NotThere(why));
    let Some(name) = memory.group else { return not_there("no control group counts its memory".to_owned()) };
    let mut groups = Vec::new();
    inodes(&roots.cgroup.join(name.trim_start_matches('/')), &mut groups);
    let frames = match samples(target) {
        Ok(frames) if !frames.is_empty() => frames,
        Ok(_) => return Err(NoReclaim::Now("none of its memory is mapped".to_owned())),
        Err(error) => return Err(NoReclaim::Now(error.to_string())),
    };
    let read = |file: &str| -> io::Result<Vec<u64>> {
        let path = roots.proc.join(file);
        let error = |error| io::Error::other(format!("{}: {error}", path.display()));
        let file = File::open(&path).map_err(error)?;
        let mut words = Vec::with_capacity(frames.len());
        for frame in &frames {
            let mut word = [0; 8];
            file.read_exact_at(&mut word, frame * 8).map_err(error)?;
            words.push(u64::from_ne_bytes(word));
        }
        Ok(words)
    };
    let (charged, mapped) = match (read("kpagecgroup"), read("kpagecount")) {
        (Ok(charged), Ok(mapped)) => (charged, mapped),
        (Err(error), _) | (_, Err(error)) => return not_there(error.to_string()),
    };
    let own =
        charged.iter().zip(&mapped).filter(|(group, times)| groups.contains(group) && **times <= 1).count();
    if own * 100 < frames.len() * PROOF_PERCENT {
        return not_there(format!(
            "of {} pages of its memory that were looked at, {own} are charged to {name} and mapped by nobody else",
            frames.len()
        ));
    }
    Ok(())
}

/// The group's inode and those of all groups below it.
fn inodes(folder: &PathBuf, found: &mut Vec<u64>) {
    found.extend(fs::metadata(folder).map(|group| group.ino()));
    let children = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    children.filter(|path| path.is_dir()).for_each(|child| inodes(&child, found));
}

/// Frames of guest RAM, from all over it.
fn samples(target: &Target) -> io::Result<Vec<u64>> {
    let pages = target.info.layout.pages();
    let step = (pages as usize / (4 * SAMPLES)).max(1);
    let chosen: Vec<PageIndex> = (0..pages).step_by(step).collect();
    let mut frames = Vec::new();
    for state in target.states(&chosen)? {
        if let PageState::Present { pfn } = state
            && pfn > 0
        {
            frames.push(pfn);
        }
    }
    let every = (frames.len() / SAMPLES).max(1);
    Ok(frames.into_iter().step_by(every).collect())
}
