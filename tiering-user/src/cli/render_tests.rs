use super::*;
use crate::telemetry::latency::Latency;
use crate::telemetry::request::Location;
use crate::telemetry::status::{EventCounts, SourceStatus, TierStatus};

fn example() -> Status {
    let tier = |name: &str, level, kind, nodes: &[u32]| TierStatus {
        name: name.to_owned(),
        level,
        kind,
        nodes: nodes.to_vec(),
        capacity_bytes: 1 << 30,
        read_latency_ns: (level == 0).then_some(Latency { p50: 90, p99: 1_250 }),
        ..TierStatus::default()
    };
    let vm = |name: &str, tenant: &str, reason: Option<&str>| VmStatus {
        name: name.to_owned(),
        tenant: tenant.to_owned(),
        pid: 4321,
        ram_bytes: 512 << 20,
        tier_bytes: [("dram".to_owned(), 384 << 20), ("swap".to_owned(), 128 << 20)].into(),
        movable: reason.is_none(),
        reason: reason.map(str::to_owned),
        ..VmStatus::default()
    };
    Status {
        version: "0.1.0".to_owned(),
        uptime_s: 12.5,
        tiers: vec![tier("qlc", 1, TierKind::Swap, &[]), tier("dram", 0, TierKind::Node, &[0, 2])],
        vms: vec![vm("web-1", "a", None), vm("web-2", "b", Some("locked memory"))],
        events: EventCounts { seen: 10, produced: 10, consumed: 9, dropped: 1 },
        sources: vec![SourceStatus {
            name: "damon".to_owned(),
            state: SourceState::Unavailable,
            detail: "kdamond.0 is in use".to_owned(),
        }],
        ..Status::default()
    }
}

/// The cells of the line that starts with `first`; cells are at least two spaces apart.
fn cells<'a>(text: &'a str, first: &str) -> Vec<&'a str> {
    let line = text.lines().find(|line| line.trim_start().starts_with(first)).expect(first);
    line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()
}

#[test]
fn the_status_shows_each_vm_with_its_tiers_and_why_it_stays() {
    let text = status(&example());
    assert_eq!(cells(&text, "dram")[..4], ["dram", "0", "node 0,2", "1.0 GiB"]);
    assert_eq!(cells(&text, "dram")[6..8], ["90 ns", "1.2 us"]);
    assert_eq!(cells(&text, "qlc")[6..8], ["-", "-"], "a latency that could not be measured is no zero");
    assert_eq!(cells(&text, "NAME")[3..6], ["QLC", "DRAM", "SWAP"], "the ladder's order, then the rest");
    assert_eq!(cells(&text, "web-1")[..6], ["web-1", "4321", "512.0 MiB", "0 B", "384.0 MiB", "128.0 MiB"]);
    assert_eq!(cells(&text, "web-1").last(), Some(&"yes"));
    assert_eq!(cells(&text, "web-2").last(), Some(&"no: locked memory"));
    assert!(text.contains("10 produced, 9 consumed, 1 dropped"), "{text}");
    assert_eq!(cells(&text, "damon"), ["damon", "unavailable", "kdamond.0 is in use"]);
    assert!(!text.contains("dry run"), "{text}");
}

#[test]
fn what_holds_a_vm_back_and_what_is_still_in_memory_is_shown() {
    let mut facts = example();
    facts.swap_cached_bytes = 3 << 20;
    assert!(status(&facts).contains("in the swap cache: 3.0 MiB"));
    facts.vms[0].freed_bytes = 5 << 20;
    facts.vms[1].freed_bytes = 1 << 20;
    facts.vms[0].swap_cached_bytes = Some(2 << 20);
    let saved = "saved: 6.0 MiB of the VMs' memory are free, 2.0 MiB more as soon as somebody wants them";
    assert!(status(&facts).contains(saved), "{}", status(&facts));
    assert_eq!(cells(&vm(&facts.vms[0]), "freed")[1], "5.0 MiB: in swap, and not in the swap cache");
    assert!(!status(&facts).contains("held back"));
    facts.vms[0].limited_by = Some("its control group /a has used up its swap".to_owned());
    assert!(status(&facts).contains("web-1 is held back: its control group /a has used up its swap"));

    let shown = vm(&facts.vms[0]);
    assert_eq!(cells(&shown, "held back")[1], "its control group /a has used up its swap");
    assert_eq!(cells(&shown, "merged by KSM")[1], "the kernel does not tell", "no zero");
    facts.vms[0].swap_cached_bytes = Some(8192);
    assert_eq!(cells(&vm(&facts.vms[0]), "in the swap cache")[1], "8.0 KiB");
}

#[test]
fn the_status_says_when_no_vm_learns_from_another() {
    let mut facts = example();
    assert!(status(&facts).contains("every VM is its own tenant"));
    facts.vms[1].tenant = "a".to_owned();
    assert!(!status(&facts).contains("every VM is its own tenant"));
}

#[test]
fn doctor_says_when_sharing_is_not_configured() {
    let shared = "[[vm]]\nmatch = { name = \"*\" }\ntenant = \"acme\"";
    let shared = Config::parse(shared, "test.toml").unwrap();
    assert!(doctor(&[], &Config::default(), false).contains("every VM is its own tenant"));
    assert!(!doctor(&[], &shared, false).contains("every VM is its own tenant"));
}

#[test]
fn doctor_shows_a_ladder_that_was_proposed_and_not_one_that_was_configured() {
    let text = "[[tier]]\nname = \"dram\"\nnodes = [0]\n";
    let config = Config::parse(text, "test.toml").unwrap();
    assert!(doctor(&[], &config, true).contains(text), "{}", doctor(&[], &config, true));
    assert!(!doctor(&[], &config, false).contains("[[tier]]"));
}

#[test]
fn the_status_warns_below_the_tiers() {
    let mut facts = example();
    assert!(!status(&facts).contains("warning:"));
    facts.warnings = vec!["tiers `nvme` and `qlc` are on one disk\x1b".to_owned()];
    facts.tiers[0].device = Some("nvme1n1 (Slow Disk)".to_owned());
    let text = status(&facts);
    assert!(text.contains("\nwarning: tiers `nvme` and `qlc` are on one disk?\n"), "{text}");
    assert_eq!(cells(&text, "qlc").last(), Some(&"nvme1n1 (Slow Disk)"));
}

#[test]
fn an_unknown_stall_is_not_shown_as_zero() {
    let mut facts = example().vms.remove(0);
    assert_eq!(cells(&vm(&facts), "stalled"), ["stalled", "no source can tell"]);
    facts.stall_ns_total = Some(1_500_000_000);
    assert_eq!(cells(&vm(&facts), "stalled"), ["stalled", "1.5 s"]);
}

#[test]
fn the_map_shows_runs_with_frame_or_slot() {
    let run = |hva, frame_or_slot| MapRun {
        hva,
        pages: 512,
        tier: "dram".to_owned(),
        frame_or_slot,
        staged: true,
        ..MapRun::default()
    };
    let text = map(&VmMap {
        vm: "id".to_owned(),
        page_bytes: 4096,
        runs: vec![
            run(0x7000, Some(Location::Frame { pfn: 0xabc })),
            run(0x9000, Some(Location::Slot { area: 3, slot: 17 })),
        ],
    });
    assert_eq!(
        cells(&text, "0x7000"),
        ["0x7000", "-", "512", "2.0 MiB", "dram", "frame 0xabc", "0", "-", "staged"]
    );
    assert_eq!(cells(&text, "0x9000")[5], "area 3 slot 17");
}

#[test]
fn a_move_reports_what_was_left_alone() {
    let outcome = MoveOutcome {
        asked_pages: 10,
        moved_pages: 8,
        moved_bytes: 32768,
        in_tier_pages: 7,
        huge_split_bytes: 2 << 20,
        skipped: [("mapped twice".to_owned(), 2)].into(),
        elapsed_ms: 3,
    };
    let text = moved(&outcome, "qlc");
    assert!(text.contains("8 of 10 pages (32.0 KiB)") && text.contains("read back there: 7"), "{text}");
    assert!(text.contains("2 pages, mapped twice"), "{text}");
    assert!(text.contains("huge pages: 2.0 MiB of them are split"), "{text}");
}
