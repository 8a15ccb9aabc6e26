//! What it costs to see faults, and how many can be seen: by processes that do nothing but fault, and look like machines.
//!
//! - a fault: without the agent and with it, by turns; and what the kernel says a run of the program takes
//! - as many as can be: produced = consumed + dropped to the last one
//! - the agent's processor time at 50,000 faults a second, and with nothing to do
//! - beside one that faults as fast as it can: whether the samples of another one are complete, and what that costs

use crate::host::{Host, known_name};
use anyhow::{Context, Result};
use serde_json::Value;
use std::process::Command;
use std::time::{Duration, Instant};
use tiering_tests::agent::Agent;
use tiering_tests::faulter::Faulter;
use tiering_tests::repeats::Repeats;
use tiering_tests::results::Results;

/// No sampling: everything is to be seen.
const ALL: &str = "[tracking]\nevents = 10_000_000\nvm_events = 10_000_000\n";
const STEADY: u64 = 50_000;
const CALM: u64 = 2000;

pub fn measure(results: &mut Results, quick: bool) -> Result<()> {
    let host = Host::new()?;
    let mut faulter = Faulter::start("tt-faulter", &host.folder("."))?;
    a_fault(results, &host, &mut faulter, if quick { 3 } else { 9 })?;

    let agent = host.agent_with(ALL)?;
    known_name_of(&agent, &mut faulter)?;
    many(results, &agent, &mut faulter, if quick { 2_000_000 } else { 10_000_000 })?;
    let seconds = if quick { 5 } else { 20 };
    let idle = cpu_percent(&agent, || {
        std::thread::sleep(Duration::from_secs(seconds));
        Ok(())
    })?;
    results.note("agent with nothing to do, % of a core", format!("{idle:.2}"));
    let steady = cpu_percent(&agent, || {
        faulter.order(STEADY * seconds, Some(STEADY))?;
        let made = faulter.done()?;
        results.note("steady: faults a second", format!("{:.0}", made.rate()));
        Ok(())
    })?;
    results.figure(
        "steady: agent, % of a core",
        format!("{:.1}", steady - idle),
        "5 at 50,000 faults a second",
        steady - idle <= 5.0,
    );
    results.headline(format!("{:.1} % of a core at 50,000 faults a second", steady - idle));
    agent.interrupt()?;

    flooded(results, &host, &mut faulter, seconds)
}

/// A fault without and with the agent, by turns.
fn a_fault(results: &mut Results, host: &Host, faulter: &mut Faulter, repeats: u32) -> Result<()> {
    const FAULTS: u64 = 200_000;
    let stats = BpfStats::on()?;
    let (mut without, mut with, mut runs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..repeats {
        faulter.order(FAULTS, None)?;
        without.push(faulter.done()?.each_ns());
        let agent = host.agent_with(ALL)?;
        known_name_of(&agent, faulter)?;
        faulter.order(FAULTS, None)?;
        with.push(faulter.done()?.each_ns());
        runs.extend(stats.ns_a_run("fault_user_btf")?);
        agent.interrupt()?;
    }
    let more: Vec<f64> = with.iter().zip(&without).map(|(with, without)| with - without).collect();
    let share: Vec<f64> = more.iter().zip(&without).map(|(more, without)| more / without * 100.0).collect();
    for (what, values) in [
        ("a fault without the agent, ns", &without),
        ("a fault with the agent, ns", &with),
        ("what that adds, ns", &more),
        ("what that adds, %", &share),
    ] {
        if let Some(repeats) = Repeats::of(values) {
            results.note(what, repeats);
        }
    }
    if let Some(run) = Repeats::of(&runs) {
        results.figure("a run of the program, ns", run, "100", run.median <= 100.0);
        results.headline(format!("{:.0} ns a run", run.median));
    }
    Ok(())
}

/// As many faults as can be, all of which should be seen.
fn many(results: &mut Results, agent: &Agent, faulter: &mut Faulter, faults: u64) -> Result<()> {
    let before = settled(agent)?;
    faulter.order(faults, None)?;
    let made = faulter.done()?;
    let after = settled(agent)?;
    let more = |field: &str| number(&after["events"][field]) - number(&before["events"][field]);
    let (produced, consumed, dropped) = (more("produced"), more("consumed"), more("dropped"));
    results.figure("many: faults a second", format!("{:.0}", made.rate()), "200000", made.rate() >= 2e5);
    results.figure("many: lost", dropped, &format!("0 of {faults}"), dropped == 0);
    let balance = format!("{produced} produced, {consumed} consumed, {dropped} dropped");
    results.check("many: balance", balance, "produced = consumed + dropped", produced == consumed + dropped);
    results.check("many: seen", produced, &format!("{faults} or more"), produced >= faults);
    results.headline(format!("{dropped} of {produced} events lost at {:.0} a second", made.rate()));
    Ok(())
}

/// One faults as fast as it can beside a calm one, under the usual budgets.
fn flooded(results: &mut Results, host: &Host, flood: &mut Faulter, seconds: u64) -> Result<()> {
    let agent = host.agent_with("")?;
    let mut calm = Faulter::start("tt-calm", &host.folder("."))?;
    known_name_of(&agent, flood)?;
    known_name_of(&agent, &mut calm)?;
    let before = settled(&agent)?;
    let mut rate = 0.0;
    let busy = cpu_percent(&agent, || {
        calm.order(CALM * seconds, Some(CALM))?;
        let began = Instant::now();
        let mut made = 0;
        while began.elapsed() < Duration::from_secs(seconds) {
            flood.order(100_000, None)?;
            made += flood.done()?.faults;
        }
        rate = made as f64 / began.elapsed().as_secs_f64();
        calm.done().map(drop)
    })?;
    let after = settled(&agent)?;
    let more = |name: &str, field: &str| -> Result<u64> {
        Ok(number(&of(&after, name)?[field]) - number(&of(&before, name)?[field]))
    };
    results.note("flood: faults a second", format!("{rate:.0}"));
    let (seen, sampled) = (more(flood.name(), "faults_total")?, more(flood.name(), "sampled_total")?);
    results.note("flood: looked at, a second", format!("{:.0}", sampled as f64 / seconds as f64));
    results.check("flood: sampled", format!("{sampled} of {seen}"), "not all", sampled < seen);
    let (seen, sampled) = (more("tt-calm", "faults_total")?, more("tt-calm", "sampled_total")?);
    let dropped = number(&after["events"]["dropped"]) - number(&before["events"]["dropped"]);
    let complete = seen >= CALM * seconds && sampled == seen && dropped == 0;
    results.check(
        "its neighbour: looked at",
        format!("{sampled} of {seen}, {dropped} dropped"),
        "all, none dropped",
        complete,
    );
    results.note("agent, % of a core", format!("{busy:.1}"));
    results.headline(format!("beside a flood of {rate:.0} a second {sampled} of {seen} samples arrive"));
    agent.interrupt()?;
    Ok(())
}

/// Until the agent knows it, with some of its RAM in use.
fn known_name_of(agent: &Agent, faulter: &mut Faulter) -> Result<()> {
    faulter.order(1000, None)?;
    faulter.done()?;
    known_name(agent, faulter.name())
}

/// The status, once nothing is in the ring any more.
fn settled(agent: &Agent) -> Result<Value> {
    std::thread::sleep(Duration::from_millis(2500));
    agent.status()
}

fn of<'a>(status: &'a Value, name: &str) -> Result<&'a Value> {
    let vms = status["vms"].as_array().context("a status without VMs")?;
    vms.iter().find(|vm| vm["name"] == name).with_context(|| format!("{name} is gone"))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// Processor time that the agent takes meanwhile.
fn cpu_percent(agent: &Agent, meanwhile: impl FnOnce() -> Result<()>) -> Result<f64> {
    let ticks = || -> Result<u64> {
        let stat = procfs::process::Process::new(agent.pid().cast_signed())?.stat()?;
        Ok(stat.utime + stat.stime)
    };
    let (before, began) = (ticks()?, Instant::now());
    meanwhile()?;
    let seconds = (ticks()? - before) as f64 / procfs::ticks_per_second() as f64;
    Ok(seconds / began.elapsed().as_secs_f64() * 100.0)
}

/// The kernel measures its programs meanwhile.
struct BpfStats {
    before: String,
}

const BPF_STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";

impl BpfStats {
    fn on() -> Result<Self> {
        let before = std::fs::read_to_string(BPF_STATS)?;
        std::fs::write(BPF_STATS, "1")?;
        Ok(Self { before })
    }

    fn ns_a_run(&self, program: &str) -> Result<Option<f64>> {
        let pin = format!("/sys/fs/bpf/tiering/{program}");
        let output =
            Command::new("/usr/sbin/bpftool").args(["-j", "prog", "show", "pinned", &pin]).output()?;
        let shown: Value = serde_json::from_slice(&output.stdout).context("what bpftool shows")?;
        let runs = number(&shown["run_cnt"]);
        Ok((runs > 0).then(|| number(&shown["run_time_ns"]) as f64 / runs as f64))
    }
}

impl Drop for BpfStats {
    fn drop(&mut self) {
        // What it was is what the kernel took before.
        std::fs::write(BPF_STATS, &self.before).ok();
    }
}
