//! What it costs to see faults, and how many can be seen: by processes that do nothing but fault, and look like
//! machines.
//!
//! - a fault: without the programs and with them, by turns. The kernel's own measurement (`kernel.bpf_stats_enabled`)
//!   would mostly measure itself.
//! - as many as can be: produced = consumed + dropped to the last one
//! - the agent's processor time at 50,000 faults a second, and with nothing to do
//! - beside one that faults as fast as it can: whether the samples of another one are complete, and what that costs

use crate::host::{Host, known_name};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::time::{Duration, Instant};
use tiering_testkit::agent::Agent;
use tiering_testkit::faulter::Faulter;
use tiering_testkit::results::Results;
use tiering_testkit::stop;
use tiering_user::bpf::{Faults, PROBE_ATTACH_KINDS};
use tiering_user::track::VmId;
use tiering_user::vm::{Scanner, Trust, Vm};

/// No sampling: everything is to be seen.
const ALL: &str = "[tracking]\nevents = 10_000_000\nvm_events = 10_000_000\n";
const STEADY: u64 = 50_000;
const CALM: u64 = 2000;

pub fn measure(results: &mut Results, quick: bool) -> Result<()> {
    let host = Host::new()?;
    let mut faulter = Faulter::start("tt-faulter", &host.folder("."))?;
    let agent = host.agent_with(ALL)?;
    known_name_of(&agent, &mut faulter)?;
    many(results, &agent, &mut faulter, if quick { 2_000_000 } else { 10_000_000 })?;
    let seconds = if quick { 5 } else { 20 };
    let idle = cpu_percent(&agent, || {
        stop::sleep(Duration::from_secs(seconds))?;
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

/// A fault that nobody sees, one of a process that is not watched, and one that becomes a sample, by turns.
pub fn measure_one(results: &mut Results, quick: bool) -> Result<()> {
    /// Fit into the ring.
    const FAULTS: u64 = 20_000;
    let host = Host::new()?;
    let mut faulter = Faulter::start("tt-faulter", &host.folder("."))?;
    let vm = found(&faulter)?;
    let mut pass = || -> Result<f64> {
        faulter.order(FAULTS, None)?;
        Ok(faulter.done()?.each_ns())
    };
    let (mut unseen, mut passed_over, mut sampled) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..if quick { 20 } else { 80 } {
        let alone = pass()?;
        let mut faults = Faults::attach(&PROBE_ATTACH_KINDS, None)?;
        let not_watched = pass()?;
        faults.track(VmId(1), &vm)?;
        let watched = pass()?;
        let counters = faults.counters(VmId(1));
        ensure!((counters.produced, counters.dropped) == (FAULTS, 0), "{counters:?}");
        unseen.push(alone);
        passed_over.push(not_watched - alone);
        sampled.push(watched - alone);
        faults.detach();
    }
    for (what, values) in [
        ("a fault that nobody sees, ns", &unseen),
        ("what it adds to be passed over, ns", &passed_over),
        ("what it adds to become a sample, ns", &sampled),
    ] {
        let [first, median, third] = quarters(values);
        results.note(what, format!("{median:.0} (half of them {first:.0} to {third:.0})"));
    }
    let [_, added, _] = quarters(&sampled);
    results.figure("the latter in the median", format!("{added:.0} ns"), "100 ns", added <= 100.0);
    results.headline(format!("{added:.0} ns a sample"));
    Ok(())
}

/// First quartile, median, third quartile.
fn quarters(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| sorted[(sorted.len() - 1) * quarter / 4])
}

/// The faulter as the agent would find it.
fn found(faulter: &Faulter) -> Result<Vm> {
    let mut scanner = Scanner::new("/proc", "/sys/fs/cgroup", Trust::new(&[]).0);
    for _ in 0..100 {
        let appeared = scanner.scan()?.appeared;
        if let Some(vm) = appeared.into_iter().find(|vm| vm.name == faulter.name()) {
            return Ok(vm);
        }
        stop::sleep(Duration::from_millis(50))?;
    }
    bail!("{} is not taken for a machine", faulter.name())
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
    stop::sleep(Duration::from_millis(2500))?;
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
