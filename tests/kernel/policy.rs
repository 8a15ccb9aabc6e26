//! What the agent does on its own: idle pages go down, pages that follow are staged, and nothing of it harms the guest.

use std::path::Path;
use std::time::Duration;

use tiering_testkit::agent::Agent;
use tiering_testkit::guest::{Backend, Guest};
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::skip::skip_or_fail;

use crate::host::{Host, assert_memory_right, drain_and_end, guest, vm, wait_for};

#[test]
fn idle_pages_go_down_and_what_follows_is_staged_before_it_is_asked_for() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest("tt-policy", Backend::Anonymous);
    let report = host.scratch.path().join("report.json");
    let agent = Agent::start(&host.config("1s"), &["--report", report.to_str().unwrap()]).unwrap();
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
    let seen = status["sampled_total"].as_u64().unwrap();
    assert!(seen > 200 && count("produced") >= seen, "{seen} of this guest, {events}");
    assert_eq!(count("produced"), count("consumed") + count("dropped"), "{events}");
}

#[test]
fn a_guest_that_faults_too_fast_is_sampled_and_its_neighbour_seen_in_full() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let report = host.scratch.path().join("report.json");
    let config = format!("{}\n[tracking]\nvm_events = 10_000\n", host.config("1h"));
    // Started before the agent, and of few pages: from swap they come back in hundreds.
    let pattern = Pattern {
        mem_mib: 4,
        access: Access::HotAndLoop { hot_mib: 0, loop_mib: 1, loop_every_ms: 2000 },
        ..Pattern::default()
    };
    let mut calm = Guest::builder("tt-calm").memory_mib(112).pattern(pattern).start().unwrap();
    calm.wait_ready(Duration::from_secs(120)).unwrap();
    let agent = Agent::start(&config, &["--report", report.to_str().unwrap()]).unwrap();
    vm(&agent, "tt-calm");
    agent.tiering(&["move", "tt-calm", "--to", "nvme"]).unwrap();
    // Filling its memory alone makes tens of thousands of faults.
    let mut fast = guest("tt-fast", Backend::AnonymousSmall);
    std::thread::sleep(Duration::from_secs(3));
    let (calm_seen, fast_seen) = (vm(&agent, "tt-calm"), vm(&agent, "tt-fast"));
    let count = |status: &serde_json::Value, name: &str| status[name].as_u64().unwrap();
    let (seen, sampled) = (count(&fast_seen, "faults_total"), count(&fast_seen, "sampled_total"));
    assert!(seen > 10_000 && sampled < seen, "{sampled} of {seen}");
    let (seen, sampled) = (count(&calm_seen, "faults_total"), count(&calm_seen, "sampled_total"));
    assert!(seen > 200 && sampled == seen, "{sampled} of {seen}");
    assert!(calm.finish().unwrap().checksum_ok, "{}", calm.console().text());
    assert_memory_right(&mut fast);
    drain_and_end(agent, &host);
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    let events = &report["events"];
    assert!(count(events, "seen") > count(events, "produced"), "{events}");
    assert_eq!(count(events, "produced"), count(events, "consumed") + count(events, "dropped"), "{events}");
}

#[test]
fn a_dry_run_touches_nothing_and_says_what_it_would_do() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest("tt-policy", Backend::Anonymous);
    let agent = Agent::start(&host.config("2s"), &["--dry-run"]).unwrap();
    vm(&agent, "tt-policy");
    let told = wait_for("the agent to say what it would move", || {
        agent.log().find(0, |line| line.contains("dry run: would move").then_some(()))
    });
    assert!(told.is_some(), "{}", agent.log().text());

    let status = vm(&agent, "tt-policy");
    assert_eq!(status["demoted_bytes_total"], 0, "{status}");
    assert_eq!(status["tier_bytes"]["nvme"], 0, "{status}");
    assert!(host.scratch.swap_areas().unwrap().is_empty());
    let ended = agent.interrupt().unwrap();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains("idle for "), "{}", ended.log);
    assert_memory_right(&mut guest);
}

#[test]
fn nothing_is_reclaimed_of_the_host_while_a_vm_is_there_that_must_not_be_touched() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let config = host.config("1s").replace("[policy]\n", "[policy]\nreclaim = \"host\"\n");
    let (mut ours, others) = (guest("tt-policy", Backend::Anonymous), guest("excluded", Backend::Anonymous));
    let agent = Agent::start(&config, &[]).unwrap();
    vm(&agent, "tt-policy");
    vm(&agent, "excluded");
    let told = || agent.tiering(&["explain", "tt-policy"]).unwrap();
    let by_agent = wait_for("the agent to choose", || {
        let by_node = Path::new("/sys/devices/system/node/node0/reclaim").exists();
        let why = if by_node { "and must not: excluded by the configuration" } else { "Linux 6.17" };
        let told = told();
        (told.contains("the agent: ") && told.contains(why)).then_some(())
    });
    assert!(by_agent.is_some(), "{}", told());
    let went = wait_for("pages to go down", || {
        (vm(&agent, "tt-policy")["demoted_bytes_total"].as_u64() > Some(16 << 20)).then_some(())
    });
    assert!(went.is_some(), "{}", vm(&agent, "tt-policy"));
    drop(others);
    assert_memory_right(&mut ours);
    drain_and_end(agent, &host);
}

/// The kernel takes memory of everybody on the host.
#[test]
#[ignore = "long: minutes until a guest's memory has gone, and no other guest may run"]
fn the_kernel_reclaims_the_memory_of_a_host_where_the_operator_allows_it() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let config = host.config("2s").replace("[policy]\n", "[policy]\nreclaim = \"host\"\n");
    let mut guest = guest("tt-policy", Backend::Anonymous);
    let agent = Agent::start(&config, &[]).unwrap();
    vm(&agent, "tt-policy");
    let told = agent.tiering(&["explain", "tt-policy"]).unwrap();
    assert!(told.contains("the kernel, of the whole host"), "{told}");
    let freed = wait_for("memory to be free", || {
        (vm(&agent, "tt-policy")["freed_bytes"].as_u64() > Some(32 << 20)).then_some(())
    });
    assert!(freed.is_some(), "{}", vm(&agent, "tt-policy"));
    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
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
    let agent = Agent::start(&host.config("1s"), &[]).unwrap();
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
