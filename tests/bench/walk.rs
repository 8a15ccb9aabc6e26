//! What the parts of `cargo xtask bench prefetch` have in common: guests that walk when they are told to, the way down
//! of all that they have, the kernel's readahead, and the table of what it took with and without the agent.
//!
//! *Stall* is what the first accesses of the walk took beyond what they take in DRAM.

use crate::group::Group;
use crate::host;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::ops::Range;
use std::time::Duration;
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::{Backend, Builder, Guest};
use tiering_testkit::pattern::{Access, Pattern, PhaseResult};
use tiering_testkit::program::Progress;
use tiering_testkit::repeats::Repeats;
use tiering_testkit::results::Results;
use tiering_testkit::stop;

/// Few enough that a leader, which waits for the disk as well, is through in a quarter of a second.
pub const SET_MIB: usize = 8;
/// Followers of less overlap walk pages of their own behind the set.
const MEM_MIB: usize = 2 * SET_MIB;
const LIMIT: Duration = Duration::from_secs(120);
/// Programs make their data meanwhile.
const BOOT: Duration = Duration::from_secs(240);
/// What an agent knows is in its status after this time.
const PUBLISHED: Duration = Duration::from_millis(1500);
/// Settings of the kernel's readahead; the best of them is what the agent is compared with.
pub const PAGE_CLUSTERS: [&str; 3] = ["0", "3", "5"];
pub const DEFAULT_PAGE_CLUSTER: &str = "3";

/// The pages of the set in random order, of which the walk shares so many.
pub fn follow(overlap_percent: u64) -> Access {
    Access::Follow { set_mib: SET_MIB, order_seed: 5, overlap_percent }
}

/// One repeat.
pub struct Round {
    /// By page-cluster.
    pub kernel: Vec<Walk>,
    pub ours: Walk,
    pub staged: Staged,
}

/// One walk of one guest.
#[derive(Clone)]
pub struct Walk {
    pub phase: PhaseResult,
    pub major_faults: u64,
}

impl Walk {
    pub fn stall_ns(&self, in_dram: &PhaseResult) -> f64 {
        (self.phase.first_accesses_ns() - in_dram.first_accesses_ns()).max(0.0)
    }

    pub fn time_ns(&self) -> f64 {
        (self.phase.end_ns - self.phase.start_ns) as f64
    }
}

/// What the agent tells of the stages of a guest, pages.
pub struct Staged {
    used: f64,
    late: f64,
    /// Share that was used of all that the agent ever staged for it, %: what is open at the end counts as not used.
    accuracy: f64,
    /// From another guest's touch until the stage was asked for, p50 and p99, ms.
    delay_ms: [f64; 2],
}

impl Staged {
    /// After a walk. With `TIERING_BENCH_VERBOSE` in the environment all that `vm show` knows is printed.
    pub fn of(agent: &Agent, name: &str) -> Result<Self> {
        stop::sleep(PUBLISHED)?;
        if std::env::var_os("TIERING_BENCH_VERBOSE").is_some() {
            println!("{}", agent.tiering(&["vm", "show", name])?);
        }
        let status = agent.status()?;
        let vms = status["vms"].as_array().context("a status without VMs")?;
        let vm = vms.iter().find(|vm| vm["name"] == name).with_context(|| format!("{name} is not known"))?;
        let number = |value: &Value| value.as_f64().context("a count that is no number");
        let prefetch = &vm["prefetch"];
        let (issued, used) = (number(&prefetch["issued_pages"])?, number(&prefetch["used_pages"])?);
        Ok(Self {
            used,
            accuracy: used / issued.max(1.0) * 100.0,
            late: number(&prefetch["late_pages"])?,
            delay_ms: ["p50", "p99"].map(|part| prefetch["delay_ns"][part].as_f64().unwrap_or(0.0) / 1e6),
        })
    }

    pub fn accuracy(&self) -> f64 {
        self.accuracy
    }

    /// Without what was known before.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            used: self.used - before.used,
            late: self.late - before.late,
            accuracy: self.accuracy,
            delay_ms: self.delay_ms,
        }
    }
}

/// A guest of the benchmarks to be.
pub fn builder(name: &str) -> Builder {
    Guest::builder(name).memory_mib(160).backend(Backend::AnonymousSmall)
}

/// The pattern with the memory that all of them have, which only reads, when it is told to.
pub fn on_command(pattern: &Pattern) -> Pattern {
    Pattern { mem_mib: MEM_MIB, write_one_in: 0, rounds_on_command: true, ..pattern.clone() }
}

/// A guest in a memory control group of its own, which counts its faults.
pub struct Member {
    guest: Guest,
    group: Group,
    walks: u64,
}

impl Member {
    /// Each walk has another order where `reorder` says so.
    pub fn start(name: &str, seed: u64, access: Access, reorder: bool) -> Result<Self> {
        Self::start_pattern(name, &Pattern { seed, reorder, access, ..Pattern::default() })
    }

    /// The pattern's memory, writes and rounds are decided here.
    pub fn start_pattern(name: &str, pattern: &Pattern) -> Result<Self> {
        Self::of(builder(name).pattern(on_command(pattern)).start()?)
    }

    /// A guest that has just been started.
    pub fn of(mut guest: Guest) -> Result<Self> {
        let group = Group::of(guest.name(), guest.pid())?;
        guest.wait_ready(BOOT)?;
        Ok(Self { guest, group, walks: 0 })
    }

    pub fn begin(&mut self) -> Result<()> {
        self.walks += 1;
        self.guest.go()
    }

    pub fn end(&mut self) -> Result<PhaseResult> {
        self.guest.wait_phase(self.walks, LIMIT)
    }

    pub fn walk(&mut self) -> Result<Walk> {
        let before = self.major_faults()?;
        self.begin()?;
        let phase = self.end()?;
        Ok(Walk { phase, major_faults: self.major_faults()? - before })
    }

    /// The same of a guest that runs a program.
    pub fn end_round(&mut self) -> Result<Progress> {
        self.guest.wait_progress(self.walks, LIMIT)
    }

    /// Whether the data of the program is right.
    pub fn finish_program(&mut self) -> Result<bool> {
        Ok(self.guest.finish_program()?.data_ok)
    }

    /// It verifies all its memory.
    pub fn finish(&mut self, results: &mut Results) -> Result<()> {
        let right = self.guest.finish()?.checksum_ok;
        results.check(&format!("{}: memory right", self.guest.name()), right, "true", right);
        Ok(())
    }

    pub fn poweroff(mut self) -> Result<()> {
        self.guest.poweroff()
    }

    pub fn name(&self) -> &str {
        self.guest.name()
    }

    pub fn pid(&self) -> u32 {
        self.guest.pid()
    }

    /// Where its RAM is in QEMU.
    pub fn ram(&self) -> Result<Range<u64>> {
        self.guest.ram()
    }

    pub fn major_faults(&self) -> Result<u64> {
        host::major_faults(self.guest.pid())
    }
}

/// All of these into the nvme tier, and out of memory.
pub fn send_down(agent: &Agent, members: &[&Member]) -> Result<()> {
    send_to("nvme", agent, members)
}

/// All of these into a swap tier, and out of memory.
pub fn send_to(tier: &str, agent: &Agent, members: &[&Member]) -> Result<()> {
    for member in members {
        host::known_name(agent, member.guest.name())?;
        let outcome = agent.tiering(&["move", member.guest.name(), "--to", tier, "--json"])?;
        let outcome: Value = serde_json::from_str(&outcome)?;
        let pages = |what: &str| outcome[what].as_u64().unwrap_or(0);
        ensure!(pages("in_tier_pages") * 20 >= pages("asked_pages") * 19, "too much stayed: {outcome}");
    }
    host::disk_at_rest()?;
    members.iter().try_for_each(|member| member.group.free_swap_cache())
}

/// Writes a row for each figure.
pub fn show(results: &mut Results, name: &str, in_dram: &PhaseResult, rounds: &[Round]) {
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
    row(results, "accuracy, %", &|round| round.staged.accuracy, Some(95.0));
    let covered =
        |round: &Round| share(round.staged.used, round.staged.used + round.ours.major_faults as f64);
    row(results, "coverage, %", &covered, Some(90.0));
    let in_time = |round: &Round| share(round.staged.used - round.staged.late, round.staged.used);
    row(results, "in time, % of what was used", &in_time, Some(95.0));
    row(results, "from the leader's touch to the stage, p50, ms", &|round| round.staged.delay_ms[0], None);
    row(results, "from the leader's touch to the stage, p99, ms", &|round| round.staged.delay_ms[1], None);
    results.headline(format!("{name}: {avoided:.0} % of the stall avoided, {faster:.1} x"));
}
