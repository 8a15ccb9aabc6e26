//! Which blocks become huge pages again.
//!
//! In: the table. Out: a step for whole blocks that were huge pages and are back in the first tier. It does not matter
//! who took them out of memory: the agent, the kernel that the agent asked (`memory.reclaim`), or the kernel by itself.
//! That a block was huge is known from sweeps, so one must have seen it before.

use super::rules::Rules;
use super::{Action, Reason, Step};
use crate::tiermap::{BLOCK_PAGES, Place, Seconds, VmPages};
use crate::tiers::TierId;
use crate::track::VmId;

/// Pages of a block that may be elsewhere, and come up with it: what the kernel itself allows to be in swap
/// (`max_ptes_swap`, 64 of 512, mm/khugepaged.c).
const ELSEWHERE_MOST: usize = 64;
/// Pages of a block that may take no memory now: going down frees pages of zeroes, which a huge page takes again.
const UNTOUCHED_MOST: usize = 256;

/// The step that collapses blocks which were huge pages, are not any more, and are in the first tier and in use again:
/// at most `allowed` blocks. None where there is none.
pub fn collapses(vm: VmId, pages: &VmPages, rules: &Rules, allowed: usize, now: Seconds) -> Option<Step> {
    let mut chosen = Vec::new();
    // It takes memory, which there is too little of now.
    if rules.excess_pages > 0 || !pages.had_huge() {
        return None;
    }
    pages.for_each_block(|first, info, entries| {
        let whole = entries.len() == BLOCK_PAGES as usize;
        let wanted = whole && info.was_huge && !info.huge && !info.given_up;
        if !wanted || chosen.len() == allowed {
            return;
        }
        let count = |place| entries.iter().filter(|entry| entry.place() == place).count();
        let untouched = count(Place::Untouched);
        let elsewhere = entries.len() - untouched - count(Place::In(TierId(0)));
        let in_use =
            entries.iter().any(|entry| u64::from(entry.idle(now)) < rules.least_idle(0, 0).as_secs());
        if elsewhere <= ELSEWHERE_MOST && untouched <= UNTOUCHED_MOST && in_use {
            chosen.push(first);
        }
    });
    let pages: Vec<_> = chosen.into_iter().flat_map(|first| first..first + BLOCK_PAGES).collect();
    (!pages.is_empty()).then_some(Step { vm, action: Action::Collapse, pages, reason: Reason::WereHuge })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiermap::{Layout, PageRun, Sweep};
    use crate::tiers::NodeTiers;
    use crate::vm::{Backing, Hva, RamRegion};
    use std::time::Duration;

    const RULES: Rules = Rules { demote_after: Duration::from_secs(60), ..Rules::ORDINARY };

    #[test]
    fn a_block_that_was_huge_and_is_back_becomes_huge_again() {
        let region = RamRegion { start: Hva(0x20_0000), bytes: 3 * 512 * 4096, backing: Backing::Anonymous };
        let mut pages = VmPages::new(Layout::new(&[region]), NodeTiers(1));
        for page in 0..3 * BLOCK_PAGES {
            pages.touch(page, Seconds(1), false);
        }
        let plan =
            |pages: &VmPages, now| collapses(VmId(1), pages, &RULES, 10, Seconds(now)).map(|step| step.pages);
        assert_eq!(plan(&pages, 2), None, "none was huge");
        let all = PageRun { first: 0, count: 3 * BLOCK_PAGES };
        pages.set_huge(all, &[0, BLOCK_PAGES]);
        assert_eq!(plan(&pages, 2), None, "they are");
        pages.set_huge(all, &[]);
        pages.place(PageRun { first: 0, count: 65 }, Place::In(TierId(1)));
        let second: Vec<_> = (BLOCK_PAGES..2 * BLOCK_PAGES).collect();
        assert_eq!(plan(&pages, 2), Some(second.clone()), "of the first too much is missing");
        pages.touch(0, Seconds(3), false);
        assert_eq!(plan(&pages, 3).unwrap().len(), 2 * 512, "64 come up with it");
        pages.place(PageRun { first: 100, count: 256 }, Place::Untouched);
        assert_eq!(plan(&pages, 3).unwrap().len(), 2 * 512, "pages of zeroes may be missing");
        pages.place(PageRun { first: 400, count: 1 }, Place::Untouched);
        assert_eq!(plan(&pages, 3), Some(second.clone()), "but not more than half");
        pages.place(PageRun { first: 400, count: 1 }, Place::In(TierId(0)));
        assert_eq!(plan(&pages, 100), None, "not in use");
        let short = Rules { excess_pages: 1, ..RULES };
        assert_eq!(collapses(VmId(1), &pages, &short, 10, Seconds(3)), None, "memory is short");
        pages.tried_to_collapse(&second);
        assert_eq!(plan(&pages, 3).unwrap()[0], 0, "the kernel did not want the second");
        assert_eq!(pages.split_blocks(), 2, "nothing is lost silently");
    }

    #[test]
    fn a_block_that_the_kernel_took_becomes_huge_again_too() {
        let region = RamRegion { start: Hva(0x20_0000), bytes: 512 * 4096, backing: Backing::Anonymous };
        let mut pages = VmPages::new(Layout::new(&[region]), NodeTiers(1));
        let all = PageRun { first: 0, count: BLOCK_PAGES };
        let touch_all = |pages: &mut VmPages, at| {
            for page in all.pages() {
                pages.touch(page, Seconds(at), false);
            }
        };
        let plan = |pages: &VmPages, now| {
            collapses(VmId(1), pages, &RULES, 10, Seconds(now)).map(|step| step.pages.len())
        };
        // Nobody told the agent: a sweep finds it in swap, and after that its pages come back one by one.
        let reclaimed = |pages: &mut VmPages, now| {
            let sweep = Sweep { runs: vec![(all, Place::In(TierId(1)))], ..Sweep::of(all) };
            pages.apply(&sweep, Seconds(now), Seconds(now));
            pages.set_huge(all, &sweep.huge);
        };
        touch_all(&mut pages, 1);
        pages.set_huge(all, &[0]);
        reclaimed(&mut pages, 10);
        assert_eq!(plan(&pages, 10), None, "it is in swap");
        touch_all(&mut pages, 20);
        assert_eq!(plan(&pages, 20), Some(512));

        // A try that failed counts until the block has left memory once more.
        pages.tried_to_collapse(&all.pages().collect::<Vec<_>>());
        pages.set_huge(all, &[]);
        assert_eq!(plan(&pages, 20), None);
        reclaimed(&mut pages, 30);
        touch_all(&mut pages, 40);
        assert_eq!(plan(&pages, 40), Some(512));
    }
}
