//! Who goes down.
//!
//! Nothing tells for sure whether a page that stays mapped is used. So the first tier is left by trial: a few pages of
//! a block go first, and only if they do not come back within a while the next, eight times as many, follow. A block
//! whose pages come back is left alone, longer each time. A huge page would be split by that: there the block goes as a
//! whole, and the trial is one of a few blocks of the machine. Of a machine whose pages are armed anew in rounds what
//! showed in the round under way is not tried at all, however long ago that was: it may be in use since.

use std::fmt;
use std::time::Duration;

use super::heat::Bands;
use super::longest_idle::{Enough, Unit, Units};
use super::old::Old;
use super::{Action, Reason, Step, priority_scale};
use crate::tiermap::{BLOCK_PAGES, BlockInfo, IDLE_CAP, PageEntry, Probe, Seconds, VmPages};
use crate::tiers::TierId;
use crate::track::VmId;

/// The table cannot tell longer idle times apart.
const IDLE_MOST: Duration = Duration::from_secs(IDLE_CAP as u64);
/// How much longer a page must be idle for each tier it is further down.
const LEVEL_FACTOR: u32 = 4;
/// How much sooner pages go while the first tier has too little free.
const PRESSURE_DIVISOR: u32 = 4;
/// Pages of a block that are tried first, and the share of a machine's huge blocks: one in this many.
const FIRST_PAGES: u32 = 8;
const FIRST_HUGE_SHARE: u32 = 64;
/// How many times more blocks go after a trial of which next to nothing came back. Of a block of small pages, the rest.
const GROWTH: u32 = 8;
/// A trial is judged after this part of the least idle time, within these bounds.
const WINDOW_DIVISOR: u32 = 4;
const WINDOW_LEAST: Duration = Duration::from_secs(1);
const WINDOW_MOST: Duration = Duration::from_secs(10);

/// What the policy goes by for one virtual machine at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Least idle time in the first tier, before scaling.
    pub demote_after: Duration,
    /// 0 to 100; 50 is neutral, 100 doubles the idle time, 0 halves it.
    pub priority: u8,
    /// Pages of the first tier beyond the machine's share of it, while the tier has less free than it should.
    pub excess_pages: u64,
    pub bands: Bands,
    /// Since when the first access to each mapped page shows; none where it does not.
    pub armed_at: Option<Seconds>,
    /// Huge pages do not go to swap.
    pub keep_huge: bool,
}

#[cfg(test)]
impl Rules {
    /// Of a machine like any other, on a host with room.
    pub(super) const ORDINARY: Self = Self {
        demote_after: Duration::from_secs(10),
        priority: 50,
        excess_pages: 0,
        bands: Bands::ROOMY,
        armed_at: None,
        keep_huge: false,
    };
}

/// Why a page that is idle for long enough stays in the first tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Its heat says that it is used now and then.
    Warm,
    /// It was accessed since its machine's pages were armed, and would show no access after that.
    MayBeInUse,
    /// Others of its block went down, and it is not known yet whether they come back.
    TrialRuns,
    /// Others of its block went down and came back.
    TrialFailed,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Warm => "it is warm",
            Self::MayBeInUse => "it may be in use: it was accessed in the present round of watching, which shows first accesses only",
            Self::TrialRuns => "others of its block went down on trial, which is not over",
            Self::TrialFailed => "others of its block went down on trial and came back",
        })
    }
}

impl Rules {
    /// Least idle time of a page before it leaves the tier at `level`.
    pub fn least_idle(&self, level: u8, backoff: u32) -> Duration {
        let factor = LEVEL_FACTOR.saturating_pow(level.into()).saturating_mul(1 << backoff);
        let base = self.demote_after.min(IDLE_MOST).mul_f64(priority_scale(self.priority));
        base.saturating_mul(factor).min(IDLE_MOST)
    }

    /// Whether huge pages of `pages` stay where they are rather than go to the tier `to`.
    pub fn keeps_huge(&self, pages: &VmPages, to: TierId) -> bool {
        self.keep_huge && !pages.node_tiers().contains(to)
    }

    /// How long a trial waits for what comes back.
    pub fn window(&self) -> Duration {
        (self.least_idle(0, 0) / WINDOW_DIVISOR).clamp(WINDOW_LEAST, WINDOW_MOST)
    }

    /// What keeps a page of the first tier there although it is old enough, if something does.
    pub fn held(&self, entry: PageEntry, block: BlockInfo, now: Seconds) -> Option<Held> {
        let trial = block.probe;
        match self.trial(trial, 1, now) {
            _ if self.is_warm(entry) => Some(Held::Warm),
            _ if self.may_be_in_use(entry, now) => Some(Held::MayBeInUse),
            0 if trial.is_open(now) => Some(Held::TrialRuns),
            0 => Some(Held::TrialFailed),
            _ => None,
        }
    }

    /// The same where the tier at `level` is short of room and the machine has more of it than its share.
    pub(super) fn least_idle_under_pressure(&self, level: u8, backoff: u32) -> Duration {
        let least = self.least_idle(level, backoff);
        if self.excess_pages > 0 && level == 0 { least / PRESSURE_DIVISOR } else { least }
    }

    /// Whether a page is too warm to leave the first tier.
    pub(super) fn is_warm(&self, entry: PageEntry) -> bool {
        let from = if self.excess_pages > 0 { self.bands.hot_from } else { self.bands.warm_from };
        entry.heat() >= from
    }

    /// Pages in memory that were accessed within this time may be in use: accesses since then may not have shown.
    pub fn in_use_within(&self, now: Seconds) -> Duration {
        self.armed_at
            .map_or(Duration::ZERO, |at| Duration::from_secs(u64::from(now.0.wrapping_sub(at.0)) + 1))
    }

    /// Whether a page in memory may have been accessed since its last access that showed.
    pub fn may_be_in_use(&self, entry: PageEntry, now: Seconds) -> bool {
        self.armed_at.is_some_and(|at| entry.idle(now) <= now.0.wrapping_sub(at.0))
    }

    /// How many more units may follow this trial now; `first` are tried where nothing is known.
    fn trial(&self, probe: Probe, first: u32, now: Seconds) -> u32 {
        let rest = self.window() + self.least_idle(0, probe.backoff() + 1);
        match (probe.is_known(), probe.is_open(now), probe.failed()) {
            (false, ..) => first,
            (true, true, _) => 0,
            (true, false, false) if !probe.is_strict() => BLOCK_PAGES,
            (true, false, false) => probe.sent().saturating_mul(GROWTH).max(first),
            (true, false, true) if Duration::from_secs(probe.age(now).into()) < rest => 0,
            (true, false, true) => first,
        }
    }
}

/// The steps that take the pages of one machine down that were idle for long enough: at most `allowance` pages to
/// each tier (indexed by level; 0 where the tier takes nothing now), longest idle first.
pub fn demotions(vm: VmId, pages: &VmPages, rules: &Rules, allowance: &[u64], now: Seconds) -> Vec<Step> {
    let mut steps = Vec::new();
    for (to, allowed) in (0u8..).zip(allowance).skip(1) {
        if *allowed == 0 {
            continue;
        }
        let from = to - 1;
        let keep_huge = rules.keeps_huge(pages, TierId(to));
        let mut old = if from == 0 {
            old_in_first_tier(pages, rules, keep_huge, *allowed, now)
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

/// Of what is old in the first tier, as much as the trials allow; beyond what is old anyway, no more than the machine
/// has in excess.
fn old_in_first_tier(pages: &VmPages, rules: &Rules, keep_huge: bool, allowed: u64, now: Seconds) -> Units {
    let (mut singles, mut huge) = (Units::default(), Units::default());
    let (is_old, mut enough) = (Old::at(0, rules), Enough::of(allowed));
    for (longest, number) in pages.idle_blocks(TierId(0), is_old.least(), now) {
        let Some((first, info, entries)) = pages.block_at(number) else { continue };
        // Of huge pages it counts how many there are.
        if !info.huge && enough.is_met(longest) || info.huge && keep_huge {
            continue;
        }
        let old = (first..).zip(entries).filter(|(_, entry)| is_old.may_leave(pages, **entry, now));
        if info.huge {
            let youngest = old.clone().map(|(_, entry)| entry.idle(now)).min();
            let whole = old.count() == BLOCK_PAGES as usize && rules.trial(info.probe, 1, now) > 0;
            youngest.filter(|_| whole).into_iter().for_each(|idle| huge.push(first, BLOCK_PAGES, idle));
            continue;
        }
        let most = rules.trial(info.probe, FIRST_PAGES, now) as usize;
        let count = if most == 0 { 0 } else { old.clone().count() };
        // Spread over the block: neighbours are used together.
        let step = count.div_ceil(most.max(1)).max(1);
        for (page, entry) in old.take(count).step_by(step) {
            singles.push(page, 1, entry.idle(now));
            enough.found(entry.idle(now));
        }
    }
    let first = u32::try_from(huge.0.len()).unwrap_or(u32::MAX).div_ceil(FIRST_HUGE_SHARE);
    let blocks = rules.trial(pages.huge_probe(), first, now);
    huge.keep_longest_idle(u64::from(blocks) * u64::from(BLOCK_PAGES));
    singles.0.append(&mut huge.0);

    let least = rules.least_idle(0, 0);
    let early = |unit: &&Unit| Duration::from_secs(unit.idle.0.into()) < least;
    let sum = |units: &mut dyn Iterator<Item = &Unit>| units.map(|unit| u64::from(unit.pages)).sum::<u64>();
    let due = sum(&mut singles.0.iter().filter(|unit| !early(unit)));
    singles.keep_longest_idle(allowed.min(due.max(rules.excess_pages)));
    singles
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiermap::{Layout, PageIndex, PageRun, Place};
    use crate::tiers::NodeTiers;
    use crate::vm::{Backing, Hva, RamRegion};

    const RULES: Rules = Rules::ORDINARY;
    const NVME: Place = Place::In(TierId(1));
    const WINDOW: u16 = 2;

    fn table(pages: u32) -> VmPages {
        let bytes = u64::from(pages) * 4096;
        let region = RamRegion { start: Hva(0x20_0000), bytes, backing: Backing::Anonymous };
        VmPages::new(Layout::new(&[region]), NodeTiers(1))
    }

    /// 100 pages in DRAM, no longer warm; page p was last accessed at second p. A trial of all went well before.
    fn pages() -> VmPages {
        let mut pages = table(100);
        for page in 0..100u16 {
            touch(&mut pages, [page.into()], Seconds(page));
        }
        cool(&mut pages);
        pages.sent_down(&(0..100).collect::<Vec<_>>(), 0, Seconds(0), Seconds(0));
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

    fn plan(pages: &VmPages, rules: &Rules, allowance: &[u64], now: u16) -> Vec<Step> {
        demotions(VmId(1), pages, rules, allowance, Seconds(now))
    }

    fn chosen(pages: &VmPages, now: u16) -> Vec<PageIndex> {
        plan(pages, &RULES, &[0, 100_000], now).pop().map(|step| step.pages).unwrap_or_default()
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
    fn what_the_present_round_showed_is_not_tried() {
        let mut pages = table(1024);
        touch(&mut pages, 0..1024, Seconds(0));
        touch(&mut pages, 100..300, Seconds(14));
        cool(&mut pages);
        let armed = Rules { armed_at: Some(Seconds(13)), ..RULES };
        let chosen =
            |rules, now| plan(&pages, rules, &[0, 100_000], now).pop().map_or(vec![], |step| step.pages);
        let first = chosen(&armed, 30);
        assert!(first.len() == 16 && first.iter().all(|page| !(100..300).contains(page)), "{first:?}");
        assert_eq!(armed.held(pages.get(100), pages.block_of(100), Seconds(30)), Some(Held::MayBeInUse));
        // The next round showed nothing of them.
        let later = chosen(&Rules { armed_at: Some(Seconds(20)), ..RULES }, 30);
        assert!(later.iter().any(|page| (100..300).contains(page)), "{later:?}");
    }

    #[test]
    fn of_a_block_of_which_nothing_is_known_a_few_go_first_and_more_when_they_stay_away() {
        let mut pages = table(1024);
        touch(&mut pages, 0..1024, Seconds(0));
        cool(&mut pages);
        let first = chosen(&pages, 20);
        assert_eq!(first.len(), 16, "8 of each block");
        assert!(first.windows(2).all(|pair| pair[1] - pair[0] == 64), "spread: {first:?}");
        pages.sent_down(&first, WINDOW, Seconds(20), Seconds(20));
        first.iter().for_each(|page| pages.update(*page, |entry| entry.with_place(NVME)));
        assert_eq!(chosen(&pages, 22).len(), 0, "too early to judge");
        // All but one of the second block's come back, and one of the first one's.
        touch(&mut pages, first[9..].iter().chain(&first[..1]).copied(), Seconds(22));
        let second = chosen(&pages, 23);
        assert_eq!(second.len(), 512 - 8, "the rest of the first");
        assert!(second.iter().all(|page| *page < 512), "the second block is in use");
        let later = chosen(&pages, 20 + 2 + 20 + 1);
        assert_eq!(later.iter().filter(|page| **page >= 512).count(), 8, "after a rest another trial");
    }

    #[test]
    fn a_huge_page_goes_as_a_whole_one_in_64_first() {
        let blocks = 128;
        let mut pages = table(blocks * BLOCK_PAGES);
        touch(&mut pages, 0..blocks * BLOCK_PAGES, Seconds(0));
        cool(&mut pages);
        let firsts: Vec<PageIndex> = (0..blocks).map(|block| block * BLOCK_PAGES).collect();
        pages.set_huge(PageRun { first: 0, count: blocks * BLOCK_PAGES }, &firsts);
        pages.touch(5, Seconds(15), false);
        let first = chosen(&pages, 20);
        assert_eq!(first.len(), 2 * 512, "2 of 127 blocks");
        assert!(!first.contains(&0), "a part of the first block was used");
        pages.sent_down(&first, WINDOW, Seconds(20), Seconds(20));
        first.iter().for_each(|page| pages.update(*page, |entry| entry.with_place(NVME)));
        assert_eq!(chosen(&pages, 23).len(), 16 * 512);
        // Something of the two blocks comes back.
        let mut returned = pages.clone();
        returned.touch(first[0], Seconds(21), false);
        assert_eq!(chosen(&returned, 23).len(), 0);
    }

    #[test]
    fn a_huge_page_that_is_kept_is_neither_tried_nor_sent_to_swap() {
        let mut pages = table(3 * BLOCK_PAGES);
        touch(&mut pages, 0..3 * BLOCK_PAGES, Seconds(0));
        cool(&mut pages);
        pages.set_huge(PageRun { first: 0, count: 3 * BLOCK_PAGES }, &[0, BLOCK_PAGES]);
        let keep = Rules { keep_huge: true, ..RULES };
        let chosen = |pages: &VmPages, rules, allowance: &[u64], now| {
            plan(pages, rules, allowance, now).pop().map(|step| step.pages).unwrap_or_default()
        };
        let first = chosen(&pages, &keep, &[0, 100_000], 20);
        assert_eq!(first.len(), 8, "the block of small pages is tried");
        assert!(first.iter().all(|page| *page >= 2 * BLOCK_PAGES), "{first:?}");
        let short = Rules { excess_pages: 100_000, ..keep };
        assert!(chosen(&pages, &short, &[0, 100_000], 20).iter().all(|page| *page >= 2 * BLOCK_PAGES));
        assert_eq!(chosen(&pages, &RULES, &[0, 100_000], 20).len(), 512 + 8, "without the setting");
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
        assert!(!chosen(&pages, 99).contains(&3));
        cool(&mut pages);
        assert!(chosen(&pages, 99).contains(&3));
    }

    #[test]
    fn under_pressure_a_machine_gives_what_it_has_in_excess_sooner() {
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

    #[test]
    fn priority_and_tier_scale_the_idle_time() {
        let least = |priority, level| Rules { priority, ..RULES }.least_idle(level, 0).as_secs_f64();
        assert!((least(100, 0) - 20.0).abs() < 1e-9);
        assert!((least(0, 0) - 5.0).abs() < 1e-9);
        assert!((least(50, 1) - 40.0).abs() < 1e-9);
    }
}
