//! What is predicted of one VM, and the steps that stage it.
//!
//! In: pages that origins predict. Out: steps for the stager, each with pages for one memory tier; and, once a second,
//! a step for the mover with pages that are not likely enough to be touched to take memory for: these go from a slower
//! swap tier to the first one, where their touch will wait for less.
//!
//! # Limits
//! A VM is never on its way to what goes to a faster swap tier: it would be there before.

use super::ManagedVm;
use super::waiting::{Predicted, Urgency};
use crate::actuate::Outcome;
use crate::policy::{Action, Reason, Step};
use crate::predict::{Origin, Request};
use crate::sys::Monotonic;
use crate::tiermap::{PageIndex, Place, Seconds};
use crate::tiers::TierId;
use crate::track::VmId;
use crate::vm::Accel;

/// Pages of one stage: few, so that what is needed next is not behind much, and so that none of them are passed by
/// meanwhile.
const STAGE_PAGES: usize = 64;
/// Pages of one step to a faster swap tier: 32 MiB.
const LIFT_PAGES: usize = 8192;

impl ManagedVm {
    /// `origin` says that this page will be touched: it is to be staged, if it is in swap. Returns false where it would
    /// have to be and the window has no room.
    pub fn predicted(&mut self, page: PageIndex, origin: Origin, now: Monotonic) -> bool {
        let predicted = Predicted { page, origin, at: now };
        let waits_for_little =
            self.prefetch.to_stage.is_doubtful(page) && predicted.urgency() == Urgency::Now;
        if !self.can_be_staged(page) || self.prefetch.to_stage.contains(page) && !waits_for_little {
            return true;
        }
        let room = self.prefetch.stages.reserve(origin, now);
        if room {
            if let Some(before) = self.prefetch.to_stage.remove(page) {
                self.prefetch.stages.dropped(before.origin);
            }
            self.prefetch.to_stage.push(predicted);
        }
        room
    }

    /// `origin`, which is not trusted alone, says that this page will be touched.
    pub fn shadowed(&mut self, page: PageIndex, origin: Origin, threshold: f64, now: Monotonic) {
        if self.can_be_staged(page)
            && let Some(confidence) = self.prefetch.stages.shadowed(page, origin, now)
            && let Some(surest) = self.prefetch.votes.cast(page, (origin, confidence), threshold, now)
        {
            self.predicted(page, surest, now);
        }
    }

    /// Forgets what another VM, which has gone, predicts.
    pub fn forget_leader(&mut self, leader: VmId) {
        self.prefetch.to_stage.forget(leader);
        self.prefetch.stages.forget(leader);
        self.prefetch.votes.forget(leader);
        self.prefetch.ahead.forget(leader);
    }

    /// Whether the page is in swap, and nothing brings it up.
    pub fn waits_in_swap(&self, page: PageIndex) -> bool {
        self.can_be_staged(page) && !self.prefetch.to_stage.contains(page)
    }

    fn can_be_staged(&self, page: PageIndex) -> bool {
        let entry = self.pages.get(page);
        let on_its_way = || self.prefetch.stages.is_lifted(page) || self.prefetch.dropping.contains(&page);
        !entry.staged() && self.pages.in_swap(entry.place()) && !on_its_way()
    }

    /// The step that stages what waits to be, at most so many pages, unless the stager is still at the one before.
    pub fn next_stage(
        &mut self,
        urgency: Urgency,
        most: usize,
        tier0_threshold: f64,
        now: Monotonic,
    ) -> Option<Step> {
        if most == 0 || self.prefetch.staging.is_some() || !self.braking.may_stage() {
            return None;
        }
        let (reason, taken) = self.prefetch.to_stage.next(urgency, most.min(STAGE_PAGES))?;
        let mut to = None;
        let mut pages = Vec::with_capacity(taken.len());
        for predicted in taken {
            let Predicted { page, origin, at } = predicted;
            let tier = self.tier_for(&predicted, urgency, tier0_threshold);
            if predicted.is_over(now) {
                self.prefetch.stages.dropped(origin);
            } else if !self.pages.in_swap(self.pages.get(page).place()) {
                // A sweep found it in memory while it waited.
                self.prefetch.stages.dropped(origin);
            } else if tier == self.first_swap_tier() {
                self.prefetch.to_stage.push_doubtful(predicted);
            } else if *to.get_or_insert(tier) != tier {
                // A step has one tier: those for the other one wait.
                self.prefetch.to_stage.push(predicted);
            } else {
                self.pages.update(page, |entry| entry.with_staged(true));
                self.prefetch
                    .stages
                    .requested(Request { page, origin, predicted: at, to: tier, in_memory: true }, now);
                pages.push(page);
            }
        }
        let to = to?;
        pages.sort_unstable();
        self.prefetch.staging = Some(urgency);
        Some(Step { vm: self.info.id, action: Action::Stage { to }, pages, reason })
    }

    /// The step that takes doubtful pages up from slower swap tiers to the first one, at most so many.
    pub fn next_lift(&mut self, most: u64, now: Monotonic) -> Option<Step> {
        let to = self.first_swap_tier();
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(LIFT_PAGES);
        let (reason, taken) = self.prefetch.to_stage.next(Urgency::Doubtful, most)?;
        let mut pages = Vec::with_capacity(taken.len());
        for Predicted { page, origin, at } in taken {
            if self.is_below(page, to) {
                self.prefetch
                    .stages
                    .requested(Request { page, origin, predicted: at, to, in_memory: false }, now);
                pages.push(page);
            } else {
                self.prefetch.stages.dropped(origin);
            }
        }
        pages.sort_unstable();
        (!pages.is_empty()).then_some(Step { vm: self.info.id, action: Action::Place { to }, pages, reason })
    }

    /// Pages that were to go to a faster swap tier are there, or their stages came to nothing.
    pub fn note_lift(&mut self, outcome: &Outcome, now: Seconds) {
        if outcome.reason != Reason::MayBeTouched {
            return;
        }
        let there = Place::In(self.first_swap_tier());
        for page in outcome.asked.iter().chain(&outcome.left_out) {
            let arrived = self.pages.get(*page).place() == there;
            self.prefetch.stages.lifted(*page, arrived, outcome.finished);
            if arrived {
                // What was idle for long would go down again at once.
                self.pages.update(*page, |entry| entry.arrived(now));
            }
        }
    }

    fn first_swap_tier(&self) -> TierId {
        TierId(self.pages.node_tiers().0)
    }

    /// Whether the page is in a tier below this one.
    fn is_below(&self, page: PageIndex, tier: TierId) -> bool {
        matches!(self.pages.get(page).place(), Place::In(at) if at > tier)
    }

    /// Where a page should be brought up to: what is sure enough into the first tier.
    fn tier_for(&self, predicted: &Predicted, urgency: Urgency, tier0_threshold: f64) -> TierId {
        let lower_memory = self.pages.node_tiers().0 > 1 && self.refuses(TierId(1)).is_none();
        let swap = self.first_swap_tier();
        if self.prefetch.stages.confidence(predicted.origin) >= tier0_threshold {
            TierId(0)
        } else if lower_memory {
            TierId(1)
        } else if urgency == Urgency::Later && self.is_below(predicted.page, swap) {
            swap
        } else {
            TierId(0)
        }
    }

    /// The step that maps what was staged just now, as far as it is sure to be used. Where the first touch would not be
    /// seen, none: what is missing on the tapes cannot be predicted next time.
    pub fn next_mapping(&mut self, staged: &Outcome, now: Monotonic) -> Option<Step> {
        if staged.action != (Action::Stage { to: TierId(0) }) || !self.sees_mapped(now) {
            return None;
        }
        let private = |page: &PageIndex| self.pages.layout().locate(*page).is_some_and(|(_, shared)| !shared);
        let sure = |page: &PageIndex| {
            self.prefetch.stages.origin_of(*page).is_some_and(|origin| self.prefetch.stages.is_sure(origin))
        };
        let of_it = staged.asked.iter().filter(|page| sure(page) && private(page));
        let pages: Vec<_> = of_it.copied().collect();
        pages.iter().for_each(|page| self.prefetch.stages.mapping(*page));
        let action = Action::MapStaged;
        (!pages.is_empty()).then_some(Step { vm: self.info.id, action, pages, reason: staged.reason })
    }

    /// Whether the first touch of a page that is mapped here, but not in the guest's page tables, is seen.
    fn sees_mapped(&self, now: Monotonic) -> bool {
        self.info.vm.accel == Accel::Kvm && self.gpa_proof.is_proved() && !self.watch.may_have_missed(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::predict::{Match, StageCounts};
    use crate::tiermap::PageRun;
    use crate::tiers::NodeTiers;
    use crate::vm::{Hva, ProcessKey, testing};

    const PAGES: u32 = 1024;
    const NVME: TierId = TierId(1);
    const QLC: TierId = TierId(2);
    const PUSHED: Origin = Origin::Touched(VmId(2), Match::Page);

    fn vm() -> ManagedVm {
        let own = 7;
        let key = ProcessKey { pid: own, start_time_ticks: 1 };
        let vm = testing::vm(key, Hva(0x10_0000), u64::from(PAGES) * 4096);
        let settings = Config::default().vm_settings("web-1");
        ManagedVm::new(VmId(1), "web-1".into(), vm, settings, NodeTiers(1), None, Monotonic(0))
    }

    fn place(vm: &mut ManagedVm, pages: std::ops::Range<u32>, tier: TierId) {
        let run = PageRun { first: pages.start, count: pages.end - pages.start };
        vm.pages.place(run, Place::In(tier));
    }

    fn at(seconds: u64) -> Monotonic {
        Monotonic(seconds * 1_000_000_000)
    }

    /// Pages 0 to 4 are in QLC, 5 to 9 in `NVMe`; another VM predicts them all, and is not sure enough.
    fn predicted() -> ManagedVm {
        let mut vm = vm();
        place(&mut vm, 0..5, QLC);
        place(&mut vm, 5..10, NVME);
        for page in 0..10 {
            assert!(vm.predicted(page, PUSHED, at(1)));
        }
        vm
    }

    fn carried_out(vm: &mut ManagedVm, step: Step, found: TierId) {
        let mut outcome = Outcome::new(step.vm, step.action, step.reason, step.pages);
        let run = |page: &PageIndex| (PageRun { first: *page, count: 1 }, Place::In(found));
        outcome.found = outcome.asked.iter().map(run).collect();
        outcome.moved_pages = outcome.asked.len() as u64;
        outcome.finished = at(2);
        vm.on_outcome(&outcome, Seconds(500));
    }

    #[test]
    fn what_is_doubtful_goes_from_a_slow_swap_tier_to_a_faster_one_and_what_is_there_into_memory() {
        let mut vm = predicted();
        let step = vm.next_stage(Urgency::Later, 100, 0.99, at(1)).unwrap();
        assert_eq!(step.action, Action::Stage { to: TierId(0) });
        assert_eq!(step.pages, (5..10).collect::<Vec<_>>());
        let step = vm.next_lift(100, at(1)).unwrap();
        assert_eq!((step.action, step.reason), (Action::Place { to: NVME }, Reason::MayBeTouched));
        assert_eq!(step.pages, (0..5).collect::<Vec<_>>());
        carried_out(&mut vm, step, NVME);
        let counts = vm.prefetch.stages.counts();
        assert_eq!(counts, StageCounts { issued: 10, lifted: 5, ..StageCounts::default() });
        assert_eq!(vm.pages.get(3).idle(Seconds(500)), 0, "it does not go down again at once");
        assert!(!vm.pages.get(3).staged() && vm.moves.totals.demoted == 0);

        let dropped = vm.prefetch.stages.expire(at(20), at(0));
        assert_eq!(dropped.unmapped, (5..10).collect::<Vec<_>>(), "what is in swap takes no memory");
        assert_eq!(vm.prefetch.stages.counts().wasted, 10);
    }

    #[test]
    fn what_is_sure_goes_into_memory_from_any_tier() {
        let mut vm = predicted();
        let step = vm.next_stage(Urgency::Later, 100, 0.5, at(1)).unwrap();
        assert_eq!(step.pages, (0..10).collect::<Vec<_>>());
        assert_eq!(vm.next_lift(100, at(1)), None);
    }

    #[test]
    fn what_waits_for_little_is_staged_at_once_where_the_vm_itself_is_on_its_way_there() {
        let mut vm = predicted();
        vm.next_stage(Urgency::Later, 100, 0.99, at(1)).unwrap();
        vm.prefetch.staging = None;
        assert!(vm.predicted(3, Origin::OwnPast, at(1)));
        assert!(vm.predicted(4, PUSHED, at(1)), "for no other reason");
        let step = vm.next_stage(Urgency::Now, 100, 0.5, at(1)).unwrap();
        assert_eq!((step.action, step.pages), (Action::Stage { to: TierId(0) }, vec![3]));
        vm.prefetch.staging = None;
        let step = vm.next_lift(100, at(1)).unwrap();
        assert_eq!(step.pages, [0, 1, 2, 4]);
        // What is on its way to the faster tier is not staged beside that.
        assert!(vm.predicted(0, Origin::OwnPast, at(1)));
        assert_eq!(vm.next_stage(Urgency::Now, 100, 0.5, at(1)), None);
        carried_out(&mut vm, step, NVME);
        assert!(vm.predicted(0, Origin::OwnPast, at(3)));
        let step = vm.next_stage(Urgency::Now, 100, 0.5, at(3)).unwrap();
        assert_eq!(step.pages, [0]);
        let StageCounts { issued, lifted, .. } = vm.prefetch.stages.counts();
        assert_eq!((issued, lifted), (10, 3), "each page once");
    }

    #[test]
    fn what_was_touched_or_did_not_get_there_is_no_stage() {
        let mut vm = predicted();
        vm.next_stage(Urgency::Later, 100, 0.99, at(1)).unwrap();
        // Page 0 came up while it waited.
        place(&mut vm, 0..1, TierId(0));
        let step = vm.next_lift(100, at(1)).unwrap();
        assert_eq!(step.pages, (1..5).collect::<Vec<_>>());
        carried_out(&mut vm, step, QLC);
        let counts = vm.prefetch.stages.counts();
        assert_eq!(counts, StageCounts { issued: 5, ..StageCounts::default() }, "those staged into memory");
        assert_eq!(vm.next_lift(100, at(1)), None);
    }
}
