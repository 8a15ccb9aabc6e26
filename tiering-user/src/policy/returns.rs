//! What comes back.
//!
//! In: accesses to pages that had gone down. Out: whether each came back soon, and how much longer it is left alone for
//! that, in the table.

use std::time::Duration;

use super::rules::{Rules, cooling_epoch};
use crate::tiermap::{PageEntry, PageIndex, Place, Seconds, Touch, VmPages};
use crate::tiers::TierId;

/// A page that comes back within half of the least idle time, and this, of the moment it had become old enough to go
/// came back soon.
const SOON_MOST: Duration = Duration::from_secs(60);

fn soon_after(rules: &Rules) -> Duration {
    (rules.demote_after / 2).min(SOON_MOST)
}

/// Whether a page that has just come back had become old enough to go a short while ago: `before` is its entry before
/// that access.
fn came_back_soon(before: PageEntry, rules: &Rules, now: Seconds) -> bool {
    let Place::In(TierId(level @ 1..)) = before.place() else { return false };
    // It was warm until heat had cooled twice, which in rounds it does sooner.
    let warm = if level == 1 && rules.armed_at.is_none() { 2 * cooling_epoch(rules) } else { Duration::ZERO };
    let left_at = rules.least_idle(level - 1, before.backoff()).max(warm);
    Duration::from_secs(before.idle(now).into()) <= left_at + soon_after(rules)
}

/// Notes in the table that an access brought a page back from where it had to be waited for, or that it is in use again
/// where nobody waits: then the first access since it came there says so. Whether it came back soon is known of some
/// (`soon`), since it is known when they went; of others it follows from how long they were idle. Returns whether it
/// did; none where it had not been away.
pub fn note_return(
    pages: &mut VmPages,
    page: PageIndex,
    touch: Touch,
    soon: Option<bool>,
    rules: &Rules,
    now: Seconds,
) -> Option<bool> {
    let Touch { before, was_lower } = touch;
    let in_use_again = pages.in_lower_memory(before.place()) && before.heat() == 0;
    if !was_lower && !in_use_again {
        return None;
    }
    let soon = soon.unwrap_or_else(|| came_back_soon(before, rules, now));
    let backoff = if soon { before.backoff() + 1 } else { 0 };
    pages.update(page, |entry| entry.with_backoff(backoff));
    Some(soon)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiermap::{Layout, PageRun};
    use crate::tiers::NodeTiers;
    use crate::vm::{Backing, Hva, RamRegion};

    const RULES: Rules = Rules::ORDINARY;
    const DRAM: Place = Place::In(TierId(0));
    const NVME: Place = Place::In(TierId(1));

    #[test]
    fn coming_back_soon_raises_the_back_off_and_late_clears_it() {
        let entry = PageEntry::found(NVME, Seconds(0));
        let soon = |entry, now| came_back_soon(entry, &RULES, Seconds(now));
        let armed = Rules { armed_at: Some(Seconds(0)), ..RULES };
        assert!(!came_back_soon(entry, &armed, Seconds(16)), "in rounds it cools sooner");
        // Warm for 40 s, and 5 s more are soon.
        assert!(soon(entry, 45) && !soon(entry, 46));
        assert!(soon(entry.with_backoff(3), 85) && !soon(entry.with_backoff(3), 86));
        assert!(!soon(entry.with_place(DRAM), 1));
        let region = RamRegion { start: Hva(0x10_0000), bytes: 4096, backing: Backing::Anonymous };
        let mut pages = VmPages::new(Layout::new(&[region]), NodeTiers(1));
        let mut return_at = |second| {
            pages.place(PageRun { first: 0, count: 1 }, NVME);
            let touch = pages.touch(0, Seconds(second), false);
            let soon = note_return(&mut pages, 0, touch, None, &RULES, Seconds(second));
            (soon, pages.get(0).backoff())
        };
        assert_eq!(return_at(15), (Some(true), 1));
        assert_eq!(return_at(30), (Some(true), 2));
        assert_eq!(return_at(1000), (Some(false), 0));
        pages.place(PageRun { first: 0, count: 1 }, NVME);
        let touch = pages.touch(0, Seconds(2000), false);
        let soon = note_return(&mut pages, 0, touch, Some(true), &RULES, Seconds(2000));
        assert_eq!((soon, pages.get(0).backoff()), (Some(true), 1), "it is known when it went");
        let here = pages.touch(0, Seconds(2001), false);
        assert_eq!(note_return(&mut pages, 0, here, None, &RULES, Seconds(2001)), None);
        let slow = Rules { demote_after: Duration::from_secs(3600), ..RULES };
        assert!(came_back_soon(entry, &slow, Seconds(3600 + 60)));
        assert!(!came_back_soon(entry, &slow, Seconds(3600 + 61)), "a minute at most");
    }
}
