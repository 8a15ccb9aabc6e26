//! Which accesses would not have found their page, had memory held so many pages at each of them: the least recently
//! used ones going first, or those that are needed last (MIN; L. A. Belady, *A study of replacement algorithms for a
//! virtual-storage computer*, IBM Systems Journal 5, 1966), which nobody can know and nothing can better.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::tiermap::PageIndex;

/// An access, and how many pages memory held then, its own among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessAt {
    pub page: PageIndex,
    pub capacity: u32,
}

/// Never again.
const NEVER: u32 = u32::MAX;

/// Of the accesses to pages, in order, those to a page that had been in memory and was not any more. `first` are in
/// memory at the beginning, the ones that go first in front.
pub fn lru(first: &[PageIndex], accesses: &[AccessAt]) -> u64 {
    let mut order = 0u64;
    let mut next = || {
        order += 1;
        order
    };
    run(first, accesses, |_, _| next(), false)
}

/// The same if always what is needed last goes.
pub fn min(first: &[PageIndex], accesses: &[AccessAt]) -> u64 {
    // When each access' page is accessed next, and each page for the first time.
    let mut soonest: HashMap<PageIndex, u32> = HashMap::new();
    let mut after = vec![NEVER; accesses.len()];
    for (at, AccessAt { page, .. }) in accesses.iter().enumerate().rev() {
        // A trace of four thousand million accesses is not read into memory.
        after[at] = soonest.insert(*page, at as u32).unwrap_or(NEVER);
    }
    let next = |page: PageIndex, at: Option<usize>| match at {
        Some(at) => u64::from(after[at]),
        None => soonest.get(&page).copied().unwrap_or(NEVER).into(),
    };
    run(first, accesses, next, true)
}

/// Each access gives its page a rank; the page of the `highest` one goes first, or that of the lowest.
fn run(
    first: &[PageIndex],
    accesses: &[AccessAt],
    mut rank: impl FnMut(PageIndex, Option<usize>) -> u64,
    highest: bool,
) -> u64 {
    let mut there: HashMap<PageIndex, u64> = HashMap::new();
    let mut order: BTreeSet<(u64, PageIndex)> = BTreeSet::new();
    let mut seen: HashSet<PageIndex> = HashSet::new();
    let mut came_back = 0;
    for page in first {
        let rank = rank(*page, None);
        if let Some(before) = there.insert(*page, rank) {
            order.remove(&(before, *page));
        }
        order.insert((rank, *page));
        seen.insert(*page);
    }
    for (at, AccessAt { page, capacity }) in accesses.iter().enumerate() {
        let rank = rank(*page, Some(at));
        match there.insert(*page, rank) {
            Some(before) => drop(order.remove(&(before, *page))),
            None => came_back += u64::from(!seen.insert(*page)),
        }
        order.insert((rank, *page));
        while there.len() > (*capacity as usize).max(1) {
            // The page of this access is needed now, whatever its rank.
            let other = |(_, other): &&(u64, PageIndex)| other != page;
            let goes = if highest { order.iter().rev().find(other) } else { order.iter().find(other) };
            let Some(goes) = goes.copied() else { break };
            order.remove(&goes);
            there.remove(&goes.1);
        }
    }
    came_back
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sized(pages: &[PageIndex], capacity: u32) -> Vec<AccessAt> {
        pages.iter().map(|page| AccessAt { page: *page, capacity }).collect()
    }

    #[test]
    fn a_loop_that_is_a_little_too_large_is_the_worst_for_one_and_not_for_the_other() {
        let accesses: Vec<PageIndex> = (0..40).map(|at| at % 4).collect();
        assert_eq!(lru(&[], &sized(&accesses, 3)), 36, "each of them, after the first round");
        // Of three in memory two stay for the next round.
        assert_eq!(min(&[], &sized(&accesses, 3)), 12);
        assert_eq!((lru(&[], &sized(&accesses, 4)), min(&[], &sized(&accesses, 4))), (0, 0));
    }

    #[test]
    fn what_was_there_at_first_counts_as_seen() {
        assert_eq!(lru(&[1, 2, 3], &sized(&[1, 2, 3], 3)), 0);
        assert_eq!(lru(&[1, 2, 3], &sized(&[4, 1], 3)), 1, "1 went for 4");
        assert_eq!(min(&[1, 2, 3], &sized(&[4, 1], 3)), 0);
    }

    #[test]
    fn memory_that_shrinks_is_left_by_as_many_as_it_takes() {
        let mut accesses = sized(&[0, 1, 2, 3, 4, 4, 0, 1], 5);
        accesses[5].capacity = 3;
        assert_eq!((lru(&[], &accesses), min(&[], &accesses)), (2, 0));
    }

    /// By trying all that could go.
    fn best(accesses: &[AccessAt], there: &BTreeSet<PageIndex>, seen: &BTreeSet<PageIndex>) -> u64 {
        let Some((AccessAt { page, capacity }, rest)) = accesses.split_first() else { return 0 };
        let mut seen = seen.clone();
        let cost = u64::from(!seen.insert(*page) && !there.contains(page));
        let mut now = there.clone();
        now.insert(*page);
        let mut choices = BTreeSet::from([now]);
        while choices.iter().any(|choice| choice.len() > *capacity as usize) {
            let without = |choice: &BTreeSet<PageIndex>| -> Vec<BTreeSet<PageIndex>> {
                let goes = choice.iter().filter(|goes| *goes != page);
                goes.map(|goes| choice.iter().copied().filter(|other| other != goes).collect()).collect()
            };
            choices = choices.iter().flat_map(without).collect();
        }
        cost + choices.iter().map(|choice| best(rest, choice, &seen)).min().unwrap_or(0)
    }

    proptest! {
        #[test]
        fn nothing_is_better_than_the_best_and_this_is_it(
            accesses in prop::collection::vec((0u32..5, 1u32..4), 0..12),
        ) {
            let accesses: Vec<AccessAt> =
                accesses.into_iter().map(|(page, capacity)| AccessAt { page, capacity }).collect();
            let best = best(&accesses, &BTreeSet::new(), &BTreeSet::new());
            prop_assert_eq!(min(&[], &accesses), best);
            prop_assert!(lru(&[], &accesses) >= best);
        }
    }
}
