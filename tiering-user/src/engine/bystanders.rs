//! Processes that look like VMs and are not managed, since nobody vouches for the user who runs them.
//!
//! In: what the scanner says of them. Out: their lines of the status. Nothing else is kept: no table, no tape, no place
//! in a BPF map; and nothing that they say of themselves (a UUID, a name) makes them a member of a tenant or another
//! VM's earlier self.

use std::collections::BTreeMap;

use crate::telemetry::request::ApiError;
use crate::telemetry::status::VmStatus;
use crate::vm::{ProcessKey, Refusal, Vm};

/// Those that are there.
#[derive(Debug, Default)]
pub(super) struct Bystanders {
    listed: BTreeMap<ProcessKey, Vm>,
    /// So many are there beside those that are listed.
    unlisted: usize,
}

impl Bystanders {
    pub(super) fn insert(&mut self, vm: Vm) {
        let (name, pid) = (vm.name.as_str(), vm.key.pid);
        let reason = vm.refusal.as_ref().map(Refusal::to_string).unwrap_or_default();
        tracing::info!(vm = name, pid, reason, "found, will not be managed");
        self.listed.insert(vm.key, vm);
    }

    pub(super) fn remove(&mut self, key: ProcessKey) {
        if let Some(vm) = self.listed.remove(&key) {
            tracing::info!(vm = vm.name, pid = key.pid, "gone");
        }
    }

    /// Notes how many there are that are not listed.
    pub(super) fn note_unlisted(&mut self, unlisted: usize) {
        if self.unlisted == 0 && unlisted > 0 {
            tracing::warn!(
                listed = self.listed.len(),
                unlisted,
                "more processes look like VMs of users that are not in discover.users than are listed: the others are left alone unseen"
            );
        }
        self.unlisted = unlisted;
    }

    pub(super) fn status(&self) -> impl Iterator<Item = VmStatus> {
        self.listed.values().map(|vm| VmStatus {
            id: vm.id(),
            name: vm.name.clone(),
            pid: vm.key.pid.cast_unsigned(),
            tenant: vm.id(),
            movable: false,
            reason: vm.refusal.as_ref().map(Refusal::to_string),
            ..VmStatus::default()
        })
    }

    /// Name of one of them, and why it is left alone.
    pub(super) fn first(&self) -> Option<(&String, String)> {
        let vm = self.listed.values().next()?;
        Some((&vm.name, vm.refusal.as_ref()?.to_string()))
    }

    /// Why the one of this id cannot be asked about.
    pub(super) fn refusal(&self, id: &str) -> Option<ApiError> {
        let vm = self.listed.values().find(|vm| vm.id() == id)?;
        Some(ApiError::Refused(vm.refusal.as_ref()?.to_string()))
    }
}
