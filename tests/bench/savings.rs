//! How much of a guest's memory leaves DRAM, and what that costs the guest.
//!
//! One emulated guest at work, as fast as it can: without an agent; with an agent in its default configuration; with
//! one that may have memory of the whole host reclaimed, where the kernel can do that (Linux 6.17 and later); by the
//! kernel's LRU, asked by hand: 25 MiB of the guest's control group every 10 s for two minutes. After each the guest's
//! memory is brought back. Throughput is that of the last minute of each, waits (major faults of QEMU) are those of all
//! of it.

use crate::group::Group;
use crate::host::{Host, known_name};
use anyhow::{Context, Result, ensure};
use procfs::process::Process;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tiering_tests::agent::Agent;
use tiering_tests::guest::{Backend, Guest};
use tiering_tests::observe::{PAGE, mapped_and_swapped, meminfo};
use tiering_tests::pattern::{Access, Pattern};
use tiering_tests::program::{Kind, Program};
use tiering_tests::results::Results;
use tiering_tests::scratch::swap_areas_below;
use tiering_tests::skip::need_programs;
use tiering_tests::stop;

const NODE_RECLAIM: &str = "/sys/devices/system/node/node0/reclaim";
const NAME: &str = "tt-savings";
const SETS_MIB: [usize; 3] = [32, 64, 96];
const NEVER_MIB: usize = 224;
const VALUES_MIB: usize = 200;
const BOOT: Duration = Duration::from_secs(240);
const MINUTE: Duration = Duration::from_mins(1);
/// Minutes after which it is told how much is free.
const TOLD_MINUTES: [u64; 3] = [2, 5, 10];
/// By hand.
const STEP_BYTES: u64 = 25 << 20;
const STEPS: u32 = 12;
const BETWEEN_STEPS: Duration = Duration::from_secs(10);

/// What the guest does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Memory of all ages.
    Ages,
    /// Redis, of whose keys one in ten is in use.
    Redis,
}

struct Subject {
    guest: Guest,
    group: Group,
    work: Work,
}

/// What became of the guest in one stretch.
struct Stretch {
    /// Of the guest's RAM, at its end; copies of it may be in memory still, in the swap cache.
    in_swap_mib: u64,
    /// Of the guest's RAM, in swap and not in memory: after each of the minutes that are told.
    free_mib: Vec<(u64, u64)>,
    major_faults: u64,
    /// What the guest did a second, in the last minute, and in the worst one.
    per_s: f64,
    worst_per_s: f64,
    /// Of a touch, in the worst of the last minute's seconds.
    p99_us: Option<f64>,
}

pub fn measure(work: Work, results: &mut Results, quick: bool) -> Result<()> {
    if work == Work::Redis {
        need_programs().map_err(|skip| anyhow::anyhow!("{skip}"))?;
    }
    let length = MINUTE * if quick { 5 } else { 10 };
    let host = Host::new()?;
    let mut subject = Subject::start(work)?;
    let none = subject.stretch(2 * MINUTE, |_, _| Ok(()))?;
    show(results, work, "no agent", &none, &none);

    let agent = host.agent_by_default()?;
    let by_agent = with_agent(results, &mut subject, agent, "agent, default", length, &none)?;
    host.forget_state()?;
    let by_host = if Path::new(NODE_RECLAIM).exists() {
        let agent = host.agent_by_default_but("[policy]\nreclaim = \"host\"\n")?;
        Some(with_agent(results, &mut subject, agent, "agent, whole host", length, &none)?)
    } else {
        results.note("agent, whole host", format!("not measured: no {NODE_RECLAIM}"));
        None
    };

    let swap = PlainSwap::on(&host.folder("by-hand"))?;
    let by_hand =
        subject.stretch(
            length,
            |subject, step| {
                if step < STEPS { subject.group.reclaim(STEP_BYTES) } else { Ok(()) }
            },
        )?;
    show(results, work, "kernel's LRU by hand", &by_hand, &none);
    drop(swap);

    let right = match work {
        Work::Ages => subject.guest.finish()?.checksum_ok,
        Work::Redis => subject.guest.finish_program()?.data_ok,
    };
    results.check("the guest's memory is right", right, "true", right);
    let by_host = by_host.map(|by_host| format!(" ({} by the whole host)", by_host.free_mib()));
    results.headline(format!(
        "free: {} MiB by the agent{}, {} by the kernel's LRU asked by hand",
        by_agent.free_mib(),
        by_host.unwrap_or_default(),
        by_hand.free_mib()
    ));
    Ok(())
}

/// What becomes of the guest while this agent runs, which brings everything back at the end.
fn with_agent(
    results: &mut Results,
    subject: &mut Subject,
    agent: Agent,
    who: &str,
    length: Duration,
    none: &Stretch,
) -> Result<Stretch> {
    known_name(&agent, NAME)?;
    let cpu = cpu_seconds(agent.pid())?;
    let stretch = subject.stretch(length, |_, _| Ok(()))?;
    let percent = (cpu_seconds(agent.pid())? - cpu) / length.as_secs_f64() * 100.0;
    show(results, subject.work, who, &stretch, none);
    results.note(&format!("{who}: its own CPU, % of a core"), format!("{percent:.2}"));
    let status = agent.status()?;
    let vm = status["vms"].as_array().and_then(|vms| vms.iter().find(|vm| vm["name"] == NAME));
    let number = |field: &str| vm.and_then(|vm| vm[field].as_u64()).unwrap_or(0);
    results.note(&format!("{who}: MiB written"), number("demoted_bytes_total") >> 20);
    let why = vm.and_then(|vm| vm["limited_by"].as_str()).unwrap_or("nothing");
    results.note(&format!("{who}: held back by"), why);
    agent.tiering(&["drain", "nvme"])?;
    agent.interrupt()?;
    Ok(stretch)
}

impl Stretch {
    /// At the end.
    fn free_mib(&self) -> u64 {
        self.free_mib.last().map_or(0, |(_, last)| *last)
    }

    fn free_over_time(&self) -> String {
        let told = self.free_mib.iter().map(|(minutes, free)| format!("{free} after {minutes} min"));
        told.collect::<Vec<_>>().join(", ")
    }
}

fn show(results: &mut Results, work: Work, who: &str, stretch: &Stretch, none: &Stretch) {
    let percent = |per_s: f64| per_s / none.per_s * 100.0;
    if !std::ptr::eq(stretch, none) {
        let free = stretch.free_mib();
        match work {
            Work::Ages => {
                let target = format!("{} of {NEVER_MIB} never touched again", NEVER_MIB * 9 / 10);
                results.figure(
                    &format!("{who}: free, MiB"),
                    free,
                    &target,
                    free * 10 >= NEVER_MIB as u64 * 9,
                );
            }
            Work::Redis => results.note(&format!("{who}: free, MiB"), free),
        }
        results.note(&format!("{who}: free, MiB, over time"), stretch.free_over_time());
        results.note(&format!("{who}: in swap, MiB"), stretch.in_swap_mib);
        let throughput = percent(stretch.per_s);
        let text = format!("{throughput:.1}");
        results.figure(
            &format!("{who}: throughput of the last minute, % of none"),
            text,
            "99",
            throughput >= 99.0,
        );
        let worst = percent(stretch.worst_per_s);
        let text = format!("{worst:.1}");
        results.figure(
            &format!("{who}: throughput of the worst minute, % of none"),
            text,
            "95",
            worst >= 95.0,
        );
    }
    results.note(&format!("{who}: waits (major faults)"), stretch.major_faults);
    results.note(&format!("{who}: touches or requests a second"), format!("{:.0}", stretch.per_s));
    if let Some(p99_us) = stretch.p99_us {
        results.note(&format!("{who}: p99 of a touch, worst second, us"), format!("{p99_us:.1}"));
    }
}

/// What a guest has done from one moment of its clock to another.
#[derive(Clone, Copy)]
struct Done {
    count: u64,
    start_ns: u64,
    end_ns: u64,
    p99_ns: Option<u64>,
}

impl Subject {
    fn start(work: Work) -> Result<Self> {
        let builder = Guest::builder(NAME).backend(Backend::AnonymousSmall);
        let [hot_mib, warm_mib, tail_mib] = SETS_MIB;
        let mut guest = match work {
            Work::Ages => {
                let access = Access::Ages { hot_mib, warm_mib, tail_mib, warm_ppm: 50_000, tail_ppm: 300 };
                let mem_mib = hot_mib + warm_mib + tail_mib + NEVER_MIB;
                let pattern = Pattern { mem_mib, round_touches: 1000, access, ..Pattern::default() };
                builder.memory_mib(512).pattern(pattern).start()?
            }
            Work::Redis => {
                let program = Program { size_mib: VALUES_MIB, used_one_in: 10, ..Program::new(Kind::Redis) };
                builder.memory_mib(program.needs_mib() + 64).program(program).start()?
            }
        };
        // Before it has memory: pages are charged to whoever has them first.
        let group = Group::of(NAME, guest.pid())?;
        guest.wait_ready(BOOT)?;
        Ok(Self { guest, group, work })
    }

    /// So much time goes by; every ten seconds something is done, which is told how often before.
    fn stretch(
        &mut self,
        length: Duration,
        mut act: impl FnMut(&Self, u32) -> Result<()>,
    ) -> Result<Stretch> {
        let (began, faults) = (Instant::now(), self.major_faults()?);
        let mut free_mib = Vec::new();
        let mut done_by_minute = vec![self.done()?.len()];
        for step in 0.. {
            act(self, step)?;
            let minutes = began.elapsed().as_secs() / 60;
            if minutes >= done_by_minute.len() as u64 {
                done_by_minute.push(self.done()?.len());
                if TOLD_MINUTES.contains(&minutes) {
                    free_mib.push((minutes, self.free_mib()?));
                }
            }
            if began.elapsed() >= length {
                break;
            }
            let next = BETWEEN_STEPS * (step + 1);
            stop::sleep(next.saturating_sub(began.elapsed()))?;
            self.guest.check_alive()?;
        }
        let done = self.done()?;
        let minute = |from: usize, to: usize| per_s(&done[from.min(to)..to]);
        let minutes = done_by_minute.windows(2).filter_map(|two| minute(two[0], two[1]));
        let [.., before_last, last] = done_by_minute[..] else { anyhow::bail!("less than a minute") };
        let (_, swapped) = mapped_and_swapped(self.guest.pid(), &self.guest.ram()?)?;
        Ok(Stretch {
            in_swap_mib: swapped >> 8,
            free_mib,
            major_faults: self.major_faults()? - faults,
            worst_per_s: minutes.fold(f64::INFINITY, f64::min),
            per_s: minute(before_last, last).context("the guest told nothing in the last minute")?,
            p99_us: done[before_last..].iter().filter_map(|done| done.p99_ns).max().map(|ns| ns as f64 / 1e3),
        })
    }

    fn done(&self) -> Result<Vec<Done>> {
        Ok(match self.work {
            Work::Ages => {
                let phases = self.guest.phases()?.into_iter();
                let done = phases.map(|phase| Done {
                    count: phase.touches,
                    start_ns: phase.start_ns,
                    end_ns: phase.end_ns,
                    p99_ns: Some(phase.p99),
                });
                done.collect()
            }
            Work::Redis => {
                let told = self.guest.progress()?.into_iter();
                let done = told.map(|progress| Done {
                    count: progress.operations,
                    start_ns: progress.start_ns,
                    end_ns: progress.end_ns,
                    p99_ns: None,
                });
                done.collect()
            }
        })
    }

    /// No other guest has anything in swap.
    fn free_mib(&self) -> Result<u64> {
        let (_, swapped) = mapped_and_swapped(self.guest.pid(), &self.guest.ram()?)?;
        let listed = meminfo("Active(anon)")? + meminfo("Inactive(anon)")? + meminfo("Mlocked")?;
        let copies = listed.saturating_sub(meminfo("AnonPages")? + meminfo("Shmem")?);
        Ok((swapped * PAGE).saturating_sub(copies.min(meminfo("SwapCached")?)) >> 20)
    }

    fn major_faults(&self) -> Result<u64> {
        Ok(Process::new(i32::try_from(self.guest.pid())?)?.stat()?.majflt)
    }
}

fn per_s(done: &[Done]) -> Option<f64> {
    let (first, last) = (done.first()?, done.last()?);
    let count: u64 = done.iter().map(|done| done.count).sum();
    Some(count as f64 / ((last.end_ns - first.start_ns) as f64 / 1e9))
}

/// Of all threads of a process so far.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = Process::new(i32::try_from(pid)?)?.stat()?;
    Ok((stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64)
}

/// A swap file without any agent. Switched off and removed when dropped.
struct PlainSwap(PathBuf);

impl PlainSwap {
    fn on(folder: &Path) -> Result<Self> {
        std::fs::create_dir(folder).with_context(|| format!("creating {}", folder.display()))?;
        let this = Self(folder.to_owned());
        let file = folder.join("swap");
        let path = file.display();
        let script =
            format!("fallocate -l 1G {path} && chmod 600 {path} && mkswap -q {path} && swapon {path}");
        let status = Command::new("sh").args(["-c", &script]).status().context("running sh")?;
        ensure!(status.success(), "no swap file in {}", folder.display());
        Ok(this)
    }
}

impl Drop for PlainSwap {
    fn drop(&mut self) {
        for area in swap_areas_below(&self.0).unwrap_or_default() {
            // Nobody to return an error to; the area stays in /proc/swaps, where whoever cares looks.
            let _ = Command::new("swapoff").arg(&area).status();
        }
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
