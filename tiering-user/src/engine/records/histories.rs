//! The histories of VMs, which outlive the agent and the VM's process.
//!
//! In: the profile of a VM that is there, or goes; records of an earlier agent. Out: records; a profile that goes
//! on where an earlier one ended. While nobody watched there was, for all that is known, nothing.

use std::collections::BTreeMap;

use crate::engine::managed::ManagedVm;
use crate::profile::{EPOCH, Series};
use crate::store::Record;

const HISTORIES: &str = "history/";
/// A history is written again after so many epochs: ten minutes.
const NEW_EPOCHS: u64 = 60;

/// What is kept of VMs, by identity.
#[derive(Debug, Default)]
pub struct Histories {
    /// Of VMs that are not there: when it was written, and what.
    kept: BTreeMap<String, (u64, Series)>,
    due: BTreeMap<String, Option<Vec<u8>>>,
}

impl Histories {
    /// What the records say of VMs that are known. All others are to be removed.
    pub fn load(
        names: &[String],
        read: &impl Fn(&str) -> Option<Vec<u8>>,
        known: impl Fn(&str) -> bool,
    ) -> Self {
        let mut histories = Self::default();
        for name in names {
            let Some(identity) = name.strip_prefix(HISTORIES) else { continue };
            match read(name).as_deref().and_then(decode).filter(|_| known(identity)) {
                Some(kept) => drop(histories.kept.insert(identity.to_owned(), kept)),
                None => drop(histories.due.insert(name.clone(), None)),
            }
        }
        histories
    }

    /// A VM has come, and no other one of its identity is there.
    pub fn recall(&mut self, identity: &str, vm: &mut ManagedVm, unix_s: u64) {
        let Some((saved_unix_s, mut series)) = self.kept.remove(identity) else { return };
        series.skip(unix_s.saturating_sub(saved_unix_s) / EPOCH.as_secs());
        vm.profile.go_on_with(series);
    }

    /// Keeps the history of a VM if enough of it is new, or anything at all if it is the `last` chance.
    pub fn keep(&mut self, identity: &str, vm: &mut ManagedVm, unix_s: u64, last: bool) {
        let epochs = vm.profile.epochs();
        let new = epochs - vm.knowledge.history_kept;
        if new == 0 || !last && new < NEW_EPOCHS {
            return;
        }
        vm.knowledge.history_kept = epochs;
        self.due.insert(record_name(identity), Some(encode(unix_s, vm.profile.series())));
    }

    /// A VM has gone, and may come again.
    pub fn gone(&mut self, identity: &str, vm: &mut ManagedVm, unix_s: u64) {
        self.keep(identity, vm, unix_s, true);
        self.kept.insert(identity.to_owned(), (unix_s, vm.profile.series().clone()));
    }

    /// Memory that the history of a VM that is gone takes.
    pub fn bytes(&self, identity: &str) -> u64 {
        self.kept.get(identity).map_or(0, |(_, series)| series.bytes())
    }

    pub fn remove(&mut self, identity: &str) {
        self.kept.remove(identity);
        self.due.insert(record_name(identity), None);
    }

    pub fn take_due(&mut self) -> impl Iterator<Item = Record> + use<> {
        std::mem::take(&mut self.due).into_iter()
    }
}

fn record_name(identity: &str) -> String {
    format!("{HISTORIES}{identity}")
}

fn encode(unix_s: u64, series: &Series) -> Vec<u8> {
    let mut bytes = unix_s.to_le_bytes().to_vec();
    bytes.extend(series.encode());
    bytes
}

fn decode(bytes: &[u8]) -> Option<(u64, Series)> {
    let (unix_s, series) = bytes.split_first_chunk()?;
    Some((u64::from_le_bytes(*unix_s), Series::decode(series)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::profile::Observed;
    use crate::sys::Monotonic;
    use crate::tiers::NodeTiers;
    use crate::track::VmId;
    use crate::vm::{Hva, ProcessKey, testing};

    fn vm(epochs: u64) -> ManagedVm {
        let pid = 7;
        let vm = testing::vm(ProcessKey { pid, start_time_ticks: 5 }, Hva(0x10_0000), 4096 * 1000);
        let settings = Config::default().vm_settings("web-1");
        let mut vm = ManagedVm::new(VmId(1), "u".into(), vm, settings, NodeTiers(1), None, Monotonic(0));
        watch(&mut vm, epochs);
        vm
    }

    fn watch(vm: &mut ManagedVm, epochs: u64) {
        for _ in 0..epochs {
            vm.profile.access(1, false, Monotonic(1), 1);
            vm.profile.end_epoch(Monotonic(1), Observed::default());
        }
    }

    fn loaded(due: &[Record], known: bool) -> Histories {
        let names: Vec<_> = due.iter().map(|(name, _)| name.clone()).collect();
        let read = |wanted: &str| due.iter().find(|(name, _)| name == wanted)?.1.clone();
        Histories::load(&names, &read, |_| known)
    }

    #[test]
    fn a_history_goes_on_where_it_ended_and_shows_that_nobody_watched() {
        let mut histories = Histories::default();
        let mut there = vm(NEW_EPOCHS - 1);
        histories.keep("uuid/u", &mut there, 1000, false);
        assert_eq!(histories.take_due().count(), 0, "too little is new");
        watch(&mut there, 1);
        histories.keep("uuid/u", &mut there, 1000, false);
        let due: Vec<_> = histories.take_due().collect();
        histories.keep("uuid/u", &mut there, 1010, true);
        assert_eq!(histories.take_due().count(), 0, "nothing is new");

        let mut again = vm(0);
        loaded(&due, true).recall("uuid/u", &mut again, 1000 + 100);
        let rates: Vec<f32> = again.profile.hour().map(|point| point.rate).collect();
        assert_eq!(rates.len() as u64, NEW_EPOCHS + 10);
        assert!(rates[..NEW_EPOCHS as usize].iter().all(|rate| *rate > 0.0));
        assert!(rates[NEW_EPOCHS as usize..].iter().all(|rate| *rate == 0.0));
    }

    #[test]
    fn a_history_of_nobody_and_one_that_is_broken_are_removed() {
        let mut histories = Histories::default();
        histories.keep("uuid/u", &mut vm(1), 1000, true);
        let due: Vec<_> = histories.take_due().collect();
        assert_eq!(loaded(&due, false).take_due().collect::<Vec<_>>(), [("history/uuid/u".to_owned(), None)]);
        let broken = [("history/uuid/u".to_owned(), Some(vec![1, 2, 3]))];
        assert_eq!(
            loaded(&broken, true).take_due().collect::<Vec<_>>(),
            [("history/uuid/u".to_owned(), None)]
        );
    }
}
