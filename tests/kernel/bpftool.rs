//! What `bpftool` shows is named, and true.

use std::process::Command;

use serde_json::Value;
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::Backend;
use tiering_testkit::skip::skip_or_fail;

use crate::host::{Host, assert_memory_right, drain_and_end, guest, vm, wait_for};

fn bpftool(args: &[&str]) -> Value {
    let output = Command::new("/usr/sbin/bpftool").arg("-j").args(args).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{args:?}: {text} {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&text).unwrap()
}

pub fn dump(map: &str) -> Vec<Value> {
    let dumped = bpftool(&["map", "dump", "pinned", &format!("/sys/fs/bpf/tiering/{map}")]);
    dumped.as_array().unwrap().iter().map(|entry| entry["formatted"].clone()).collect()
}

/// All that are pinned.
fn maps() -> Vec<String> {
    let pinned = std::fs::read_dir("/sys/fs/bpf/tiering").unwrap();
    let names = pinned.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let maps: Vec<_> = names.filter(|name| name.starts_with("tier_")).collect();
    assert!(maps.len() >= 13, "{maps:?}");
    maps
}

#[test]
fn programs_and_maps_are_shown_with_their_fields() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest("tt-bpftool", Backend::Anonymous);
    let agent = Agent::start(&host.config("1s"), &[]).unwrap();
    let used =
        wait_for("faults", || (vm(&agent, "tt-bpftool")["faults_total"].as_u64()? > 1000).then_some(()));
    assert!(used.is_some());
    guest.stop().unwrap();
    crate::host::wait_until_quiet(&agent, "tt-bpftool");
    let status = vm(&agent, "tt-bpftool");

    for program in ["fault_user_btf", "fault_kern_btf"] {
        let shown = bpftool(&["prog", "show", "pinned", &format!("/sys/fs/bpf/tiering/{program}")]);
        assert_eq!(shown["name"], program, "{shown}");
        assert_eq!(shown["type"], "tracing", "{shown}");
    }

    for map in maps() {
        let shown = bpftool(&["map", "show", "pinned", &format!("/sys/fs/bpf/tiering/{map}")]);
        // Of a ring there is nothing to dump.
        if shown["type"] != "ringbuf" {
            let entries = dump(&map);
            let named = |entry: &Value| !entry["value"].is_null() || !entry["values"].is_null();
            assert!(entries.iter().all(named), "{map} has no names: {entries:?}");
        }
    }

    let vms = dump("tier_vms");
    let tracked = vms.iter().find(|entry| entry["key"] == guest.pid()).unwrap_or_else(|| panic!("{vms:?}"));
    let entry = &tracked["value"];
    assert_eq!(entry["range_count"], 1, "{tracked}");
    let range = &entry["ranges"][0];
    let ram = range["end"].as_u64().unwrap() - range["start"].as_u64().unwrap();
    assert_eq!(ram, status["ram_bytes"].as_u64().unwrap(), "{tracked}");

    let stats = dump("tier_stats");
    let counted = stats.iter().find(|stats| stats["key"] == entry["vm"]).unwrap();
    let sum = |field: &str| -> u64 {
        let cpus = counted["values"].as_array().unwrap().iter();
        cpus.map(|cpu| cpu["value"][field].as_u64().unwrap()).sum()
    };
    assert_eq!(sum("seen"), status["faults_total"].as_u64().unwrap(), "{counted}");
    assert_eq!(sum("writes"), status["writes_total"].as_u64().unwrap());
    assert_eq!(sum("reads") + sum("writes"), sum("seen"));

    let moves = dump("tier_moves");
    let moved = &moves.iter().find(|moves| moves["key"] == entry["vm"]).unwrap()["value"];
    assert_eq!(
        moved["demoted"].as_u64().unwrap() * 4096,
        status["demoted_bytes_total"].as_u64().unwrap(),
        "{moved}"
    );
    assert_eq!(moved["prefetched"], status["prefetch"]["issued_pages"], "{moved}");

    let tiers = ["dram", "nvme", "qlc"];
    let pages_of = |block: &Value, tier: usize| block["value"]["tiers"][tier].as_u64().unwrap();
    // Shown within a second of the last change, which need not be the status that was asked for.
    let same = wait_for("the blocks to be those of the status", || {
        let status = vm(&agent, "tt-bpftool");
        let blocks = dump("tier_map");
        let blocks: Vec<_> = blocks.iter().filter(|block| block["key"]["vm"] == entry["vm"]).collect();
        let bytes = |tier| blocks.iter().map(|block| pages_of(block, tier)).sum::<u64>() * 4096;
        let equal = (0..3).all(|tier| Some(bytes(tier)) == status["tier_bytes"][tiers[tier]].as_u64());
        equal.then(|| blocks.into_iter().cloned().collect::<Vec<_>>())
    });
    let blocks = same.unwrap_or_else(|| panic!("{:?} {}", dump("tier_map"), vm(&agent, "tt-bpftool")));
    let all = |tier| blocks.iter().map(|block| pages_of(block, tier)).sum::<u64>();
    assert!(all(1) + all(2) > 0, "{} {} {}", all(0), all(1), all(2));
    let start = range["start"].as_u64().unwrap();
    for block in &blocks {
        let number = block["key"]["block"].as_u64().unwrap();
        assert_eq!(block["value"]["hva"], start + number * (2 << 20), "{block}");
        let others = ["other_swap", "untouched"].map(|field| block["value"][field].as_u64().unwrap());
        assert_eq!((0..8).map(|tier| pages_of(block, tier)).chain(others).sum::<u64>(), 512, "{block}");
    }

    guest.cont().unwrap();
    assert_memory_right(&mut guest);
    // The map is emptied with its machine.
    guest.poweroff().unwrap();
    let ours = |block: &Value| block["key"]["vm"] == entry["vm"];
    let gone = wait_for("the blocks to go", || (!dump("tier_map").iter().any(ours)).then_some(()));
    assert!(gone.is_some(), "{:?}", dump("tier_map"));
    drain_and_end(agent, &host);
}
