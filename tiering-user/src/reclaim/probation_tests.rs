use super::*;

const MAY: Option<f64> = Some(260.0);
const NOT_KNOWN: Return = Return { read: true, soon: None };

fn at(second: u64) -> Monotonic {
    Monotonic(second * 1_000_000_000)
}

fn block(number: u32) -> Vec<PageIndex> {
    (number * BLOCK_PAGES..(number + 1) * BLOCK_PAGES).collect()
}

/// Seconds go by, in each of which something may come back.
fn wait(probation: &mut Probation, seconds: Range<u64>, mut comes: impl FnMut(u64) -> Option<PageIndex>) {
    for second in seconds {
        if let Some(page) = comes(second) {
            probation.returned(page, 1, 1);
        }
        probation.due(MAY, 0, at(second), |_| true);
    }
}

#[test]
fn copies_of_what_stays_away_are_freed_after_half_a_minute_at_least_and_a_minute_at_most() {
    for sent in [5, 29, 30, 58] {
        let mut probation = Probation::default();
        wait(&mut probation, 0..sent, |_| None);
        probation.sent(&block(3), true, at(sent));
        let due_at = (sent..).find(|second| !probation.due(MAY, 10_000, at(*second), |_| true).is_empty());
        let after = due_at.unwrap() - sent;
        assert!((30..=70).contains(&after), "sent at {sent} s, due after {after} s");
        let due = probation.due(MAY, 10_000, at(due_at.unwrap()), |_| true);
        assert_eq!((due.len(), due[0], probation.copies()), (512, 3 * 512, 512));
        assert_eq!(probation.due(MAY, 511, at(due_at.unwrap()), |_| true).len(), 0, "a block as a whole");
        probation.freed(&due);
        assert_eq!((probation.copies(), probation.due(MAY, 10_000, at(500), |_| true).len()), (0, 0));
        assert_eq!(probation.returned(due[0], 1, 1), Return { read: true, soon: Some(true) });
    }
}

#[test]
fn what_comes_back_has_no_copy_any_more_and_is_not_freed() {
    let mut probation = Probation::default();
    probation.sent(&block(0), true, at(0));
    assert_eq!(probation.returned(7, 1, 1), Return { read: false, soon: Some(true) });
    assert_eq!(probation.returned(7, 1, 1), NOT_KNOWN, "it was there already");
    wait(&mut probation, 0..70, |_| None);
    let due = probation.due(MAY, 10_000, at(70), |_| true);
    assert!(due.len() == 511 && !due.contains(&7));
    assert_eq!(probation.returned(9999, 1, 1), NOT_KNOWN, "of which nothing is known");
}

#[test]
fn where_too_much_comes_back_nothing_more_is_freed_but_for_those_who_lack_memory() {
    let mut probation = Probation::default();
    probation.sent(&block(0), true, at(0));
    wait(&mut probation, 0..70, |_| None);
    // Of which nothing was known: it was in swap before.
    probation.returned(9999, 200, 200);
    probation.returned(0, 1, 1);
    assert_eq!(probation.due(MAY, 10_000, at(71), |_| true), [0; 0]);
    assert_eq!(probation.due(None, 10_000, at(71), |_| true).len(), 511);
}

#[test]
fn a_block_of_which_a_page_comes_back_every_second_keeps_its_copies_and_the_others_do_not() {
    let mut probation = Probation::default();
    (0..40).for_each(|number| probation.sent(&block(number), true, at(0)));
    wait(&mut probation, 0..90, |second| Some(u32::try_from(second).unwrap()));
    let due = probation.due(MAY, 100_000, at(90), |_| true);
    assert_eq!(due.len(), 39 * 512);
    assert!(due[0] >= 512);
}

#[test]
fn a_block_that_went_out_late_is_not_calm_because_those_that_went_before_it_are() {
    let mut probation = Probation::default();
    (0..100).for_each(|number| probation.sent(&block(number), true, at(0)));
    wait(&mut probation, 0..28, |_| None);
    // Each second one page of one of these two.
    let in_use = 100..102;
    in_use.clone().for_each(|number| probation.sent(&block(number), true, at(28)));
    let touched = |second: u64| u32::try_from((100 + second % 2) * 512 + second / 2 * 3).unwrap();
    for second in 28..150 {
        wait(&mut probation, second..second + 1, |second| Some(touched(second)));
        let due = probation.due(MAY, 100_000, at(second), |_| true);
        assert!(!due.iter().any(|page| in_use.contains(&(page / 512))), "{second} s");
        probation.freed(&due);
    }
    assert_eq!(probation.copies(), 2 * 512 - 122, "all others are freed");
}

#[test]
fn of_many_blocks_that_are_alike_few_are_taken_for_calm_by_chance() {
    let mut probation = Probation::default();
    let mut random = fastrand::Rng::with_seed(7);
    (0..250).for_each(|number| probation.sent(&block(number), true, at(0)));
    // A page comes back after 20 minutes, in the mean, and is worth a read in 30.
    for second in 0..300 {
        for _ in 0..250 * 512 / 1200 {
            probation.returned(random.u32(0..250 * 512), 1, 1);
        }
        let due = probation.due(Some(10_000.0), 100_000, at(second), |_| true);
        assert!(due.len() <= 250 / 20 * 512, "{second} s: {} blocks of 250", due.len() / 512);
    }
}

#[test]
fn blocks_of_which_few_pages_are_away_are_not_taken_for_calm_either() {
    let mut probation = Probation::default();
    let mut random = fastrand::Rng::with_seed(8);
    let sixteen = |number: u32| block(number).into_iter().step_by(32).collect::<Vec<_>>();
    (0..250).for_each(|number| probation.sent(&sixteen(number), true, at(0)));
    // A page comes back after ten minutes, in the mean: of most blocks none in half a minute.
    let mut due = 0;
    for second in 0..120 {
        for _ in 0..250 * 16 / 600 {
            probation.returned(random.u32(0..250 * 16) * 32, 1, 1);
        }
        due = due.max(probation.due(Some(10_000.0), 100_000, at(second), |_| true).len());
    }
    assert!(due <= 250 * 16 / 20, "{due} pages of 4,000");
}

#[test]
fn strewn_returns_keep_all_of_a_vm_in_memory_until_they_are_few() {
    let mut probation = Probation::default();
    (0..40).for_each(|number| probation.sent(&block(number), true, at(0)));
    // Each second ten pages of anywhere.
    for second in 0..120u64 {
        for nth in 0..10 {
            let page = (second * 10 + nth) * 7919 % (40 * 512);
            probation.returned(u32::try_from(page).unwrap(), 1, 1);
        }
        assert!(second < 30 || probation.due(MAY, 100_000, at(second), |_| true).len() < 10_000, "{second}");
    }
    wait(&mut probation, 120..1200, |_| None);
    assert!(probation.due(MAY, 100_000, at(1200), |_| true).len() > 19_000);
}

#[test]
fn where_blocks_woke_after_five_minutes_others_are_kept_until_they_were_calm_for_longer() {
    let mut probation = Probation::default();
    (0..100).for_each(|number| probation.sent(&block(number), true, at(0)));
    wait(&mut probation, 0..300, |_| None);
    for number in 0..50 {
        for page in block(number) {
            probation.returned(page, 1, 1);
        }
    }
    wait(&mut probation, 302..320, |_| None);
    (0..50).for_each(|number| probation.sent(&block(number), true, at(320)));
    wait(&mut probation, 320..600, |_| None);
    assert_eq!(probation.due(MAY, 100_000, at(600), |_| true), [0; 0], "any of them may wake");
    wait(&mut probation, 600..7200, |_| None);
    assert!(!probation.due(MAY, 100_000, at(7200), |_| true).is_empty());
}

#[test]
fn what_others_brought_up_is_known_of_no_longer() {
    let mut probation = Probation::default();
    probation.sent(&block(2), true, at(0));
    probation.keep(0..2 * 512, |_| false);
    assert_eq!(probation.copies(), 512, "another part");
    probation.keep(2 * 512..3 * 512, |page| page >= 2 * 512 + 12);
    assert_eq!(probation.copies(), 500);
    wait(&mut probation, 0..70, |_| None);
    assert_eq!(probation.due(MAY, 10_000, at(70), |_| true).len(), 500);
    assert_eq!(probation.due(MAY, 10_000, at(70), |page| page < 512), [0; 0], "they cannot be freed");
}

#[test]
fn what_comes_back_after_long_was_not_in_use() {
    let mut probation = Probation::default();
    probation.sent(&block(0), true, at(0));
    wait(&mut probation, 0..1300, |_| None);
    assert_eq!(probation.returned(0, 1, 1), Return { read: false, soon: Some(false) });
}

#[test]
fn where_the_kernel_needed_the_memory_nothing_is_left_to_free() {
    let mut probation = Probation::default();
    probation.sent(&block(0), true, at(0));
    probation.all_freed();
    assert_eq!((probation.copies(), probation.due(MAY, 10_000, at(60), |_| true).len()), (0, 0));
    assert!(probation.returned(0, 1, 1).read);
}

#[test]
fn what_was_tried_counts_once_it_is_over_whether_it_came_back_or_not() {
    let mut probation = Probation::default();
    probation.sent(&block(0)[..8], true, at(0));
    probation.returned(3, 1, 1);
    let mut open = Tried::default();
    open.add_open(8, 7);
    assert_eq!(probation.tried(at(69)), open, "the others may come back yet");
    wait(&mut probation, 0..71, |_| None);
    let over = |away: u32| {
        let mut expected = Tried::default();
        expected.add(0, 8, away);
        expected
    };
    assert_eq!(probation.tried(at(70)), over(7));
    probation.keep(0..512, |page| page != 5);
    assert_eq!(probation.tried(at(70)), over(6), "a sweep found it in memory");
    probation.sent(&[3], true, at(70));
    assert_ne!(probation.tried(at(71)), over(7), "it is tried again");
}
