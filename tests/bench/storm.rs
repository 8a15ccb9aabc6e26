//! Guests of one image that wake one after the other from the qlc tier: how long each takes until it has its working
//! set.
//!
//! Six emulated guests of a tenant; all of each is in the qlc tier's swap file and nowhere else. Each walks the same
//! pages in the same order as soon as the one before is done. By turns in each repeat: the kernel alone at page-cluster
//! 0, 3 and 5, of which the best counts; an agent that knows each guest's own past alone; one that knows nothing yet,
//! and has all; one that has all, and saw them wake once.

use crate::host::Host;
use crate::walk::{DEFAULT_PAGE_CLUSTER, Member, PAGE_CLUSTERS, follow, send_to};
use anyhow::Result;
use tiering_testkit::agent::Agent;
use tiering_testkit::readahead::Readahead;
use tiering_testkit::repeats::Repeats;
use tiering_testkit::results::Results;

const GUESTS: u64 = 6;

/// What the agent may do, in the words of the configuration, and how often it saw them wake.
const CASES: [(&str, &str, u32); 3] = [
    ("own past alone", "readahead = false\nby_content = false\nby_address = false", 1),
    ("all, nothing seen before", "", 0),
    ("all, seen once before", "", 1),
];

pub fn measure(results: &mut Results, quick: bool) -> Result<()> {
    let host = Host::new()?;
    let readahead = Readahead::keep()?;
    let mut guests = Vec::new();
    for number in 1..=GUESTS {
        guests.push(Member::start(&format!("tt-mate-{number}"), number, follow(100), false)?);
    }
    let mut kernel: Vec<Vec<f64>> = Vec::new();
    let mut ours: [Vec<Vec<f64>>; CASES.len()] = Default::default();
    for _ in 0..if quick { 2 } else { 5 } {
        let agent = host.agent(false)?;
        let mut storms = Vec::new();
        for cluster in PAGE_CLUSTERS {
            readahead.set(cluster)?;
            storms.push(storm(&agent, &mut guests)?);
        }
        agent.interrupt()?;
        storms.sort_by(|a, b| total(a).total_cmp(&total(b)));
        kernel.push(storms.swap_remove(0));
        readahead.set(DEFAULT_PAGE_CLUSTER)?;
        for ((_, rules, seen), ours) in CASES.iter().zip(&mut ours) {
            host.forget_state()?;
            let agent = host.agent_that(rules)?;
            for _ in 0..*seen {
                storm(&agent, &mut guests)?;
            }
            ours.push(storm(&agent, &mut guests)?);
            agent.interrupt()?;
        }
    }
    row(results, "kernel's best", &kernel, &kernel);
    for ((name, ..), ours) in CASES.iter().zip(&ours) {
        row(results, name, ours, &kernel);
    }
    guests.iter_mut().try_for_each(|guest| guest.finish(results))
}

/// All down, then one after the other: how long each took, ms.
fn storm(agent: &Agent, guests: &mut [Member]) -> Result<Vec<f64>> {
    send_to("qlc", agent, &guests.iter().collect::<Vec<_>>())?;
    guests.iter_mut().map(|guest| Ok(guest.walk()?.time_ns() / 1e6)).collect()
}

fn total(storm: &[f64]) -> f64 {
    storm.iter().sum()
}

fn row(results: &mut Results, name: &str, storms: &[Vec<f64>], kernel: &[Vec<f64>]) {
    let mut of = |what: &str, values: Vec<f64>| {
        Repeats::of(&values).map(|repeats| {
            results.note(&format!("{name}: {what}"), repeats);
            repeats.median
        })
    };
    let all = of("all six, ms", storms.iter().map(|storm| total(storm)).collect());
    of("the first, ms", storms.iter().map(|storm| storm[0]).collect());
    of("the last, ms", storms.iter().map(|storm| storm[storm.len() - 1]).collect());
    let faster = storms.iter().zip(kernel).map(|(ours, kernel)| total(kernel) / total(ours)).collect();
    let faster = of("times as fast as the kernel", faster);
    if let (Some(all), Some(faster)) = (all, faster) {
        results.headline(format!("{name}: {all:.0} ms, {faster:.1} x"));
    }
}
