//! What `bpftool` shows is named, and true.

use std::process::Command;

use serde_json::Value;
use tiering_tests::agent::Agent;
use tiering_tests::guest::Backend;
use tiering_tests::skip::skip_or_fail;

use crate::host::{Host, assert_memory_right, drain_and_end, guest, vm, wait_for};

fn bpftool(args: &[&str]) -> Value {
    let output = Command::new("/usr/sbin/bpftool").arg("-j").args(args).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{args:?}: {text} {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&text).unwrap()
}

fn dump(map: &str) -> Vec<Value> {
    let dumped = bpftool(&["map", "dump", "pinned", &format!("/sys/fs/bpf/tiering/{map}")]);
    dumped.as_array().unwrap().iter().map(|entry| entry["formatted"].clone()).collect()
}

#[test]
fn programs_and_maps_are_shown_with_their_fields() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest("tt-bpftool", Backend::Anonymous);
    let agent = Agent::start(&host.config("2s"), &[]).unwrap();
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
    assert_eq!(sum("produced"), status["faults_total"].as_u64().unwrap(), "{counted}");
    assert_eq!(sum("writes"), status["writes_total"].as_u64().unwrap());
    assert_eq!(sum("reads") + sum("writes"), sum("produced"));

    let moves = dump("tier_moves");
    let moved = &moves.iter().find(|moves| moves["key"] == entry["vm"]).unwrap()["value"];
    assert_eq!(
        moved["demoted"].as_u64().unwrap() * 4096,
        status["demoted_bytes_total"].as_u64().unwrap(),
        "{moved}"
    );
    assert_eq!(moved["prefetched"], status["prefetch"]["issued_pages"], "{moved}");

    guest.cont().unwrap();
    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}
