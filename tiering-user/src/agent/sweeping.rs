//! What the sweeper is sent, and what comes back.

use super::state::State;
use super::watch::{Look, Looked, Swept};
use crate::sys;
use crate::track::VmId;

impl State {
    /// Sends a machine to the sweeper, unless it is there already.
    pub(super) fn start_sweep(&mut self, id: VmId) {
        if let Some(machine) = self.machines.get_mut(&id)
            && !machine.sweep_running
        {
            machine.sweep_running = true;
            machine.swept_at = Some(sys::now());
            self.sweeper.send(machine.target.clone(), Look::Sweep);
        }
    }

    /// The sweeper has finished something.
    pub(super) fn on_looked(&mut self, looked: Looked) {
        match looked {
            Looked::Swept(swept) => self.on_sweep(swept),
            Looked::Rearmed(rearmed) => self.on_rearmed(rearmed),
        }
    }

    fn on_sweep(&mut self, swept: Swept) {
        let now = self.clock.seconds();
        let began = self.clock.seconds_at(swept.began);
        let Some(machine) = self.machines.get_mut(&swept.vm) else { return };
        machine.sweep_running = false;
        machine.huge_bytes = swept.huge_bytes;
        machine.shared_huge_bytes = swept.shared_huge_bytes;
        let fresh = machine.in_flight.is_none() && machine.moved_at < swept.began;
        match swept.sweep {
            Ok(sweep) if fresh => {
                machine.seen_by.sweeps += machine.pages.apply(&sweep, began, now);
                machine.pages.set_huge(&sweep.huge);
                machine.is_swept = true;
                machine.knowledge.recall(&mut machine.pages, now);
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(vm = machine.target.vm.name, %error, "sweep failed");
                self.fail_maps(swept.vm);
            }
        }
        self.answer_maps(swept.vm, swept.began, fresh);
    }
}
