//! Why a VM or a page is where it is, and what comes next.
//!
//! In: a VM, an address in it. Out: an [`Explanation`], from what the agent knows at this moment: no page table is
//! looked at. Where the page asked about is now is added by `agent::page_tables`.
//!
//! Limits: "goes there" means that the next plan takes it, if the tiers have room and nothing brakes. Where each tier's
//! room ends is not predicted.

use std::time::Duration;

use crate::actuate::Skip;
use crate::engine::Engine;
use crate::engine::answers::millis;
use crate::engine::asking::ChosenBy;
use crate::engine::managed::{Decision, ManagedVm};
use crate::policy::{Action, Rules};
use crate::sys::{Monotonic, PAGE_BYTES};
use crate::telemetry::explain::{
    AccessesSeen, Address, DecisionInfo, Explanation, KnownBefore, NextMove, PageInfo,
};
use crate::telemetry::request::{ApiError, Pages};
use crate::tiermap::{BLOCK_PAGES, PageEntry, PageIndex, Place, Seconds};
use crate::tiers::TierId;
use crate::vm::{Gpa, Hva};

/// Steps of a VM, and of a page, that are told.
const TOLD: usize = 20;

impl Engine {
    pub(in crate::engine) fn explain(&self, vm: &str, at: Option<Address>) -> Result<Explanation, ApiError> {
        let vm = self.vm(vm)?;
        let now = self.clock.now;
        let page = at.map(|at| self.page_info(vm, at, now)).transpose()?;
        let blocked = vm.unmovable().or_else(|| vm.moves.refused_now().map(str::to_owned));
        Ok(Explanation {
            vm: vm.id.clone(),
            name: vm.info.vm.name.clone(),
            movable: blocked.is_none(),
            reason: blocked.or_else(|| vm.never_to_swap()),
            limited_by: self.limited_by(vm),
            gives: vm.gives(),
            pages_chosen_by: self.pages_chosen_by(vm, now),
            huge: vm.settings.huge.name().to_owned(),
            huge_kept_bytes: vm.huge_kept_pages() * PAGE_BYTES,
            can_free: self.can_free(vm.info.id),
            resting_ms: vm.moves.rests(now).map(millis),
            waiting_pages: vm.moves.waiting().map(|queued| queued.step.pages.len() as u64).sum(),
            decisions: vm
                .moves
                .decisions()
                .newest_first()
                .take(TOLD)
                .map(|decision| self.decision_info(decision, None, now))
                .collect(),
            page,
            known_before: KnownBefore {
                blocks: vm.knowledge.blocks_recalled,
                demoted_bytes: vm.knowledge.before.demoted * PAGE_BYTES,
                promoted_bytes: vm.knowledge.before.promoted * PAGE_BYTES,
            },
            seen_by: AccessesSeen {
                page_fault: vm.watch.seen_by.faults,
                kvm_page_fault: vm.watch.seen_by.kvm,
                rearming: vm.watch.seen_by.armed,
                soft_dirty: vm.watch.seen_by.written,
                damon: vm.watch.seen_by.damon,
                sweeps: vm.watch.seen_by.sweeps,
            },
        })
    }

    /// What holds the agent back from moving more of the VM.
    fn limited_by(&self, vm: &ManagedVm) -> Option<String> {
        if self.dry_run {
            return Some("dry run: plans are made, nothing is moved".to_owned());
        }
        vm.braking.limited_by()
    }

    fn pages_chosen_by(&self, vm: &ManagedVm, now: Monotonic) -> String {
        let group = vm.braking.gauge.as_ref().and_then(|gauge| gauge.memory.group.as_deref());
        let lately = |found_none| if found_none { ", nothing cold found lately" } else { "" };
        match self.chosen_by(vm, now) {
            ChosenBy::Agent(why) => format!("the agent: {why}"),
            ChosenBy::Group => {
                let lately = lately(vm.reclaim.has_found_no_cold());
                let lower = if self.ladder.node_tiers().0 > 1 { ", to lower memory tiers first" } else { "" };
                format!("the kernel: memory.reclaim of {}{lower}{lately}", group.unwrap_or_default())
            }
            ChosenBy::Host => {
                let lately = lately(self.host_reclaim.has_found_no_cold());
                format!("the kernel, of the whole host: reclaim of its memory nodes{lately}")
            }
        }
    }

    fn page_info(&self, vm: &ManagedVm, at: Address, now: Monotonic) -> Result<PageInfo, ApiError> {
        let address = match at {
            Address::Hva(hva) => Hva(hva),
            Address::Gpa(gpa) => vm.hva(Gpa(gpa))?,
        };
        vm.check(&Pages::Hva(address.0..address.0.saturating_add(1)))?;
        let layout = vm.pages.layout();
        let found = layout.page(address).and_then(|page| Some((page, layout.locate(page)?.0)));
        let (page, hva) =
            found.ok_or_else(|| ApiError::BadRequest(format!("{address} is not in the RAM of this VM")))?;
        let seconds = self.clock.seconds();
        let entry = vm.pages.get(page);
        let touched = entry.place() != Place::Untouched;
        let about = vm.moves.decisions().about(page).take(TOLD);
        Ok(PageInfo {
            hva: hva.0,
            gpa: vm.gpa(hva).map(|gpa| gpa.0),
            tier: self.place_name(entry.place()),
            // The lookup fills it in.
            frame_or_slot: None,
            idle_ms: touched.then(|| u64::from(entry.idle(seconds)) * 1000),
            surely_idle_ms: touched.then(|| u64::from(vm.surely_idle(entry, seconds)) * 1000),
            heat: entry.heat().into(),
            frequency: entry.frequency().into(),
            backoff: entry.backoff(),
            staged: entry.staged(),
            written: entry.written(),
            next: self.next_move(vm, page, entry, seconds),
            decisions: about.map(|(step, place)| self.decision_info(step, Some(place), now)).collect(),
        })
    }

    fn next_move(&self, vm: &ManagedVm, page: PageIndex, entry: PageEntry, now: Seconds) -> NextMove {
        let stays = |why: String| NextMove { when: why, ..NextMove::default() };
        let waits = vm.moves.waiting().find(|queued| {
            // In ascending order, or in that of the tape.
            queued.step.pages.contains(&page)
        });
        if let Some(queued) = waits {
            let to = self.target_name(queued.step.action);
            let name = to.as_deref().unwrap_or("memory");
            let when = format!("waits for the mover, to {name}: {}", queued.step.reason);
            return NextMove { to, in_ms: Some(0), ..stays(when) };
        }
        let from = match entry.place() {
            _ if entry.staged() => {
                return stays("staged: goes back where it came from unless it is touched in time".to_owned());
            }
            Place::Untouched => return stays("it takes no memory: there is nothing to move".to_owned()),
            Place::OtherSwap => {
                return stays("in swap, and not in a known tier: comes up when it is touched".to_owned());
            }
            Place::In(tier) => tier,
        };
        let to = TierId(from.0 + 1);
        let Some(tier) = self.ladder.get(to) else {
            return stays("in the last tier: comes up when it is touched, or predicted".to_owned());
        };
        if let Some(reason) = vm.refuses(to) {
            return stays(format!("does not go to {}: {reason}", tier.name));
        }
        if self.drained.contains(&to) {
            return stays(format!("does not go to {}: that tier was drained", tier.name));
        }
        let rules = vm.rules(self.config.policy.demote_after.0);
        if rules.keeps_huge(&vm.pages, to) && vm.pages.block_of(page).huge {
            return stays(format!("does not go to {}: {}", tier.name, Skip::KeptHuge));
        }
        let wait = Wait::of(entry, &rules, from, now);
        let mut when = wait.in_words(&tier.name);
        let to_swap = !vm.pages.node_tiers().contains(to);
        let verdict = to_swap.then(|| vm.reclaim.verdict(page / BLOCK_PAGES, self.clock.now));
        if from == TierId(0)
            && let Some(held) = rules.held(entry, verdict, now)
        {
            when = format!("{when}; but not while {held}");
        }
        if vm.pages.in_lower_memory(entry.place()) && entry.heat() > 0 {
            when = format!(
                "goes to {} when there is room, since it was accessed; else {when}",
                self.place_name(Place::In(TierId(0)))
            );
        }
        NextMove {
            when,
            to: Some(tier.name.clone()),
            least_idle_ms: Some(millis(wait.least)),
            in_ms: Some(millis(wait.left)),
        }
    }

    fn decision_info(&self, step: &Decision, place: Option<Option<Place>>, now: Monotonic) -> DecisionInfo {
        let action = match step.action {
            Action::Place { .. } => "place",
            Action::Collapse => "collapse",
            Action::Stage { .. } => "stage",
            Action::MapStaged => "map_staged",
            Action::DropStage { .. } => "drop_stage",
            Action::Free => "free",
        };
        DecisionInfo {
            ago_ms: millis(now.since(step.at)),
            action: action.to_owned(),
            to: self.target_name(step.action),
            reason: step.reason.to_string(),
            pages: step.pages(),
            moved_pages: step.moved_pages,
            huge_split_bytes: step.huge_split_pages * PAGE_BYTES,
            skipped: step.skipped.iter().map(|(skip, pages)| (skip.to_string(), *pages)).collect(),
            page_in: place.flatten().map(|place| self.place_name(place)),
        }
    }

    fn target_name(&self, action: Action) -> Option<String> {
        match action {
            Action::Place { to } | Action::Stage { to } => Some(self.place_name(Place::In(to))),
            Action::Collapse | Action::MapStaged | Action::DropStage { .. } | Action::Free => None,
        }
    }
}

/// How long a page must be idle before it leaves its tier, and how much of that is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wait {
    least: Duration,
    left: Duration,
}

impl Wait {
    fn of(entry: PageEntry, rules: &Rules, from: TierId, now: Seconds) -> Self {
        let least = rules.least_idle(from.0, entry.backoff());
        Self { least, left: least.saturating_sub(Duration::from_secs(entry.idle(now).into())) }
    }

    fn in_words(self, tier: &str) -> String {
        let least = self.least.as_secs_f64();
        if self.left.is_zero() {
            return format!("goes to {tier} with the next plan: idle for the {least:.0} s that are needed");
        }
        let left = self.left.as_secs_f64();
        format!("goes to {tier} after {left:.0} s more without an access ({least:.0} s are needed)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Bands;

    #[test]
    fn a_page_that_came_back_waits_longer() {
        let rules = Rules {
            demote_after: Duration::from_secs(10),
            priority: 50,
            excess_pages: 0,
            bands: Bands::ROOMY,
            armed_at: None,
            keep_huge: false,
        };
        let entry = PageEntry::found(Place::In(TierId(0)), Seconds(0));
        let wait = |entry, now| Wait::of(entry, &rules, TierId(0), Seconds(now)).in_words("nvme");
        assert_eq!(wait(entry, 4), "goes to nvme after 6 s more without an access (10 s are needed)");
        assert_eq!(wait(entry, 10), "goes to nvme with the next plan: idle for the 10 s that are needed");
        assert_eq!(
            wait(entry.with_backoff(2), 10),
            "goes to nvme after 30 s more without an access (40 s are needed)"
        );
    }
}
