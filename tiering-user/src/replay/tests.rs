use super::*;

fn config(demote_after: &str, refault_limit: &str) -> Config {
    let policy = format!("[policy]\ndemote_after = \"{demote_after}\"\nrefault_limit = \"{refault_limit}\"");
    // What comes back counts as read: a walk in order would be read ahead.
    Config::parse(&format!("{LADDER}{policy}\n[prefetch]\nreadahead = false"), "test").unwrap()
}

fn usual() -> Config {
    config("20s", "100%")
}

const VM: VmId = VmId(3);

fn at(ms: u64, event: Event) -> Timed {
    Timed { time: Monotonic(1_000_000_000_000 + ms * 1_000_000), event }
}

fn appeared() -> Timed {
    at(
        0,
        Event::Appeared(Appeared { vm: VM, name: "web-1".into(), pages: 2048, priority: 50, node_tiers: 1 }),
    )
}

/// A hundred pages that are accessed every second, and a walk through a thousand others once in two minutes, for
/// ten.
fn trace() -> Vec<Timed> {
    walk_every(120)
}

fn walk_every(seconds: u64) -> Vec<Timed> {
    let mut events = vec![appeared()];
    let access = |page| Event::Accessed { vm: VM, page, write: false, weight_log2: 0 };
    for second in 0..600 {
        events.extend((0..100).map(|page| at(second * 1000 + u64::from(page), access(page))));
        if second % seconds == 5 {
            events.extend((1000..2000).map(|page| at(second * 1000 + 100, access(page))));
        }
    }
    events
}

fn replay(events: &[Timed], config: &Config) -> (Vec<String>, Vec<Outcome>) {
    let mut replay = Replay::new(config, BTreeSet::new());
    let mut decisions = Vec::new();
    events.iter().for_each(|event| {
        let tell = |told: Told<'_>| {
            if let Told::Decision(decision) = told {
                decisions.push(decision.to_string());
            }
        };
        replay.take(event, tell).unwrap();
    });
    (decisions, replay.end(|_| ()))
}

#[test]
fn what_is_idle_goes_down_and_what_comes_back_is_counted() {
    let (decisions, outcomes) = replay(&trace(), &usual());
    let [outcome] = &outcomes[..] else { panic!("{outcomes:?}") };
    assert_eq!((outcome.accesses, outcome.accessed_pages), (100 * 600 + 5000, 1100));
    assert!(outcome.came_back_without_read > 0 && outcome.demoted_bytes > 0, "{outcome:?}");
    assert!(outcome.came_back * 10 < outcome.came_back_without_read, "{outcome:?}");
    assert!(outcome.came_back_best <= outcome.came_back_lru);
    let hot = decisions.iter().filter(|decision| decision.contains("pages 0 to "));
    assert_eq!(hot.count(), 0, "what is in use stays");
    // The walk began at second 5; its heat is gone with the second epoch of 40 s.
    assert!(decisions[0].ends_with("to tier 1: idle for 75 s or more"), "{}", decisions[0]);
}

#[test]
fn other_rules_decide_otherwise_and_the_same_ones_the_same() {
    let (patient, outcomes) = replay(&trace(), &config("300s", "100%"));
    assert!(patient.is_empty() && outcomes[0].came_back == 0, "{patient:?}");
    assert_eq!(outcomes[0].gap_closed, None, "all fits");
    assert_eq!(replay(&trace(), &usual()), replay(&trace(), &usual()));
    let strict = config("20s", "0%");
    let came_back = |config: &Config| replay(&walk_every(300), config).1[0].came_back;
    assert_eq!((came_back(&strict), came_back(&usual())), (0, 1000), "what nobody may wait for is kept");
}

#[test]
fn what_was_down_from_the_beginning_has_not_come_back() {
    let run = PageRun { first: 0, count: 100 };
    let mut events = trace();
    events.insert(1, at(0, Event::Found { vm: VM, run, place: Place::In(TierId(1)) }));
    assert_eq!(replay(&events, &usual()).1[0].came_back, replay(&trace(), &usual()).1[0].came_back);
}

#[test]
fn events_that_make_no_sense_do_no_harm() {
    let events = [
        at(0, Event::Accessed { vm: VM, page: 1, write: false, weight_log2: 0 }),
        appeared(),
        at(1, Event::Accessed { vm: VM, page: 2048, write: true, weight_log2: 31 }),
        at(1, Event::Found { vm: VM, run: PageRun { first: 2000, count: 100 }, place: Place::In(TierId(0)) }),
        at(1, Event::Found { vm: VM, run: PageRun { first: 5, count: u32::MAX }, place: Place::Untouched }),
        at(2, Event::Accessed { vm: VM, page: 2047, write: true, weight_log2: 31 }),
        at(3, Event::Lost(7)),
        appeared(),
        at(4, Event::Gone(VM)),
        at(5, Event::Gone(VM)),
        at(1 << 40, appeared().event),
    ];
    let (_, outcomes) = replay(&events, &usual());
    assert_eq!(outcomes.iter().map(|outcome| outcome.accesses).collect::<Vec<_>>(), [1, 0]);
}
