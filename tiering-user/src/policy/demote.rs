//! Who goes down.
//!
//! Nothing tells for sure whether a page that stays mapped is used. So a block leaves memory for swap as what became of
//! others of its pages says ([`Verdict`]): a few first, the rest when these stayed away. A huge page would be split by
//! that, and goes as a whole. Of a VM whose pages are armed anew in rounds what showed in the round under way does
//! not go at all, however long ago that was: it may be in use since.

use std::time::Duration;

use super::evidence::{FIRST_PAGES, Verdict};
use super::longest_idle::{Enough, Unit, Units};
use super::old::Old;
use super::rules::Rules;
use super::{Action, Reason, Step};
use crate::tiermap::{BLOCK_PAGES, Seconds, VmPages};
use crate::tiers::TierId;
use crate::track::VmId;

/// The steps that take the pages of one VM down that were idle for long enough, longest idle first: at most
/// `allowance` pages to each tier (indexed by level; 0 where the tier takes nothing now), and of each block as many to
/// swap as the `verdict` on it says.
pub fn demotions(
    vm: VmId,
    pages: &VmPages,
    rules: &Rules,
    (allowance, verdict): (&[u64], &dyn Fn(u32) -> Verdict),
    now: Seconds,
) -> Vec<Step> {
    let mut steps = Vec::new();
    for (to, allowed) in (0u8..).zip(allowance).skip(1) {
        if *allowed == 0 {
            continue;
        }
        let from = to - 1;
        let keep_huge = rules.keeps_huge(pages, TierId(to));
        let to_swap = !pages.node_tiers().contains(TierId(to));
        let mut old = if from == 0 {
            let verdict = |block| if to_swap { verdict(block) } else { Verdict::Calm };
            old_in_first_tier(pages, rules, (keep_huge, &verdict), *allowed, now)
        } else {
            old_in_tier(pages, rules, keep_huge, (from, *allowed), now)
        };
        old.keep_longest_idle(*allowed);
        let Some(youngest) = old.0.iter().map(|unit| unit.idle.0).min() else { continue };
        let mut chosen: Vec<_> =
            old.0.into_iter().flat_map(|unit| unit.first..unit.first + unit.pages).collect();
        chosen.sort_unstable();
        steps.push(Step {
            vm,
            action: Action::Place { to: TierId(to) },
            pages: chosen,
            reason: Reason::Idle(Duration::from_secs(youngest.into())),
        });
    }
    steps
}

fn old_in_tier(
    pages: &VmPages,
    rules: &Rules,
    keep_huge: bool,
    (level, allowed): (u8, u64),
    now: Seconds,
) -> Units {
    let (mut old, mut enough) = (Units::default(), Enough::of(allowed));
    let is_old = Old::at(level, rules);
    for (longest, number) in pages.idle_blocks(TierId(level), is_old.least(), now) {
        if enough.is_met(longest) {
            break;
        }
        let Some((first, info, entries)) = pages.block_at(number) else { continue };
        if info.huge && keep_huge {
            continue;
        }
        for (page, entry) in (first..).zip(entries) {
            if is_old.may_leave(pages, *entry, now) {
                old.push(page, 1, entry.idle(now));
                enough.found(entry.idle(now));
            }
        }
    }
    old
}

/// Of what is old in the first tier, as much of each block as is known of it; beyond what is old anyway, no more
/// than the VM has in excess.
fn old_in_first_tier(
    pages: &VmPages,
    rules: &Rules,
    (keep_huge, verdict): (bool, &dyn Fn(u32) -> Verdict),
    allowed: u64,
    now: Seconds,
) -> Units {
    let mut units = Units::default();
    let (is_old, mut enough) = (Old::at(0, rules), Enough::of(allowed));
    for (longest, number) in pages.idle_blocks(TierId(0), is_old.least(), now) {
        if enough.is_met(longest) {
            break;
        }
        let Some((first, info, entries)) = pages.block_at(number) else { continue };
        let most = match verdict(number) {
            Verdict::Unknown => FIRST_PAGES,
            Verdict::Open | Verdict::InUse => continue,
            Verdict::Calm => BLOCK_PAGES,
        };
        if info.huge && (keep_huge || allowed < BLOCK_PAGES.into()) {
            continue;
        }
        let old = (first..).zip(entries).filter(|(_, entry)| is_old.may_leave(pages, **entry, now));
        let count = old.clone().count();
        if info.huge {
            let youngest = old.map(|(_, entry)| entry.idle(now)).min();
            if let Some(idle) = youngest.filter(|_| count == BLOCK_PAGES as usize) {
                units.push(first, BLOCK_PAGES, idle);
                (0..BLOCK_PAGES).for_each(|_| enough.found(idle));
            }
            continue;
        }
        // Spread over the block: neighbours are used together.
        let step = count.div_ceil(most as usize).max(1);
        for (page, entry) in old.step_by(step) {
            units.push(page, 1, entry.idle(now));
            enough.found(entry.idle(now));
        }
    }
    let least = rules.least_idle(0, 0);
    let early = |unit: &&Unit| Duration::from_secs(unit.idle.0.into()) < least;
    let sum = |units: &mut dyn Iterator<Item = &Unit>| units.map(|unit| u64::from(unit.pages)).sum::<u64>();
    let due = sum(&mut units.0.iter().filter(|unit| !early(unit)));
    units.keep_longest_idle(allowed.min(due.max(rules.excess_pages)));
    units
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Held;
    use crate::tiermap::{Layout, PageIndex, PageRun, Place};
    use crate::tiers::NodeTiers;
    use crate::vm::{Backing, Hva, RamRegion};

    const RULES: Rules = Rules::ORDINARY;
    const NVME: Place = Place::In(TierId(1));

    fn table(pages: u32) -> VmPages {
        let bytes = u64::from(pages) * 4096;
        let region = RamRegion { start: Hva(0x20_0000), bytes, backing: Backing::Anonymous };
        VmPages::new(Layout::new(&[region]), NodeTiers(1))
    }

    /// 100 pages in DRAM, no longer warm; page p was last accessed at second p.
    fn pages() -> VmPages {
        let mut pages = table(100);
        for page in 0..100u16 {
            touch(&mut pages, [page.into()], Seconds(page));
        }
        cool(&mut pages);
        pages
    }

    fn touch(table: &mut VmPages, pages: impl IntoIterator<Item = PageIndex>, at: Seconds) {
        for page in pages {
            table.touch(page, at, false);
        }
    }

    fn cool(pages: &mut VmPages) {
        (0..5).for_each(|_| pages.age(Seconds(0), true));
    }

    /// Where all of each block may go.
    fn plan(pages: &VmPages, rules: &Rules, allowance: &[u64], now: u16) -> Vec<Step> {
        demotions(VmId(1), pages, rules, (allowance, &|_| Verdict::Calm), Seconds(now))
    }

    fn chosen_by(pages: &VmPages, verdict: &dyn Fn(u32) -> Verdict, now: u16) -> Vec<PageIndex> {
        let mut steps = demotions(VmId(1), pages, &RULES, (&[0, 100_000], verdict), Seconds(now));
        steps.pop().map(|step| step.pages).unwrap_or_default()
    }

    #[test]
    fn only_pages_idle_for_long_enough_go_and_the_reason_says_how_long() {
        let steps = plan(&pages(), &RULES, &[0, 1000], 25);
        assert_eq!(steps.len(), 1);
        assert_eq!(steps[0].action, Action::Place { to: TierId(1) });
        assert_eq!(steps[0].pages, (0..=15).collect::<Vec<_>>());
        assert_eq!(steps[0].reason.to_string(), "idle for 10 s or more");
    }

    #[test]
    fn the_longest_idle_go_first() {
        let steps = plan(&pages(), &RULES, &[0, 4], 99);
        assert_eq!(steps[0].pages, [0, 1, 2, 3]);
    }

    #[test]
    fn what_the_present_round_showed_does_not_go() {
        let mut pages = table(1024);
        touch(&mut pages, 0..1024, Seconds(0));
        touch(&mut pages, 100..300, Seconds(14));
        cool(&mut pages);
        let armed = Rules { armed_at: Some(Seconds(13)), ..RULES };
        let chosen =
            |rules, now| plan(&pages, rules, &[0, 100_000], now).pop().map_or(vec![], |step| step.pages);
        let first = chosen(&armed, 30);
        assert!(first.len() == 824 && first.iter().all(|page| !(100..300).contains(page)), "{first:?}");
        let held = armed.held(pages.get(100), Some(Verdict::Calm), Seconds(30));
        assert_eq!(held, Some(Held::MayBeInUse));
        // The next round showed nothing of them.
        let later = chosen(&Rules { armed_at: Some(Seconds(20)), ..RULES }, 30);
        assert!(later.iter().any(|page| (100..300).contains(page)), "{later:?}");
    }

    #[test]
    fn of_a_block_of_which_nothing_is_known_a_few_go_to_swap_and_of_one_in_use_none() {
        let mut pages = table(4 * BLOCK_PAGES);
        touch(&mut pages, 0..4 * BLOCK_PAGES, Seconds(0));
        cool(&mut pages);
        let known = [Verdict::Unknown, Verdict::Open, Verdict::InUse, Verdict::Calm];
        let chosen = chosen_by(&pages, &|block| known[block as usize], 20);
        let (first, others) = chosen.split_at(8);
        assert!(first.windows(2).all(|pair| pair[1] - pair[0] == 64), "spread: {first:?}");
        assert!(others.iter().copied().eq(3 * BLOCK_PAGES..4 * BLOCK_PAGES), "{others:?}");
        let held = |verdict| RULES.held(pages.get(0), verdict, Seconds(20));
        assert_eq!(held(Some(Verdict::InUse)), Some(Held::BlockInUse));
        assert_eq!(held(Some(Verdict::Open)), Some(Held::NotJudgedYet));
        assert_eq!([None, Some(Verdict::Unknown), Some(Verdict::Calm)].map(held), [None; 3]);
    }

    #[test]
    fn to_a_lower_memory_tier_pages_go_by_idle_time_alone() {
        let region = RamRegion { start: Hva(0x20_0000), bytes: 2 << 20, backing: Backing::Anonymous };
        let mut pages = VmPages::new(Layout::new(&[region]), NodeTiers(2));
        touch(&mut pages, 0..BLOCK_PAGES, Seconds(0));
        cool(&mut pages);
        assert_eq!(chosen_by(&pages, &|_| Verdict::InUse, 20).len(), 512);
    }

    #[test]
    fn a_huge_page_goes_as_a_whole() {
        let blocks = 4;
        let mut pages = table(blocks * BLOCK_PAGES);
        touch(&mut pages, 0..blocks * BLOCK_PAGES, Seconds(0));
        cool(&mut pages);
        let firsts: Vec<PageIndex> = (0..blocks).map(|block| block * BLOCK_PAGES).collect();
        pages.set_huge(PageRun { first: 0, count: blocks * BLOCK_PAGES }, &firsts);
        pages.touch(5, Seconds(15), false);
        let verdict = |block| if block == 3 { Verdict::InUse } else { Verdict::Unknown };
        let chosen = chosen_by(&pages, &verdict, 20);
        assert_eq!(
            chosen,
            (BLOCK_PAGES..3 * BLOCK_PAGES).collect::<Vec<_>>(),
            "a part of the first was used"
        );
        let steps = demotions(VmId(1), &pages, &RULES, (&[0, 700], &verdict), Seconds(20));
        assert_eq!(steps[0].pages.len(), 512, "no part of one");
        pages.set_huge(PageRun { first: 0, count: blocks * BLOCK_PAGES }, &firsts[..3]);
        let calm = |_| Verdict::Calm;
        let steps = demotions(VmId(1), &pages, &RULES, (&[0, 100], &calm), Seconds(20));
        assert_eq!(steps[0].pages.len(), 100, "small pages, where there is no room for a huge one");
    }

    #[test]
    fn a_huge_page_that_is_kept_is_not_sent_to_swap() {
        let mut pages = table(3 * BLOCK_PAGES);
        touch(&mut pages, 0..3 * BLOCK_PAGES, Seconds(0));
        cool(&mut pages);
        pages.set_huge(PageRun { first: 0, count: 3 * BLOCK_PAGES }, &[0, BLOCK_PAGES]);
        let keep = Rules { keep_huge: true, ..RULES };
        let chosen = |pages: &VmPages, rules, allowance: &[u64], now| {
            plan(pages, rules, allowance, now).pop().map(|step| step.pages).unwrap_or_default()
        };
        let first = chosen(&pages, &keep, &[0, 100_000], 20);
        assert_eq!(first.len(), 512, "the block of small pages");
        assert!(first.iter().all(|page| *page >= 2 * BLOCK_PAGES), "{first:?}");
        let short = Rules { excess_pages: 100_000, ..keep };
        assert!(chosen(&pages, &short, &[0, 100_000], 20).iter().all(|page| *page >= 2 * BLOCK_PAGES));
        assert_eq!(chosen(&pages, &RULES, &[0, 100_000], 20).len(), 3 * 512, "without the setting");
    }

    #[test]
    fn a_huge_page_that_is_kept_moves_between_memory_tiers_only() {
        let region = RamRegion { start: Hva(0x20_0000), bytes: 2 << 21, backing: Backing::Anonymous };
        let mut pages = VmPages::new(Layout::new(&[region]), NodeTiers(2));
        let all = PageRun { first: 0, count: 2 * BLOCK_PAGES };
        touch(&mut pages, all.pages(), Seconds(0));
        cool(&mut pages);
        pages.set_huge(all, &[0]);
        let keep = Rules { keep_huge: true, ..RULES };
        let down = plan(&pages, &keep, &[0, 100_000, 0], 20);
        assert!(down[0].pages.contains(&0), "to the lower memory tier: {down:?}");
        pages.place(all, Place::In(TierId(1)));
        let down = plan(&pages, &keep, &[0, 0, 100_000], 100);
        assert_eq!(down[0].pages, (BLOCK_PAGES..2 * BLOCK_PAGES).collect::<Vec<_>>(), "to swap");
    }

    #[test]
    fn what_is_warm_stays() {
        let mut pages = pages();
        touch(&mut pages, [3; 4], Seconds(3));
        let chosen = |pages: &VmPages| chosen_by(pages, &|_| Verdict::Calm, 99);
        assert!(!chosen(&pages).contains(&3));
        cool(&mut pages);
        assert!(chosen(&pages).contains(&3));
    }

    #[test]
    fn under_pressure_a_vm_gives_what_it_has_in_excess_sooner() {
        let pages = pages();
        let under_pressure = |excess_pages| {
            let steps = plan(&pages, &Rules { excess_pages, ..RULES }, &[0, 1000], 25);
            steps[0].pages.clone()
        };
        assert_eq!(under_pressure(20), (0..20).collect::<Vec<_>>(), "as many as it has in excess");
        assert_eq!(
            under_pressure(1000),
            (0..=22).collect::<Vec<_>>(),
            "but none idle for less than a quarter"
        );
        assert_eq!(under_pressure(3), (0..=15).collect::<Vec<_>>(), "what is due goes anyway");
    }

    #[test]
    fn each_tier_further_down_takes_four_times_as_long() {
        let mut pages = pages();
        pages.place(PageRun { first: 0, count: 50 }, NVME);
        let steps = plan(&pages, &RULES, &[0, 0, 1000], 60);
        assert_eq!(steps[0].action, Action::Place { to: TierId(2) });
        assert_eq!(steps[0].pages, (0..=20).collect::<Vec<_>>());
    }

    #[test]
    fn a_tier_that_takes_nothing_gets_nothing() {
        assert_eq!(plan(&pages(), &RULES, &[0, 0, 0], 99), []);
    }

    #[test]
    fn what_came_back_stays_longer_each_time() {
        let mut pages = pages();
        pages.update(3, |entry| entry.with_backoff(2));
        let steps = plan(&pages, &RULES, &[0, 1000], 42);
        assert!(steps[0].pages.contains(&2));
        assert!(!steps[0].pages.contains(&3), "39 s of the 40 it needs now");
    }

    #[test]
    fn a_staged_page_is_left_to_its_deadline() {
        let mut pages = pages();
        pages.update(3, |entry| entry.with_staged(true));
        assert!(!plan(&pages, &RULES, &[0, 1000], 99)[0].pages.contains(&3));
    }
}
