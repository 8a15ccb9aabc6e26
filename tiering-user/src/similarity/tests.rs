//! VMs that find each other, and that do not.

use std::ops::Range;

use super::sketch::mix;
use super::*;
use crate::track::VmId;
use proptest::prelude::*;

const ONE: VmId = VmId(1);
const OTHER: VmId = VmId(2);
const THIRD: VmId = VmId(3);

/// A VM that holds these contents in pages of the same numbers.
fn holding(contents: Range<u64>) -> Portrait {
    let mut portrait = Portrait::default();
    contents.for_each(|content| portrait.hold(content, mix(content)));
    portrait
}

fn refreshed<'a>(vms: impl IntoIterator<Item = (VmId, &'a Portrait)>) -> Similarity {
    let mut similarity = Similarity::default();
    vms.into_iter().for_each(|(vm, portrait)| similarity.update(vm, portrait));
    similarity.refresh();
    similarity
}

fn names(neighbours: &[Neighbour]) -> Vec<VmId> {
    neighbours.iter().map(|neighbour| neighbour.vm).collect()
}

#[test]
fn vms_of_the_same_content_find_each_other_and_unlike_ones_do_not() {
    let (clone, unlike) = (holding(0..5000), holding(10_000..15_000));
    let similarity = refreshed([(ONE, &clone), (OTHER, &clone), (THIRD, &unlike)]);
    assert_eq!(names(similarity.neighbours(ONE)), [OTHER]);
    assert_eq!(names(similarity.neighbours(OTHER)), [ONE]);
    assert!(similarity.neighbours(THIRD).is_empty() && similarity.score(ONE, THIRD).is_none());
    assert!(similarity.score(ONE, OTHER).unwrap() > 0.89);
}

#[test]
fn the_more_alike_the_better() {
    let (one, near, far) = (holding(0..4000), holding(200..4200), holding(1500..5500));
    let similarity = refreshed([(ONE, &one), (OTHER, &far), (THIRD, &near)]);
    assert_eq!(names(similarity.neighbours(ONE)), [THIRD, OTHER]);
}

#[test]
fn a_small_vm_follows_the_large_one_that_holds_all_of_it_but_not_the_other_way_round() {
    let (mut large, mut small) = (holding(0..16_000), holding(0..2000));
    large.files.insert(77);
    small.files.insert(77);
    let similarity = refreshed([(ONE, &large), (OTHER, &small)]);
    let followed = similarity.neighbours(OTHER)[0];
    assert_eq!((followed.vm, followed.parts.content, followed.parts.files), (ONE, Some(1.0), Some(1.0)));
    assert!(similarity.score(ONE, OTHER).unwrap() > 0.9);
    assert!(similarity.score(OTHER, ONE).unwrap() < 0.25);
}

#[test]
fn vms_of_a_handful_of_pages_are_found_too() {
    let (five, four, others) = (holding(0..5), holding(0..4), holding(100..104));
    let similarity = refreshed([(ONE, &five), (OTHER, &four), (THIRD, &others)]);
    assert_eq!(names(similarity.neighbours(OTHER)), [ONE]);
    assert!(similarity.neighbours(THIRD).is_empty());
}

#[test]
fn who_walks_the_same_way_is_followed_whatever_the_content() {
    let (mut ahead, mut behind) = (Portrait::default(), Portrait::default());
    (0..1000).for_each(|name| ahead.trail.note(name));
    ahead.trail.turn();
    (0..900).for_each(|name| behind.trail.note(name));
    (2000..2100).for_each(|name| ahead.trail.note(name));
    let similarity = refreshed([(ONE, &ahead), (OTHER, &behind)]);
    assert_eq!(similarity.neighbours(OTHER)[0].parts.lagged, Some(1.0));
    assert_eq!(similarity.neighbours(ONE)[0].parts.lagged, Some(0.0));
}

#[test]
fn a_vm_that_is_gone_is_in_nobodys_list() {
    let clone = holding(0..1000);
    let mut similarity = refreshed([(ONE, &clone), (OTHER, &clone), (THIRD, &clone)]);
    similarity.forget(OTHER);
    let without = |similarity: &Similarity| {
        assert_eq!(names(similarity.neighbours(ONE)), [THIRD]);
        assert!(similarity.neighbours(OTHER).is_empty());
        assert_eq!(similarity.pairs().count(), 2);
    };
    without(&similarity);
    similarity.refresh();
    without(&similarity);
    similarity.update(ONE, &clone);
    assert_eq!(similarity.refresh(), RefreshCounts { vms: 1, pairs: 1, crowded: 0 });
    without(&similarity);
}

#[test]
fn a_vm_that_changed_loses_its_neighbours_and_finds_others() {
    let (these, those) = (holding(0..1000), holding(5000..6000));
    let mut similarity = refreshed([(ONE, &these), (OTHER, &these), (THIRD, &those)]);
    similarity.update(ONE, &those);
    assert_eq!(names(similarity.neighbours(ONE)), [OTHER], "until the refresh");
    similarity.refresh();
    assert_eq!(names(similarity.neighbours(ONE)), [THIRD]);
    assert!(similarity.neighbours(OTHER).is_empty());
}

#[test]
fn what_was_learned_of_one_pair_shows_in_the_scores_of_all() {
    let clone = holding(0..1000);
    let mut similarity = refreshed([(ONE, &clone), (OTHER, &clone), (THIRD, &clone)]);
    let before = similarity.score(ONE, THIRD).unwrap();
    for _ in 0..50 {
        assert!(similarity.learn(ONE, OTHER, 10, 200));
    }
    similarity.refresh();
    assert!(similarity.score(ONE, THIRD).unwrap() < before - 0.3);
    assert!(!similarity.learn(ONE, VmId(9), 10, 200), "nobody knows it");
}

#[test]
fn of_a_thousand_clones_each_knows_sixteen_and_nobody_compares_all() {
    let clone = holding(0..3000);
    let mut similarity = Similarity::default();
    (0..1000).for_each(|vm| similarity.update(VmId(vm), &clone));
    let counts = similarity.refresh();
    assert!(counts.crowded > 0 && counts.pairs <= 24_000, "{counts:?}");
    assert!((0..1000).all(|vm| similarity.neighbours(VmId(vm)).len() == MOST_NEIGHBOURS));
    similarity.update(VmId(500), &clone);
    assert!(similarity.refresh().pairs <= 48);
    assert_eq!(similarity.neighbours(VmId(500)).len(), MOST_NEIGHBOURS);
}

/// What can happen to a VM between two refreshes.
#[derive(Clone, Debug)]
enum Event {
    Update { vm: u32, from: u64, pages: u64, file: u64 },
    Forget { vm: u32 },
    Learn { leader: u32, follower: u32, used: u32 },
    Refresh,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..12u32, 0..8u64, 0..600u64, 0..6u64)
            .prop_map(|(vm, from, pages, file)| Event::Update { vm, from: from * 50, pages, file }),
        1 => (0..12u32).prop_map(|vm| Event::Forget { vm }),
        1 => (0..12u32, 0..12u32, 0..100u32)
            .prop_map(|(leader, follower, used)| Event::Learn { leader, follower, used }),
        2 => Just(Event::Refresh),
    ]
}

proptest! {
    #[test]
    fn step_by_step_or_at_once_the_result_is_the_same(events in prop::collection::vec(event(), 1..60)) {
        let mut similarity = Similarity::default();
        let mut portraits = std::collections::BTreeMap::new();
        for event in events {
            match event {
                Event::Update { vm, from, pages, file } => {
                    let mut portrait = holding(from..from + pages);
                    (0..pages).step_by(2).for_each(|page| portrait.trail.note(from + page));
                    portrait.files.extend((file > 0).then_some(file));
                    similarity.update(VmId(vm), &portrait);
                    portraits.insert(VmId(vm), portrait);
                }
                Event::Forget { vm } => {
                    similarity.forget(VmId(vm));
                    portraits.remove(&VmId(vm));
                }
                Event::Learn { leader, follower, used } => {
                    similarity.learn(VmId(leader), VmId(follower), used, 100);
                }
                Event::Refresh => drop(similarity.refresh()),
            }
        }
        similarity.refresh();
        let mut fresh = Similarity::with_weights(similarity.weights().clone());
        portraits.iter().for_each(|(vm, portrait)| fresh.update(*vm, portrait));
        fresh.refresh();
        let all = |similarity: &Similarity| similarity.pairs().map(|(vm, pair)| (vm, *pair)).collect::<Vec<_>>();
        prop_assert_eq!(all(&similarity), all(&fresh));
    }
}
