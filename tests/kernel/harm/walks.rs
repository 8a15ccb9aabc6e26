//! Reading a guest's page tables does not keep the guest waiting, and those of guests that are never moved are not
//! read.

use std::path::Path;
use std::time::{Duration, Instant};

use tiering_testkit::agent::Agent;
use tiering_testkit::guest::Backend;
use tiering_testkit::skip::skip_or_fail;
use tiering_testkit::stand_in::StandIn;

use crate::host::{Host, drain_and_end, guest, runs, vm, wait_for};

const MEMORY_MIB: u32 = 4096;
/// Time in which waits are measured; the guest is swept again and again meanwhile.
const WINDOW: Duration = Duration::from_secs(3);
/// Of so many windows the quietest counts: on a virtual machine the processor itself is away now and then.
const WINDOWS: usize = 5;
/// A sweep keeps the guest waiting at most this share of what a reader of all its page tables in one go does: 1 / 4.
const DIVISOR: u32 = 4;

/// The longest wait of the guest's thread in the quietest window.
fn longest_wait(guest: &mut StandIn, what: &str, meanwhile: impl Fn()) -> Duration {
    let windows = (0..WINDOWS).map(|_| {
        guest.begin_to_map(WINDOW).unwrap();
        let (began, mut times) = (Instant::now(), 0);
        while began.elapsed() < WINDOW {
            meanwhile();
            times += 1;
        }
        let waits = guest.waits().unwrap();
        println!("{what} {times} times: the longest of {} waits {:?}", waits.rounds, waits.longest);
        waits.longest
    });
    windows.min().unwrap()
}

#[test]
fn a_sweep_does_not_keep_a_guest_of_4_gib_waiting_as_a_reader_in_one_go_does() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let program = Path::new(env!("CARGO_BIN_EXE_tiering-stand-in"));
    let mut guest = StandIn::start(program, host.scratch.path(), "tt-walks", MEMORY_MIB).unwrap();
    let smaps = format!("/proc/{}/smaps", guest.pid());
    let in_one_go = longest_wait(&mut guest, "read in one go", || drop(std::fs::read(&smaps).unwrap()));

    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    vm(&agent, "tt-walks");
    // Some of it in swap, which is read page by page.
    let start = guest.ram().start;
    let part = |mib: u64| format!("{start:#x}..{:#x}", start + (mib << 20));
    agent.tiering(&["move", "tt-walks", "--to", "nvme", "--hva", &part(256)]).unwrap();
    // Each map is that of a sweep of the whole guest, which began after it was asked for.
    let sweep = || drop(agent.tiering(&["map", "tt-walks", "--json", "--hva", &part(1)]).unwrap());
    let swept = longest_wait(&mut guest, "swept", sweep);
    assert!(swept < in_one_go / DIVISOR, "{swept:?}, and {in_one_go:?} in one go");
    drop(guest);
    drain_and_end(agent, &host);
}

/// How often page tables were read of a guest in which nothing happens, by the idle time of pages that a sweep found:
/// known or not.
#[test]
fn a_guest_that_is_only_watched_is_not_swept_before_an_operator_asks() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let guest = guest("excluded", Backend::Anonymous);
    guest.stop().unwrap();
    let agent = Agent::start(&host.config("1s"), &[]).unwrap();
    let swept = || vm(&agent, "excluded")["page_tables_read"].clone();
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(swept(), false);
    let status = vm(&agent, "excluded");
    assert!(status["tier_bytes"]["dram"].as_u64() > Some(64 << 20), "what its process holds: {status}");
    let in_memory = |runs: &[serde_json::Value]| {
        runs.iter().filter(|run| run["tier"] == "dram").filter_map(|run| run["pages"].as_u64()).sum::<u64>()
    };
    assert!(in_memory(&runs(&agent, "excluded")) > 64 * 256);
    let told = wait_for("the status to say so", || (swept() == true).then_some(()));
    assert!(told.is_some());
    drain_and_end(agent, &host);
}
