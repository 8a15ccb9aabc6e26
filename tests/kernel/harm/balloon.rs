//! What a guest has given back stays given back: nothing that the agent does brings it into existence again.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};
use serde_json::Value;
use tiering_testkit::agent::Agent;
use tiering_testkit::filled::Filled;
use tiering_testkit::guest::{Backend, Guest};
use tiering_testkit::observe::{At, PAGE, pagemap};
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::skip::skip_or_fail;
use tiering_testkit::stand_in::StandIn;

use crate::host::{Host, drain_and_end, vm};

const MEMORY_MIB: u32 = 128;
/// What is given back: from the second quarter of the RAM on.
const FIRST: u64 = 16 << 20;
const BYTES: u64 = 16 << 20;

fn move_to(agent: &Agent, name: &str, tier: &str) -> Value {
    let outcome = agent.tiering(&["move", name, "--to", tier, "--json"]).unwrap();
    serde_json::from_str(&outcome).unwrap()
}

/// The file behind the mapping of a guest's RAM, open for writing.
fn file_of(guest: &Filled) -> File {
    let ram = guest.ram();
    let path = format!("/proc/{}/map_files/{:x}-{:x}", guest.guest().pid(), ram.start, ram.end);
    File::options().read(true).write(true).open(path).unwrap()
}

#[test]
fn shared_memory_that_a_balloon_has_given_back_does_not_come_back_with_a_move() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    // Room for its kernel beside the initramfs: a guest that panics ends.
    let pattern = Pattern { mem_mib: 16, access: Access::Idle, ..Pattern::default() };
    let guest = Guest::builder("tt-balloon").memory_mib(MEMORY_MIB).pattern(pattern).backend(Backend::Memfd);
    let guest = Filled::new(guest).unwrap();
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    let before = vm(&agent, "tt-balloon");
    assert_eq!(before["free_page_reporting"], false, "{before}");
    move_to(&agent, "tt-balloon", "nvme");

    // As QEMU's balloon does (`ram_block_discard_range` in softmmu/physmem.c, QEMU 7.2).
    let file = file_of(&guest);
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, hole, i64::try_from(FIRST).unwrap(), i64::try_from(BYTES).unwrap()).unwrap();
    let left = file.metadata().unwrap().blocks() * 512;
    assert_eq!(left, u64::from(MEMORY_MIB) * (1 << 20) - BYTES);

    for tier in ["qlc", "dram", "nvme", "dram"] {
        let outcome = move_to(&agent, "tt-balloon", tier);
        let now = file.metadata().unwrap().blocks() * 512;
        assert!(now <= left, "{} bytes came into existence on the way to {tier}: {outcome}", now - left);
    }
    let after = vm(&agent, "tt-balloon");
    assert!(after["untouched_bytes"].as_u64() >= Some(BYTES), "{after}");
    let given_back = guest.ram().start + FIRST..guest.ram().start + FIRST + BYTES;
    let rest = || guest.pages().filter(|hva| !given_back.contains(hva));
    assert_eq!(rest().filter(|hva| !guest.page_is_right(*hva, 0).unwrap()).count(), 0);
    drop((file, guest));
    drain_and_end(agent, &host);
}

#[test]
fn private_memory_that_a_balloon_has_given_back_does_not_come_back_with_a_move() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let program = Path::new(env!("CARGO_BIN_EXE_tiering-stand-in"));
    let mut guest = StandIn::start(program, host.scratch.path(), "tt-balloon", MEMORY_MIB).unwrap();
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    vm(&agent, "tt-balloon");
    move_to(&agent, "tt-balloon", "nvme");
    guest.give_back(&(FIRST..FIRST + BYTES)).unwrap();
    for tier in ["qlc", "dram"] {
        let outcome = move_to(&agent, "tt-balloon", tier);
        let pages = pagemap(guest.pid(), guest.ram().start + FIRST, BYTES / PAGE).unwrap();
        let there = pages.iter().filter(|at| **at != At::Nowhere).count();
        assert_eq!(there, 0, "of {} pages, on the way to {tier}: {outcome}", pages.len());
    }
    assert!(vm(&agent, "tt-balloon")["untouched_bytes"].as_u64() >= Some(BYTES));
    drop(guest);
    drain_and_end(agent, &host);
}
