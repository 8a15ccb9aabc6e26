//! What the agent does on its own: idle pages go down, pages that follow are staged, and nothing of it harms the guest.

use std::time::Duration;

use tiering_tests::agent::Agent;
use tiering_tests::guest::Backend;
use tiering_tests::skip::skip_or_fail;

use crate::host::{Host, assert_memory_right, drain_and_end, guest, vm, wait_for};

#[test]
fn idle_pages_go_down_and_what_follows_is_staged_before_it_is_asked_for() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest("tt-policy", Backend::Anonymous);
    let report = host.scratch.path().join("report.json");
    let agent = Agent::start(&host.config("2s"), &["--report", report.to_str().unwrap()]).unwrap();
    vm(&agent, "tt-policy");

    let used = wait_for("staged pages to be used", || {
        let vm = vm(&agent, "tt-policy");
        (vm["prefetch"]["used_pages"].as_u64().unwrap() > 200).then_some(vm)
    });
    let status = used.unwrap_or_else(|| panic!("{}", vm(&agent, "tt-policy")));
    assert!(status["demoted_bytes_total"].as_u64().unwrap() > 32 << 20, "{status}");
    assert!(status["tier_bytes_peak"]["nvme"].as_u64().unwrap() > 0, "{status}");

    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    let events = &report["events"];
    let count = |name: &str| events[name].as_u64().unwrap();
    assert!(count("produced") > 1000, "{events}");
    assert_eq!(count("produced"), count("consumed") + count("dropped"), "{events}");
}

#[test]
fn a_dry_run_touches_nothing_and_says_what_it_would_do() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest("tt-policy", Backend::Anonymous);
    let agent = Agent::start(&host.config("2s"), &["--dry-run"]).unwrap();
    vm(&agent, "tt-policy");
    std::thread::sleep(Duration::from_secs(6));

    let status = vm(&agent, "tt-policy");
    assert_eq!(status["demoted_bytes_total"], 0, "{status}");
    assert_eq!(status["tier_bytes"]["nvme"], 0, "{status}");
    assert!(host.scratch.swap_areas().unwrap().is_empty());
    let ended = agent.interrupt().unwrap();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains("dry run: would move"), "{}", ended.log);
    assert!(ended.log.contains("idle for 2 s or more"), "{}", ended.log);
    assert_memory_right(&mut guest);
}

#[test]
fn guests_that_come_while_the_agent_runs_are_found_and_those_that_go_are_forgotten() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    let names = |agent: &Agent| agent.tiering(&["vm", "list"]).unwrap();
    assert!(!names(&agent).contains("tt-policy"));

    let mut guest = guest("tt-policy", Backend::Anonymous);
    vm(&agent, "tt-policy");
    assert!(names(&agent).contains("tt-policy"));
    guest.poweroff().unwrap();
    let gone = wait_for("the guest to be forgotten", || (!names(&agent).contains("tt-policy")).then_some(()));
    assert!(gone.is_some());
    drain_and_end(agent, &host);
}

#[test]
fn shared_memory_is_not_lost_sight_of_while_it_goes_down_and_comes_back() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest("tt-policy", Backend::Memfd);
    let agent = Agent::start(&host.config("2s"), &[]).unwrap();
    let touched =
        |vm: &serde_json::Value| vm["ram_bytes"].as_u64().unwrap() - vm["untouched_bytes"].as_u64().unwrap();
    let before = touched(&vm(&agent, "tt-policy"));

    // Until stages have ended both ways: used, and dropped after their deadline.
    let mut least = before;
    let ended = wait_for("stages to be used and wasted", || {
        let status = vm(&agent, "tt-policy");
        least = least.min(touched(&status));
        let count = |what: &str| status["prefetch"][what].as_u64().unwrap();
        (count("used_pages") > 100 && count("wasted_pages") > 0).then_some(status)
    });
    let status = ended.unwrap_or_else(|| panic!("{}", vm(&agent, "tt-policy")));
    // But for a few that are on their way while a sweep looks, until the next one.
    assert!(least * 1000 >= before * 999, "{least} of {before} bytes were known at the least: {status}");
    let in_tiers: u64 =
        status["tier_bytes"].as_object().unwrap().values().map(|bytes| bytes.as_u64().unwrap()).sum();
    assert_eq!(in_tiers, touched(&status), "{status}");

    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}
