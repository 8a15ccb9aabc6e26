//! What a VM whose load comes again will touch soon: what it touched a period ago.
//!
//! In: the end of each epoch. Out: stages, of the part of its own tape that was recorded one period before the next few
//! points of the history that shows the period. What comes after these pages the tape predicts, when they are touched.
//!
//! # Limits
//! When it was where on its tape is known from the agent's start on, and for 4,096 epochs of work.

use super::ManagedVm;
use crate::config::Prefetch;
use crate::predict::{Chance, Origin, SHADOW_PAGES};
use crate::sys::Monotonic;
use crate::tiermap::PageIndex;

/// Points of the history that are looked ahead; and after so many what was predicted is wrong if it was not touched.
const POINTS_AHEAD: u32 = 3;
const PATIENCE_POINTS: u32 = 6;

impl ManagedVm {
    /// An epoch of its profile is over.
    pub fn predict_season(&mut self, rules: Prefetch, now: Monotonic) {
        if !rules.by_season || self.never_to_swap().is_some() || !self.braking.may_stage() {
            return;
        }
        let Some(season) = self.profile.comes_again() else { return };
        let point = season.resolution();
        let Some(part) = self.prefetch.marks.part(now, season.period, point * POINTS_AHEAD) else { return };
        let below = |page: &PageIndex| self.pages.in_swap(self.pages.get(*page).place());
        let pages: Vec<_> = self.prefetch.tape.part(part).map(|(_, page, _)| page).filter(below).collect();
        let origin = Origin::Season(point * PATIENCE_POINTS);
        match self.prefetch.stages.chance(origin, rules.threshold, now) {
            // What finds no room is offered again when the next epoch is over.
            Chance::Taken => drop(pages.into_iter().find(|page| !self.predicted(*page, origin, now))),
            Chance::Shadowed => pages
                .into_iter()
                .take(SHADOW_PAGES as usize)
                .for_each(|page| self.shadowed(page, origin, rules.threshold, now)),
            Chance::NoRoom => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Config;
    use crate::profile::{EPOCH, Observed};
    use crate::tiermap::{PageRun, Place};
    use crate::tiers::{NodeTiers, TierId};
    use crate::track::VmId;
    use crate::vm::{Hva, ProcessKey, testing};

    /// Works for two epochs in every eight, on the same hundred pages, which are in swap by then.
    struct Periodic {
        vm: ManagedVm,
        now: Monotonic,
        epoch: u32,
    }

    impl Periodic {
        fn new() -> Self {
            let own = 7;
            let vm = testing::vm(ProcessKey { pid: own, start_time_ticks: 1 }, Hva(0x10_0000), 4096 * 1000);
            let settings = Config::default().vm_settings("web-1");
            let now = Monotonic(1_000_000_000);
            let mut vm = ManagedVm::new(VmId(1), "web-1".into(), vm, settings, NodeTiers(1), None, now);
            vm.pages.place(PageRun { first: 0, count: 1000 }, Place::In(TierId(1)));
            Self { vm, now, epoch: 0 }
        }

        /// One epoch; `touch` what it works on. Returns what was predicted in it.
        fn epoch(&mut self, touch: bool) -> Vec<PageIndex> {
            let Self { vm, now, epoch } = self;
            if touch && *epoch % 8 < 2 {
                for page in 0..100 {
                    let page = *epoch % 8 * 100 + page;
                    vm.profile.access(page, false, *now, 1);
                    vm.prefetch.tape.record(page, None);
                    vm.prefetch.stages.came_up(page, true, now.after(EPOCH / 2));
                }
            }
            *now = now.after(EPOCH);
            *epoch += 1;
            vm.prefetch.marks.mark(*now, vm.prefetch.tape.end());
            vm.profile.end_epoch(*now, Observed::default());
            vm.predict_season(Prefetch::default(), *now);
            let waiting = |page: &PageIndex| vm.prefetch.to_stage.contains(*page);
            (0..1000).filter(waiting).collect()
        }
    }

    #[test]
    fn what_was_right_a_period_ago_is_staged_before_it_comes_again() {
        let mut periodic = Periodic::new();
        let until_known = (0..120).find(|_| !periodic.epoch(true).is_empty()).unwrap();
        assert!(until_known < 60, "{until_known} epochs, of which three periods are {}", 3 * 8);
        // It works in the first two epochs of each eight, and three are looked ahead.
        assert!(matches!(periodic.epoch % 8, 6 | 7 | 0 | 1), "predicted after epoch {}", periodic.epoch);
        let mut predicted: Vec<PageIndex> = Vec::new();
        for _ in 0..8 {
            predicted.extend(periodic.epoch(true));
        }
        assert!((0..200).all(|page| predicted.contains(&page)), "{predicted:?}");
        assert!(predicted.iter().all(|page| *page < 200));
    }

    #[test]
    fn what_has_no_period_foretells_nothing() {
        let mut periodic = Periodic::new();
        assert!((0..120).all(|_| periodic.epoch(false).is_empty()));
        assert_eq!(periodic.vm.profile.rise(Duration::from_mins(10)), 0);
    }
}
