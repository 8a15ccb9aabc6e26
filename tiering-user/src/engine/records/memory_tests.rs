use super::*;
use crate::config::Config;
use crate::policy::Verdict;
use crate::reclaim::Reclaim;
use crate::store::Store;
use crate::sys::Monotonic;
use crate::tiermap::{Habit, Layout, PageRun, Place, Seconds, VmPages};
use crate::tiers::{NodeTiers, TierId};
use crate::track::VmId;
use crate::vm::{Hva, testing};

const PAGES: u32 = 2000;

fn vm(pid: i32, uuid: Option<&str>) -> Vm {
    let key = ProcessKey { pid, start_time_ticks: 5 };
    let vm = testing::vm(key, Hva(0x10_0000), u64::from(PAGES) * 4096);
    Vm { uuid: uuid.map(str::to_owned), ..vm }
}

fn written(pid: i32, saved_unix_s: u64, identity: &str) -> Vec<Record> {
    let record = VmRecord {
        saved_unix_s,
        boot_id: "boot".into(),
        pid,
        start_time_ticks: 5,
        pages: PAGES,
        demoted_pages: 7,
        promoted_pages: 3,
        seemed: None,
    };
    let mut known = Knowledge::default();
    known.note(0, Habit { backoff: 2, heat: 4 }, true);
    records(identity, Some(&record), Some(Some(known.packed())))
}

fn load(boot_id: &str, written: &[Record], unix_s: u64) -> Memory {
    let names: Vec<_> = written.iter().map(|(name, _)| name.clone()).collect();
    let read = |wanted: &str| written.iter().find(|(name, _)| name == wanted)?.1.clone();
    Memory::load(boot_id.to_owned(), &names, read, unix_s).0
}

#[test]
fn the_same_process_gets_back_what_was_known_of_its_blocks() {
    let mut memory = load("boot", &written(1, 100, "uuid/u"), 200);
    let mut known = memory.recall(&vm(1, Some("u")), PAGES);
    assert_eq!((known.before.demoted, known.before.promoted), (7, 3));
    let mut pages = VmPages::new(Layout::new(&vm(1, None).ram), NodeTiers(1));
    pages.place(PageRun { first: 0, count: 100 }, Place::In(TierId(0)));
    pages.place(PageRun { first: 100, count: 1000 }, Place::In(TierId(1)));
    let mut reclaim = Reclaim::default();
    reclaim.set_limits(None, std::time::Duration::from_mins(2));
    let now = Monotonic(9_000_000_000);
    known.recall(&mut pages, &mut reclaim, (now, Seconds(9)));
    let seen = |page| (pages.get(page).backoff(), pages.get(page).heat());
    assert_eq!(seen(99), (2, 4));
    assert_eq!(seen(100), (2, 0), "in a lower tier heat would say that it was accessed there");
    assert_eq!(seen(512), (0, 0), "nothing was known of the next block");
    assert_eq!([0, 1].map(|block| reclaim.verdict(block, now)), [Verdict::InUse, Verdict::Unknown]);
    assert_eq!(pages.get(1500).place(), Place::Untouched);
    assert_eq!(known.blocks_recalled, 1);
    assert_eq!(memory.recall(&vm(2, Some("u")), PAGES).before.demoted, 0, "given once");
}

/// Of how many blocks something is known, and what was demoted before.
fn given(mut known: Knowledge) -> (u64, u64) {
    let mut pages = VmPages::new(Layout::new(&vm(1, None).ram), NodeTiers(1));
    pages.place(PageRun { first: 0, count: PAGES }, Place::In(TierId(0)));
    known.recall(&mut pages, &mut Reclaim::default(), (Monotonic(0), Seconds(1)));
    (known.blocks_recalled, known.before.demoted)
}

#[test]
fn another_process_or_boot_gets_the_totals_only() {
    let mut other_process = load("boot", &written(1, 100, "name/web-1"), 200);
    assert_eq!(given(other_process.recall(&vm(2, None), PAGES)), (0, 7));
    let mut other_boot = load("later", &written(1, 100, "name/web-1"), 200);
    assert_eq!(given(other_boot.recall(&vm(1, None), PAGES)), (0, 7));
    let mut other_size = load("boot", &written(1, 100, "name/web-1"), 200);
    assert_eq!(given(other_size.recall(&vm(1, None), PAGES + 1)), (0, 7));
}

#[test]
fn what_one_agent_writes_down_the_next_one_reads() {
    let own = 7;
    let managed = || {
        let settings = Config::default().vm_settings("web-1");
        ManagedVm::new(VmId(1), "u".into(), vm(own, Some("u")), settings, NodeTiers(1), None, Monotonic(0))
    };
    let folder = tempfile::tempdir().unwrap();
    let mut first = Memory::load("boot".into(), &[], |_| None, 100).0;
    let mut there = managed();
    there.knowledge.note(1, Habit { backoff: 3, ..Habit::default() }, false);
    there.moves.totals.demoted = 11;
    there.class.seemed(Class::Cache, 0.75);
    let store = Store::in_folder(folder.path());
    assert!(store.write(&first.records([&mut there].into_iter(), 100, false)));
    // Later nothing has changed but the totals.
    there.moves.totals.demoted = 12;
    let later = first.records([&mut there].into_iter(), 130, false);
    assert_eq!(later.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["machine/uuid/u"]);
    assert!(store.write(&later));
    drop(store);

    let store = Store::in_folder(folder.path());
    let mut next = Memory::load("boot".into(), &store.names(""), |name| store.read(name), 140).0;
    let mut known = next.recall(&vm(own, Some("u")), PAGES);
    assert_eq!(known.before.demoted, 12);
    let mut pages = there.pages.clone();
    pages.place(PageRun { first: 0, count: PAGES }, Place::In(TierId(0)));
    known.recall(&mut pages, &mut Reclaim::default(), (Monotonic(0), Seconds(1)));
    assert_eq!([511, 512, 1023, 1024].map(|page| pages.get(page).backoff()), [0, 3, 3, 0]);

    // A VM that has gone is known by its totals when it comes again, as another process.
    next.keep(&mut there, 150);
    assert!(store.write(&next.records(std::iter::empty(), 150, false)));
    assert_eq!(store.names(""), ["machine/uuid/u", "version"]);
    let known = next.recall(&vm(own + 1, Some("u")), PAGES);
    assert_eq!((known.before.demoted, known.seemed), (12, Some((Class::Cache, 1.0))));
}

#[test]
fn what_was_not_seen_for_a_month_is_removed() {
    let old = written(1, 100, "uuid/old");
    let mut memory = load("boot", &old, 100 + FORGET_AFTER_S + 1);
    assert_eq!(memory.recall(&vm(1, Some("old")), PAGES).before.demoted, 0);
    let due = memory.records(std::iter::empty(), 0, false);
    assert_eq!(due, [("machine/uuid/old".to_owned(), None), ("habits/uuid/old".to_owned(), None)]);
    assert!(memory.records(std::iter::empty(), 0, false).is_empty());
}

#[test]
fn what_a_former_agent_wrote_in_another_form_is_removed() {
    let mut memory = load("boot", &[("blocks/uuid/u".to_owned(), Some(vec![1, 2]))], 200);
    let due = memory.records(std::iter::empty(), 0, false);
    assert_eq!(due, [("blocks/uuid/u".to_owned(), None)]);
}
