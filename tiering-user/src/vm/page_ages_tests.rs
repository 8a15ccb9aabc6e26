use super::*;

const VM: &str = "/machine.slice/machine-qemu\\x2d1\\x2dweb.scope";
const STALE: Duration = Duration::from_hours(1);

/// As `lru_gen_seq_show` (mm/vmscan.c) prints it: `memcg %5hu %s`, ` node %5d`, ` %10lu %10u`, ` %10lu ` twice.
const TEXT: &str = "\
memcg     1 /
 node     0
          3    9200123       2121       40000 \n\
          4    9100100        100        2000 \n\
          5     900000          7          10 \n\
          6      10000      90000       80000 \n\
memcg    57 /machine.slice/machine-qemu\\x2d1\\x2dweb.scope
 node     0
         11     600000     262144           5 \n\
         12     400000      65536           0 \n\
         13     100000      32768           0 \n\
         14      40000       8192          64 \n\
 node     1
          0     700000          0           0 \n\
          1     700000          0           0 \n\
          2     700000          0           0 \n\
          3     700000          0           0 \n\
memcg    58 /a group/with spaces
 node     0
          0     700000          0           0 \n\
          1     700000         50           0 \n\
          2     700000         10           0 \n\
          3     700000        100           0 \n\
memcg    59 /twice
 node     0
          3       1000          1           1 \n\
memcg    60 /twice
 node     0
          3       1000          1           1 \n";

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn ages() -> PageAges {
    PageAges::parse(TEXT, |path| path != "/")
}

#[test]
fn pages_are_idle_from_when_the_next_generation_began_until_the_kernel_last_looked() {
    let ages = ages();
    let idle = |least| ages.of(VM).unwrap().idle(seconds(least), STALE);
    // 400 - 40 s for the oldest, 100 - 40 s for the second.
    let minute = idle(60);
    assert_eq!((minute.pages, minute.of_pages), (262_144 + 65_536, 368_640));
    assert_eq!(minute.most_pages, 262_144 + 65_536 + 32_768, "the third may be idle for 100 s by now");
    assert!(minute.is_known);
    assert_eq!((minute.looked_ago, minute.watched), (seconds(40), seconds(360)));
    assert_eq!(idle(61).pages, 262_144);
    assert_eq!(idle(360).pages, 262_144);
    let longer = idle(361);
    assert!(!longer.is_known && longer.pages == 0 && longer.most_pages == 368_640, "{longer:?}");
}

#[test]
fn where_the_kernel_has_never_looked_or_not_for_long_nothing_is_known() {
    let ages = ages();
    let never = ages.of("/a group/with spaces").unwrap().idle(seconds(60), STALE);
    assert!(!never.is_known && never.watched.is_zero(), "all generations began with the group: {never:?}");
    assert_eq!((never.pages, never.most_pages), (0, 160));
    let stale = ages.of(VM).unwrap().idle(seconds(60), seconds(39));
    assert!(!stale.is_known && stale.looked_ago == seconds(40), "{stale:?}");
}

#[test]
fn only_groups_that_are_asked_for_are_kept_and_one_that_is_there_twice_is_not_told() {
    let ages = ages();
    assert_eq!(ages.of("/"), None);
    assert_eq!(ages.of("/twice"), None, "one of them is being removed");
    assert_eq!(ages.of("/none"), None);
    assert_eq!(PageAges::parse("", |_| true), PageAges::default());
    // Without control groups.
    let idle = PageAges::parse("memcg     0 \n node     0\n 3 5 7 9 \n", |_| true)
        .of("")
        .unwrap()
        .idle(seconds(1), STALE);
    assert_eq!(idle.of_pages, 7);
}

#[test]
fn ages_that_have_wrapped_are_put_right() {
    let text = "memcg 2 /a\n node 0\n 1 5000 10 0\n 2 4000000000 20 0\n 3 1000 30 0\n";
    let idle = PageAges::parse(text, |_| true).of("/a").unwrap().idle(seconds(3_999_000), STALE);
    assert_eq!((idle.pages, idle.most_pages, idle.is_known), (10, 30, true));
}

#[test]
fn kvm_guests_are_seen_from_linux_6_12_on() {
    assert!(sees_kvm("6.12.117-amd64\n") && sees_kvm("7.0"));
    assert!(!sees_kvm("6.1.0-37-amd64\n") && !sees_kvm("6.11+") && !sees_kvm(""));
}

#[test]
fn what_stands_in_the_way_is_told() {
    let root = tempfile::tempdir().unwrap();
    let (sys, proc) = (root.path().join("sys"), root.path().join("proc"));
    let read = || PageAges::read(&sys, &proc, |path| path == VM);
    assert_eq!(read(), Err(NoAges::NoMglru));
    std::fs::create_dir_all(sys.join("kernel/mm/lru_gen")).unwrap();
    std::fs::write(sys.join("kernel/mm/lru_gen/enabled"), "0x0000\n").unwrap();
    assert_eq!(read(), Err(NoAges::Off));
    std::fs::write(sys.join("kernel/mm/lru_gen/enabled"), "0x0007\n").unwrap();
    assert_eq!(read(), Err(NoAges::NoDebugfs));
    std::fs::create_dir_all(sys.join("kernel/debug/lru_gen")).unwrap();
    assert!(matches!(read(), Err(NoAges::Unreadable(_))));
    std::fs::remove_dir(sys.join("kernel/debug/lru_gen")).unwrap();
    std::fs::write(sys.join("kernel/debug/lru_gen"), TEXT).unwrap();
    let ages = read().unwrap();
    assert!(ages.of(VM).is_some() && ages.groups.len() == 1 && !ages.sees_kvm);
}
