//! What a follower saves when a leader of its tenant has walked the same pages a little earlier.
//!
//! Two emulated guests on this machine. Before each walk all of both is in the nvme tier's swap file and nowhere else, the swap
//! cache being empty. The leader starts to walk, and after the lag the follower. By turns in each repeat: an agent that stages
//! nothing, with the kernel's swap readahead at page-cluster 0, 3 and 5, and an agent that does, with page-cluster 3, the
//! kernel's default, newly started and without its state, so that it knows nothing of earlier walks; or, where that is said, one
//! that saw both walk twice, each time in another order. The best of the three is what it is compared with.
//!
//! *Stall* is what the first accesses of the walk took beyond what they take in DRAM.

use crate::group::Group;
use crate::host::{self, Host};
use anyhow::{Context, Result, ensure};
use procfs::process::Process;
use serde_json::Value;
use std::path::Path;
use std::time::Duration;
use tiering_tests::agent::Agent;
use tiering_tests::guest::{Backend, Guest};
use tiering_tests::pattern::{Access, Pattern, PhaseResult};
use tiering_tests::repeats::Repeats;
use tiering_tests::results::Results;

/// Few enough that the leader, which waits for the disk as well, is through in a quarter of a second.
const SET_MIB: usize = 8;
/// Followers of less overlap walk pages of their own behind the set.
const MEM_MIB: usize = 2 * SET_MIB;
const LEADER: &str = "tt-leader";
const FOLLOWER: &str = "tt-follower";
const LIMIT: Duration = Duration::from_secs(120);
/// What an agent knows is in its status after this time.
const PUBLISHED: Duration = Duration::from_millis(1500);
/// Of the walks that the agent saw before.
const KNOWN_LAG: Duration = Duration::from_millis(500);
const PAGE_CLUSTERS: [&str; 3] = ["0", "3", "5"];

/// What both walk, and the lags after which the follower begins, ms.
struct Case {
    name: &'static str,
    access: Access,
    follower: Access,
    lags_ms: &'static [u64],
    /// Walks that the agent saw before.
    seen: u32,
}

fn follow(overlap_percent: u64) -> Access {
    Access::Follow { set_mib: SET_MIB, order_seed: 5, overlap_percent }
}

fn cases(quick: bool) -> Vec<Case> {
    let same = |name, access| Case { name, access, follower: access, lags_ms: &[1000], seen: 0 };
    let overlap = |name, percent| Case { follower: follow(percent), ..same(name, follow(100)) };
    let lags_ms: &[u64] = if quick { &[250] } else { &[0, 50, 250, 1000, 5000] };
    let mut cases = vec![
        Case { lags_ms, ..same("random", follow(100)) },
        Case { lags_ms, seen: 2, ..same("random, known pair", follow(100)) },
        same("stride", Access::Stride { set_mib: SET_MIB, stride_pages: 16 }),
        same("sequential", Access::Sequential { set_mib: SET_MIB }),
        overlap("random, 50 % overlap", 50),
    ];
    if !quick {
        cases.push(overlap("random, 90 % overlap", 90));
        cases.push(overlap("random, 70 % overlap", 70));
    }
    cases
}

pub fn measure(results: &mut Results, quick: bool) -> Result<()> {
    let host = Host::new()?;
    let readahead = Readahead::keep()?;
    let repeats = if quick { 2 } else { 5 };
    for case in cases(quick) {
        let mut pair = Pair::start(&case)?;
        let in_dram = pair.walk(Duration::from_secs(1))?.follower;
        for lag_ms in case.lags_ms {
            let lag = Duration::from_millis(*lag_ms);
            let mut rounds = Vec::new();
            for _ in 0..repeats {
                let agent = host.agent(false)?;
                let mut kernel = Vec::new();
                for cluster in PAGE_CLUSTERS {
                    readahead.set(cluster)?;
                    pair.send_down(&agent)?;
                    kernel.push(pair.walk(lag)?);
                }
                agent.interrupt()?;
                readahead.set("3")?;
                let agent = host.agent(true)?;
                for _ in 0..case.seen {
                    pair.send_down(&agent)?;
                    pair.walk(KNOWN_LAG)?;
                }
                std::thread::sleep(PUBLISHED);
                let before = Staged::of(&agent)?;
                pair.send_down(&agent)?;
                let ours = pair.walk(lag)?;
                std::thread::sleep(PUBLISHED);
                let staged = Staged::of(&agent)?.since(&before);
                if std::env::var_os("TIERING_BENCH_VERBOSE").is_some() {
                    println!("{}", agent.tiering(&["vm", "show", FOLLOWER])?);
                }
                agent.interrupt()?;
                rounds.push(Round { kernel, ours, staged });
            }
            show(results, &format!("{}, lag {lag_ms} ms", case.name), &in_dram, &rounds);
        }
        pair.finish(results)?;
    }
    Ok(())
}

/// One repeat.
struct Round {
    /// By page-cluster.
    kernel: Vec<Walk>,
    ours: Walk,
    staged: Staged,
}

struct Walk {
    follower: PhaseResult,
    major_faults: u64,
}

impl Walk {
    fn stall_ns(&self, in_dram: &PhaseResult) -> f64 {
        (first_accesses_ns(&self.follower) - first_accesses_ns(in_dram)).max(0.0)
    }

    fn time_ns(&self) -> f64 {
        (self.follower.end_ns - self.follower.start_ns) as f64
    }
}

/// A bucket counts as its largest value, the same for all.
fn first_accesses_ns(phase: &PhaseResult) -> f64 {
    phase.latency.iter().map(|(ns, touches)| *ns as f64 * *touches as f64).sum()
}

/// What the agent tells of the stages of the follower, pages.
struct Staged {
    issued: f64,
    used: f64,
    late: f64,
    /// From the leader's touch until it was asked for, p50 and p99, ms.
    delay_ms: [f64; 2],
}

impl Staged {
    fn of(agent: &Agent) -> Result<Self> {
        let status = agent.status()?;
        let vms = status["vms"].as_array().context("a status without VMs")?;
        let vm = vms.iter().find(|vm| vm["name"] == FOLLOWER).context("the follower is not known")?;
        let number = |value: &Value| value.as_f64().context("a count that is no number");
        let prefetch = &vm["prefetch"];
        Ok(Self {
            issued: number(&prefetch["issued_pages"])?,
            used: number(&prefetch["used_pages"])?,
            late: number(&prefetch["late_pages"])?,
            delay_ms: ["p50", "p99"]
                .map(|part| prefetch["delay_ns"][part].as_f64().unwrap_or(f64::NAN) / 1e6),
        })
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            issued: self.issued - before.issued,
            used: self.used - before.used,
            late: self.late - before.late,
            delay_ms: self.delay_ms,
        }
    }
}

/// The two guests, each in a memory control group.
struct Pair {
    leader: Member,
    follower: Member,
    walks: u64,
}

struct Member {
    guest: Guest,
    group: Group,
}

impl Member {
    fn start(name: &str, seed: u64, access: Access, reorder: bool) -> Result<Self> {
        let pattern = Pattern {
            seed,
            mem_mib: MEM_MIB,
            write_one_in: 0,
            rounds_on_command: true,
            reorder,
            access,
            ..Pattern::default()
        };
        let builder = Guest::builder(name).memory_mib(160).backend(Backend::AnonymousSmall);
        let mut guest = builder.pattern(pattern).start()?;
        let group = Group::of(name, guest.pid())?;
        guest.wait_ready(LIMIT)?;
        Ok(Self { guest, group })
    }

    fn major_faults(&self) -> Result<u64> {
        Ok(Process::new(i32::try_from(self.guest.pid())?)?.stat()?.majflt)
    }
}

impl Pair {
    fn start(case: &Case) -> Result<Self> {
        // Where a walk follows from the seed, equal seeds make equal pages; where it has a seed of its own, the set's do.
        let own = matches!(case.access, Access::Follow { .. });
        let leader = Member::start(LEADER, 1, case.access, case.seen > 0)?;
        let follower = Member::start(FOLLOWER, if own { 2 } else { 1 }, case.follower, case.seen > 0)?;
        Ok(Self { leader, follower, walks: 0 })
    }

    /// All of both into the nvme tier, and out of memory.
    fn send_down(&self, agent: &Agent) -> Result<()> {
        for member in [&self.leader, &self.follower] {
            host::known_name(agent, member.guest.name())?;
            let outcome = agent.tiering(&["move", member.guest.name(), "--to", "nvme", "--json"])?;
            let outcome: Value = serde_json::from_str(&outcome)?;
            let pages = |what: &str| outcome[what].as_u64().unwrap_or(0);
            ensure!(pages("in_tier_pages") * 20 >= pages("asked_pages") * 19, "too much stayed: {outcome}");
        }
        host::disk_at_rest()?;
        for member in [&self.leader, &self.follower] {
            member.group.free_swap_cache()?;
        }
        Ok(())
    }

    fn walk(&mut self, lag: Duration) -> Result<Walk> {
        self.walks += 1;
        self.leader.guest.go()?;
        std::thread::sleep(lag);
        let before = self.follower.major_faults()?;
        self.follower.guest.go()?;
        let follower = self.follower.guest.wait_phase(self.walks, LIMIT)?;
        let major_faults = self.follower.major_faults()? - before;
        self.leader.guest.wait_phase(self.walks, LIMIT)?;
        Ok(Walk { follower, major_faults })
    }

    fn finish(mut self, results: &mut Results) -> Result<()> {
        for member in [&mut self.leader, &mut self.follower] {
            let right = member.guest.finish()?.checksum_ok;
            results.check(&format!("{}: memory right", member.guest.name()), right, "true", right);
        }
        Ok(())
    }
}

fn show(results: &mut Results, name: &str, in_dram: &PhaseResult, rounds: &[Round]) {
    let row = |results: &mut Results, what: &str, each: &dyn Fn(&Round) -> f64, target: Option<f64>| {
        let values: Vec<f64> = rounds.iter().map(each).collect();
        let Some(repeats) = Repeats::of(&values) else { return 0.0 };
        let what = format!("{name}: {what}");
        match target {
            Some(target) => results.figure(&what, repeats, &format!("{target}"), repeats.median >= target),
            None => results.note(&what, repeats),
        }
        repeats.median
    };
    let best = |round: &Round, of: &dyn Fn(&Walk) -> f64| {
        round.kernel.iter().map(of).min_by(f64::total_cmp).unwrap_or(f64::NAN)
    };
    let stall = |walk: &Walk| walk.stall_ns(in_dram);
    let dram_ms = (in_dram.end_ns - in_dram.start_ns) as f64 / 1e6;
    let of_touches = |pages: f64| pages / in_dram.touches.max(1) as f64 * 100.0;
    results.note(&format!("{name}: in DRAM, ms"), format!("{dram_ms:.0}"));
    row(results, "kernel's best, ms", &|round| best(round, &Walk::time_ns) / 1e6, None);
    row(results, "agent, ms", &|round| round.ours.time_ns() / 1e6, None);
    let faster = row(
        results,
        "times as fast as the kernel",
        &|round| best(round, &Walk::time_ns) / round.ours.time_ns(),
        Some(3.7),
    );
    let target = if name.starts_with("sequential") { 60.0 } else { 90.0 };
    let target = (!name.contains("overlap")).then_some(target);
    let avoided = row(
        results,
        "stall avoided, %",
        &|round| (1.0 - stall(&round.ours) / best(round, &stall)) * 100.0,
        target,
    );
    row(
        results,
        "major faults, kernel, % of the touches",
        &|round| of_touches(best(round, &|walk| walk.major_faults as f64)),
        None,
    );
    row(
        results,
        "major faults, agent, % of the touches",
        &|round| of_touches(round.ours.major_faults as f64),
        None,
    );
    let share = |part: f64, whole: f64| part / whole.max(1.0) * 100.0;
    row(results, "accuracy, %", &|round| share(round.staged.used, round.staged.issued), Some(95.0));
    let covered =
        |round: &Round| share(round.staged.used, round.staged.used + round.ours.major_faults as f64);
    row(results, "coverage, %", &covered, Some(90.0));
    let in_time = |round: &Round| share(round.staged.used - round.staged.late, round.staged.used);
    row(results, "in time, % of what was used", &in_time, Some(95.0));
    row(results, "from the leader's touch to the stage, p50, ms", &|round| round.staged.delay_ms[0], None);
    row(results, "from the leader's touch to the stage, p99, ms", &|round| round.staged.delay_ms[1], None);
    results.headline(format!("{name}: {avoided:.0} % of the stall avoided, {faster:.1} x"));
}

/// The kernel's swap readahead; set back when dropped.
struct Readahead {
    before: String,
}

const PAGE_CLUSTER: &str = "/proc/sys/vm/page-cluster";

impl Readahead {
    fn keep() -> Result<Self> {
        Ok(Self { before: std::fs::read_to_string(PAGE_CLUSTER).context(PAGE_CLUSTER)? })
    }

    /// 2 to the power of this many pages.
    fn set(&self, cluster: &str) -> Result<()> {
        std::fs::write(Path::new(PAGE_CLUSTER), cluster).context(PAGE_CLUSTER)
    }
}

impl Drop for Readahead {
    fn drop(&mut self) {
        std::fs::write(PAGE_CLUSTER, &self.before).ok();
    }
}
