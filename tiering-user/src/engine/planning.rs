//! What is due every second.

use std::time::Duration;

use tiering_common::VmMoves;

use super::Engine;
use super::asking::ChosenBy;
use super::command::Command;
use super::facts::Facts;
use super::managed::{ManagedVm, Why};
use super::outcomes::note_waiting;
use crate::actuate::room_bytes;
use crate::config::Percent;
use crate::policy::{
    Action, Claim, HeatHistogram, Holding, Reason, Rules, Step, collapses, cooling_epoch, demotions,
    promotions, relief, weight,
};
use crate::predict::Wasted;
use crate::sys::{Monotonic, PAGE_BYTES};
use crate::tiermap::{BLOCK_PAGES, Place};
use crate::tiers::{TierId, TierKind};
use crate::trace::Event;
use crate::track::VmId;
use crate::vm::Accel;

/// Most pages planned for one VM at a time: 256 MiB.
const PLAN_PAGES: u64 = 65_536;
/// Least and longest time between two sweeps of one VM.
const SWEEP_LEAST: Duration = Duration::from_secs(2);
const SWEEP_MOST: Duration = Duration::from_secs(30);
/// How often the working set of a VM is counted.
const WORKING_SET_EVERY: Duration = Duration::from_secs(4);
/// After the kernel has moved so many pages by itself they are looked for sooner.
const MOVED_BY_KERNEL: u64 = 64;
/// How far ahead room is made for loads that come again.
const RISE: Duration = Duration::from_mins(10);
/// A batch for a lower swap tier is at least one page for so many that must be covered, or waits as long as pages are
/// left idle, within these bounds.
const COVER_DIVISOR: u64 = 4;
const OPEN_LEAST: Duration = Duration::from_secs(2);
const OPEN_FOR: Duration = Duration::from_secs(1);
const OPEN_MOST: Duration = Duration::from_secs(60);
/// In one second the profiles of so many VMs end an epoch, and the heat of so many cools, or of an eighth of all: many
/// may have come at once, and the engine answers nobody meanwhile.
const TURNS_LEAST: usize = 8;
const TURNS_DIVISOR: usize = 8;
/// Huge pages made of one VM at a time; one takes some milliseconds of the mover (5.9 ms on Linux 6.18).
const COLLAPSE_BLOCKS: usize = 16;

/// How long after a sweep of so much RAM one looks what the kernel has reclaimed: it reads 7 ms a GiB (Linux 6.18).
fn reclaim_sweep(ram_bytes: u64) -> Duration {
    (SWEEP_LEAST + Duration::from_millis(500) * u32::try_from(ram_bytes >> 30).unwrap_or(u32::MAX))
        .min(SWEEP_MOST)
}

impl Engine {
    pub(super) fn every_second(&mut self, facts: Facts, act: &mut dyn FnMut(Command)) {
        self.facts = facts;
        let clock = self.clock.seconds();
        self.keep_within_memory();
        self.look_at_memory();
        self.look_at_kernel_moves();
        self.look_at_demotion();
        self.watch_regions();
        self.promotable_pages = self.promotable();
        self.swap_used = self.facts.swap.used_by_tier();
        let load = self.host_load();
        let demote_after = self.config.policy.demote_after.0;
        let ids: Vec<VmId> = self.vms.keys().copied().collect();
        let pace = self.braking.pace;
        let staging = self.may_predict();
        let sweep_every = (demote_after / 2).clamp(SWEEP_LEAST, SWEEP_MOST) * pace.every_s().into();
        self.look_at_copies();
        let turns = TURNS_LEAST.max(ids.len() / TURNS_DIVISOR);
        let (mut epochs, mut coolings) = (turns, turns);
        for id in ids {
            self.expire_stages(id);
            self.brake(id, load);
            if !pace.is_turn(id.0, clock.0) {
                continue;
            }
            self.look_at_round(id);
            let Some(vm) = self.vms.get_mut(&id) else { continue };
            let rules = vm.rules(demote_after);
            // Between two rounds nothing shows that would keep a page warm.
            let cool = match vm.watch.armed_at() {
                Some(_) => vm.watch.rounds.take_epoch(),
                None => {
                    let since = Duration::from_secs(clock.0.wrapping_sub(vm.cooled_at.0).into());
                    let epoch = cooling_epoch(&rules);
                    // Whose turn is long over does not wait for another one.
                    since >= epoch && (coolings > 0 || since >= epoch * 2)
                }
            };
            if cool {
                vm.cooled_at = clock;
                coolings = coolings.saturating_sub(1);
            }
            let now = self.clock.now;
            vm.pages.age(clock, cool);
            vm.pages.refresh(clock);
            if vm.working_set_at.is_none_or(|at| now.since(at) >= WORKING_SET_EVERY) {
                vm.working_set_at = Some(now);
                let within = rules.in_use_within(clock).max(demote_after);
                vm.working_set_pages = vm.pages.used_in_memory(within, clock);
            }
            let ended = if epochs > 0 { vm.end_profile_epoch(now, clock) } else { None };
            if let Some(usage) = ended {
                epochs -= 1;
                if staging {
                    vm.predict_season(self.config.prefetch, now);
                    note_waiting(&mut self.stages, vm);
                }
                if let Some(recording) = &mut self.recording {
                    recording.push(now, &Event::Used { vm: id, usage });
                }
            }
            vm.share.bands = HeatHistogram::of(&vm.pages).bands(vm.share.room_pages);
            let counts = vm.prefetch.stages.counts();
            let moves = VmMoves {
                demoted: vm.moves.totals.demoted,
                promoted: vm.promoted_pages(),
                prefetched: counts.issued,
                used: counts.used,
                wasted: counts.wasted,
            };
            self.commands.push(Command::ShowMoves(id, moves));
            // Where the kernel has moved something since, at once.
            let moved_since = vm.sweeps.began().is_some_and(|began| began < self.kernel_moved_at);
            let reclaimed_since =
                vm.sweeps.began().is_some_and(|began| vm.asked.reclaimed_at.is_some_and(|at| began < at));
            let shows = vm.info.vm.accel != Accel::Kvm || self.facts.kvm_shows && vm.gpa_proof.is_complete();
            if moved_since || reclaimed_since || !shows || !self.facts.moves_show {
                vm.sweeps.disturb();
            }
            let sweep_after = match () {
                () if moved_since => SWEEP_LEAST,
                () if reclaimed_since => sweep_every.min(reclaim_sweep(vm.info.vm.ram_bytes())),
                () => sweep_every,
            };
            if vm.sweeps.are_due(sweep_after, now) {
                self.sweep_if_moved(id);
            }
            if ended.is_some() {
                self.look_at_class(id);
            }
            self.plan(id);
            // The lanes do not wait until all VMs are planned.
            self.commands.drain(..).for_each(&mut *act);
        }
        self.ask_host();
        self.go_on_recording();
        self.rearm_one();
        self.compare_vms();
        self.show_blocks();
        self.look_at_savings();
        self.status_due = true;
    }

    fn look_at_kernel_moves(&mut self) {
        let by_others = self.facts.moved_by_others;
        let between_nodes = if self.ladder.node_tiers().0 > 1 { by_others.migrated } else { 0 };
        let moved = by_others.reclaimed + between_nodes + by_others.collapsed * u64::from(BLOCK_PAGES);
        if moved - self.kernel_moved >= MOVED_BY_KERNEL {
            self.kernel_moved = moved;
            self.kernel_moved_at = self.clock.now;
        }
    }

    /// Plans demotions of a VM whose last plan is done.
    fn plan(&mut self, id: VmId) {
        let clock = self.clock.seconds();
        let now = self.clock.now;
        let Some(vm) = self.vms.get(&id) else { return };
        let busy = vm.moves.waiting().next().is_some();
        // Before its page tables were read once, most of its pages are not known.
        let unknown = !vm.sweeps.have_held() || vm.unmovable().is_some();
        if busy || unknown || vm.moves.rests(now).is_some() || vm.braking.rests(now) {
            return;
        }
        if vm.sweeps.are_overdue(now) {
            return self.start_sweep(id, Why::Due);
        }
        let rules = vm.rules(self.config.policy.demote_after.0);
        let chosen_by = self.chosen_by(vm, now);
        let mut allowance = self.allowance();
        let promotable = self.promotable_pages;
        let Some(vm) = self.vms.get(&id) else { return };
        for (level, allowed) in (0u8..).zip(&mut allowance) {
            if vm.refuses(TierId(level)).is_some() {
                *allowed = 0;
            }
            *allowed = (*allowed).min(vm.braking.allowed(TierId(level), vm.pages.node_tiers()));
        }
        let swap = usize::from(vm.pages.node_tiers().0);
        let mut steps = Vec::new();
        if let Some(allowed) = allowance.get_mut(swap)
            && let Some(vm) = self.vms.get_mut(&id)
            && self.may_stage
            && vm.braking.may_stage()
            && let most = (self.read_budget.available(now) / PAGE_BYTES).min(*allowed)
            && let Some(lift) = vm.next_lift(most, now)
        {
            *allowed -= lift.pages.len() as u64;
            self.read_budget.spend(lift.pages.len() as u64 * PAGE_BYTES);
            steps.push(lift);
        }
        let mut ask = 0;
        if let Some(vm) = self.vms.get_mut(&id)
            && let Some(allowed) = allowance.get_mut(swap)
            && *allowed > 0
        {
            match chosen_by {
                ChosenBy::Agent(_) => *allowed = vm.may_send(*allowed, now),
                ChosenBy::Group => {
                    ask = *allowed;
                    *allowed = 0;
                    if vm.asks_nothing(now).is_none() {
                        // The kernel chooses what goes to lower memory tiers too.
                        allowance[..swap].fill(0);
                    }
                }
                ChosenBy::Host => {
                    *allowed = (*allowed).min(vm.share.excess_pages);
                }
            }
        }
        let Some(vm) = self.vms.get(&id) else { return };
        let verdict = |block| vm.reclaim.verdict(block, now);
        let mut down = demotions(id, &vm.pages, &rules, (&allowance, &verdict), clock);
        down.retain(|step| self.is_worth_opening(vm, &rules, step, now));
        steps.extend(down);
        let promotable = if vm.info.vm.numa_bound { 0 } else { promotable };
        let promotable = promotable.min(vm.braking.allowed(TierId(1), vm.pages.node_tiers()));
        steps.extend(promotions(id, &vm.pages, &rules, promotable, clock));
        steps.extend(collapses(id, &vm.pages, &rules, COLLAPSE_BLOCKS, clock));
        let Some(vm) = self.vms.get_mut(&id) else { return };
        let mut opened = false;
        for step in steps {
            if let Action::Place { to } = step.action
                && let Some(budget) = self.budgets.get_mut(usize::from(to.0))
            {
                budget.spend(step.pages.len() as u64 * PAGE_BYTES);
                if usize::from(to.0) > swap {
                    opened = true;
                }
            }
            tracing::debug!(vm = id.0, action = ?step.action, pages = step.pages.len(), reason = %step.reason, "planned");
            if step.reason == Reason::AccessedThere {
                self.promotable_pages = self.promotable_pages.saturating_sub(step.pages.len() as u64);
            }
            vm.enqueue(&step, clock, None);
        }
        if opened && now.since(self.opened_at) >= OPEN_FOR {
            self.opened_at = now;
        }
        self.send_next(id);
        if ask > 0 {
            self.ask_kernel(id, ask, rules.demote_after);
        }
    }

    /// Whether a step goes to a swap tier that is reached as it is, or is large enough to cover what is free above its
    /// tier, or nothing has gone there for a while.
    fn is_worth_opening(&self, vm: &ManagedVm, rules: &Rules, step: &Step, now: Monotonic) -> bool {
        let Action::Place { to } = step.action else { return true };
        if to.0 <= vm.pages.node_tiers().0 {
            return true;
        }
        let patience = rules.demote_after.clamp(OPEN_LEAST, OPEN_MOST);
        // One that is open already stays so for those that come right after.
        let since = now.since(self.opened_at);
        if since >= patience || since < OPEN_FOR {
            return true;
        }
        let made: u64 =
            self.facts.swap.areas.iter().filter(|area| area.tier < to).map(|area| area.bytes).sum();
        let used: u64 = self.swap_used.iter().filter(|(tier, _)| **tier < to).map(|(_, bytes)| bytes).sum();
        step.pages.len() as u64 * COVER_DIVISOR >= made.saturating_sub(used) / PAGE_BYTES
    }

    /// Pages that may go to each tier now, by level.
    pub(super) fn allowance(&mut self) -> Vec<u64> {
        let now = self.clock.now;
        let tiers = self.ladder.tiers().iter().zip(&mut self.budgets);
        tiers
            .map(|(tier, budget)| match tier.kind {
                // Nothing goes down to the first tier.
                TierKind::Node { .. } if tier.id == TierId(0) => 0,
                TierKind::Node { .. } => {
                    (room_bytes(self.facts.memory_of(tier.id)) / PAGE_BYTES).min(PLAN_PAGES)
                }
                TierKind::Swap { .. } if self.drained.contains(&tier.id) => 0,
                TierKind::Swap { .. } if self.tier_health.keep_away(tier.id, now) => 0,
                TierKind::Swap { capacity_bytes, .. } => {
                    let free =
                        capacity_bytes.saturating_sub(self.swap_used.get(&tier.id).copied().unwrap_or(0));
                    (budget.available(now).min(free) / PAGE_BYTES).min(PLAN_PAGES)
                }
            })
            .collect()
    }

    /// Pages that may come up to the first tier from lower memory tiers: as many as leave `free_target` of it.
    fn promotable(&self) -> u64 {
        if self.ladder.node_tiers().0 <= 1 {
            return 0;
        }
        let memory = self.facts.memory_of(TierId(0));
        let kept = self.free_target_bytes(memory.total);
        (memory.available.saturating_sub(kept) / PAGE_BYTES).min(PLAN_PAGES)
    }

    fn expire_stages(&mut self, id: VmId) {
        let Some(vm) = self.vms.get_mut(&id) else { return };
        let now = self.clock.now;
        for predicted in vm.prefetch.to_stage.expire(now) {
            vm.prefetch.stages.dropped(predicted.origin);
        }
        let Wasted { unmapped, mapped, in_use } = vm.prefetch.stages.expire(now, vm.watch.seen_since());
        for page in in_use {
            // Where it is the next sweep tells.
            vm.pages.update(page, |entry| entry.with_staged(false));
        }
        for (pages, mapped) in
            [(unmapped, false), (mapped, true)].into_iter().filter(|(pages, _)| !pages.is_empty())
        {
            for page in &pages {
                vm.pages.update(*page, |entry| entry.with_staged(false));
            }
            vm.prefetch.dropping.extend(&pages);
            let step =
                Step { vm: id, action: Action::DropStage { mapped }, pages, reason: Reason::NotUsedInTime };
            self.commands.push(Command::Step(vm.info.clone(), step));
        }
    }

    /// How full the first tier is, and what each VM may have of it.
    fn look_at_memory(&mut self) {
        for vm in self.vms.values_mut() {
            (vm.share.excess_pages, vm.share.excess_of) = (0, None);
        }
        self.look_at_first_tier();
        self.divide_shared_groups();
    }

    fn look_at_first_tier(&mut self) {
        // The host's figure says nothing of the first tier where other tiers are memory too.
        let memory = match self.ladder.node_tiers().0 {
            0 | 1 => self.facts.memory,
            _ => Some(self.facts.memory_of(TierId(0))),
        };
        // Where it cannot be told, nothing is in a hurry.
        let Some(memory) = memory else { return };
        let target = self.free_target_bytes(memory.total);
        // Staged pages are in the swap cache too, and are not there to be freed.
        let staged: u64 = self.vms.values().map(ManagedVm::staged_in_swap_cache).sum();
        let available = memory.available - (staged * PAGE_BYTES).min(memory.copies);
        self.braking.short_bytes = target.saturating_sub(memory.available - memory.copies);
        self.braking.free_percent = Some(available as f64 / memory.total as f64 * 100.0);
        self.may_stage = available >= target / 2;
        self.may_map_stages = available >= target;
        let missing_pages =
            self.free_space.missing(available, target, self.expected_rise()).div_ceil(PAGE_BYTES);
        let spare_pages = available.saturating_sub(target) / PAGE_BYTES;
        self.divide_first_tier(missing_pages, spare_pages);
    }

    /// Bytes that VMs will bring up from lower tiers soon, at most, as their loads come again.
    fn expected_rise(&self) -> u64 {
        let of = |vm: &ManagedVm| {
            let counts = vm.pages.counts();
            let up = counts.get(Place::In(TierId(0))) + counts.get(Place::Untouched);
            let below = u64::from(vm.pages.layout().pages()).saturating_sub(up);
            vm.profile.rise(RISE).min(below) * PAGE_BYTES
        };
        self.vms.values().map(of).sum()
    }

    fn free_target_bytes(&self, total: u64) -> u64 {
        let target = self.config.policy.free_target.0 / 100.0 * total as f64;
        // What is left of a fraction of a byte matters to nobody.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes of a node")]
        let bytes = target as u64;
        bytes
    }

    /// Tells each VM its share of the first tier, of which `missing_pages` should become free.
    fn divide_first_tier(&mut self, missing_pages: u64, spare_pages: u64) {
        let floor = self.config.policy.floor;
        // What cannot go down is no room for anybody else.
        let movable = || self.vms.values().filter(|vm| vm.unmovable().is_none());
        let holdings: Vec<Holding> =
            movable().map(|vm| vm.holding(floor, missing_pages > 0, self.clock.now)).collect();
        let spare_pages = spare_pages / (holdings.len() as u64).max(1);
        for (holding, relief) in holdings.iter().zip(relief(&holdings, missing_pages)) {
            if let Some(vm) = self.vms.get_mut(&holding.claim.vm) {
                vm.share.excess_pages = relief.excess_pages;
                vm.share.room_pages = relief.share_pages + spare_pages;
            }
        }
    }
}

impl ManagedVm {
    /// What it has of the first tier. What its curve says is asked for only where something is missing.
    pub(super) fn holding(&self, floor: Percent, short: bool, now: Monotonic) -> Holding {
        let counts = self.pages.counts();
        let touched = u64::from(self.pages.layout().pages()) - counts.get(Place::Untouched);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a number of pages"
        )]
        let floor = (touched as f64 * (floor.0 / 100.0 * self.priors.floor).min(1.0)) as u64;
        // What the kernel has reclaimed since the last sweep is not in the table yet.
        let unseen =
            self.sweeps.began().map_or(0, |began| self.reclaimed_lately.within(now.since(began), now));
        let there = counts.get(Place::In(TierId(0))).saturating_sub(unseen);
        // Others have to give what this one cannot.
        let held = match self.pages.node_tiers().0 {
            0 | 1 => self.huge_kept_pages().max(there.saturating_sub(self.braking.pages_to_swap())),
            _ => 0,
        };
        let leaving = self.leaving_pages().min(there);
        let wants = there - leaving;
        let waits = if short { self.waits(wants) } else { None };
        let weight = weight(self.priority());
        Holding { claim: Claim { vm: self.info.id, wants, floor: floor.max(held), weight, waits }, leaving }
    }

    /// Pages in memory that do not go to swap since they are parts of huge pages which are kept.
    pub(super) fn huge_kept_pages(&self) -> u64 {
        if self.info.keep_huge { self.pages.huge_pages() } else { 0 }
    }
}
