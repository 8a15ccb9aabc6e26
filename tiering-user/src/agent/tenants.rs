//! Which machines may learn from each other, and what each of them holds in swap.
//!
//! Machines of different tenants share nothing: neither key nor index.

use std::collections::BTreeMap;
use std::hash::RandomState;
use std::sync::Arc;

use super::machine::Machine;
use crate::actuate::Outcome;
use crate::predict::{TagKey, Tags};
use crate::track::VmId;

/// The machines of one tenant.
pub(super) struct Tenant {
    key: Arc<TagKey>,
    pub tags: Tags,
    pub members: Vec<VmId>,
}

/// The tenants that the configuration names. A machine without one is its own tenant, and is not here.
#[derive(Default)]
pub(super) struct Tenants(BTreeMap<String, Tenant>);

impl Tenants {
    /// A machine joins its tenant. Returns the key for its tags.
    pub(super) fn join(&mut self, name: &str, vm: VmId) -> Arc<TagKey> {
        let tenant = self.0.entry(name.to_owned()).or_insert_with(|| Tenant {
            key: Arc::new(TagKey::new(&RandomState::new())),
            tags: Tags::default(),
            members: Vec::new(),
        });
        tenant.members.push(vm);
        Arc::clone(&tenant.key)
    }

    /// A machine has gone.
    pub(super) fn leave(&mut self, name: &str, vm: VmId) {
        if let Some(tenant) = self.0.get_mut(name) {
            tenant.members.retain(|member| *member != vm);
            tenant.tags.forget(vm);
        }
    }

    /// A step of `machine` is done: what of its pages is in swap now can be found by its content, what is not cannot.
    pub(super) fn take_tags(&mut self, machine: &Machine, outcome: &Outcome) {
        let Some(tenant) = self.of_mut(machine) else { return };
        for page in
            outcome.asked.iter().filter(|page| !machine.pages.in_swap(machine.pages.get(**page).place()))
        {
            tenant.tags.remove(outcome.vm, *page);
        }
        for (page, tag) in &outcome.tags {
            if machine.pages.in_swap(machine.pages.get(*page).place()) {
                tenant.tags.insert(outcome.vm, *page, *tag);
            }
        }
    }

    pub(super) fn of(&self, machine: &Machine) -> Option<&Tenant> {
        self.0.get(machine.settings.tenant.as_deref()?)
    }

    pub(super) fn of_mut(&mut self, machine: &Machine) -> Option<&mut Tenant> {
        self.0.get_mut(machine.settings.tenant.as_deref()?)
    }
}
