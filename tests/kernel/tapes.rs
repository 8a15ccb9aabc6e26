//! What a guest touched is known to the next agent, and of use to the guest when it is started anew.

use std::time::Duration;

use serde_json::Value;
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::{Backend, Guest};
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::skip::skip_or_fail;

use crate::host::{Host, drain_and_end, vm, wait_for};

const NAME: &str = "tt-again";
const SET_MIB: usize = 2;
const LIMIT: Duration = Duration::from_secs(120);

/// Each page of the set once, in an order that is the same each time, slowly enough that staging can be ahead.
fn pattern() -> Pattern {
    Pattern {
        mem_mib: 2 * SET_MIB,
        write_one_in: 0,
        touches_per_s: 400,
        rounds_on_command: true,
        access: Access::Follow { set_mib: SET_MIB, order_seed: 5, overlap_percent: 100 },
        ..Pattern::default()
    }
}

fn guest() -> Guest {
    let builder = Guest::builder(NAME).memory_mib(112).backend(Backend::AnonymousSmall).pattern(pattern());
    let mut guest = builder.start().unwrap();
    guest.wait_ready(LIMIT).unwrap();
    guest
}

/// All of the guest goes to swap, then it walks; what the agent says of it after that.
fn walk(agent: &Agent, guest: &mut Guest, number: u64) -> Value {
    let known = wait_for("the agent to know this guest", || {
        (vm(agent, NAME)["pid"].as_u64() == Some(guest.pid().into())).then_some(())
    });
    assert!(known.is_some(), "{}", agent.log().text());
    agent.tiering(&["move", NAME, "--to", "nvme"]).unwrap();
    guest.go().unwrap();
    let phase = guest.wait_phase(number, LIMIT).unwrap();
    assert!(phase.ok, "{}", guest.console().text());
    // The status is of the second before.
    std::thread::sleep(Duration::from_secs(2));
    vm(agent, NAME)
}

/// Pages that were staged for this reason and used.
fn used(status: &Value, way: &str, by: &str) -> u64 {
    let origins = status["prefetch"]["origins"].as_array().unwrap();
    let of = origins.iter().filter(|origin| origin["way"] == way && origin["match"] == by);
    of.map(|origin| origin["used_pages"].as_u64().unwrap()).sum()
}

fn assert_half_of_the_walk(used: u64, agent: &Agent) {
    let shown = agent.tiering(&["vm", "show", NAME]).unwrap();
    println!("{shown}");
    assert!(used * 2 >= pattern().round_len(), "{used} of {} pages:\n{shown}", pattern().round_len());
}

fn finish(mut guest: Guest, agent: Agent, host: &Host) {
    assert!(guest.finish().unwrap().checksum_ok, "{}", guest.console().text());
    drain_and_end(agent, host);
}

#[test]
fn a_new_agent_stages_what_the_guest_touched_next_under_the_former_one() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest();
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    let first = walk(&agent, &mut guest, 1);
    assert_eq!(used(&first, "followed", "self"), 0, "nobody has been there: {first}");
    assert_eq!(agent.interrupt().unwrap().code, Some(0));

    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    let second = walk(&agent, &mut guest, 2);
    // Under this agent each page comes up once: without the former one's tape there would be none.
    assert_half_of_the_walk(used(&second, "followed", "self"), &agent);
    let shown = agent.tiering(&["vm", "show", NAME]).unwrap();
    assert!(shown.contains("after its own past") && !shown.contains("earlier self"), "{shown}");
    finish(guest, agent, &host);
}

#[test]
fn a_guest_that_is_started_anew_has_staged_what_its_earlier_self_touched_next() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    let mut guest = guest_that_walked_and_ended(&agent);
    let again = walk(&agent, &mut guest, 1);
    assert_half_of_the_walk(used(&again, "earlier", "tag"), &agent);
    let shown = agent.tiering(&["vm", "show", NAME]).unwrap();
    assert!(shown.contains("touched next by its earlier self (same content)"), "{shown}");
    assert!(again["prefetch"]["from"]["tag"].as_u64().unwrap() * 2 >= pattern().round_len(), "{again}");
    finish(guest, agent, &host);
}

/// A guest of which this agent has seen an earlier one walk.
fn guest_that_walked_and_ended(agent: &Agent) -> Guest {
    let mut first = guest();
    walk(agent, &mut first, 1);
    first.poweroff().unwrap();
    wait_until_gone(agent);
    guest()
}

fn wait_until_gone(agent: &Agent) {
    let gone = wait_for("the agent to notice that the guest has ended", || {
        let status = agent.status().unwrap();
        status["vms"].as_array().unwrap().iter().all(|vm| vm["name"] != NAME).then_some(())
    });
    assert!(gone.is_some(), "{}", agent.log().text());
}

#[test]
fn a_guest_without_a_tenant_is_known_again_by_its_addresses_also_to_the_next_agent() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let config = host.config("1h").replace("tenant = \"test\"\n", "");
    let agent = Agent::start(&config, &[]).unwrap();
    let mut first = guest();
    walk(&agent, &mut first, 1);
    first.poweroff().unwrap();
    wait_until_gone(&agent);
    assert_eq!(agent.interrupt().unwrap().code, Some(0));

    let agent = Agent::start(&config, &[]).unwrap();
    let mut guest = guest();
    let again = walk(&agent, &mut guest, 1);
    // Nothing else counts there. How many there are varies: which page of the guest is where differs from boot to boot.
    let used = used(&again, "earlier", "gfn");
    println!("{}", agent.tiering(&["vm", "show", NAME]).unwrap());
    assert!(used > 0, "{again}");
    finish(guest, agent, &host);
}
