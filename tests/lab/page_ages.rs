//! Page ages of a real MGLRU: the estimate of what can be freed follows from them, and what is in use is not in it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use tiering_testkit::agent::Agent;
use tiering_testkit::results::Results;

use crate::asking::{self, HOT_MIB};
use crate::host::{Host, known_vm, number, shell, wait_at_most};
use crate::scenario::Scenario;

const MGLRU: &str = "/sys/kernel/mm/lru_gen/enabled";
/// The kernel looks at ages as it reclaims, and the agent reads them once a minute.
const MOST: Duration = Duration::from_mins(8);
/// Of 64 MiB that the guest never touches again.
const COLD_LEAST: u64 = 32 << 20;

fn ages(results: &mut Results) -> Result<()> {
    let host = Host::new()?;
    fs::write(MGLRU, "y").with_context(|| format!("switching MGLRU on by {MGLRU}"))?;
    if !Path::new("/sys/kernel/debug/lru_gen").exists() {
        shell("mount -t debugfs none /sys/kernel/debug")?;
    }
    let (mut guest, group) = asking::hot_and_cold(results)?;
    let (before, faults) = (asking::held(&group)?, group.major_faults()?);
    let agent = Agent::start(&asking::config(&host)?, &[])?;
    let mut last = String::new();
    // Some of what is cold is free by then: the kernel looks at ages when it reclaims.
    let known = wait_at_most(MOST, "page ages that show what is cold", || {
        let vm = known_vm(&agent, guest.name())?;
        let can_free = &vm["savings"]["can_free"];
        let free = before.saturating_sub(asking::held(&group)?);
        let told = can_free["detail"].to_string();
        if told != last {
            results.note("can be freed", can_free);
            last = told;
        }
        let is_seen = free + number(&can_free["expected_bytes"]) >= COLD_LEAST;
        Ok((can_free["source"] == "page_ages" && is_seen).then(|| (can_free.clone(), free)))
    });
    let (known, free) =
        known.with_context(|| fs::read_to_string("/sys/kernel/debug/lru_gen").unwrap_or_default())?;
    let faults = group.major_faults()? - faults;
    results.note("MiB free by then, and major faults", format!("{}, {faults}", free >> 20));
    let most = asking::held(&group)?.saturating_sub(HOT_MIB << 20) + (HOT_MIB << 20) / 8;
    let (expected, upper) = (number(&known["expected_bytes"]), number(&known["upper_bytes"]));
    let what = "KiB that can be freed, expected; of what the group holds all but what is in use";
    results.check(what, expected >> 10, &format!("{} at most", most >> 10), expected <= most);
    results.check("its upper bound, KiB", upper >> 10, "what is expected at least", upper >= expected);
    let right = guest.finish()?.checksum_ok;
    results.check("memory right", right, "true", right);
    drop(guest);
    agent.tiering(&["drain", "nvme"])?;
    let ended = agent.interrupt()?;
    results.check("agent's exit code", format!("{:?}", ended.code), "Some(0)", ended.code == Some(0));
    Ok(())
}

#[test]
#[ignore = "long: until the kernel has looked at the ages of pages twice"]
fn page_ages_of_a_real_kernel_leave_out_what_is_in_use() {
    let host = Scenario { nodes: "dram:2G", limit: Duration::from_mins(15), ..Scenario::default() };
    host.run("page_ages::page_ages_of_a_real_kernel_leave_out_what_is_in_use", ages);
}
