//! Decisions of each kind, by what the engine is told and what it then asks for.

use tokio::sync::oneshot;

use super::testing::{CXL, Host, SWAP};
use super::{Event, Gauge};
use crate::actuate::{NoReclaim, Skip};
use crate::policy::TierLoad;
use crate::telemetry::request::{ApiError, Request};
use crate::tiermap::{PageRun, Place};
use crate::tiers::{NodeMemory, TierId};
use crate::track::VmId;
use crate::vm::{GroupMemory, Headroom};

const PAGES: u32 = 4096;
const MIB: u64 = 1 << 20;

fn host(config: &str) -> (Host, VmId) {
    let mut host = Host::new(config);
    let vm = host.start(1, "web-1", PAGES);
    (host, vm)
}

/// What its control group says of a VM.
fn gauge(host: &Host, vm: VmId, memory: GroupMemory) -> Gauge {
    let key = host.guest(vm).vm.key;
    Gauge { key, memory, ksm_bytes: Some(0), usage: None, bindings: None, at: host.now() }
}

/// Whether anything goes to swap within so many seconds.
fn goes_down(host: &mut Host, seconds: u64) -> bool {
    host.asked();
    host.idle(seconds);
    host.asked().iter().any(|words| words.contains("Place"))
}

/// Why little or nothing goes, as `tiering explain` tells.
fn why(host: &Host, vm: VmId) -> String {
    let told = host.engine().explain(&host.guest(vm).vm.id(), None).unwrap();
    told.reason.or(told.limited_by).unwrap_or_default()
}

#[test]
fn the_transcript_of_a_vm_from_its_start_to_its_end() {
    let (mut host, vm) = host(SWAP);
    let hot = |_| (0..4).map(|page| (VmId(1), page)).collect();
    host.run(16, hot);
    let told: Vec<String> = host.log.iter().map(|(second, words)| format!("{second} s: {words}")).collect();
    assert_eq!(
        told,
        [
            "0 s: VM 1: read its labels",
            "0 s: VM 1: sweep 4096 pages",
            "1 s: DAMON watches 1 VMs",
            "5 s: VM 1: sweep 4096 pages",
            "10 s: VM 1: Place { to: TierId(1) } 64 pages of 0 to 4032: idle for 10 s or more",
            "11 s: VM 1: sweep 4096 pages",
            "13 s: VM 1: Place { to: TierId(1) } 1024 pages of 1 to 1040: idle for 13 s or more",
            "14 s: VM 1: Place { to: TierId(1) } 1024 pages of 1537 to 2576: idle for 14 s or more",
            "15 s: VM 1: Place { to: TierId(1) } 1008 pages of 3073 to 4095: idle for 15 s or more",
            "16 s: VM 1: sweep 4096 pages",
            "16 s: VM 1: Place { to: TierId(1) } 488 pages of 1041 to 1535: idle for 16 s or more",
        ],
        "one page in 64 first, then what did not come back"
    );
    host.asked();
    host.end(vm);
    host.idle(2);
    assert_eq!(host.asked(), ["DAMON watches 0 VMs"], "nothing else is asked for any more");
}

#[test]
fn what_is_idle_goes_down_by_and_by_and_what_comes_back_at_once_stops_it() {
    let (mut host, vm) = host(SWAP);
    host.idle(600);
    let (down, asked) = (host.in_tier(vm, 1) + host.in_tier(vm, 2), host.asked());
    assert_eq!(down, u64::from(PAGES), "{asked:#?}");
}

#[test]
fn a_vm_in_which_nothing_happens_is_swept_seldom_and_else_often() {
    let swept = |happens: fn(&mut Host, VmId)| {
        let (mut host, vm) = host(SWAP);
        host.idle(600);
        host.asked();
        happens(&mut host, vm);
        host.idle(40);
        host.asked().iter().filter(|words| words.contains("sweep")).count()
    };
    assert_eq!(swept(|_, _| ()), 1, "one in 40 s");
    // Each sweep that tells nothing new is followed by the next one after twice as long.
    assert_eq!(swept(|host, vm| host.reclaimed(vm, PageRun { first: 0, count: 64 }, TierId(2))), 3);
    assert_eq!(swept(|host, vm| assert_eq!(host.walk(vm, 0..10), 10)), 3);
    assert_eq!(swept(|host, _| host.facts.moves_show = false), 8, "one in 5 s");
    assert!(
        swept(|host, vm| host.put(vm, PageRun { first: 0, count: PAGES }, Place::Untouched)) >= 1,
        "what a balloon takes is found by then"
    );
}

#[test]
fn all_vms_cool_where_they_are_many() {
    let mut host = Host::new(&SWAP.replace("10s", "1s"));
    let vms: Vec<VmId> = (1..=100).map(|id| host.start(id, &format!("web-{id}"), 64)).collect();
    for _ in 0..8 {
        vms.iter().for_each(|vm| (0..64).for_each(|page| host.see(*vm, page)));
        host.idle(1);
    }
    host.idle(60);
    let hot = vms.iter().filter(|vm| host.engine().vms[vm].pages.get(0).heat() > 1).count();
    assert_eq!(hot, 0, "what was hot a minute ago");
}

#[test]
fn brakes_refusals_and_want_of_room_keep_pages_where_they_are_and_are_told() {
    struct Case {
        what: &'static str,
        says: &'static str,
        /// Pages that go all the same.
        goes: std::ops::RangeInclusive<u64>,
        change: fn(&mut Host, VmId),
    }
    let cases = [
        Case {
            what: "its group has no swap left",
            says: "memory.swap.max",
            goes: 0..=0,
            change: |host, vm| {
                let group = "/vm".to_owned();
                let swap = Headroom::Left { left_bytes: 0, limit_bytes: MIB, group };
                let memory = GroupMemory { swap, ..GroupMemory::default() };
                let gauge = gauge(host, vm, memory);
                host.guest_mut(vm).unwrap().gauge = Some(gauge);
            },
        },
        Case {
            what: "the tier's disk is slow",
            says: "a read from the tier takes 1000000 us",
            goes: 1..=u64::from(PAGES) * 3 / 4,
            change: |host, _| {
                let load = TierLoad {
                    read_latency_ns: Some(1_000_000_000),
                    read_latency_at_rest_ns: Some(100_000),
                    reads: 1000,
                    in_flight: None,
                };
                host.facts.tier_loads = [(TierId(1), load)].into();
            },
        },
        Case {
            what: "the lane refuses",
            says: "it is migrating",
            goes: 0..=0,
            change: |host, _| host.refuses = Some(Skip::Refused("it is migrating".to_owned())),
        },
    ];
    for Case { what, says, goes, change } in cases {
        let (mut host, vm) = host(SWAP);
        host.idle(2);
        change(&mut host, vm);
        host.idle(18);
        let gone = u64::from(PAGES) - host.in_tier(vm, 0);
        assert!(goes.contains(&gone), "{what}: {gone} pages went");
        assert!(why(&host, vm).contains(says), "{what}: {}", why(&host, vm));
    }
}

#[test]
fn an_operator_is_refused_what_the_configuration_excludes() {
    let excluded = format!("{SWAP}\n[[vm]]\nmatch = {{ name = \"web-1\" }}\nmanaged = false");
    let (mut host, vm) = host(&excluded);
    assert!(!goes_down(&mut host, 60));
    let (reply, mut answer) = oneshot::channel();
    let id = host.guest(vm).vm.id();
    host.tell(Event::Request(Request::Move { vm: id, to: "nvme".into(), hva: None, reply }));
    let error = answer.try_recv().unwrap().unwrap_err();
    assert!(matches!(&error, ApiError::Refused(why) if why.contains("managed = false")), "{error:?}");
    assert_eq!(host.in_tier(vm, 0), u64::from(PAGES));
}

#[test]
fn the_kernel_is_asked_for_memory_of_a_group_of_the_vms_own_and_not_after_it_refused() {
    let own_group = GroupMemory {
        is_vms_own: true,
        group: Some("/vm".to_owned()),
        can_reclaim: true,
        refaults_total: Some(0),
        ..GroupMemory::default()
    };
    let reclaims = |answer: Option<NoReclaim>| {
        let (mut host, vm) = host(SWAP);
        let gauge = gauge(&host, vm, own_group.clone());
        host.guest_mut(vm).unwrap().gauge = Some(gauge);
        host.no_reclaim = answer;
        host.idle(120);
        let asked = host.asked();
        let count = |what: &str| asked.iter().filter(|words| words.contains(what)).count();
        (count("of its group"), count("TierId(1)"))
    };
    let (by_kernel, by_agent) = reclaims(None);
    assert!(by_kernel > 3 && by_agent == 0, "{by_kernel} orders, {by_agent} steps");
    let (by_kernel, by_agent) = reclaims(Some(NoReclaim::NotThere("no such file".to_owned())));
    assert!(by_kernel == 1 && by_agent > 3, "{by_kernel} orders, {by_agent} steps");
}

#[test]
fn what_is_hot_in_a_lower_memory_tier_is_promoted_while_the_first_one_has_room() {
    let promoted = |free: u64| {
        let (mut host, vm) = host(CXL);
        host.reclaimed(vm, PageRun { first: 0, count: PAGES }, TierId(1));
        let memory = NodeMemory { total: 64 << 30, free, available: free, copies: 0 };
        host.facts.tier_memory.insert(TierId(0), memory);
        host.idle(10);
        for _ in 0..20 {
            (0..64).for_each(|page| host.see(vm, page));
            host.idle(1);
        }
        host.in_tier(vm, 0)
    };
    assert_eq!((promoted(32 << 30), promoted(0)), (64, 0));
}

/// Slow enough that nothing goes further while a test waits for the agent to see where pages are; and nothing is staged
/// for its address alone.
fn patient() -> String {
    SWAP.replace("10s", "2m") + "[prefetch]\nreadahead = false\n"
}

/// Pages 0 to 999 in an order that has nothing to do with their addresses.
fn strewn() -> impl Iterator<Item = u32> {
    (0..1000).map(|number| number * 379 % 1000)
}

/// All pages that it walks through are in the first swap tier, without copies, and the agent knows that.
fn swapped_out(host: &mut Host, vm: VmId) {
    host.reclaimed(vm, PageRun { first: 0, count: 1000 }, TierId(1));
    host.idle(40);
}

#[test]
fn what_came_next_last_time_is_staged_and_dropped_where_it_is_not_used() {
    let (mut host, vm) = host(&patient());
    swapped_out(&mut host, vm);
    assert_eq!(host.walk(vm, strewn()), 1000, "the first time nothing predicts it");
    swapped_out(&mut host, vm);
    host.asked();
    let reads = host.walk(vm, strewn().take(500));
    let asked = host.asked();
    assert!(asked.iter().any(|words| words.contains("Stage") && words.contains("touched next, last time")));
    assert!(reads < 250, "{reads} of 500 pages were read when they were touched");
    // It went no further.
    host.idle(30);
    assert!(
        host.asked().iter().any(|words| words.contains("DropStage") && words.contains("not used in time"))
    );
}

#[test]
fn who_goes_on_by_address_finds_what_is_ahead_staged_also_the_first_time() {
    let config = patient().replace("readahead = false", "readahead = true");
    let reads = |pages: &mut dyn Iterator<Item = u32>| {
        let (mut host, vm) = host(&config);
        swapped_out(&mut host, vm);
        let reads = host.walk(vm, pages);
        (reads, host.asked().iter().any(|words| words.contains("Stage") && words.contains("by address")))
    };
    let (in_order, staged) = reads(&mut (0..1000));
    assert!(staged && in_order < 200, "{in_order} of 1000 pages were read when they were touched");
    assert_eq!(reads(&mut (0..200).map(|number| number * 5)), (200, false), "none comes next");
}

#[test]
fn another_vm_of_the_tenant_that_does_the_same_finds_its_pages_staged() {
    let tenant = format!("{}\n[[vm]]\nmatch = {{ name = \"*\" }}\ntenant = \"t\"", patient());
    let reads = |config: &str| {
        let mut host = Host::new(config);
        let [leader, follower] = [1, 2].map(|id| host.start(id, &format!("web-{id}"), PAGES));
        [leader, follower].into_iter().for_each(|vm| swapped_out(&mut host, vm));
        assert_eq!(host.walk(leader, strewn()), 1000);
        host.idle(2);
        let reads = host.walk(follower, strewn());
        let worth = host.engine().vms[&follower].prefetch.stages.last_day().sums(host.now());
        (reads, worth.get(&Some(leader)).map_or(0, |worth| worth.avoided))
    };
    assert_eq!(reads(&patient()), (1000, 0), "strangers learn nothing from each other");
    let (reads, avoided) = reads(&tenant);
    assert!(reads < 500, "{reads} of 1000 pages were read when they were touched");
    assert!(avoided as usize + reads > 900, "{avoided} waits were avoided");
}
