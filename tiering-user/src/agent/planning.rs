//! What is due every second.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use procfs::Current as _;
use tiering_common::VmMoves;

use super::state::State;
use crate::actuate::{Job, room_bytes};
use crate::bpf::Faults;
use crate::policy::{Action, Reason, Step, demotions, promotions};
use crate::sys::{self, PAGE_BYTES};
use crate::tiers::{TierId, TierKind, read_proc_swaps};
use crate::track::VmId;

/// A stage that is not used by then is dropped.
const STAGE_DEADLINE: Duration = Duration::from_secs(10);
/// Most pages planned for one machine at a time: 256 MiB.
const PLAN_PAGES: u64 = 65_536;
/// Least and longest time between two sweeps of one machine.
const SWEEP_LEAST: Duration = Duration::from_secs(2);
const SWEEP_MOST: Duration = Duration::from_secs(30);
/// Heat is halved this often, seconds.
const COOL_EVERY: u16 = 60;

impl State {
    pub(super) fn every_second(&mut self, faults: &mut Faults) {
        let clock = self.clock.seconds();
        self.look_at_memory();
        let stalled = self.stalled();
        let cool = clock.0.wrapping_sub(self.cooled_at.0) >= COOL_EVERY;
        if cool {
            self.cooled_at = clock;
        }
        let ids: Vec<VmId> = self.machines.keys().copied().collect();
        let demote_after = self.config.policy.demote_after.0;
        let sweep_every = (demote_after / 2).clamp(SWEEP_LEAST, SWEEP_MOST);
        for id in ids {
            self.expire_stages(id);
            let Some(machine) = self.machines.get_mut(&id) else { continue };
            machine.pages.age(clock, cool);
            let mut recent = 0;
            machine.pages.for_each(|_, entry| {
                let used = machine.pages.in_memory(entry.place())
                    && Duration::from_secs(entry.idle(clock).into()) < demote_after;
                recent += u64::from(used);
            });
            machine.working_set_pages = recent;
            let counts = machine.stages.counts();
            faults.show_moves(
                id,
                VmMoves {
                    demoted: machine.moved.demoted,
                    promoted: machine.promoted_pages(),
                    prefetched: counts.issued,
                    used: counts.used,
                    wasted: counts.wasted,
                },
            );
            if machine.swept_at.is_none_or(|at| sys::now().since(at) >= sweep_every) {
                self.start_sweep(id);
            }
            if !stalled {
                self.plan(id);
            }
        }
    }

    /// Plans demotions of a machine whose last plan is done.
    fn plan(&mut self, id: VmId) {
        let clock = self.clock.seconds();
        let now = sys::now();
        let Some(machine) = self.machines.get(&id) else { return };
        let busy = machine.in_flight.is_some() || !machine.queue.is_empty();
        if busy || machine.rest_until > now || machine.unmovable().is_some() {
            return;
        }
        let rules = self.rules(machine.settings.priority);
        let mut allowance = self.allowance();
        let promotable = self.promotable();
        let Some(machine) = self.machines.get(&id) else { return };
        for (level, allowed) in (0u8..).zip(&mut allowance) {
            if machine.refuses(TierId(level)).is_some() {
                *allowed = 0;
            }
        }
        let mut steps = demotions(id, &machine.pages, &rules, &allowance, clock);
        let promotable = if machine.target.vm.numa_bound { 0 } else { promotable };
        steps.extend(promotions(id, &machine.pages, &rules, promotable, clock));
        let Some(machine) = self.machines.get_mut(&id) else { return };
        for step in steps {
            if let Action::Place { to } = step.action
                && let Some(budget) = self.budgets.get_mut(usize::from(to.0))
            {
                budget.spend(step.pages.len() as u64 * PAGE_BYTES);
            }
            tracing::debug!(vm = id.0, action = ?step.action, pages = step.pages.len(), reason = %step.reason, "planned");
            machine.enqueue(&step, clock, None);
        }
        self.send_next(id);
    }

    /// Pages that may go to each tier now, by level.
    fn allowance(&mut self) -> Vec<u64> {
        let now = sys::now();
        let used = self.swap_used_bytes();
        let tiers = self.ladder.tiers().iter().zip(&mut self.budgets);
        tiers
            .map(|(tier, budget)| match tier.kind {
                TierKind::Node { .. } => {
                    (room_bytes(self.places.nodes.memory(tier.id)) / PAGE_BYTES).min(PLAN_PAGES)
                }
                TierKind::Swap { .. } if self.drained.contains(&tier.id) => 0,
                TierKind::Swap { capacity_bytes, .. } => {
                    let free = capacity_bytes.saturating_sub(used.get(&tier.id).copied().unwrap_or(0));
                    (budget.available(now).min(free) / PAGE_BYTES).min(PLAN_PAGES)
                }
            })
            .collect()
    }

    /// Pages that may come up to the first tier from lower memory tiers: as many as leave `free_target` of it.
    fn promotable(&self) -> u64 {
        let memory = self.places.nodes.memory(TierId(0));
        let target = self.config.policy.free_target.0 / 100.0 * memory.total as f64;
        // What is left of a fraction of a byte matters to nobody.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes of a node")]
        let kept = target as u64;
        (memory.available.saturating_sub(kept) / PAGE_BYTES).min(PLAN_PAGES)
    }

    /// Bytes in use in each swap tier, without the plugs.
    pub(super) fn swap_used_bytes(&self) -> BTreeMap<TierId, u64> {
        let on = read_proc_swaps().unwrap_or_default();
        let mut used = BTreeMap::new();
        for area in self.places.areas.list() {
            let bytes = on.iter().find(|line| line.path == area.path).map_or(0, |line| line.used_bytes);
            *used.entry(area.tier).or_default() += bytes.saturating_sub(area.plugged_pages * PAGE_BYTES);
        }
        used
    }

    fn expire_stages(&mut self, id: VmId) {
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let mut wasted = machine.stages.expire(sys::now(), STAGE_DEADLINE);
        if wasted.is_empty() {
            return;
        }
        wasted.sort_unstable();
        for page in &wasted {
            machine.pages.update(*page, |entry| entry.with_staged(false));
        }
        let step = Step { vm: id, action: Action::DropStage, pages: wasted, reason: Reason::NotUsedInTime };
        self.lanes.send(Job::Step(machine.target.clone(), step));
    }

    /// How full the first tier is.
    fn look_at_memory(&mut self) {
        // The host's figure says nothing of the first tier where other tiers are memory too.
        let (available, total) = if self.ladder.node_tiers().0 > 1 {
            let memory = self.places.nodes.memory(TierId(0));
            (memory.available, memory.total)
        } else if let Ok(memory) = procfs::Meminfo::current() {
            (memory.mem_available.unwrap_or(memory.mem_free), memory.mem_total)
        } else {
            // Where it cannot be told, nothing is in a hurry.
            return;
        };
        let free_share = available as f64 / total as f64;
        let target = self.config.policy.free_target.0 / 100.0;
        self.pressure = free_share < target;
        self.may_stage = free_share >= target / 2.0;
    }

    /// Whether memory stalls exceed the limit (PSI, some, 10 s average); no where PSI is off.
    fn stalled(&self) -> bool {
        let text = fs::read_to_string("/proc/pressure/memory").unwrap_or_default();
        psi_some_avg10(&text).is_some_and(|percent| percent > self.config.policy.psi_limit.0)
    }
}

/// Percent of the last 10 s in which some task waited for memory.
fn psi_some_avg10(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with("some "))?;
    line.split(' ').find_map(|field| field.strip_prefix("avg10="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_read_from_the_line_of_some() {
        let text = "some avg10=1.25 avg60=0.10 avg300=0.00 total=123\nfull avg10=9.00 avg60=0.00 avg300=0.00 total=4\n";
        assert_eq!(psi_some_avg10(text), Some(1.25));
        assert_eq!(psi_some_avg10(""), None);
    }
}
