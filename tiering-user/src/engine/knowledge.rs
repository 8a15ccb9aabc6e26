//! What is remembered of VMs when the agent ends, and what the next agent makes of it.
//!
//! In: summaries of blocks as they change; records that an earlier agent wrote. Out: records; pages that begin with the
//! back-off and the heat that their block had, if the VM is still the same process. Pure: time is an argument.
//!
//! One byte a block of 2 MiB that has a habit: half a KiB for each GiB of a VM, and nothing for addresses without
//! memory. A VM is known again by its UUID, else by its name: another process of that identity takes over the
//! totals, and its tape (see [`Tapes`]).
//!
//! Limits: pages are not remembered one by one, and of their idle times nothing. Heat is given back to pages of the
//! first tier only: elsewhere it says that a page was accessed where it is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ceiling::{Remembered, What};
use super::histories::Histories;
use super::managed_vm::ManagedVm;
use super::queue::Moved;
use super::tapes::Tapes;
use super::tenants::Tenants;
use crate::config::Class;
use crate::predict::Position;
use crate::reclaim::Reclaim;
use crate::store::Record;
use crate::sys::Monotonic;
use crate::tiermap::{BLOCK_PAGES, Habit, Place, Seconds, Sparse, VmPages};
use crate::tiers::TierId;
use crate::vm::{ProcessKey, Vm};

const MACHINES: &str = "machine/";
const BLOCKS: &str = "habits/";
/// As an agent up to 0.1 wrote them: a byte for each block up to the last one.
const FORMER_BLOCKS: &str = "blocks/";
/// What was not seen for so long is forgotten, and what is beyond this number.
const FORGET_AFTER_S: u64 = 30 * 24 * 3600;
const MOST_VMS: usize = 1024;
/// Most that a byte can say of heat and of back-off. Any of the two upper bits says that the block was in use: earlier
/// agents wrote there how often trials of it had failed.
const HEAT_MOST: u8 = 15;
const BACKOFF_MOST: u8 = 3;
const IN_USE: u8 = 0b0100_0000;
const IN_USE_BITS: u8 = 0b1100_0000;
/// No VM has more: 16 TiB.
const MOST_BLOCKS: u32 = 1 << 23;

/// A VM, as it is written down.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct VmRecord {
    saved_unix_s: u64,
    /// The process, and the boot in which it is that.
    boot_id: String,
    pid: i32,
    start_time_ticks: u64,
    pages: u32,
    demoted_pages: u64,
    promoted_pages: u64,
    /// What kind of work its profile said that it does, and how surely.
    seemed: Option<(Class, f32)>,
}

/// What is known of one VM beyond this agent.
#[derive(Clone, Debug, Default)]
pub(super) struct Knowledge {
    /// By block; where there is none the block has no habit.
    habits: Sparse<u8>,
    /// `habits` changed since it was written down.
    changed: bool,
    /// What an earlier agent knew of the blocks, until the pages are found.
    recalled: Option<Sparse<u8>>,
    /// Blocks that were given back what was known of them.
    pub blocks_recalled: u64,
    /// What earlier agents moved.
    pub before: Moved,
    /// What kind of work it seemed to do then, and how surely.
    pub seemed: Option<(Class, f32)>,
    /// Up to where its tape is kept; written by [`Tapes`].
    pub tape_kept: Position,
    /// Epochs of its profile when its history was kept; written by [`Histories`].
    pub history_kept: u64,
}

impl Knowledge {
    /// Notes how the pages of a block behave now, and whether what went out says that it is in use.
    pub(super) fn note(&mut self, block: u32, habit: Habit, in_use: bool) {
        let byte = Some(encode(habit, in_use)).filter(|byte| *byte != 0);
        self.changed |= self.habits.get(block).copied() != byte;
        match byte {
            Some(byte) => *self.habits.get_or_insert_with(block, || byte) = byte,
            None => drop(self.habits.remove(block)),
        }
    }

    /// Gives the pages, which were found just now, what was known of their blocks.
    pub(super) fn recall(
        &mut self,
        pages: &mut VmPages,
        reclaim: &mut Reclaim,
        (time, now): (Monotonic, Seconds),
    ) {
        let blocks = pages.layout().pages().div_ceil(BLOCK_PAGES);
        let recalled = self.recalled.take().unwrap_or_default();
        for (block, byte) in recalled.iter().take_while(|(block, _)| *block < blocks) {
            let (habit, in_use) = decode(*byte);
            self.blocks_recalled += 1;
            if in_use {
                reclaim.was_in_use(block, time);
            }
            for page in block * BLOCK_PAGES..(block + 1) * BLOCK_PAGES {
                let entry = pages.get(page);
                if entry.place() == Place::Untouched {
                    continue;
                }
                let backoff = entry.backoff().max(habit.backoff.into());
                let accesses = if entry.place() == Place::In(TierId(0)) { habit.heat } else { 0 };
                pages.update(page, |entry| {
                    (0..accesses).fold(entry.with_backoff(backoff), |entry, _| entry.accessed(now, false))
                });
            }
        }
    }
}

fn encode(habit: Habit, in_use: bool) -> u8 {
    (if in_use { IN_USE } else { 0 }) | habit.backoff.min(BACKOFF_MOST) << 4 | habit.heat.min(HEAT_MOST)
}

fn decode(byte: u8) -> (Habit, bool) {
    (Habit { backoff: byte >> 4 & BACKOFF_MOST, heat: byte & HEAT_MOST }, byte & IN_USE_BITS != 0)
}

/// Habits as they are written down: the first block of each run of them (4 bytes, little-endian), how many there are (4
/// bytes), and their bytes.
fn pack(habits: &Sparse<u8>) -> Vec<u8> {
    let all: Vec<(u32, u8)> = habits.iter().map(|(block, byte)| (block, *byte)).collect();
    let mut packed = Vec::new();
    for run in all.chunk_by(|(a, _), (b, _)| a + 1 == *b) {
        // No VM has as many blocks.
        let count = u32::try_from(run.len()).unwrap_or(u32::MAX);
        packed.extend(run[0].0.to_le_bytes().into_iter().chain(count.to_le_bytes()));
        packed.extend(run.iter().map(|(_, byte)| byte));
    }
    packed
}

/// What [`pack`] gave. Nothing behind the first thing that is wrong is believed.
fn unpack(packed: &[u8]) -> Sparse<u8> {
    let mut habits = Sparse::default();
    let mut rest = packed;
    while let Some((head, behind)) = rest.split_first_chunk::<8>() {
        let [first, count] =
            [0, 4].map(|at| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]));
        let Some((bytes, behind)) = behind.split_at_checked(count as usize) else { break };
        if first > MOST_BLOCKS || count > MOST_BLOCKS {
            break;
        }
        for (block, byte) in (first..).zip(bytes).filter(|(_, byte)| **byte != 0) {
            *habits.get_or_insert_with(block, || 0) = *byte;
        }
        rest = behind;
    }
    habits
}

/// What is known of VMs that are not there, by identity.
#[derive(Debug, Default)]
pub(super) struct Memory {
    boot_id: String,
    known: BTreeMap<String, (VmRecord, Vec<u8>)>,
    /// What must be written down beside the VMs that are there.
    due: Vec<Record>,
    tapes: Tapes,
    histories: Histories,
}

impl Memory {
    /// What the records say, in the boot of this identity, and the tenants as they were. What is too old, or too much,
    /// is to be removed.
    pub(super) fn load(
        boot_id: String,
        names: &[String],
        read: impl Fn(&str) -> Option<Vec<u8>>,
        unix_s: u64,
    ) -> (Self, Tenants) {
        let mut memory = Self { boot_id, ..Self::default() };
        memory.due.extend(
            names.iter().filter(|name| name.starts_with(FORMER_BLOCKS)).map(|name| (name.clone(), None)),
        );
        let mut found = Vec::new();
        for name in names.iter().filter(|name| name.starts_with(MACHINES)) {
            let record = read(name).and_then(|bytes| serde_json::from_slice::<VmRecord>(&bytes).ok());
            found.push((name[MACHINES.len()..].to_owned(), record.unwrap_or_default()));
        }
        found.sort_by_key(|(_, record)| std::cmp::Reverse(record.saved_unix_s));
        for (number, (identity, record)) in found.into_iter().enumerate() {
            if number >= MOST_VMS || record.saved_unix_s.saturating_add(FORGET_AFTER_S) < unix_s {
                memory.due.extend(records(&identity, None, Some(None)));
                continue;
            }
            // Of another boot no process is left.
            let blocks = (record.boot_id == memory.boot_id).then(|| read(&format!("{BLOCKS}{identity}")));
            memory.known.insert(identity, (record, blocks.flatten().unwrap_or_default()));
        }
        let (tapes, keys) = Tapes::load(names, &read, |identity| memory.known.contains_key(identity));
        memory.tapes = tapes;
        memory.histories = Histories::load(names, &read, |identity| memory.known.contains_key(identity));
        let (tenants, outdated) = Tenants::load(keys, names, read);
        memory.due.extend(outdated);
        (memory, tenants)
    }

    /// A VM has come beside these: it goes on with its tape and its history, or has those of its earlier self. Of
    /// two VMs of one identity that are there at once, neither is the other one's earlier self.
    pub(super) fn recall_past<'a>(
        &mut self,
        vm: &mut ManagedVm,
        mut others: impl Iterator<Item = &'a ManagedVm>,
        unix_s: u64,
    ) {
        let identity = identity(&vm.info.vm);
        if others.all(|other| self::identity(&other.info.vm) != identity) {
            self.tapes.recall(&identity, vm, &self.boot_id);
            self.histories.recall(&identity, vm, unix_s);
        }
    }

    /// A VM has come.
    pub(super) fn recall(&mut self, vm: &Vm, pages: u32) -> Knowledge {
        let Some((record, blocks)) = self.known.remove(&identity(vm)) else { return Knowledge::default() };
        let process = ProcessKey { pid: record.pid, start_time_ticks: record.start_time_ticks };
        let same = record.boot_id == self.boot_id && process == vm.key && record.pages == pages;
        let habits = if same { unpack(&blocks) } else { Sparse::default() };
        Knowledge {
            // What was taken out of the memory is written down again, also if nothing new is learned.
            changed: !habits.is_empty(),
            recalled: same.then(|| habits.clone()),
            habits,
            before: Moved {
                demoted: record.demoted_pages,
                promoted: record.promoted_pages,
                ..Moved::default()
            },
            seemed: record.seemed,
            ..Knowledge::default()
        }
    }

    /// A VM has gone. It may be taken in anew; if its process has ended, nothing of its blocks is of use any more.
    pub(super) fn keep(&mut self, vm: &mut ManagedVm, unix_s: u64) {
        let (identity, record) = (identity(&vm.info.vm), self.record(vm, unix_s));
        self.tapes.keep(&identity, vm, (&self.boot_id, unix_s), 1, true);
        self.histories.gone(&identity, vm, unix_s);
        self.due.extend(records(&identity, Some(&record), Some(None)));
        if self.known.len() >= MOST_VMS
            && let Some(oldest) = self.known.iter().min_by_key(|(_, (record, _))| record.saved_unix_s)
        {
            let oldest = oldest.0.clone();
            self.forget_vm(&oldest);
        }
        self.known.insert(identity, (record, pack(&vm.knowledge.habits)));
    }

    /// What is on record of VMs, and their tapes.
    pub(super) fn remembered(&self) -> impl Iterator<Item = Remembered> {
        let vms = self.known.iter().map(|(identity, (record, habits))| Remembered {
            what: What::VmOnRecord(identity.clone()),
            used: record.saved_unix_s,
            bytes: (size_of::<VmRecord>() + habits.len()) as u64 + self.histories.bytes(identity),
        });
        vms.chain(self.tapes.remembered())
    }

    pub(super) fn forget_tape(&mut self, identity: &str) {
        self.tapes.remove(identity);
    }

    /// Forgets all that is on record of a VM that is gone.
    pub(super) fn forget_vm(&mut self, identity: &str) {
        self.known.remove(identity);
        self.tapes.remove(identity);
        self.histories.remove(identity);
        self.due.extend(records(identity, None, Some(None)));
    }

    /// All that must be written down now; tapes that are little changed only if it is the `last` time.
    pub(super) fn records<'a>(
        &mut self,
        vms: impl ExactSizeIterator<Item = &'a mut ManagedVm>,
        unix_s: u64,
        last: bool,
    ) -> Vec<Record> {
        let mut due = std::mem::take(&mut self.due);
        let mut seen = std::collections::BTreeSet::new();
        let count = vms.len();
        for vm in vms {
            let identity = identity(&vm.info.vm);
            // Of two VMs with one identity the first counts.
            if seen.insert(identity.clone()) {
                let record = self.record(vm, unix_s);
                self.tapes.keep(&identity, vm, (&self.boot_id, unix_s), count, last);
                self.histories.keep(&identity, vm, unix_s, last);
                let knowledge = &mut vm.knowledge;
                let blocks = std::mem::take(&mut knowledge.changed).then(|| Some(pack(&knowledge.habits)));
                due.extend(records(&identity, Some(&record), blocks));
            }
        }
        due.extend(self.tapes.take_due());
        due.extend(self.histories.take_due());
        due
    }

    fn record(&self, vm: &ManagedVm, unix_s: u64) -> VmRecord {
        let ProcessKey { pid, start_time_ticks } = vm.info.vm.key;
        let before = vm.knowledge.before;
        VmRecord {
            saved_unix_s: unix_s,
            boot_id: self.boot_id.clone(),
            pid,
            start_time_ticks,
            pages: vm.pages.layout().pages(),
            demoted_pages: before.demoted + vm.moves.totals.demoted,
            promoted_pages: before.promoted + vm.promoted_pages(),
            seemed: vm.class.seems(),
        }
    }
}

impl ManagedVm {
    /// Whether both are known by the same identity, which whoever starts them has chosen.
    pub(super) fn is_twin_of(&self, other: &Self) -> bool {
        identity(&self.info.vm) == identity(&other.info.vm)
    }
}

/// What a VM is called when its process is another one.
pub(super) fn identity(vm: &Vm) -> String {
    match (&vm.uuid, &vm.namespace) {
        (Some(uuid), Some(namespace)) => format!("uuid/{namespace}/{uuid}"),
        (Some(uuid), None) => format!("uuid/{uuid}"),
        (None, Some(namespace)) => format!("name/{namespace}/{}", vm.name),
        (None, None) => format!("name/{}", vm.name),
    }
}

/// The records of one VM: written, removed if `None`; the blocks left as they are if there are none at all.
fn records(identity: &str, record: Option<&VmRecord>, blocks: Option<Option<Vec<u8>>>) -> Vec<Record> {
    // Plain numbers and text always become JSON.
    let header = record.and_then(|record| serde_json::to_vec(record).ok());
    let blocks = blocks.map(|blocks| (format!("{BLOCKS}{identity}"), blocks));
    [(format!("{MACHINES}{identity}"), header)].into_iter().chain(blocks).collect()
}

#[cfg(test)]
#[path = "knowledge_tests.rs"]
mod tests;
