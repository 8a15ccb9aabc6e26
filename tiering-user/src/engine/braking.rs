//! Once a second: what brakes the host and each VM.
//!
//! In: free memory, the agent's own CPU time, what was demoted and came back. Out: the brakes ([`super::brakes`]) for
//! the next second.

use std::collections::HashMap;

use super::Engine;
use super::asking::ChosenBy;
use super::brakes::Gauge;
use super::managed::ManagedVm;
use crate::actuate::Outcome;
use crate::policy::{Action, Load};
use crate::sys::Monotonic;
use crate::tiermap::Place;
use crate::tiers::TierId;
use crate::track::VmId;
use crate::vm::ProcessKey;

/// Over how many seconds at least the agent's own CPU time is taken.
const CPU_WINDOW_S: f64 = 4.0;

impl Engine {
    /// The scanner has looked at the control groups.
    pub(super) fn on_gauges(&mut self, gauges: Vec<Gauge>) {
        let mut gauges: HashMap<ProcessKey, Gauge> =
            gauges.into_iter().map(|gauge| (gauge.key, gauge)).collect();
        for vm in self.vms.values_mut() {
            if let Some(gauge) = gauges.remove(&vm.info.vm.key) {
                vm.note_refaults(gauge.memory.refaults_total, gauge.at);
                vm.braking.take_gauge(gauge);
            }
        }
    }

    /// What is the same for all VMs.
    pub(super) fn host_load(&mut self) -> Load {
        self.look_at_cpu();
        self.braking.tier_loads.clone_from(&self.facts.tier_loads);
        Load {
            slow_read: self.config.policy.slow_read.0,
            free_percent: self.braking.free_percent,
            least_free_percent: self.config.policy.free_target.0 / 2.0,
            ..Load::default()
        }
    }

    /// The brakes of one VM, for the next second.
    pub(super) fn brake(&mut self, id: VmId, load: Load) {
        let now = self.clock.now;
        let (tiers, node_tiers) = (self.ladder.tiers().len(), self.ladder.node_tiers());
        let cpu_limit = self.config.policy.cpu_limit.0;
        let (refault_limit, psi_limit) = (self.config.policy.refault_limit.0, self.config.policy.psi_limit.0);
        let spent = self.spent_budget(now);
        let by_host = self
            .vms
            .get(&id)
            .filter(|vm| matches!(self.chosen_by(vm, now), ChosenBy::Host))
            .and_then(|_| self.host_reclaim.rests(now));
        let Some(vm) = self.vms.get_mut(&id) else { return };
        let counts = vm.pages.counts();
        let in_memory = (0..node_tiers.0).map(|level| counts.get(Place::In(TierId(level)))).sum();
        let relief_pages = vm.share.excess_pages;
        let refaults = vm.braking.count_refaults(in_memory, refault_limit, &self.braking);
        vm.braking.look_at_stalls(now);
        let stall = vm.braking.stalls.above(psi_limit);
        let load = Load { stall, refaults, relief_pages, ..load };
        vm.braking.second(load, tiers, node_tiers, &self.braking);
        let movable = vm.unmovable().is_none();
        let strongest = vm.braking.strongest(&self.braking, cpu_limit, now);
        let rests =
            by_host.or_else(|| vm.asks_nothing(now)).map(|text| (text, "waits for what went out".to_owned()));
        let strongest = strongest.or(rests).or(spent.map(|text| (text.clone(), text))).filter(|_| movable);
        vm.braking.say(&vm.info.vm.name, strongest);
        self.set_limits(id);
        self.free_copies(id, now);
    }

    /// The tier whose writes of the day are used up, if there is one.
    fn spent_budget(&mut self, now: Monotonic) -> Option<String> {
        let tiers = self.ladder.tiers().iter().zip(&mut self.budgets);
        let mut spent = tiers.filter_map(|(tier, budget)| budget.is_day_spent(now).then_some(&tier.name));
        spent.next().map(|name| format!("tier {name} took its writes of the day (daily_writes)"))
    }

    fn look_at_cpu(&mut self) {
        let now = self.clock.now;
        let Some((before, at)) = self.braking.cpu_read else {
            self.braking.cpu_read = self.facts.cpu_s.map(|seconds| (seconds, now));
            return;
        };
        let elapsed = now.since(at).as_secs_f64();
        if elapsed < CPU_WINDOW_S {
            return;
        }
        if let Some(seconds) = self.facts.cpu_s {
            self.braking.cpu_percent = (seconds - before).max(0.0) / elapsed * 100.0;
            self.braking.cpu_read = Some((seconds, now));
            self.braking.pace.adjust(self.braking.cpu_percent, self.config.policy.cpu_limit.0);
        }
    }
}

impl ManagedVm {
    /// Notes what became of a step, for the brakes and the swap cache.
    pub(super) fn note_for_brakes(&mut self, outcome: &Outcome, now: Monotonic) {
        self.braking.on_outcome(outcome, now);
        if matches!(outcome.action, Action::Place { to } if to > TierId(0)) && outcome.moved_pages > 0 {
            self.braking.stalls.demoted(now);
        }
    }
}
