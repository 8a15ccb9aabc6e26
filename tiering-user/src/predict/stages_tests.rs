//! Tests of [`Stages`].

use super::Origin::{Followed, OwnPast, Touched};
use super::*;
use crate::tiers::TierId;

const SECOND: u64 = 1_000_000_000;
const BY_PAGE: Origin = Followed(VmId(1), Match::Page);

fn worth_it(stages: &mut Stages, origin: Origin, threshold: f64, now: Monotonic) -> bool {
    stages.chance(origin, threshold, now) == Chance::Taken
}

fn request(page: PageIndex, origin: Origin) -> Request {
    Request { page, origin, predicted: at(0), to: TierId(0), in_memory: true }
}

fn at(seconds: u64) -> Monotonic {
    Monotonic(seconds * SECOND)
}

#[test]
fn a_touch_after_it_is_done_is_in_time_and_one_before_is_late() {
    let mut stages = Stages::default();
    for page in [1, 2, 3] {
        stages.requested(request(page, OwnPast), at(1));
    }
    stages.done(1, at(2));
    stages.done(2, at(4));
    let in_time = |used: Option<Used>| used.map(|used| used.in_time);
    assert_eq!(in_time(stages.touched(1, at(3))), Some(true));
    assert_eq!(in_time(stages.touched(2, at(3))), Some(false));
    assert_eq!(in_time(stages.touched(3, at(3))), Some(false), "not done at all yet");
    assert_eq!(stages.touched(3, at(3)), None, "it ended already");
    assert_eq!(stages.counts(), StageCounts { issued: 3, used: 3, late: 2, ..StageCounts::default() });
}

#[test]
fn what_is_not_touched_in_time_is_wasted_once() {
    let mut stages = Stages::default();
    stages.requested(request(1, OwnPast), at(1));
    stages.requested(request(2, OwnPast), at(1));
    stages.done(1, at(1));
    stages.touched(1, at(2));
    stages.requested(request(1, OwnPast), at(8));
    assert_eq!(stages.expire(at(10), at(0)), Wasted::default());
    assert_eq!(stages.expire(at(11), at(0)).unmapped, [2]);
    assert_eq!(stages.expire(at(18), at(0)).unmapped, [1]);
    assert_eq!(stages.counts(), StageCounts { issued: 3, used: 1, wasted: 2, ..StageCounts::default() });
}

#[test]
fn pages_that_were_mapped_go_back_as_such() {
    let mut stages = Stages::default();
    for page in [3, 2, 1] {
        stages.requested(request(page, OwnPast), at(1));
        stages.done(page, at(1));
    }
    for page in [3, 1, 4] {
        stages.mapping(page);
        stages.mapped(page, at(1));
    }
    let used = stages.touched(1, at(2)).unwrap();
    assert_eq!((used.in_time, used.tier), (true, TierId(0)));
    let wasted = stages.expire(at(20), at(0));
    assert_eq!(wasted, Wasted { unmapped: vec![2], mapped: vec![3], in_use: vec![] });
    assert_eq!(stages.counts().mapped, 2);
}

#[test]
fn where_touches_may_not_have_been_seen_nothing_is_wasted_and_what_is_mapped_may_be_in_use() {
    let mut stages = Stages::default();
    for page in [1, 2] {
        stages.requested(request(page, OwnPast), at(1));
        stages.done(page, at(1));
    }
    stages.mapping(2);
    let before = stages.confidence(OwnPast);
    let ended = stages.expire(at(20), at(19));
    assert_eq!(ended, Wasted { unmapped: vec![1], mapped: vec![], in_use: vec![2] });
    assert_eq!(stages.counts(), StageCounts::default());
    assert!((stages.confidence(OwnPast) - before).abs() < 1e-9);
}

#[test]
fn for_what_others_touch_the_delay_is_measured() {
    let mut stages = Stages::default();
    for (page, origin) in [(1, Touched(VmId(1), Match::Content)), (2, OwnPast)] {
        stages.requested(Request { predicted: at(3), ..request(page, origin) }, at(4));
        stages.done(page, at(5 + u64::from(page) * 10));
        stages.mapped(page, at(6 + u64::from(page) * 10));
    }
    let near = |delays: &Delays, seconds: u64| {
        delays.quantile_ns(1.0).unwrap().abs_diff(seconds * SECOND) < SECOND / 5
    };
    assert!(near(&stages.delays, 12) && near(&stages.mapping_delays, 13));
}

#[test]
fn a_stage_that_came_to_nothing_is_as_if_never_asked_for() {
    let mut stages = Stages::default();
    stages.requested(request(1, OwnPast), at(1));
    stages.failed(1);
    assert_eq!(stages.touched(1, at(2)), None);
    assert_eq!(stages.counts(), StageCounts::default());
}

#[test]
fn the_window_follows_the_outcome() {
    let mut stages = Stages::default();
    for page in 0..32 + 64 {
        stages.requested(request(page, BY_PAGE), at(1));
        stages.done(page, at(1));
        stages.touched(page, at(2));
    }
    assert_eq!(stages.window(BY_PAGE), 4 * 32);
    assert!(stages.record(BY_PAGE).confidence() > 0.9);

    for page in 1000..4000 {
        stages.requested(request(page, BY_PAGE), at(3));
    }
    stages.expire(at(100), at(0));
    assert_eq!(stages.window(BY_PAGE), 4);
    assert!(stages.record(BY_PAGE).confidence() < 0.1);
}

#[test]
fn an_origin_is_trusted_when_it_was_right_in_the_shadow() {
    let mut stages = Stages::default();
    assert_eq!(stages.chance(OwnPast, 0.5, at(1)), Chance::Shadowed);
    for page in 0..16 {
        assert_eq!(stages.shadowed(page, OwnPast, at(1)), None);
        stages.came_up(page, true, at(1));
    }
    assert_eq!(stages.chance(OwnPast, 0.5, at(1)), Chance::Taken);
    assert_eq!(stages.chance(OwnPast, 0.99, at(1)), Chance::Shadowed);
    assert!(stages.shadowed(20, OwnPast, at(1)).is_some_and(|confidence| confidence > 0.9));
    assert_eq!(stages.counts(), StageCounts::default(), "nothing was staged for that");
    let (_, told) = stages.origins().next().unwrap();
    assert_eq!(told.foreseen, Foreseen { right: 16, wrong: 0 });
}

#[test]
fn no_more_is_open_than_the_window_allows() {
    let origin = Touched(VmId(1), Match::Content);
    let mut stages = Stages::default();
    let ask = |stages: &mut Stages| (0..10_000).filter(|_| stages.reserve(origin, at(1))).count();
    assert_eq!(ask(&mut stages), 64);
    stages.withdrawn(origin, at(1));
    assert_eq!(ask(&mut stages), 1);
    for page in 0..64 {
        stages.requested(request(page, origin), at(1));
        stages.done(page, at(1));
    }
    assert_eq!(ask(&mut stages), 0);
    stages.failed(63);
    (0..32).for_each(|page| assert!(stages.touched(page, at(2)).is_some()));
    assert_eq!(ask(&mut stages), 128 - 31, "all were right: the window doubled");
}

#[test]
fn all_that_have_proved_nothing_share_one_room() {
    let mut stages = Stages::default();
    let origins: Vec<_> = (1..=100).map(|vm| Touched(VmId(vm), Match::Content)).collect();
    let taken: usize =
        origins.iter().map(|origin| (0..512).filter(|_| stages.reserve(*origin, at(1))).count()).sum();
    assert_eq!(taken, UNPROVEN_MOST as usize);
    stages.expect(VmId(101), 0.9);
    let expected = Touched(VmId(101), Match::Content);
    assert_eq!(stages.chance(expected, 0.5, at(1)), Chance::NoRoom);
    prove(&mut stages, expected);
    assert!(worth_it(&mut stages, expected, 0.5, at(1)) && stages.reserve(expected, at(1)));
}

#[test]
fn what_another_origin_has_open_leaves_room_to_those_without_proof() {
    let [proven, expected] = [1, 2].map(|vm| Followed(VmId(vm), Match::Content));
    let mut stages = Stages::default();
    stages.expect(VmId(2), 0.9);
    prove(&mut stages, proven);
    let taken = (0..10_000).filter(|_| stages.reserve(proven, at(1))).count();
    assert!(taken >= UNPROVEN_MOST as usize, "{taken}");
    assert!(worth_it(&mut stages, expected, 0.5, at(1)));
    for _ in 0..20 {
        stages.records.get_mut(&proven).unwrap().wasted();
    }
    assert!(!stages.record(proven).is_proven());
    assert!(worth_it(&mut stages, expected, 0.5, at(1)), "also when it is not proven any more");
}

/// It was right in the shadow often enough.
fn prove(stages: &mut Stages, origin: Origin) {
    for page in 1_000_000..1_000_016 {
        stages.shadowed(page, origin, at(1));
        stages.came_up(page, true, at(1));
    }
}

#[test]
fn what_foretells_nothing_has_nothing_staged_and_what_is_not_right_any_more_is_given_up() {
    let stranger = Followed(VmId(1), Match::Content);
    let mut stages = Stages::default();
    for page in 0..10_000 {
        match stages.chance(stranger, 0.5, at(1)) {
            Chance::Shadowed => drop(stages.shadowed(page, stranger, at(1))),
            chance => assert_eq!(chance, Chance::NoRoom),
        }
        stages.came_up(page + 1_000_000, true, at(1));
    }
    assert_eq!(stages.counts(), StageCounts::default());
    let (_, told) = stages.origins().next().unwrap();
    assert!(told.foreseen.wrong > 1000 && told.confidence < 0.1, "{told:?}");
    let before = stages.predicted_by(Some(Match::Content));
    stages.forget(VmId(1));
    assert_eq!(stages.predicted_by(Some(Match::Content)), before, "what it predicted still counts");
    assert_eq!(stages.predicted_by(None), Foreseen::default());

    let mut stages = Stages::default();
    prove(&mut stages, stranger);
    let mut issued = 0;
    for page in 0..10_000 {
        if worth_it(&mut stages, stranger, 0.5, at(1)) && stages.reserve(stranger, at(1)) {
            stages.requested(request(page, stranger), at(1));
            issued += 1;
        }
        stages.came_up(page + 1_000_000, true, at(1));
    }
    assert_eq!(issued, 64, "one window");
}

#[test]
fn a_page_staged_anew_while_its_stage_is_open_expires_and_counts_once() {
    let mut stages = Stages::default();
    stages.requested(request(1, Touched(VmId(1), Match::Page)), at(1));
    stages.requested(request(1, OwnPast), at(5));
    assert_eq!(stages.counts(), StageCounts { issued: 1, ..StageCounts::default() });
    assert_eq!(stages.expire(at(14), at(0)), Wasted::default());
    assert_eq!(stages.expire(at(15), at(0)).unmapped, [1]);
    stages.failed(1);
    assert_eq!(stages.counts(), StageCounts { issued: 1, wasted: 1, ..StageCounts::default() });
}

#[test]
fn a_neighbour_that_foretells_nothing_costs_the_others_nothing() {
    let (good, bad) = (Touched(VmId(1), Match::Page), Touched(VmId(2), Match::Content));
    let mut stages = Stages::default();
    for page in 0..100 {
        stages.requested(request(page, good), at(1));
        stages.requested(request(page + 1000, bad), at(1));
        stages.done(page, at(1));
        stages.touched(page, at(2));
    }
    stages.expire(at(100), at(0));
    let StageCounts { used, wasted, .. } = stages.counts();
    let issued_by = |stages: &Stages, by| stages.counts_by(Some(by)).issued;
    let (issued_by_page, issued_by_content) =
        (issued_by(&stages, Match::Page), issued_by(&stages, Match::Content));
    assert_eq!((issued_by_page, issued_by_content, used, wasted), (100, 100, 100, 100));
    assert!(worth_it(&mut stages, good, 0.5, at(1)) && !worth_it(&mut stages, bad, 0.5, at(1)));
    let confidence = stages.confidence(bad);
    stages.forget(VmId(2));
    assert!(stages.confidence(bad) > confidence, "another VM of that number is another one");
    assert_eq!(stages.counts_by(Some(Match::Content)).issued, 100, "what it did still counts");
}
