//! The table against a plain map, and its rules one by one.

use super::*;
use crate::sys::PAGE_BYTES;
use crate::tiers::{NodeTiers, TierId};
use crate::vm::{Backing, Hva, RamRegion};
use proptest::prelude::*;
use std::collections::BTreeMap;

const PAGES: u32 = 1200;
const ALL: PageRun = PageRun { first: 0, count: PAGES };
const DRAM: Place = Place::In(TierId(0));
const CXL: Place = Place::In(TierId(1));
const NVME: Place = Place::In(TierId(2));
const QLC: Place = Place::In(TierId(3));

/// Two memory tiers above two swap tiers.
fn table() -> VmPages {
    let bytes = u64::from(PAGES) * PAGE_BYTES;
    let region = RamRegion { start: Hva(0x10_0000), bytes, backing: Backing::Anonymous };
    VmPages::new(Layout::new(&[region]), NodeTiers(2))
}

fn run(first: u32, count: u32, place: Place) -> Sweep {
    Sweep { runs: vec![(PageRun { first, count }, place)], ..Sweep::of(ALL) }
}

#[derive(Clone, Debug)]
enum Change {
    Touch(u32, bool),
    Place(u32, u32, Place),
    Sweep(Vec<(u32, u32, Place)>),
}

fn place() -> impl Strategy<Value = Place> {
    prop::sample::select(vec![Place::OtherSwap, DRAM, CXL, NVME, QLC])
}

fn change() -> impl Strategy<Value = Change> {
    let run = || (0..PAGES, 1u32..80, place());
    prop_oneof![
        (0..PAGES + 5, any::<bool>()).prop_map(|(page, write)| Change::Touch(page, write)),
        run().prop_map(|(first, count, place)| Change::Place(first, count, place)),
        prop::collection::vec(run(), 0..12).prop_map(Change::Sweep),
    ]
}

proptest! {
    /// The table against a map from page to place: same places, same counts.
    #[test]
    fn it_agrees_with_a_plain_map(changes in prop::collection::vec(change(), 1..40)) {
        let mut table = table();
        let mut model: BTreeMap<u32, Place> = BTreeMap::new();
        let mut time = 0;
        for change in changes {
            // Every change is later than the one before.
            time += 1;
            let now = Seconds(time);
            match change {
                Change::Touch(page, write) => {
                    table.touch(page, now, write);
                    if page < PAGES {
                        let at = model.entry(page).or_insert(DRAM);
                        *at = if *at == CXL { CXL } else { DRAM };
                    }
                }
                Change::Place(first, count, place) => {
                    table.place(PageRun { first, count }, place);
                    for page in first..(first + count).min(PAGES) {
                        model.insert(page, place);
                    }
                }
                Change::Sweep(mut runs) => {
                    runs.sort_unstable_by_key(|run| run.0);
                    let mut swept = BTreeMap::new();
                    let mut sweep = Sweep::of(ALL);
                    let mut next = 0;
                    for (first, count, place) in runs {
                        let count = count.min(PAGES - first);
                        if first >= next && count > 0 {
                            sweep.runs.push((PageRun { first, count }, place));
                            next = first + count;
                            for page in first..next {
                                let keeps = place == Place::OtherSwap
                                    && matches!(model.get(&page), Some(&NVME | &QLC));
                                swept.insert(page, if keeps { model[&page] } else { place });
                            }
                        }
                    }
                    table.apply(&sweep, now, now);
                    model = swept;
                }
            }
            for page in 0..PAGES {
                prop_assert_eq!(table.get(page).place(), model.get(&page).copied().unwrap_or(Place::Untouched));
            }
            for place in [Place::OtherSwap, DRAM, CXL, NVME, QLC] {
                let expected = model.values().filter(|there| **there == place).count() as u64;
                prop_assert_eq!(table.counts().get(place), expected);
            }
            let untouched = u64::from(PAGES) - model.len() as u64;
            prop_assert_eq!(table.counts().get(Place::Untouched), untouched);
        }
    }
}

#[test]
fn a_page_that_came_back_unseen_counts_as_accessed() {
    for (page, came_to) in [(3, DRAM), (4, CXL)] {
        let mut table = table();
        table.place(PageRun { first: page, count: 1 }, NVME);
        assert_eq!(table.apply(&run(page, 1, came_to), Seconds(9), Seconds(9)).unseen, 1);
        assert_eq!(table.get(page).place(), came_to);
        assert_eq!(table.get(page).idle(Seconds(10)), 1);
        assert_eq!(table.get(page).heat(), 1);
    }
}

#[test]
fn an_access_after_the_sweep_began_knows_better() {
    let mut table = table();
    table.touch(3, Seconds(9), false);
    let old = run(3, 1, NVME);
    table.apply(&old, Seconds(8), Seconds(10));
    assert_eq!(table.get(3).place(), DRAM);
    table.apply(&old, Seconds(10), Seconds(10));
    assert_eq!(table.get(3).place(), NVME);
}

#[test]
fn an_access_does_not_say_on_which_node_the_page_is() {
    let mut table = table();
    table.touch(3, Seconds(9), false);
    assert_eq!(
        table.apply(&run(3, 1, CXL), Seconds(8), Seconds(10)).unseen,
        0,
        "the kernel moved it: no access"
    );
    assert_eq!(table.get(3).place(), CXL);
    assert_eq!(table.get(3).heat(), 0, "not accessed since it came there");
    let touch = table.touch(3, Seconds(11), false);
    assert!(!touch.was_lower, "nobody waited");
    assert_eq!((table.get(3).place(), table.get(3).heat()), (CXL, 1));
}

#[test]
fn a_round_ends_for_what_it_showed_and_for_what_it_showed_no_more() {
    let mut table = table();
    // Found in memory long ago; the round before this one ended at second 100.
    for (pages, at) in [(0..40, 50), (0..30, 99), (0..10, 101)] {
        for page in pages {
            table.touch(page, Seconds(at), false);
        }
    }
    // Since it was armed again, but before the agent heard that it was.
    table.touch(0, Seconds(111), false);
    let shown = table.end_round(Seconds(100), Seconds(110), Seconds(112));
    assert_eq!((shown.used, shown.ended), (10, 20));
    let idle = |page| table.get(page).idle(Seconds(112));
    assert_eq!((idle(0), idle(1)), (1, 3), "in use until a second before it was armed again");
    assert_eq!((idle(20), idle(35)), (13, 62), "nothing was seen of them");
}

#[test]
fn what_was_written_in_a_round_counts_as_accessed_and_tells_what_was_not_seen() {
    let mut table = table();
    for page in 0..30 {
        table.touch(page, Seconds(50), false);
    }
    table.touch(3, Seconds(105), false);
    let runs = [PageRun { first: 2, count: 4 }, PageRun { first: 5000, count: 2 }];
    assert_eq!(
        table.written(&runs, Seconds(100), Seconds(110)),
        3,
        "all but one, and but what is not in memory"
    );
    for page in 2..6 {
        assert!(table.get(page).written());
        assert!(table.get(page).idle(Seconds(110)) <= 5);
    }
    assert_eq!((table.get(3).heat(), table.get(4).heat(), table.get(6).heat()), (2, 2, 1));
    assert!(!table.get(6).written());
}

#[test]
fn a_sweep_of_a_part_says_nothing_of_the_rest() {
    let mut table = table();
    for (page, was) in [(3, DRAM), (600, NVME), (700, DRAM), (1100, QLC)] {
        table.place(PageRun { first: page, count: 1 }, was);
    }
    let part = PageRun { first: BLOCK_PAGES, count: BLOCK_PAGES };
    let found = vec![(PageRun { first: 600, count: 1 }, QLC)];
    let sweep = Sweep { runs: found, huge: vec![BLOCK_PAGES], ..Sweep::of(part) };
    table.apply(&sweep, Seconds(9), Seconds(9));
    table.set_huge(sweep.part, &sweep.huge);
    let places = [3, 600, 700, 1100].map(|page| table.get(page).place());
    assert_eq!(places, [DRAM, QLC, Place::Untouched, QLC]);
    assert_eq!([3, 600, 1100].map(|page| table.block_of(page).huge), [false, true, false]);
    table.set_huge(PageRun { first: 0, count: BLOCK_PAGES }, &[]);
    assert!(table.block_of(600).huge);
}
