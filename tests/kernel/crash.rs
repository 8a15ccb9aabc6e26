//! kill -9 of the agent: the guests go on, and the next agent takes over what is on.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use tiering_testkit::agent::Agent;
use tiering_testkit::guest::{Backend, Guest};
use tiering_testkit::skip::skip_or_fail;

use crate::host::{
    At, Host, area_numbers, assert_memory_right, drain_and_end, guest, no_swap_is_on, pagemap, runs, vm,
    wait_for,
};

#[test]
fn a_new_agent_takes_over_the_swap_files_of_one_that_was_killed_and_loses_nothing() {
    let Some(()) = skip_or_fail(no_swap_is_on()) else { return };
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest("tt-crash", Backend::Anonymous);
    let mut agent = Agent::start(&host.config("1s"), &[]).unwrap();
    let in_swap = wait_for("pages in both swap tiers", || {
        let vm = vm(&agent, "tt-crash");
        let bytes = |tier: &str| vm["tier_bytes"][tier].as_u64().unwrap();
        (bytes("nvme") > 0 && bytes("qlc") > 0).then_some(())
    });
    assert!(in_swap.is_some(), "{}", vm(&agent, "tt-crash"));

    agent.kill9();
    let areas = host.scratch.swap_areas().unwrap();
    assert!(areas.len() >= 2, "{areas:?}");
    assert!(Path::new("/sys/fs/bpf/tiering").exists(), "pins outlive a kill; the next agent replaces them");
    // The guest walks its memory, also what is in swap, without any agent.
    std::thread::sleep(Duration::from_secs(7));
    guest.check_alive().unwrap();

    let agent = Agent::start(&host.config("1s"), &[]).unwrap();
    assert!(agent.log().text().contains("taking over a swap file"), "{}", agent.log().text());
    let mut now = host.scratch.swap_areas().unwrap();
    now.retain(|area| areas.contains(area));
    assert_eq!(now, areas, "the areas that were on stay on");

    // It knows which file is which: what its map says is what pagemap says.
    vm(&agent, "tt-crash");
    guest.stop().unwrap();
    for tier in ["nvme", "qlc", "nvme"] {
        let outcome = agent.tiering(&["move", "tt-crash", "--to", tier, "--json"]).unwrap();
        let areas = area_numbers(&host.scratch.path().join(tier));
        let (mut all, mut there) = (0u64, 0u64);
        for run in runs(&agent, "tt-crash").iter().filter(|run| run["tier"] != "untouched") {
            let found = pagemap(guest.pid(), run["hva"].as_u64().unwrap(), run["pages"].as_u64().unwrap());
            all += found.len() as u64;
            let in_tier = |at: &&At| matches!(at, At::Swap { area, .. } if areas.contains(area));
            there += found.iter().filter(in_tier).count() as u64;
        }
        assert!(all > 0 && there * 100 >= all * 99, "{there} of {all} in {tier}, areas {areas:?}: {outcome}");
    }
    guest.cont().unwrap();

    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}

fn explain(agent: &Agent, args: &[&str]) -> Value {
    let args: Vec<_> = ["explain", "tt-crash", "--json"].iter().chain(args).copied().collect();
    serde_json::from_str(&agent.tiering(&args).unwrap()).unwrap()
}

/// Whether pages of a block of the guest went down and came back soon, by one page in each `step` bytes: it shows of
/// those that are in memory.
fn came_back(agent: &Agent, guest: &Guest, step: usize) -> bool {
    let when = |hva: u64| explain(agent, &["--hva", &format!("{hva:#x}")])["page"]["next"]["when"].clone();
    let mut pages = guest.ram().unwrap().step_by(step);
    pages.any(|hva| when(hva).as_str().unwrap().contains("its block is in use"))
}

#[test]
fn what_was_learned_of_a_guest_outlives_an_agent_that_is_killed() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest("tt-crash", Backend::Anonymous);
    // The guest walks every 10 s, so that pages which go when they are no longer warm, after 4 to 8 s, come back soon.
    let mut agent = Agent::start(&host.config("2s"), &[]).unwrap();
    vm(&agent, "tt-crash");
    // Every half minute it is written down.
    let saved = || agent.status().unwrap()["state_saved_unix_s"].as_u64();
    let mut since = saved();
    let mut some = false;
    let written = wait_for("pages that came back to be written down", || {
        // It shows only for a while: what has just come back is warm, and evidence fades.
        some |= came_back(&agent, &guest, 2 << 20);
        let last = std::mem::replace(&mut since, saved());
        (some && since > last).then_some(())
    });
    assert!(written.is_some(), "{} {}", explain(&agent, &[]), agent.log().text());
    let demoted = vm(&agent, "tt-crash")["demoted_bytes_total"].as_u64().unwrap();
    agent.kill9();

    // With the guest stopped nothing new can be learned of it.
    guest.stop().unwrap();
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    vm(&agent, "tt-crash");
    let before = explain(&agent, &[])["known_before"].clone();
    let number = |field: &str| before[field].as_u64().unwrap();
    println!("{before}, of {demoted} bytes demoted");
    assert!(number("blocks") > 0, "{before}");
    assert!(came_back(&agent, &guest, 128 << 10), "{before}");
    assert!(number("demoted_bytes") > 0 && number("demoted_bytes") <= demoted, "{before} {demoted}");
    assert!(agent.log().text().contains("held when the last agent wrote it down"), "{}", agent.log().text());

    guest.cont().unwrap();
    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}

#[test]
fn a_state_that_cannot_be_used_is_told_once_and_is_no_reason_not_to_run() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let folder = host.scratch.path().join("state");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("state.redb"), "not what it should be").unwrap();
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    let ended = agent.interrupt().unwrap();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    let told: Vec<_> =
        ended.log.lines().filter(|line| line.contains("WARN") && line.contains("store")).collect();
    assert!(told.len() == 1 && told[0].contains("state.redb.broken-1"), "{}", ended.log);
    let aside = std::fs::read_to_string(folder.join("state.redb.broken-1")).unwrap();
    assert_eq!(aside, "not what it should be");

    // A folder in which nothing can be made.
    let config = host.config("1h").replace(folder.to_str().unwrap(), "/proc/tiering-state");
    let agent = Agent::start(&config, &[]).unwrap();
    let ended = agent.interrupt().unwrap();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    let told: Vec<_> =
        ended.log.lines().filter(|line| line.contains("WARN") && line.contains("goes on without")).collect();
    assert_eq!(told.len(), 1, "{}", ended.log);
}
