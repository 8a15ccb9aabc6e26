//! What leaves memory is on probation first, comes back without a read meanwhile, and becomes free afterwards.

use procfs::process::Process;
use tiering_testkit::agent::Agent;
use tiering_testkit::filled::Filled;
use tiering_testkit::guest::{Backend, Guest};
use tiering_testkit::observe::meminfo;
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::skip::skip_or_fail;

use crate::host::{Host, drain_and_end, no_swap_is_on, vm, wait_for};

const MIB: u64 = 1 << 20;

/// dram, nvme and qlc, and nothing else that an operator would not leave as it is, but for the idle time.
fn config(host: &Host, demote_after: &str) -> String {
    let config = host.config(demote_after);
    let (before, rest) = config.split_once("[policy]").unwrap();
    let (_, rules) = rest.split_once("[[vm]]").unwrap();
    format!("{before}[policy]\ndemote_after = \"{demote_after}\"\n[[vm]]{rules}")
}

fn major_faults(guest: &Guest) -> u64 {
    Process::new(guest.pid().cast_signed()).unwrap().stat().unwrap().majflt
}

#[test]
fn what_a_guest_does_not_use_becomes_free_and_is_right_when_it_comes_back() {
    let Some(()) = skip_or_fail(no_swap_is_on()) else { return };
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let pattern = Pattern { mem_mib: 16, access: Access::Idle, ..Pattern::default() };
    let guest = Guest::builder("tt-cold").memory_mib(128).pattern(pattern).backend(Backend::AnonymousSmall);
    let guest = Filled::new(guest).unwrap();
    let agent = Agent::start(&config(&host, "5s"), &[]).unwrap();
    let status = || vm(&agent, "tt-cold");
    let bytes = |field: &str| status()[field].as_u64().unwrap();
    let on_probation =
        wait_for("copies in memory", || (bytes("swap_cached_bytes") >= 32 * MIB).then_some(()));
    assert!(on_probation.is_some(), "{}", status());
    let free = wait_for("the copies to be freed", || {
        let copies = meminfo("SwapCached").unwrap() >> 20;
        let tiers = status()["tier_bytes"].clone();
        let away: u64 = ["nvme", "qlc"].iter().filter_map(|tier| tiers[*tier].as_u64()).sum::<u64>() / MIB;
        (away >= 120 && copies <= 6 && bytes("swap_cached_bytes") <= 6 * MIB).then_some(())
    });
    let copies = meminfo("SwapCached").unwrap() >> 20;
    assert!(free.is_some(), "{copies} MiB in the swap cache: {}", status());
    assert_eq!(guest.changed_pages(0).unwrap(), 0);
    drain_and_end(agent, &host);
}

#[test]
fn a_guest_whose_memory_is_in_use_hardly_reads_any_of_it_back() {
    let Some(()) = skip_or_fail(no_swap_is_on()) else { return };
    let Some(host) = skip_or_fail(Host::new()) else { return };
    // Once through 24 MiB every ten seconds, where a page that was idle for two seconds may go.
    let mut guest = crate::host::guest("tt-loop", Backend::AnonymousSmall);
    let agent = Agent::start(&config(&host, "2s"), &[]).unwrap();
    vm(&agent, "tt-loop");
    let before = major_faults(&guest);
    let sent = wait_for("the loop to go out and come back", || {
        let returns = vm(&agent, "tt-loop")["ping_pong_pages"].as_u64().unwrap();
        (returns >= 24 * 256).then_some(returns)
    });
    let reads = major_faults(&guest) - before;
    let returns = sent.unwrap_or_else(|| panic!("{}", vm(&agent, "tt-loop")));
    println!("{returns} pages came back, {reads} of them with a read");
    assert!(reads * 8 < returns, "{reads} reads for {returns} pages that came back");
    crate::host::assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}
