//! What is saved and what more can be freed is told with its source, and no figure is made up.

use serde_json::Value;
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::Backend;
use tiering_testkit::skip::skip_or_fail;

use crate::host::{Host, assert_memory_right, drain_and_end, guest, no_swap_is_on, vm, wait_for};

const MIB: u64 = 1 << 20;

#[test]
fn a_dry_run_says_that_nobody_knows_what_can_be_freed_and_why() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest("tt-save", Backend::Anonymous);
    let agent = Agent::start(&host.config("2s"), &["--dry-run"]).unwrap();
    let told = wait_for("the agent to say why it does not know", || {
        let can_free = vm(&agent, "tt-save")["savings"]["can_free"].clone();
        let why = can_free["detail"].as_str()?.to_owned();
        (why.starts_with("a dry run tries no pages")).then_some(can_free)
    });
    let told = told.unwrap_or_else(|| panic!("{}", vm(&agent, "tt-save")));
    assert!(told["source"].is_null() && told["expected_bytes"].is_null(), "{told}");
    let status = agent.tiering(&["status"]).unwrap();
    assert!(
        status.contains("can be freed: not known yet\n  of tt-save it is not known yet: a dry run"),
        "{status}"
    );
    let doctor: Value = serde_json::from_str(&agent.tiering(&["doctor", "--json"]).unwrap()).unwrap();
    let check = doctor.as_array().unwrap().iter().find(|check| check["name"] == "savings").unwrap();
    assert_eq!(check["state"], "degraded", "{check}");
    let ended = agent.interrupt().unwrap();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_memory_right(&mut guest);
}

#[test]
fn what_was_tried_says_what_can_be_freed_and_what_became_free_is_not_reusable_at_once() {
    let Some(()) = skip_or_fail(no_swap_is_on()) else { return };
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest("tt-save", Backend::AnonymousSmall);
    let agent = Agent::start(&host.config("5s"), &[]).unwrap();
    let known = wait_for("an estimate by pages tried", || {
        let vm = vm(&agent, "tt-save");
        (vm["savings"]["can_free"]["source"] == "tried").then_some(vm)
    });
    let known = known.unwrap_or_else(|| panic!("{}", vm(&agent, "tt-save")));
    let can_free = &known["savings"]["can_free"];
    println!("{can_free}, in {}", known["tier_bytes"]);
    let bound = |name: &str| can_free[name].as_u64().unwrap();
    assert!(bound("lower_bytes") <= bound("expected_bytes"), "{can_free}");
    assert!(bound("expected_bytes") <= bound("upper_bytes"), "{can_free}");
    assert!(bound("upper_bytes") <= 128 * MIB, "{can_free}");
    let shown = agent.tiering(&["vm", "show", "tt-save"]).unwrap();
    assert!(shown.contains("by pages tried") && shown.contains("of what was touched"), "{shown}");

    let freed = wait_for("memory to become free", || {
        let vm = vm(&agent, "tt-save");
        (vm["savings"]["opportunistic_bytes"].as_u64()? >= 16 * MIB).then_some(vm)
    });
    let freed = freed.unwrap_or_else(|| panic!("{}", vm(&agent, "tt-save")));
    println!("{}, in {}", freed["savings"], freed["tier_bytes"]);
    assert_eq!(freed["savings"]["reusable_bytes"], 0, "it was not free when the agent began: {freed}");
    assert!(freed["savings"]["over_s"].as_u64().unwrap() > 10, "{freed}");
    let explained = agent.tiering(&["explain", "tt-save"]).unwrap();
    assert!(explained.contains("can be freed"), "{explained}");
    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}
