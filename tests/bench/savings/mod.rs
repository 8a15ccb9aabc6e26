//! How much of guests' memory leaves DRAM, and what that costs the guests.
//!
//! One emulated guest at work, or some at once, as fast as they can: without an agent; with an agent in its default
//! configuration; with one that may have memory of the whole host reclaimed, where the kernel can do that (Linux 6.17
//! and later); by the kernel's LRU, asked by hand: 25 MiB of each guest's control group every 10 s for two minutes.
//! After each the guests' memory is brought back, and at the end they work once more without an agent: what they do
//! then says how steady the host is. Throughput is that of the last minute of each, waits (major faults of QEMU) are
//! those of all of it. What a guest costs that wakes when its memory has gone is in [`wake`].

mod pace;
mod plain_swap;
mod rows;
mod stretch;
mod vm;
pub mod wake;

use crate::host::{Host, cpu_seconds, known_name};
use anyhow::{Result, ensure};
use plain_swap::PlainSwap;
use rows::{by_minute, show};
use std::path::Path;
use std::time::Duration;
use stretch::{MINUTE, Stretch, free_of_all_mib, watch};
use tiering_testkit::agent::Agent;
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::program::{Kind, Program};
use tiering_testkit::results::Results;
use tiering_testkit::skip::need_programs;
use vm::{Load, Vm};

const NODE_RECLAIM: &str = "/sys/devices/system/node/node0/reclaim";
const SETS_MIB: [usize; 3] = [32, 64, 96];
const NEVER_MIB: usize = 224;
/// By hand, of each guest.
const STEP_BYTES: u64 = 25 << 20;
const STEPS: u32 = 12;

/// What the guests do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// One has memory of all ages.
    Ages,
    /// One runs Redis, of whose keys one in ten is in use.
    Redis,
    /// Four: PostgreSQL, nginx, that Redis, and a compiler. What else they have is what their boot and the making of
    /// their data left in memory.
    Programs,
}

impl Work {
    /// Label, MiB of RAM and load of each guest.
    fn guests(self) -> Vec<(&'static str, u32, Load)> {
        let program = |kind: Kind, size_mib, memory_mib| {
            let used_one_in = if kind == Kind::Redis { 10 } else { 1 };
            let program = Program { size_mib, used_one_in, ..Program::new(kind) };
            (kind.name(), memory_mib, Load::Program(program))
        };
        match self {
            Self::Ages => {
                let [hot_mib, warm_mib, tail_mib] = SETS_MIB;
                let access = Access::Ages { hot_mib, warm_mib, tail_mib, warm_ppm: 50_000, tail_ppm: 300 };
                let mem_mib = hot_mib + warm_mib + tail_mib + NEVER_MIB;
                let pattern = Pattern { mem_mib, round_touches: 1000, access, ..Pattern::default() };
                vec![("ages", 512, Load::Pattern(pattern))]
            }
            Self::Redis => vec![program(Kind::Redis, 200, 410)],
            Self::Programs => vec![
                program(Kind::Postgres, 64, 640),
                program(Kind::Nginx, 128, 640),
                program(Kind::Redis, 160, 512),
                program(Kind::Compile, 16, 512),
            ],
        }
    }

    /// What should be free.
    fn never_mib(self) -> Option<u64> {
        (self == Self::Ages).then_some(NEVER_MIB as u64)
    }
}

/// Guests at work, and what they did without an agent.
struct Bench<'a> {
    results: &'a mut Results,
    work: Work,
    vms: Vec<Vm>,
    none: Vec<Stretch>,
    length: Duration,
}

pub fn measure(work: Work, results: &mut Results, quick: bool) -> Result<()> {
    if work != Work::Ages {
        need_programs().map_err(|skip| anyhow::anyhow!("{skip}"))?;
    }
    let length = MINUTE * if quick { 5 } else { 10 };
    let host = Host::new()?;
    let guests = work.guests().into_iter();
    let mut vms = guests.map(|(label, mib, load)| Vm::start(label, mib, load)).collect::<Result<Vec<_>>>()?;
    vms.iter_mut().try_for_each(Vm::wait_ready)?;
    let none = watch(&mut vms, 2 * MINUTE, |_, _| Ok(()))?;
    ensure!(
        none.iter().all(|none| none.per_s > 0.0),
        "a guest got nothing done in a minute without an agent"
    );
    show(results, "no agent", &vms, &none, &none, None);
    let mut bench = Bench { results, work, vms, none, length };

    let mut free = vec![("by the agent", bench.with_agent("agent, default", host.agent_by_default()?)?)];
    host.forget_state()?;
    if work == Work::Programs && quick {
        bench.results.note("agent, whole host", "not measured with --quick");
    } else if Path::new(NODE_RECLAIM).exists() {
        let agent = host.agent_by_default_but("[policy]\nreclaim = \"host\"\n")?;
        free.push(("by the whole host", bench.with_agent("agent, whole host", agent)?));
    } else {
        bench.results.note("agent, whole host", format!("not measured: no {NODE_RECLAIM}"));
    }
    free.push(("by the kernel's LRU asked by hand", bench.by_hand(&host.folder("by-hand"))?));

    // How much of all that is the host's own noise.
    let again = watch(&mut bench.vms, 2 * MINUTE, |_, _| Ok(()))?;
    rows::host(bench.results, "no agent, again", &again, &bench.none);
    for ((vm, again), none) in bench.vms.iter().zip(&again).zip(&bench.none) {
        by_minute(bench.results, &format!("no agent, again: {}", vm.label), again, none);
    }

    for vm in &mut bench.vms {
        let right = vm.finish()?;
        bench.results.check(&format!("{}: its memory is right", vm.guest.name()), right, "true", right);
    }
    let free: Vec<_> = free.iter().map(|(by, mib)| format!("{mib} MiB {by}")).collect();
    bench.results.headline(format!("free: {}", free.join(", ")));
    Ok(())
}

impl Bench<'_> {
    /// What becomes of the guests while this agent runs, which brings everything back at the end; how much is free.
    fn with_agent(&mut self, who: &str, agent: Agent) -> Result<u64> {
        self.vms.iter().try_for_each(|vm| known_name(&agent, vm.guest.name()))?;
        let cpu = cpu_seconds(agent.pid())?;
        let stretches = watch(&mut self.vms, self.length, |_, _| Ok(()))?;
        let percent = (cpu_seconds(agent.pid())? - cpu) / self.length.as_secs_f64() * 100.0;
        let free_mib = self.show(who, &stretches);
        self.results.note(&format!("{who}: its own CPU, % of a core"), format!("{percent:.2}"));
        let status = agent.status()?;
        let known = status["vms"].as_array().map_or(&[][..], |vms| vms);
        let ours = known.iter().filter(|vm| self.vms.iter().any(|ours| vm["name"] == ours.guest.name()));
        let (mut written, mut held_back) = (0, Vec::new());
        for vm in ours {
            written += vm["demoted_bytes_total"].as_u64().unwrap_or(0);
            held_back.push(vm["limited_by"].as_str().unwrap_or("nothing"));
        }
        held_back.dedup();
        self.results.note(&format!("{who}: MiB written"), written >> 20);
        self.results.note(&format!("{who}: held back by"), held_back.join(", "));
        agent.tiering(&["drain", "nvme"])?;
        agent.interrupt()?;
        Ok(free_mib)
    }

    /// The same of the kernel's LRU.
    fn by_hand(&mut self, folder: &Path) -> Result<u64> {
        let _swap = PlainSwap::on(folder)?;
        let reclaim = |vms: &[Vm], step| {
            let mut vms = vms.iter().filter(|_| step < STEPS);
            vms.try_for_each(|vm| vm.group.reclaim(STEP_BYTES))
        };
        let stretches = watch(&mut self.vms, self.length, reclaim)?;
        Ok(self.show("kernel's LRU by hand", &stretches))
    }

    /// How much is free at the end.
    fn show(&mut self, who: &str, stretches: &[Stretch]) -> u64 {
        show(self.results, who, &self.vms, stretches, &self.none, self.work.never_mib());
        free_of_all_mib(stretches).last().map_or(0, |(_, last)| *last)
    }
}
