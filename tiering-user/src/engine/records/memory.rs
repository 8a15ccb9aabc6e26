//! What is remembered of VMs when the agent ends, and what the next agent makes of it.
//!
//! In: VMs that are there, come and go; records that an earlier agent wrote. Out: records; for a VM that comes what was
//! known of it. Pure: time is an argument.
//!
//! A VM is known again by its UUID, else by its name: another process of that identity takes over the totals, and its
//! tape (see [`Tapes`]).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::histories::Histories;
use super::tapes::Tapes;
use crate::config::Class;
use crate::engine::managed::{Knowledge, ManagedVm, Moved};
use crate::engine::remembered::{Remembered, What};
use crate::engine::tenants::Tenants;
use crate::store::Record;
use crate::vm::{ProcessKey, Vm};

const VMS: &str = "machine/";
const BLOCKS: &str = "habits/";
/// As an agent up to 0.1 wrote them: a byte for each block up to the last one.
const FORMER_BLOCKS: &str = "blocks/";
/// What was not seen for so long is forgotten, and what is beyond this number.
const FORGET_AFTER_S: u64 = 30 * 24 * 3600;
const MOST_VMS: usize = 1024;
/// A VM, as it is written down.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VmRecord {
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

/// What is known of VMs that are not there, by identity.
#[derive(Debug, Default)]
pub struct Memory {
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
    pub fn load(
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
        for name in names.iter().filter(|name| name.starts_with(VMS)) {
            let record = read(name).and_then(|bytes| serde_json::from_slice::<VmRecord>(&bytes).ok());
            found.push((name[VMS.len()..].to_owned(), record.unwrap_or_default()));
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
    pub fn recall_past<'a>(
        &mut self,
        vm: &mut ManagedVm,
        mut others: impl Iterator<Item = &'a ManagedVm>,
        unix_s: u64,
    ) {
        if others.all(|other| !other.is_twin_of(vm)) {
            let identity = vm.identity.clone();
            self.tapes.recall(&identity, vm, &self.boot_id);
            self.histories.recall(&identity, vm, unix_s);
        }
    }

    /// A VM has come.
    pub fn recall(&mut self, vm: &Vm, pages: u32) -> Knowledge {
        let Some((record, blocks)) = self.known.remove(&vm.identity()) else { return Knowledge::default() };
        let process = ProcessKey { pid: record.pid, start_time_ticks: record.start_time_ticks };
        let same = record.boot_id == self.boot_id && process == vm.key && record.pages == pages;
        let before =
            Moved { demoted: record.demoted_pages, promoted: record.promoted_pages, ..Moved::default() };
        Knowledge::recalled(same.then_some(&blocks[..]), before, record.seemed)
    }

    /// A VM has gone. It may be taken in anew; if its process has ended, nothing of its blocks is of use any more.
    pub fn keep(&mut self, vm: &mut ManagedVm, unix_s: u64) {
        let (identity, record) = (vm.identity.clone(), self.record(vm, unix_s));
        self.tapes.keep(&identity, vm, (&self.boot_id, unix_s), 1, true);
        self.histories.gone(&identity, vm, unix_s);
        self.due.extend(records(&identity, Some(&record), Some(None)));
        if self.known.len() >= MOST_VMS
            && let Some(oldest) = self.known.iter().min_by_key(|(_, (record, _))| record.saved_unix_s)
        {
            let oldest = oldest.0.clone();
            self.forget_vm(&oldest);
        }
        self.known.insert(identity, (record, vm.knowledge.packed()));
    }

    /// What is on record of VMs, and their tapes.
    pub fn remembered(&self) -> impl Iterator<Item = Remembered> {
        let vms = self.known.iter().map(|(identity, (record, habits))| Remembered {
            what: What::VmOnRecord(identity.clone()),
            used: record.saved_unix_s,
            bytes: (size_of::<VmRecord>() + habits.len()) as u64 + self.histories.bytes(identity),
        });
        vms.chain(self.tapes.remembered())
    }

    pub fn forget_tape(&mut self, identity: &str) {
        self.tapes.remove(identity);
    }

    /// Forgets all that is on record of a VM that is gone.
    pub fn forget_vm(&mut self, identity: &str) {
        self.known.remove(identity);
        self.tapes.remove(identity);
        self.histories.remove(identity);
        self.due.extend(records(identity, None, Some(None)));
    }

    /// All that must be written down now; tapes that are little changed only if it is the `last` time.
    pub fn records<'a>(
        &mut self,
        vms: impl ExactSizeIterator<Item = &'a mut ManagedVm>,
        unix_s: u64,
        last: bool,
    ) -> Vec<Record> {
        let mut due = std::mem::take(&mut self.due);
        let mut seen = std::collections::BTreeSet::new();
        let count = vms.len();
        for vm in vms {
            let identity = vm.identity.clone();
            // Of two VMs with one identity the first counts.
            if seen.insert(identity.clone()) {
                let record = self.record(vm, unix_s);
                self.tapes.keep(&identity, vm, (&self.boot_id, unix_s), count, last);
                self.histories.keep(&identity, vm, unix_s, last);
                let blocks = vm.knowledge.packed_if_changed().map(Some);
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

/// The records of one VM: written, removed if `None`; the blocks left as they are if there are none at all.
fn records(identity: &str, record: Option<&VmRecord>, blocks: Option<Option<Vec<u8>>>) -> Vec<Record> {
    // Plain numbers and text always become JSON.
    let header = record.and_then(|record| serde_json::to_vec(record).ok());
    let blocks = blocks.map(|blocks| (format!("{BLOCKS}{identity}"), blocks));
    [(format!("{VMS}{identity}"), header)].into_iter().chain(blocks).collect()
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
