//! Who comes up from a lower memory tier.

use std::cmp::Reverse;

use super::old::Old;
use super::rules::Rules;
use super::{Action, Reason, Step};
use crate::tiermap::{Place, Seconds, VmPages};
use crate::tiers::TierId;
use crate::track::VmId;

/// The step that takes pages of one VM to the first tier which were accessed, often or lately enough, since they
/// were placed in a lower memory tier: at most `allowed` pages, last accessed first. None where there is none.
pub fn promotions(vm: VmId, pages: &VmPages, rules: &Rules, allowed: u64, now: Seconds) -> Option<Step> {
    let most = usize::try_from(allowed).unwrap_or(usize::MAX);
    if most == 0 || pages.node_tiers().0 <= 1 {
        return None;
    }
    let mut used = Vec::new();
    let is_old: Vec<Old<'_>> = (0..pages.node_tiers().0).map(|level| Old::at(level, rules)).collect();
    pages.for_each(|page, entry| {
        // What is old enough to go further down does not come up at the same time.
        let old = matches!(entry.place(), Place::In(tier)
            if is_old.get(usize::from(tier.0)).is_some_and(|old| old.has(pages, entry, now)));
        let deserved = rules.bands.deserves_promotion(entry.heat(), entry.momentum());
        if pages.in_lower_memory(entry.place()) && deserved && !old {
            used.push((entry.idle(now), Reverse(entry.heat()), page));
        }
    });
    if used.len() > most {
        used.select_nth_unstable(most);
        used.truncate(most);
    }
    let mut chosen: Vec<_> = used.into_iter().map(|(_, _, page)| page).collect();
    chosen.sort_unstable();
    let action = Action::Place { to: TierId(0) };
    (!chosen.is_empty()).then_some(Step { vm, action, pages: chosen, reason: Reason::AccessedThere })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Bands;
    use crate::tiermap::{Layout, PageRun, Place};
    use crate::tiers::NodeTiers;
    use crate::vm::{Backing, Hva, RamRegion};
    use std::time::Duration;

    const RULES: Rules = Rules { demote_after: Duration::from_secs(60), ..Rules::ORDINARY };

    /// 100 pages, accessed at second 1; 0 to 49 are in the second memory tier since then, 50 to 59 in swap.
    fn pages(node_tiers: u8) -> VmPages {
        let region = RamRegion { start: Hva(0x10_0000), bytes: 100 * 4096, backing: Backing::Anonymous };
        let mut pages = VmPages::new(Layout::new(&[region]), NodeTiers(node_tiers));
        for page in 0..100 {
            pages.touch(page, Seconds(1), false);
        }
        pages.place(PageRun { first: 0, count: 50 }, Place::In(TierId(1)));
        pages.place(PageRun { first: 50, count: 10 }, Place::In(TierId(2)));
        pages
    }

    #[test]
    fn only_what_was_accessed_there_comes_up_and_the_reason_says_so() {
        let mut pages = pages(2);
        assert_eq!(
            promotions(VmId(1), &pages, &RULES, 100, Seconds(9)),
            None,
            "all were accessed before they went"
        );
        pages.touch(7, Seconds(5), false);
        pages.touch(3, Seconds(6), true);
        let step = promotions(VmId(1), &pages, &RULES, 100, Seconds(9)).unwrap();
        assert_eq!(step.action, Action::Place { to: TierId(0) });
        assert_eq!(step.pages, [3, 7]);
        assert_eq!(step.reason.to_string(), "accessed in a lower memory tier");
    }

    #[test]
    fn where_room_is_short_the_last_accessed_come_first() {
        let mut pages = pages(2);
        for page in 0..10u16 {
            pages.touch(page.into(), Seconds(page + 2), false);
        }
        assert_eq!(promotions(VmId(1), &pages, &RULES, 2, Seconds(20)).unwrap().pages, [8, 9]);
        assert_eq!(promotions(VmId(1), &pages, &RULES, 0, Seconds(20)), None);
    }

    #[test]
    fn where_little_fits_only_the_hot_and_the_warming_come_up() {
        let mut pages = pages(2);
        for page in [1, 1, 1, 1, 2, 2, 3] {
            pages.touch(page, Seconds(5), false);
        }
        let rules = Rules { bands: Bands { hot_from: 4, warm_from: 2 }, ..RULES };
        let chosen =
            |pages: &VmPages| promotions(VmId(1), pages, &rules, 100, Seconds(9)).map(|step| step.pages);
        assert_eq!(chosen(&pages), Some(vec![1, 2]));
        pages.age(Seconds(9), true);
        // 2 accesses in the epoch that has ended and none in this one: as warm as usual at best.
        pages.touch(2, Seconds(9), false);
        assert_eq!(pages.get(2).heat(), 2);
        assert_eq!(chosen(&pages), None);
    }

    #[test]
    fn with_one_memory_tier_there_is_nothing_to_bring_up() {
        let mut pages = pages(1);
        pages.touch(3, Seconds(6), true);
        assert_eq!(promotions(VmId(1), &pages, &RULES, 100, Seconds(9)), None);
    }

    #[test]
    fn what_is_old_enough_to_go_down_does_not_come_up() {
        let mut pages = pages(2);
        pages.touch(8, Seconds(10), false);
        let soon = promotions(VmId(1), &pages, &RULES, 100, Seconds(20)).unwrap();
        assert_eq!(soon.pages, [8]);
        assert_eq!(promotions(VmId(1), &pages, &RULES, 100, Seconds(10 + 4 * 60)), None);
    }
}
