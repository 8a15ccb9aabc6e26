//! How much of a guest's memory leaves DRAM, and what that costs the guest.
//!
//! One emulated guest with memory of all ages ([`Access::Ages`]), as fast as it can: without an agent; with an agent in
//! its default configuration; by the kernel's LRU, asked by hand: 25 MiB of the guest's control group every 10 s for
//! two minutes. After each the guest's memory is brought back. Throughput and quantiles are of the last minute of each,
//! waits (major faults of QEMU) of all of it.

use crate::group::Group;
use crate::host::{Host, known_name};
use anyhow::{Context, Result};
use procfs::process::Process;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tiering_tests::guest::{Backend, Guest};
use tiering_tests::observe::mapped_and_swapped;
use tiering_tests::pattern::{Access, Pattern, PhaseResult};
use tiering_tests::results::Results;
use tiering_tests::scratch::swap_areas_below;
use tiering_tests::stop;

const NAME: &str = "tt-ages";
const MEMORY_MIB: u32 = 512;
const MEM_MIB: usize = 416;
const SETS_MIB: [usize; 3] = [32, 64, 96];
const NEVER_MIB: usize = MEM_MIB - SETS_MIB[0] - SETS_MIB[1] - SETS_MIB[2];
const BOOT: Duration = Duration::from_secs(180);
const MINUTE: Duration = Duration::from_mins(1);
/// By hand.
const STEP_BYTES: u64 = 25 << 20;
const STEPS: u32 = 12;
const BETWEEN_STEPS: Duration = Duration::from_secs(10);

struct Subject {
    guest: Guest,
    group: Group,
}

/// What became of the guest in one stretch.
struct Stretch {
    /// Of the guest's RAM, at its end; copies of it may be in memory still, in the swap cache.
    in_swap_mib: u64,
    /// To the guest's group, with the swap cache.
    charged_mib: u64,
    major_faults: u64,
    touches_per_s: f64,
    /// The worst of the last minute's seconds.
    p99_us: f64,
}

pub fn measure(results: &mut Results, quick: bool) -> Result<()> {
    let length = MINUTE * if quick { 5 } else { 10 };
    let host = Host::new()?;
    let mut subject = Subject::start()?;
    let none = subject.stretch(2 * MINUTE, |_, _| Ok(()))?;
    show(results, "no agent", &none, &none);

    let agent = host.agent_by_default()?;
    known_name(&agent, NAME)?;
    let cpu = cpu_seconds(agent.pid())?;
    let by_agent = subject.stretch(length, |_, _| Ok(()))?;
    let percent = (cpu_seconds(agent.pid())? - cpu) / length.as_secs_f64() * 100.0;
    show(results, "agent, default", &by_agent, &none);
    results.note("agent, default: its own CPU, % of a core", format!("{percent:.2}"));
    let status = agent.status()?;
    let vm = status["vms"].as_array().and_then(|vms| vms.iter().find(|vm| vm["name"] == NAME));
    let why = vm.and_then(|vm| vm["limited_by"].as_str()).unwrap_or("nothing");
    results.note("agent, default: held back by", why);
    agent.tiering(&["drain", "nvme"])?;
    agent.interrupt()?;

    let swap = PlainSwap::on(&host.folder("by-hand"))?;
    let by_hand =
        subject.stretch(
            length,
            |subject, step| {
                if step < STEPS { subject.group.reclaim(STEP_BYTES) } else { Ok(()) }
            },
        )?;
    show(results, "kernel's LRU by hand", &by_hand, &none);
    drop(swap);

    let right = subject.guest.finish()?.checksum_ok;
    results.check("the guest's memory is right", right, "true", right);
    results.headline(format!(
        "free: {} MiB by the agent, {} by the kernel's LRU asked by hand, of {NEVER_MIB} never touched again",
        by_agent.free_mib(&none),
        by_hand.free_mib(&none)
    ));
    Ok(())
}

impl Stretch {
    /// Memory that became free since that other stretch.
    fn free_mib(&self, before: &Self) -> u64 {
        before.charged_mib.saturating_sub(self.charged_mib)
    }
}

fn show(results: &mut Results, who: &str, stretch: &Stretch, none: &Stretch) {
    let Stretch { in_swap_mib, charged_mib, major_faults, touches_per_s, p99_us } = stretch;
    let throughput = touches_per_s / none.touches_per_s * 100.0;
    if !std::ptr::eq(stretch, none) {
        let target = format!("{} of {NEVER_MIB} never touched again", NEVER_MIB * 9 / 10);
        let free = stretch.free_mib(none);
        results.figure(&format!("{who}: free, MiB"), free, &target, free * 10 >= NEVER_MIB as u64 * 9);
        results.note(&format!("{who}: in swap, MiB"), in_swap_mib);
        results.figure(
            &format!("{who}: throughput of the last minute, % of none"),
            format!("{throughput:.1}"),
            "99",
            throughput >= 99.0,
        );
    }
    results.note(&format!("{who}: charged to its group, MiB"), charged_mib);
    results.note(&format!("{who}: waits (major faults)"), major_faults);
    results.note(&format!("{who}: touches a second"), format!("{touches_per_s:.0}"));
    results.note(&format!("{who}: p99 of a touch, worst second, us"), format!("{p99_us:.1}"));
}

impl Subject {
    fn start() -> Result<Self> {
        let [hot_mib, warm_mib, tail_mib] = SETS_MIB;
        let access = Access::Ages { hot_mib, warm_mib, tail_mib, warm_ppm: 50_000, tail_ppm: 300 };
        let pattern = Pattern { mem_mib: MEM_MIB, round_touches: 1000, access, ..Pattern::default() };
        let builder = Guest::builder(NAME).memory_mib(MEMORY_MIB).backend(Backend::AnonymousSmall);
        let mut guest = builder.pattern(pattern).start()?;
        // Before it has memory: pages are charged to whoever has them first.
        let group = Group::of(NAME, guest.pid())?;
        guest.wait_ready(BOOT)?;
        Ok(Self { guest, group })
    }

    /// So much time goes by; every ten seconds something is done, which is told how often before.
    fn stretch(
        &mut self,
        length: Duration,
        mut act: impl FnMut(&Self, u32) -> Result<()>,
    ) -> Result<Stretch> {
        let (began, before) = (Instant::now(), self.major_faults()?);
        let mut step = 0;
        let mut at_last_minute = None;
        while began.elapsed() < length {
            act(self, step)?;
            step += 1;
            stop::sleep(BETWEEN_STEPS)?;
            self.guest.check_alive()?;
            if at_last_minute.is_none() && began.elapsed() + MINUTE >= length {
                at_last_minute = Some(self.guest.phases()?.len());
            }
        }
        let phases = self.guest.phases()?;
        let last = &phases[at_last_minute.unwrap_or(0)..];
        let (_, swapped) = mapped_and_swapped(self.guest.pid(), &self.guest.ram()?)?;
        Ok(Stretch {
            in_swap_mib: swapped >> 8,
            charged_mib: self.group.used_bytes()? >> 20,
            major_faults: self.major_faults()? - before,
            touches_per_s: touches_per_s(last).context("the guest told nothing in the last minute")?,
            p99_us: last.iter().map(|phase| phase.p99).max().unwrap_or(0) as f64 / 1e3,
        })
    }

    fn major_faults(&self) -> Result<u64> {
        Ok(Process::new(i32::try_from(self.guest.pid())?)?.stat()?.majflt)
    }
}

fn touches_per_s(phases: &[PhaseResult]) -> Option<f64> {
    let (first, last) = (phases.first()?, phases.last()?);
    let touches: u64 = phases.iter().map(|phase| phase.touches).sum();
    Some(touches as f64 / ((last.end_ns - first.start_ns) as f64 / 1e9))
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
        anyhow::ensure!(status.success(), "no swap file in {}", folder.display());
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
