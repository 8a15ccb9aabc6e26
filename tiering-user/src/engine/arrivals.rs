//! VMs that come and go.
//!
//! In: VMs that are tracked from now on, or not any more. Out: VMs under management; what was learned of one that ends
//! is kept, and whoever waits for something of it is told.

use std::collections::BTreeSet;

use super::Engine;
use super::command::Command;
use super::event::Scanned;
use super::managed::ManagedVm;
use crate::bpf::Counters;
use crate::predict::Stages;
use crate::telemetry::request::ApiError;
use crate::trace::Event as Traced;
use crate::track::VmId;
use crate::vm::Vm;

impl Engine {
    /// VMs were looked for.
    pub(super) fn on_scanned(&mut self, scanned: Scanned) {
        self.not_looked_at = scanned.troubles;
        self.all_scanned = scanned.all;
        if let Some(unlisted) = scanned.unlisted {
            self.bystanders.note_unlisted(unlisted);
        }
    }

    /// Takes a VM in.
    pub(super) fn on_appeared(&mut self, id: VmId, vm: Vm) {
        let now = self.clock.now;
        let mut settings = self.config.vm_settings(&vm.name);
        // A name is chosen by whoever starts the VM: it does not lead out of a namespace.
        if let (Some(namespace), Some(tenant)) = (&vm.namespace, &settings.tenant) {
            settings.tenant = Some(format!("{namespace}/{tenant}"));
        }
        let taken = self.vms.values().any(|other| other.id == vm.id());
        let public = if taken { format!("{}@{}", vm.id(), vm.key.pid) } else { vm.id() };
        let tag_key = settings
            .tenant
            .as_deref()
            .map(|tenant| self.tenants.join(tenant, id, vm.images.keys().copied(), now));
        let mut managed = ManagedVm::new(id, public, vm, settings, self.ladder.node_tiers(), tag_key, now);
        managed.pages.may_grow_by(self.ceiling.room(self.vms.len() + 1));
        managed.prefetch.in_tape_order = self.config.prefetch.enabled && self.config.prefetch.in_tape_order;
        if !self.config.prefetch.feedback {
            managed.prefetch.stages = Stages::without_feedback();
        }
        managed.knowledge = self.memory.recall(&managed.info.vm, managed.pages.layout().pages());
        if let Some((class, share)) = managed.knowledge.seemed {
            managed.class.seemed(class, share);
        }
        self.memory.recall_past(&mut managed, self.vms.values(), self.facts.unix_s);
        if managed.gpa_proof.is_open() {
            self.commands.push(Command::WantFrames(managed.info.clone()));
        }
        let vm = &managed.info.vm;
        match managed.unmovable() {
            None => tracing::info!(vm = vm.name, pid = vm.key.pid, ram_mib = vm.ram_bytes() >> 20, "found"),
            Some(reason) => {
                tracing::info!(vm = vm.name, pid = vm.key.pid, reason, "found, will not be moved");
            }
        }
        for part in &vm.left_alone {
            tracing::info!(vm = vm.name, mib = part.bytes >> 20, reason = %part.why, "a part of it is left alone");
        }
        self.admit_images(&managed);
        self.vms.insert(id, managed);
        self.ask_labels(id);
        self.sweep_if_moved(id);
    }

    pub(super) fn on_gone(&mut self, id: VmId, why: &str, last: Counters) {
        self.gone = self.gone.plus(last);
        let Some(mut vm) = self.vms.remove(&id) else { return };
        self.record_event(self.clock.now, &Traced::Gone(id));
        vm.came_up.add_to(&mut self.read_bytes);
        // Of two with one identity the one that is there counts.
        if !self.vms.values().any(|other| other.is_twin_of(&vm)) {
            self.memory.keep(&mut vm, self.facts.unix_s);
        }
        tracing::info!(vm = vm.info.vm.name, pid = vm.info.vm.key.pid, "{why}");
        if let Some(tenant) = &vm.settings.tenant {
            self.tenants.leave(tenant, id);
        }
        self.leave_images(id);
        for other in self.vms.values_mut() {
            other.forget_leader(id);
        }
        let tickets: BTreeSet<_> = vm.moves.waiting().filter_map(|queued| queued.ticket).collect();
        self.fail_pending(id);
        for ticket in tickets.into_iter().filter_map(|ticket| self.tickets.remove(&ticket)) {
            ticket.fail(ApiError::NotFound(format!("the VM {why}")));
        }
    }
}
