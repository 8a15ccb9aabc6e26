//! What an agent costs that has next to nothing to do: without a VM, and with one guest that stands still.
//!
//! Its configuration is the default one with one swap tier. CPU time is that of all threads of the agent. The guest's
//! RAM is filled before the agent starts, so that the agent demotes some of it meanwhile, as fast as its defaults
//! allow.

use crate::host::{Host, cpu_seconds, known, still};
use anyhow::Result;
use std::time::{Duration, Instant};
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::Backend;
use tiering_testkit::results::Results;
use tiering_testkit::stop;

/// Until the agent has read the page tables, and measured its tiers.
const SETTLE: Duration = Duration::from_secs(60);
const LENGTH: Duration = Duration::from_mins(2);
/// Of a core, %; and of a core for each GiB, %.
const NO_VM_MOST: f64 = 0.05;
const GIB_MOST: f64 = 0.05;

pub fn measure(results: &mut Results, quick: bool) -> Result<()> {
    let host = Host::new()?;
    let length = if quick { LENGTH / 2 } else { LENGTH };
    let agent = host.agent_by_default()?;
    let percent = cpu_percent(&agent, SETTLE / 4, length)?;
    agent.interrupt()?;
    results.headline(format!("no VM {percent:.2} %"));
    results.figure(
        "no VM: CPU, % of a core",
        format!("{percent:.2}"),
        &format!("{NO_VM_MOST}"),
        percent <= NO_VM_MOST,
    );
    for gib in [8, 16].into_iter().filter(|gib| !quick || *gib == 8) {
        let guest = still("tt-idle", gib * 1024, Backend::Anonymous)?;
        host.forget_state()?;
        let agent = host.agent_by_default()?;
        known(&agent, &guest)?;
        let percent = cpu_percent(&agent, SETTLE, length)?;
        let of_each = percent / f64::from(gib);
        results.headline(format!("{gib} GiB {percent:.2} %"));
        results.note(&format!("a guest of {gib} GiB: CPU, % of a core"), format!("{percent:.2}"));
        results.figure(
            &format!("a guest of {gib} GiB: the same for each GiB, %"),
            format!("{of_each:.3}"),
            &format!("{GIB_MOST}"),
            of_each <= GIB_MOST,
        );
        drop(guest);
        agent.interrupt()?;
    }
    Ok(())
}

fn cpu_percent(agent: &Agent, settle: Duration, length: Duration) -> Result<f64> {
    stop::sleep(settle)?;
    let (before, began) = (cpu_seconds(agent.pid())?, Instant::now());
    stop::sleep(length)?;
    Ok((cpu_seconds(agent.pid())? - before) / began.elapsed().as_secs_f64() * 100.0)
}
