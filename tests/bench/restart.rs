//! What a guest saves that is started anew when its earlier self walked the same pages.
//!
//! An emulated guest of one image and name. In each repeat, with no state on disk at first: an agent that stages sees
//! all of it go into the nvme tier's swap file, and the guest walk; the guest is switched off, the agent ends. The
//! guest is started again, then an agent that stages; it walks in DRAM, of which nothing is remembered, so that QEMU
//! has the walk's code ready; all goes down, and it walks. Then, with an agent that stages nothing, the same at
//! page-cluster 0, 3 and 5, the best of which is what it is compared with. The guest with a tenant is known again by
//! content, the one without by address only, and where its kernel puts which page is not the same at each boot.

use crate::host::{self, Host};
use crate::walk::{
    DEFAULT_PAGE_CLUSTER, Member, PAGE_CLUSTERS, Round, SET_MIB, Staged, follow, send_down, show,
};
use anyhow::{Context, Result};
use tiering_testkit::pattern::{Access, PhaseResult};
use tiering_testkit::readahead::Readahead;
use tiering_testkit::results::Results;

/// Has a tenant.
const TENANT: &str = "tt-follower";
/// Has none.
const ALONE: &str = "tt-again";

pub fn measure(results: &mut Results, quick: bool) -> Result<()> {
    let host = Host::new()?;
    let readahead = Readahead::keep()?;
    let mut cases = vec![("random", TENANT, follow(100)), ("random, by address", ALONE, follow(100))];
    if !quick {
        cases.push(("stride", TENANT, Access::Stride { set_mib: SET_MIB, stride_pages: 16 }));
        cases.push(("sequential", TENANT, Access::Sequential { set_mib: SET_MIB }));
    }
    for (what, name, access) in cases {
        let mut rounds = Vec::new();
        let mut in_dram = None;
        for _ in 0..if quick { 2 } else { 5 } {
            let (round, walk) = round(&host, &readahead, name, access, results)?;
            rounds.push(round);
            in_dram = Some(walk);
        }
        show(results, what, &in_dram.context("no repeats")?, &rounds);
    }
    Ok(())
}

/// One repeat, and the walk in DRAM.
fn round(
    host: &Host,
    readahead: &Readahead,
    name: &str,
    access: Access,
    results: &mut Results,
) -> Result<(Round, PhaseResult)> {
    host.forget_state()?;
    // The kernel's default.
    readahead.set(DEFAULT_PAGE_CLUSTER)?;
    let agent = host.agent(true)?;
    let mut earlier = Member::start(name, 1, access, false)?;
    send_down(&agent, &[&earlier])?;
    earlier.walk()?;
    earlier.poweroff()?;
    host::gone(&agent, name)?;
    agent.interrupt()?;

    let agent = host.agent(true)?;
    let mut guest = Member::start(name, 1, access, false)?;
    let in_dram = guest.walk()?.phase;
    send_down(&agent, &[&guest])?;
    let ours = guest.walk()?;
    let staged = Staged::of(&agent, name)?;
    agent.interrupt()?;

    let agent = host.agent(false)?;
    let mut kernel = Vec::new();
    for cluster in PAGE_CLUSTERS {
        readahead.set(cluster)?;
        send_down(&agent, &[&guest])?;
        kernel.push(guest.walk()?);
    }
    guest.finish(results)?;
    guest.poweroff()?;
    host::gone(&agent, name)?;
    agent.interrupt()?;
    Ok((Round { kernel, ours, staged }, in_dram))
}
