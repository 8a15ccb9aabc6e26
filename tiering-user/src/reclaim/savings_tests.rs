use super::*;

const MIB: u64 = 1 << 20;

fn at(minutes: u64) -> Monotonic {
    Monotonic(1_000_000_000_000).after(Duration::from_mins(minutes))
}

fn hours(hours: u64) -> Duration {
    Duration::from_hours(hours)
}

/// A VM of which everything is in memory, and nothing was tried.
fn facts() -> Facts {
    Facts {
        in_memory_pages: 100_000,
        touched_pages: 100_000,
        in_use_pages: 0,
        copied_pages: 0,
        not_moved: None,
        ages: Err("this kernel has no MGLRU (CONFIG_LRU_GEN)".to_owned()),
        chooser: Chooser::Agent,
        tried: Tried::default(),
    }
}

/// Eight pages of each of these blocks went out, of which so many stayed.
fn tried(blocks: impl IntoIterator<Item = (u32, u32)>) -> Tried {
    let mut tried = Tried::default();
    blocks.into_iter().for_each(|(block, stayed)| tried.add(block, 8, stayed));
    tried
}

#[test]
fn what_came_back_within_a_day_is_not_reusable() {
    let mut history = FreeHistory::default();
    assert_eq!((history.through(REUSABLE_AFTER, at(0)), history.known(at(0))), (0, Duration::ZERO));
    for minute in 0..26 * 60 {
        let free = match minute {
            0..60 => 10 * MIB,
            // For one minute half of it is back.
            600 => 40 * MIB,
            _ => 80 * MIB,
        };
        history.note(free, at(minute));
    }
    let now = at(26 * 60 - 1);
    assert_eq!(history.known(now), hours(24));
    assert_eq!(history.through(REUSABLE_AFTER, now), 40 * MIB);
    assert_eq!(history.through(hours(1), now), 80 * MIB);
    assert!(history.least.len() <= 24 * 4 + 1, "{}", history.least.len());
    for minute in 26 * 60..36 * 60 {
        history.note(80 * MIB, at(minute));
    }
    assert_eq!(history.through(REUSABLE_AFTER, at(36 * 60)), 80 * MIB, "that was a day ago");
}

#[test]
fn of_a_vm_that_is_new_the_time_is_told() {
    let mut history = FreeHistory::default();
    history.note(5 * MIB, at(0));
    history.note(8 * MIB, at(90));
    assert_eq!(history.known(at(90)), Duration::from_mins(90));
    assert_eq!(history.through(REUSABLE_AFTER, at(90)), 5 * MIB);
    assert_eq!(history.through(hours(1), at(90)), 8 * MIB);
}

#[test]
fn without_any_source_there_is_no_figure_and_the_reason_is_told() {
    let why = estimate(&facts()).unwrap_err();
    assert!(why.contains("0 blocks") && why.contains("no MGLRU"), "{why}");
    let why = estimate(&Facts { chooser: Chooser::DryRun, ..facts() }).unwrap_err();
    assert!(why.starts_with("a dry run tries no pages, and this kernel has no MGLRU"), "{why}");
    let kernel = |found_no_cold| Facts { chooser: Chooser::Kernel { found_no_cold }, ..facts() };
    assert!(estimate(&kernel(false)).unwrap_err().starts_with("the kernel chooses the pages"));
    let none = estimate(&kernel(true)).unwrap();
    assert_eq!((none.source, none.expected_pages, none.upper_pages), (Source::ReadBack, 0, None));
}

#[test]
fn page_ages_come_first_and_a_dry_run_may_use_them() {
    let idle = Idle {
        pages: 40_000,
        most_pages: 50_000,
        of_pages: 101_000,
        looked_ago: Duration::from_secs(40),
        watched: Duration::from_secs(360),
        is_known: true,
    };
    let known = Facts {
        copied_pages: 1000,
        ages: Ok(idle),
        chooser: Chooser::DryRun,
        tried: tried((0..100).map(|block| (block, 0))),
        ..facts()
    };
    let found = estimate(&known).unwrap();
    assert_eq!(
        (found.source, found.expected_pages),
        (Source::PageAges, 39_000),
        "copies are as good as free"
    );
    assert_eq!((found.lower_pages, found.upper_pages), (None, Some(49_000)));
    assert!(found.detail.contains("40 s ago"), "{}", found.detail);

    let too_short = Facts { ages: Ok(Idle { is_known: false, ..idle }), ..known.clone() };
    assert!(estimate(&too_short).unwrap_err().contains("watched them for 360 s"));
    let never = Idle { is_known: false, watched: Duration::ZERO, ..idle };
    let never = Facts { ages: Ok(never), ..known };
    assert!(estimate(&never).unwrap_err().contains("has not looked"));
}

#[test]
fn a_vm_that_is_not_moved_frees_nothing_whatever_the_kernel_says() {
    let fixed = Facts { not_moved: Some("locked memory".to_owned()), ..facts() };
    let found = estimate(&fixed).unwrap();
    assert_eq!((found.source, found.upper_pages), (Source::NotMoved, Some(0)));
    assert!(found.detail.ends_with("locked memory"));
}

#[test]
fn what_was_tried_is_extended_to_the_rest_within_bounds() {
    // Strewn: three quarters of the blocks stay, in each zone alike.
    let known = Facts { tried: tried((0..120).map(|n| (n, if n % 4 == 0 { 0 } else { 8 }))), ..facts() };
    let found = estimate(&known).unwrap();
    let (lower, upper) = (found.lower_pages.unwrap(), found.upper_pages.unwrap());
    assert!((72_000..76_000).contains(&found.expected_pages), "{found:?}");
    assert!(lower < found.expected_pages && found.expected_pages < upper && upper <= 100_000, "{found:?}");

    // As many blocks, all of one kind in a zone: that is known far less well.
    let lumpy = Facts { tried: tried((0..120).map(|n| (n, if n < 32 { 0 } else { 8 }))), ..facts() };
    let lumpy = estimate(&lumpy).unwrap();
    assert!(upper - lower < (lumpy.upper_pages.unwrap() - lumpy.lower_pages.unwrap()) / 2, "{lumpy:?}");
}

#[test]
fn a_few_blocks_say_nothing_and_a_few_more_say_little() {
    let seven = Facts { tried: tried((0..7).map(|block| (block, 8))), ..facts() };
    assert!(estimate(&seven).unwrap_err().contains("7 blocks"));
    let eight = Facts { tried: tried((0..8).map(|block| (block, 8))), ..facts() };
    let why = estimate(&eight).unwrap_err();
    assert!(why.contains("1 of 7 zones"), "{why}");
    let eight = estimate(&Facts { in_memory_pages: 30_000, touched_pages: 30_000, ..eight }).unwrap();
    assert_eq!(eight.expected_pages, 30_000);
    assert!(eight.lower_pages.unwrap() < 10_000, "all of one zone: {eight:?}");
}

#[test]
fn where_all_was_tried_what_is_left_is_in_use() {
    // Half of the VM is away as a whole, and of each block of the other half eight pages came back.
    let mut all = Tried::default();
    for block in 0..200 {
        match block % 2 {
            0 => all.add(block, BLOCK_PAGES, BLOCK_PAGES),
            _ => all.add(block, 8, 0),
        }
    }
    let known = Facts { in_memory_pages: 100 * u64::from(BLOCK_PAGES), tried: all, ..facts() };
    let found = estimate(&known).unwrap();
    assert_eq!(found.expected_pages, 0, "{found:?}");
    // Of a block of which one page of eight stays, the agent leaves the rest alone.
    let hot = Facts { in_memory_pages: 100 * 504, tried: tried((0..100).map(|n| (n, 1))), ..facts() };
    assert_eq!(estimate(&hot).unwrap().expected_pages, 0);
}

#[test]
fn pages_that_were_seen_in_use_are_not_counted() {
    let strewn = tried((0..120).map(|n| (n, 8)));
    let known = Facts { in_use_pages: 60_000, tried: strewn, ..facts() };
    let found = estimate(&known).unwrap();
    assert_eq!((found.expected_pages, found.upper_pages), (40_000, Some(40_000)));
}

#[test]
fn of_a_block_that_is_being_tried_only_what_came_back_counts() {
    let mut all = Tried::default();
    all.add_open(8, 6);
    assert_eq!((all.blocks, all.back_pages), (0, 2));
    all.add(1, 8, 6);
    assert_eq!((all.blocks, all.back_pages, all.share().0), (1, 4, 0.75));
}

#[test]
fn the_interval_is_wilsons() {
    let (lower, upper) = wilson(0.5, 10.0);
    assert!((lower - 0.2366).abs() < 1e-3 && (upper - 0.7634).abs() < 1e-3, "{lower} {upper}");
    let (lower, upper) = wilson(1.0, 10.0);
    assert!((lower - 0.7225).abs() < 1e-3 && upper >= 0.999, "{lower} {upper}");
}
