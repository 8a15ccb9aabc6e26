//! What the agent's decisions cost on large hosts: simulated VMs, the agent's own engine.
//!
//! All memory of the VMs is touched; one in a hundred VMs is at work and touches 64 pages a second that it touched
//! before, all others are idle. The engine is told each second what a host would tell it, and what it asks for is done
//! at once. Measured is the CPU time of the engine alone, while all that is idle leaves memory and once it has; the
//! simulation costs extra. Not in it: what it costs to look for VMs, to read page tables and counters, and to move
//! pages.

use anyhow::{Context, Result};
use std::time::{Duration, Instant};
use tiering_testkit::results::Results;
use tiering_user::config::Config;
use tiering_user::engine::Readings;
use tiering_user::replay::{SimulatedHost, Took, guest};
use tiering_user::sys::Monotonic;
use tiering_user::tiermap::{PageRun, Place};
use tiering_user::tiers::TierId;
use tiering_user::track::VmId;

const CONFIG: &str = r#"
[[tier]]
name = "dram"
nodes = [0]
[[tier]]
name = "nvme"
swap = { path = "/nvme", size = "4TiB" }
"#;

const PAGES_A_GIB: u32 = 1 << 18;
/// One VM in so many is at work.
const AT_WORK: u32 = 100;
const TOUCHES_A_SECOND: u32 = 64;
/// What is idle begins to go after two minutes.
const LEAVES_AT_S: u64 = 120;
/// Then all of it is free.
const STEADY_AT_S: u64 = 480;
const MEASURED_S: u64 = 60;

struct Case {
    name: &'static str,
    vms: u32,
    pages: u32,
    wanted: Option<f64>,
}

pub fn measure(results: &mut Results, quick: bool) -> Result<()> {
    let cases = [
        Case { name: "no VM", vms: 0, pages: 0, wanted: Some(0.05) },
        Case { name: "1 VM of 8 GiB", vms: 1, pages: 8 * PAGES_A_GIB, wanted: Some(0.4) },
        Case { name: "250 VMs of 1 GiB", vms: 250, pages: PAGES_A_GIB, wanted: None },
        Case { name: "500 VMs of 1 GiB", vms: 500, pages: PAGES_A_GIB, wanted: None },
        Case { name: "1,000 VMs of 1 GiB", vms: 1000, pages: PAGES_A_GIB, wanted: Some(25.0) },
        Case { name: "10,000 VMs of 64 MiB", vms: 10_000, pages: PAGES_A_GIB / 16, wanted: None },
    ];
    let mut before: Option<f64> = None;
    for Case { name, vms, pages, wanted } in cases.iter().filter(|case| !quick || case.vms <= 500) {
        let percent = one(name, *vms, *pages, results)?;
        let row = format!("{name}: CPU, % of a core");
        match wanted {
            Some(wanted) => {
                results.figure(&row, format!("{percent:.2}"), &format!("{wanted}"), percent <= *wanted);
            }
            None => results.note(&row, format!("{percent:.2}")),
        }
        if *pages == PAGES_A_GIB
            && let Some(before) = before.replace(percent)
        {
            let growth = percent / before;
            results.headline(format!("{name} {percent:.0} %"));
            results.figure(
                &format!("{name}: times as much as half of them"),
                format!("{growth:.2}"),
                "2.3",
                growth <= 2.3,
            );
        }
    }
    Ok(())
}

fn one(name: &str, vms: u32, pages: u32, results: &mut Results) -> Result<f64> {
    let config = Config::parse(CONFIG, "bench").context("the configuration")?;
    let mut now = Monotonic(1_000_000_000_000);
    let mut host = SimulatedHost::new(config, now);
    for number in 1..=vms {
        let vm = guest(VmId(number), &format!("vm-{number}"), pages);
        let all = PageRun { first: 0, count: pages };
        host.start(VmId(number), vm, &[(all, Place::In(TierId(0)))], &mut |_| ());
    }
    let mut second = |host: &mut SimulatedHost, at: u64| {
        now = now.after(Duration::from_secs(1));
        host.set_now(now);
        for number in (1..=vms).step_by(AT_WORK as usize) {
            for touch in 0..TOUCHES_A_SECOND {
                let page = (touch * 509 + at as u32 % 8) % pages.max(1);
                host.show(VmId(number), page, (touch % 4 == 0, 0), &mut |_| ());
            }
        }
        host.second(&mut |_| ());
    };
    (0..LEAVES_AT_S).for_each(|at| second(&mut host, at));
    host.took();
    (LEAVES_AT_S..STEADY_AT_S).for_each(|at| second(&mut host, at));
    let leaving = percent(host.took(), STEADY_AT_S - LEAVES_AT_S);
    results.note(&format!("{name}: CPU while idle memory leaves, % of a core"), format!("{leaving:.2}"));
    (STEADY_AT_S..STEADY_AT_S + MEASURED_S).for_each(|at| second(&mut host, at));
    let took = host.took();
    results.note(&format!("{name}: longest event, ms"), format!("{:.1}", took.longest.as_secs_f64() * 1e3));
    let began = Instant::now();
    let status = host.engine_mut().status(Readings::default());
    let ms = began.elapsed().as_secs_f64() * 1e3;
    results.note(&format!("{name}: status of {} VMs, ms", status.vms.len()), format!("{ms:.1}"));
    Ok(percent(took, MEASURED_S))
}

fn percent(took: Took, seconds: u64) -> f64 {
    took.all.as_secs_f64() / seconds as f64 * 100.0
}
