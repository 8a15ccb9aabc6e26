//! What the kernel reclaims on its own, while the agent is at rest, goes to the fastest swap tier.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tiering_testkit::agent::Agent;
use tiering_testkit::guest::Backend;
use tiering_testkit::skip::{Skip, skip_or_fail};

use crate::bpftool::dump;
use crate::host::{
    At, Host, PAGE, area_numbers, assert_memory_right, drain_and_end, guest, no_swap_is_on, pagemap, vm,
};

const LIMIT_BYTES: usize = 48 << 20;
const MEMORY_BYTES: usize = 128 << 20;

/// A memory cgroup with a limit, which this process is in until it is dropped.
struct Limited {
    group: PathBuf,
    parent: PathBuf,
}

impl Limited {
    fn enter() -> Result<Self, Skip> {
        let v1 = PathBuf::from("/sys/fs/cgroup/memory");
        let (parent, limit) = if v1.join("memory.limit_in_bytes").exists() {
            (v1, "memory.limit_in_bytes")
        } else {
            let v2 = PathBuf::from("/sys/fs/cgroup");
            fs::write(v2.join("cgroup.subtree_control"), "+memory")
                .map_err(|error| Skip(format!("no memory cgroup to be had: {error}")))?;
            (v2, "memory.max")
        };
        let group = parent.join("tiering-test-reclaim");
        fs::create_dir_all(&group).map_err(|error| Skip(format!("{}: {error}", group.display())))?;
        fs::write(group.join(limit), LIMIT_BYTES.to_string()).unwrap();
        fs::write(group.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        Ok(Self { group, parent })
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        fs::write(self.parent.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        fs::remove_dir(&self.group).unwrap();
    }
}

/// Has the kernel reclaim memory of this process. Where each page is then.
fn reclaimed() -> Result<Vec<At>, Skip> {
    let _limited = Limited::enter()?;
    let mut memory = vec![0u64; MEMORY_BYTES / 8];
    for (value, word) in (1u64..).zip(&mut memory) {
        *word = value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    Ok(pagemap(std::process::id(), memory.as_ptr() as u64, MEMORY_BYTES as u64 / PAGE))
}

/// How many of these are in swap; at least 99 of 100 must be in the fastest tier.
fn assert_in_fastest(host: &Host, found: &[At]) -> usize {
    let in_tier = |tier: &str| {
        let areas = area_numbers(&host.scratch.path().join(tier));
        found.iter().filter(|at| matches!(at, At::Swap { area, .. } if areas.contains(area))).count()
    };
    let swapped = found.iter().filter(|at| matches!(at, At::Swap { .. })).count();
    let (nvme, qlc) = (in_tier("nvme"), in_tier("qlc"));
    println!("{swapped} pages reclaimed by the kernel: {nvme} to nvme, {qlc} to qlc");
    assert!(swapped * PAGE as usize > MEMORY_BYTES / 2, "{swapped} pages reclaimed");
    assert!(nvme * 100 >= swapped * 99, "{nvme} of {swapped} to nvme, {qlc} to qlc");
    swapped
}

#[test]
fn the_kernels_own_reclaim_goes_to_the_fastest_swap_tier() {
    let Some(()) = skip_or_fail(no_swap_is_on()) else { return };
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest("tt-reclaim", Backend::Anonymous);
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    vm(&agent, "tt-reclaim");
    // Both tiers hold pages, and the lower one has free slots.
    agent.tiering(&["move", "tt-reclaim", "--to", "qlc"]).unwrap();
    let Some(found) = skip_or_fail(reclaimed()) else { return };
    let swapped = assert_in_fastest(&host, &found);

    // It was seen, and told from what the agent did.
    std::thread::sleep(Duration::from_secs(2));
    let status = agent.status().unwrap();
    let bytes = |by: &str, what: &str| status[by][what].as_u64().unwrap();
    let reclaimed = bytes("moved_by_others", "reclaimed_bytes_total");
    assert!(reclaimed * 2 > swapped as u64 * PAGE, "{status}");
    let shown = dump("tier_kernel")[0]["values"].clone();
    let cpus = shown.as_array().unwrap().iter();
    let pages: u64 = cpus.map(|cpu| cpu["value"]["reclaimed"].as_u64().unwrap()).sum();
    assert_eq!(pages * PAGE, reclaimed, "{shown}");
    assert_eq!(bytes("moved_by_agent", "reclaimed_bytes_total"), 0, "{status}");
    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}

#[test]
fn so_it_does_when_the_agent_was_killed_while_it_filled_a_lower_tier() {
    let Some(()) = skip_or_fail(no_swap_is_on()) else { return };
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest("tt-reclaim", Backend::Anonymous);
    let mut agent = Agent::start(&host.config("1h"), &[]).unwrap();
    vm(&agent, "tt-reclaim");
    std::thread::scope(|scope| {
        scope.spawn(|| agent.tiering(&["move", "tt-reclaim", "--to", "qlc"]).unwrap_err());
        std::thread::sleep(Duration::from_millis(300));
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(agent.pid().cast_signed()),
            nix::sys::signal::SIGKILL,
        )
        .unwrap();
    });
    agent.kill9();
    let Some(found) = skip_or_fail(reclaimed()) else { return };
    assert_in_fastest(&host, &found);
    drop(found);
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}
