//! The heart of it, thin: what one guest touches, another one of its tenant, which will need the same, has staged.
//!
//! Leader and follower walk the same pages in the same order, the follower when the leader is done: on one emulated
//! processor it would overtake a leader that waits for the disk. Before each walk all of both is on the NVMe disk and
//! nowhere else. Side by side: how long the follower's first touches took and how many of its faults had to wait for
//! the disk; with the agent, and without it for three settings of the kernel's readahead.
//!
//! Times are those of a guest in an emulated host: only their ratios say something.

use std::path::PathBuf;

use anyhow::{Context, Result};
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::{Backend, Guest};
use tiering_testkit::observe::meminfo;
use tiering_testkit::pattern::{Access, Pattern, PhaseResult};
use tiering_testkit::results::Results;

use crate::host::{BOOT, Host, Memcg, STATE_DIR, known_vm, kvm_guest, number, vm, wait_for};
use crate::scenario::Scenario;

const LEADER: &str = "tt-leader";
const FOLLOWER: &str = "tt-follower";
/// Few enough that the leader is done, also on a slow machine, before what is staged for the follower is dropped (10
/// s).
const SET_MIB: usize = 2;
const PACE: u64 = 250;
/// Walks with the agent, at most.
const WALKS: u32 = 3;

fn pattern(seed: u64) -> Pattern {
    Pattern {
        seed,
        mem_mib: 2 * SET_MIB,
        write_one_in: 0,
        touches_per_s: PACE,
        rounds_on_command: true,
        access: Access::Follow { set_mib: SET_MIB, order_seed: 5, overlap_percent: 100 },
        ..Pattern::default()
    }
}

/// A guest in a memory control group of its own, which counts its faults.
struct Member {
    guest: Guest,
    memcg: Memcg,
    rounds: u64,
}

impl Member {
    fn start(name: &str, seed: u64) -> Result<Self> {
        let mut guest = kvm_guest(name, Backend::Anonymous).memory_mib(112).pattern(pattern(seed)).start()?;
        let memcg = Memcg::of(name, guest.pid())?;
        guest.wait_ready(BOOT)?;
        Ok(Self { guest, memcg, rounds: 0 })
    }

    /// Begins to walk; its major faults until now.
    fn begin(&mut self) -> Result<u64> {
        self.rounds += 1;
        self.guest.go()?;
        self.memcg.major_faults()
    }

    fn end(&mut self, before: u64) -> Result<Walk> {
        let phase = self.guest.wait_phase(self.rounds, BOOT)?;
        Ok(Walk { phase, major_faults: self.memcg.major_faults()? - before })
    }
}

/// Both walk, one after the other; what the leader and the follower found.
fn walk(leader: &mut Member, follower: &mut Member) -> Result<(Walk, Walk)> {
    let before = leader.begin()?;
    let lead = leader.end(before)?;
    let before = follower.begin()?;
    Ok((lead, follower.end(before)?))
}

struct Walk {
    phase: PhaseResult,
    major_faults: u64,
}

impl std::fmt::Display for Walk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let PhaseResult { p50, p99, max, .. } = &self.phase;
        let us = |ns: &u64| ns / 1000;
        write!(
            f,
            "p50 {:>5} us  p99 {:>6} us  max {:>6} us  {:>5} major faults",
            us(p50),
            us(p99),
            us(max),
            self.major_faults
        )
    }
}

/// All of both guests to the disk, and out of the kernel's cache of it.
fn push_down(agent: &Agent, members: &[&Member]) -> Result<()> {
    for member in members {
        let outcome = agent.tiering(&["move", member.guest.name(), "--to", "nvme"])?;
        print!("{outcome}");
    }
    wait_for("the swap cache to be empty", || {
        for member in members {
            member.memcg.reclaim(32 << 20);
        }
        let cached = meminfo("SwapCached")?;
        Ok((cached < 256 << 10).then_some(()))
    })
}

fn leader_and_follower(results: &mut Results) -> Result<()> {
    let host = Host::new()?;
    let (mut leader, mut follower) = (Member::start(LEADER, 1)?, Member::start(FOLLOWER, 2)?);
    let pages = pattern(2).round_len();
    results.note("pages that both walk, in the same order", pages);

    let page_cluster = PathBuf::from("/proc/sys/vm/page-cluster");
    let mut best = None;
    let quiet = host.config("1h") + "[prefetch]\nenabled = false\n";
    let agent = Agent::start(&quiet, &[])?;
    for member in [&leader, &follower] {
        known_vm(&agent, member.guest.name())?;
    }
    for cluster in ["0", "3", "5"] {
        std::fs::write(&page_cluster, cluster)?;
        push_down(&agent, &[&leader, &follower])?;
        let (_, walk) = walk(&mut leader, &mut follower)?;
        results.note(&format!("follower without, page-cluster {cluster}"), &walk);
        best = best.into_iter().chain([walk.major_faults]).min();
    }
    agent.interrupt()?;

    // The kernel's default again, and an agent that knows nothing of the walks until now.
    std::fs::write(&page_cluster, "3")?;
    std::fs::remove_dir_all(STATE_DIR)?;
    let agent = Agent::start(&host.config("1h"), &[])?;
    for member in [&leader, &follower] {
        known_vm(&agent, member.guest.name())?;
    }
    let (mut last, mut status);
    let mut walks = 0;
    // On a slow host the follower may touch all of it before it is mapped, at first.
    loop {
        push_down(&agent, &[&leader, &follower])?;
        let (lead, walk) = walk(&mut leader, &mut follower)?;
        results.note("leader", &lead);
        results.note("follower with the agent, page-cluster 3", &walk);
        last = walk;
        status = vm(&agent, FOLLOWER)?.context("the follower is gone")?;
        walks += 1;
        if number(&status["prefetch"]["mapped_pages"]) > 0 || walks == WALKS {
            break;
        }
    }
    println!("{status:#}\n{}", agent.log().tail());
    let prefetch = &status["prefetch"];
    results.note("staged for the follower", prefetch);
    let (issued, used) = (number(&prefetch["issued_pages"]), number(&prefetch["used_pages"]));
    results.check(
        "staged for the follower, pages",
        issued,
        &format!("at least {}", pages / 2),
        issued >= pages / 2,
    );
    results.check("of these used", used, &format!("at least {}", issued / 2), used >= issued / 2);
    let origins = prefetch["origins"].as_array().context("no origins")?;
    let pulled =
        origins.iter().filter(|origin| origin["way"] == "followed" && origin["leader"] != status["id"]);
    let pulled: u64 = pulled.map(|origin| number(&origin["used_pages"])).sum();
    results.check("of these used after the leader's tape", pulled, "more than 0", pulled > 0);
    // They still show when they are touched: else not nearly all would be among the used ones.
    let mapped = number(&prefetch["mapped_pages"]);
    results.check("mapped before they were touched", mapped, "more than 0", mapped > 0);
    results.note("from a touch of the leader until it is asked for, ns", &prefetch["delay_ns"]);
    results.note("until it is mapped, ns", &prefetch["mapping_delay_ns"]);
    let best = best.unwrap_or(0);
    let fewer = last.major_faults < best;
    results.check(
        "follower's major faults",
        last.major_faults,
        &format!("fewer than the kernel's best, {best}"),
        fewer,
    );

    for member in [&mut leader, &mut follower] {
        let right = member.guest.finish()?.checksum_ok;
        results.check(&format!("{}: memory right", member.guest.name()), right, "true", right);
    }
    Ok(())
}

#[test]
fn what_the_leader_touches_is_staged_for_the_follower() {
    Scenario::default()
        .run("leader_follower::what_the_leader_touches_is_staged_for_the_follower", leader_and_follower);
}
