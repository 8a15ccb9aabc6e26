//! A real program in a KVM guest: it goes on while what it does not use goes down the tiers, and its data is right in
//! the end.

use std::time::Instant;

use anyhow::{Context, Result};
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::Backend;
use tiering_testkit::program::{Kind, Program};
use tiering_testkit::results::Results;
use tiering_testkit::skip::{need_programs, skip_or_fail};

use crate::host::{BOOT, Host, drain_and_end, kvm_guest, number, vm, wait_for};
use crate::scenario::Scenario;

const NAME: &str = "tt-redis";

fn redis_works_while_the_rest_goes_down(results: &mut Results) -> Result<()> {
    let host = Host::new()?;
    let program = Program { rate: 100, ..Program::new(Kind::Redis) };
    let began = Instant::now();
    let mut guest = kvm_guest(NAME, Backend::Anonymous).program(program).start()?;
    guest.wait_ready(BOOT)?;
    results.note("seconds until Redis is ready", began.elapsed().as_secs());
    guest.wait_progress(1, BOOT)?;

    let agent = Agent::start(&host.config("2s"), &[])?;
    let found = wait_for("16 MiB of the guest to be below dram", || {
        let Some(vm) = vm(&agent, NAME)? else { return Ok(None) };
        let below: u64 = ["cxl", "nvme", "qlc"].iter().map(|tier| number(&vm["tier_bytes"][tier])).sum();
        Ok((below >= 16 << 20).then_some(below))
    })?;
    results.note("MiB below dram", found >> 20);

    let before = guest.progress()?.len() as u64;
    let last = guest.wait_progress(before + 2, BOOT).context("after its memory went down")?;
    results.note("operations of the last round", last.operations);
    let class = vm(&agent, NAME)?.map(|vm| vm["class"].to_string());
    results.note("what it is by its profile", class.unwrap_or_default());
    let result = guest.finish_program()?;
    results.check("operations", result.operations, "> 0", result.operations > 0);
    results.check("Redis' values right", result.data_ok, "true", result.data_ok);
    results.check("Redis ended well", result.ended_well, "true", result.ended_well);
    guest.poweroff()?;
    drain_and_end(results, agent, &host)
}

#[test]
#[ignore = "long: needs the disk of `cargo xtask setup programs`"]
fn redis_works_in_a_kvm_guest_that_is_tiered() {
    let Some(()) = skip_or_fail(need_programs()) else { return };
    Scenario::default()
        .run("programs::redis_works_in_a_kvm_guest_that_is_tiered", redis_works_while_the_rest_goes_down);
}
