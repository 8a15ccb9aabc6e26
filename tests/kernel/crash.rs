//! kill -9 of the agent: the guests go on, and the next agent takes over what is on.

use std::path::Path;
use std::time::Duration;

use tiering_tests::agent::Agent;
use tiering_tests::guest::Backend;
use tiering_tests::skip::skip_or_fail;

use crate::host::{
    At, Host, area_numbers, assert_memory_right, drain_and_end, guest, no_swap_is_on, pagemap, runs, vm,
    wait_for,
};

#[test]
fn a_new_agent_takes_over_the_swap_files_of_one_that_was_killed_and_loses_nothing() {
    let Some(()) = skip_or_fail(no_swap_is_on()) else { return };
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest("tt-crash", Backend::Anonymous);
    let mut agent = Agent::start(&host.config("2s"), &[]).unwrap();
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

    let agent = Agent::start(&host.config("2s"), &[]).unwrap();
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
