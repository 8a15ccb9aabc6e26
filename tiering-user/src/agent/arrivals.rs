//! VMs that come and go.
//!
//! In: what the scanner found. Out: VMs under management, or the reason why one is left out; what was learned of one
//! that ends is kept, and whoever waits for something of it is told.

use std::collections::BTreeSet;

use super::descriptors::{HoldError, take_hold};
use super::machine::Machine;
use super::state::State;
use crate::bpf::{Faults, KVM_ROADS};
use crate::predict::Stages;
use crate::sys;
use crate::telemetry::request::ApiError;
use crate::trace::Event;
use crate::track::VmId;
use crate::vm::{Accel, Changes, ProcessKey, Refusal, Vm, VmError};

impl State {
    /// Machines came or went.
    pub(super) fn on_changes(&mut self, changes: Result<Changes, VmError>, faults: &mut Faults) {
        let changes = match changes {
            Ok(changes) => changes,
            Err(error) => {
                let line = format!("cannot look for VMs: {error}");
                if !self.aside.not_looked_at.contains(&line) {
                    tracing::error!("{line}");
                }
                self.aside.not_looked_at = vec![line];
                self.all_scanned = false;
                return;
            }
        };
        for error in &changes.errors {
            tracing::warn!(%error, "a process was left out");
        }
        self.aside.not_looked_at = changes.troubles;
        self.all_scanned = changes.settling == 0;
        for key in changes.gone {
            self.left_out.forget(key);
            self.forget(key, "has ended", faults);
            self.bystanders.remove(key);
        }
        if self.config.discover.qemu {
            self.bystanders.note_unlisted(changes.unlisted);
            for vm in changes.appeared.into_iter().chain(changes.changed) {
                match vm.refusal {
                    Some(Refusal::Untrusted { .. }) => self.bystanders.insert(vm),
                    _ => self.admit(vm, faults),
                }
            }
        }
    }

    /// Takes a machine in. What cannot be now is tried again.
    pub(super) fn admit(&mut self, vm: Vm, faults: &mut Faults) {
        // One that has changed is taken in anew: its pages have other numbers.
        self.forget(vm.key, "has changed, ask again", faults);
        let process = match take_hold(vm.key) {
            Ok(process) => process,
            // It ended between the scan and now: the next scan says so.
            Err(HoldError::Ended) => {
                tracing::debug!(pid = vm.key.pid, "gone before it could be tracked");
                return self.left_out.forget(vm.key);
            }
            Err(error) => return self.leave_out(vm, &error.to_string()),
        };
        let id = VmId(self.next_id);
        if let Err(error) = faults.track(id, &vm) {
            // Half of it may be there.
            faults.untrack(id, &vm);
            return self.leave_out(vm, &error.to_string());
        }
        self.next_id += 1;
        self.left_out.forget(vm.key);
        let mut settings = self.config.vm_settings(&vm.name);
        // A name is chosen by whoever starts the machine: it does not lead out of a namespace.
        if let (Some(namespace), Some(tenant)) = (&vm.namespace, &settings.tenant) {
            settings.tenant = Some(format!("{namespace}/{tenant}"));
        }
        let taken = self.machines.values().any(|machine| machine.id == vm.id());
        let public = if taken { format!("{}@{}", vm.id(), vm.key.pid) } else { vm.id() };
        let tag_key =
            settings.tenant.as_deref().map(|tenant| self.tenants.join(tenant, id, vm.images.keys().copied()));
        let mut machine = Machine::new(id, public, vm, process, settings, self.ladder.node_tiers(), tag_key);
        machine.pages.may_grow_by(self.ceiling.room(self.machines.len() + 1));
        machine.in_tape_order = self.config.prefetch.enabled && self.config.prefetch.in_tape_order;
        if !self.config.prefetch.feedback {
            machine.stages = Stages::without_feedback();
        }
        machine.knowledge = self.memory.recall(&machine.target.vm, machine.pages.layout().pages());
        if let Some((class, share)) = machine.knowledge.seemed {
            machine.class.seemed(class, share);
        }
        self.memory.recall_past(&mut machine, self.machines.values());
        if machine.target.vm.accel == Accel::Kvm {
            faults.attach_kvm(&KVM_ROADS);
        }
        if machine.layout.is_open()
            && let Err(error) = faults.want_frames(id)
        {
            tracing::warn!(vm = machine.target.vm.name, %error, "accesses of the guest are not seen");
        }
        let vm = &machine.target.vm;
        match machine.unmovable() {
            None => tracing::info!(vm = vm.name, pid = vm.key.pid, ram_mib = vm.ram_bytes() >> 20, "found"),
            Some(reason) => {
                tracing::info!(vm = vm.name, pid = vm.key.pid, reason, "found, will not be moved");
            }
        }
        for part in &vm.left_alone {
            tracing::info!(vm = vm.name, mib = part.bytes >> 20, reason = %part.why, "a part of it is left alone");
        }
        self.admit_images(&machine, faults);
        self.machines.insert(id, machine);
        self.ask_labels(id);
        self.sweep_if_moved(id);
    }

    fn leave_out(&mut self, vm: Vm, why: &str) {
        let (name, pid) = (vm.name.clone(), vm.key.pid);
        if self.left_out.note(vm, why) {
            tracing::warn!(vm = name, pid, why, "left alone: trying again every second");
        }
    }

    fn forget(&mut self, key: ProcessKey, why: &str, faults: &mut Faults) {
        let Some(id) = self.machines.values().find(|m| m.target.vm.key == key).map(|m| m.target.id) else {
            return;
        };
        if let Some(mut machine) = self.machines.remove(&id) {
            self.record_event(sys::now(), &Event::Gone(id));
            machine.came_up.add_to(&mut self.read_bytes);
            let last = faults.untrack(id, &machine.target.vm);
            self.gone = self.gone.plus(last);
            // Of two with one identity the one that is there counts.
            if !self.machines.values().any(|other| other.is_twin_of(&machine)) {
                self.memory.keep(&mut machine, sys::unix_seconds());
            }
            tracing::info!(vm = machine.target.vm.name, pid = key.pid, "{why}");
            if let Some(tenant) = &machine.settings.tenant {
                self.tenants.leave(tenant, id);
            }
            self.leave_images(id, faults);
            for other in self.machines.values_mut() {
                other.forget_leader(id);
            }
            let waiting = machine.queue.iter().chain(&machine.in_flight);
            let tickets: BTreeSet<_> = waiting.filter_map(|queued| queued.ticket).collect();
            self.fail_pending(id);
            for ticket in tickets.into_iter().filter_map(|ticket| self.tickets.remove(&ticket)) {
                ticket.fail(ApiError::NotFound(format!("the VM {why}")));
            }
        }
    }
}
