//! What machines of one tenant learn from each other.
//!
//! When one of them touches a page, the same page of the others (the same content, else the same guest-physical address)
//! is to be staged, if it is in swap there. Machines of different tenants share nothing: neither key nor index.

use std::collections::BTreeMap;
use std::hash::RandomState;
use std::sync::Arc;

use super::machine::Machine;
use super::state::State;
use crate::actuate::Outcome;
use crate::predict::{Origin, TagKey, Tags};
use crate::tiermap::PageIndex;
use crate::track::VmId;

/// The machines of one tenant.
pub(super) struct Tenant {
    key: Arc<TagKey>,
    tags: Tags,
    members: Vec<VmId>,
}

/// The tenants that the configuration names. A machine without one is its own tenant, and is not here.
#[derive(Default)]
pub(super) struct Tenants(BTreeMap<String, Tenant>);

impl Tenants {
    /// A machine joins its tenant. Returns the key for its tags.
    pub(super) fn join(&mut self, name: &str, vm: VmId) -> Arc<TagKey> {
        let tenant = self.0.entry(name.to_owned()).or_insert_with(|| Tenant {
            key: Arc::new(TagKey::new(RandomState::new())),
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
        let Some(tenant) = self.of(machine) else { return };
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

    fn of(&mut self, machine: &Machine) -> Option<&mut Tenant> {
        self.0.get_mut(machine.settings.tenant.as_deref()?)
    }
}

impl State {
    /// `vm` touched `page`, which had been in swap: its neighbours may need theirs soon. Without a `threshold` it is only
    /// noted.
    pub(super) fn tell_neighbours(&mut self, vm: VmId, page: PageIndex, threshold: Option<f64>) {
        let Some(leader) = self.machines.get(&vm) else { return };
        let Some(tenant) = self.tenants.of(leader) else { return };
        let tag = tenant.tags.remove(vm, page);
        let Some(threshold) = threshold else { return };
        let mut foretold: Vec<(VmId, PageIndex, Origin)> = Vec::new();
        if let Some(tag) = tag {
            let copies = tenant.tags.copies(tag, vm);
            foretold.extend(copies.map(|(neighbour, copy)| (neighbour, copy, Origin::SameContent(vm))));
        }
        for neighbour in tenant.members.iter().filter(|member| **member != vm) {
            let same = self.machines.get(neighbour).and_then(|there| leader.same_page_in(there, page));
            foretold.extend(same.map(|page| (*neighbour, page, Origin::SamePage(vm))));
        }
        for (neighbour, page, origin) in foretold {
            if let Some(machine) =
                self.machines.get_mut(&neighbour).filter(|there| there.never_to_swap().is_none())
            {
                machine.foretold(page, origin, threshold);
            }
        }
    }
}
