//! Who goes down.

use std::cmp::Reverse;
use std::time::Duration;

use super::{Action, Reason, Step};
use crate::tiermap::{IDLE_CAP, PageEntry, Place, Seconds, VmPages};
use crate::tiers::TierId;
use crate::track::VmId;

/// A page that comes back within this time of the moment it had become old enough to go came back soon.
const SOON: Duration = Duration::from_secs(60);
/// The table cannot tell longer idle times apart.
const IDLE_MOST: Duration = Duration::from_secs(IDLE_CAP as u64);
/// How much longer a page must be idle for each tier it is further down.
const LEVEL_FACTOR: u32 = 4;
/// How much sooner pages go while the first tier has too little free.
const PRESSURE_DIVISOR: u32 = 4;

/// What the policy goes by for one virtual machine at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Least idle time in the first tier, before scaling.
    pub demote_after: Duration,
    /// 0 to 100; 50 is neutral, 100 doubles the idle time, 0 halves it.
    pub priority: u8,
    /// The first tier has less free than it should.
    pub pressure: bool,
}

impl Rules {
    /// Least idle time of this page before it leaves the tier at `level`.
    pub fn least_idle(&self, level: u8, backoff: u32) -> Duration {
        let scale = f64::exp2((f64::from(self.priority.min(100)) - 50.0) / 50.0);
        let factor = LEVEL_FACTOR.saturating_pow(level.into()).saturating_mul(1 << backoff);
        let base = self.demote_after.min(IDLE_MOST).mul_f64(scale).saturating_mul(factor);
        let base = if self.pressure && level == 0 { base / PRESSURE_DIVISOR } else { base };
        base.min(IDLE_MOST)
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
        let mut old = Vec::new();
        pages.for_each(|page, entry| {
            if entry.place() == Place::In(TierId(from)) && !entry.staged() && is_old(entry, rules, from, now)
            {
                old.push((Reverse(entry.idle(now)), page));
            }
        });
        let most = usize::try_from(*allowed).unwrap_or(usize::MAX);
        if old.len() > most {
            old.select_nth_unstable(most);
            old.truncate(most);
        }
        let Some(youngest) = old.iter().map(|(Reverse(idle), _)| *idle).min() else { continue };
        let mut chosen: Vec<_> = old.into_iter().map(|(_, page)| page).collect();
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

/// Whether the page may leave the tier at `level`.
pub(super) fn is_old(entry: PageEntry, rules: &Rules, level: u8, now: Seconds) -> bool {
    Duration::from_secs(entry.idle(now).into()) >= rules.least_idle(level, entry.backoff())
}

/// The back-off of a page that has just come back from a lower tier; `before` is its entry before that access.
pub fn backoff_after_return(before: PageEntry, rules: &Rules, now: Seconds) -> u32 {
    let Place::In(TierId(level @ 1..)) = before.place() else { return 0 };
    let left_at = rules.least_idle(level - 1, before.backoff());
    let soon = Duration::from_secs(before.idle(now).into()) <= left_at + SOON;
    if soon { before.backoff() + 1 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiermap::{Layout, PageRun};
    use crate::tiers::NodeTiers;
    use crate::vm::{Backing, Hva, RamRegion};

    const RULES: Rules = Rules { demote_after: Duration::from_secs(10), priority: 50, pressure: false };
    const DRAM: Place = Place::In(TierId(0));
    const NVME: Place = Place::In(TierId(1));

    /// 100 pages in DRAM; page p was last accessed at second p.
    fn pages() -> VmPages {
        let region = RamRegion { start: Hva(0x10_0000), bytes: 100 * 4096, backing: Backing::Anonymous };
        let mut pages = VmPages::new(Layout::new(&[region]), NodeTiers(1));
        for page in 0..100u16 {
            pages.touch(page.into(), Seconds(page), false);
        }
        pages
    }

    fn plan(pages: &VmPages, rules: &Rules, allowance: &[u64], now: u16) -> Vec<Step> {
        demotions(VmId(1), pages, rules, allowance, Seconds(now))
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
    fn priority_and_pressure_scale_the_idle_time() {
        let least = |priority, pressure| Rules { priority, pressure, ..RULES }.least_idle(0, 0).as_secs_f64();
        assert!((least(100, false) - 20.0).abs() < 1e-9);
        assert!((least(0, false) - 5.0).abs() < 1e-9);
        assert!((least(50, true) - 2.5).abs() < 1e-9);
        let lower = Rules { pressure: true, ..RULES }.least_idle(1, 0);
        assert_eq!(
            lower,
            Duration::from_secs(40),
            "pressure on the first tier says nothing about the second"
        );
    }

    #[test]
    fn coming_back_soon_raises_the_back_off_and_late_clears_it() {
        let entry = PageEntry::found(NVME, Seconds(0));
        assert_eq!(backoff_after_return(entry, &RULES, Seconds(70)), 1);
        assert_eq!(backoff_after_return(entry, &RULES, Seconds(71)), 0);
        assert_eq!(backoff_after_return(entry.with_backoff(1), &RULES, Seconds(80)), 2);
        assert_eq!(backoff_after_return(entry.with_place(DRAM), &RULES, Seconds(1)), 0);
    }
}
