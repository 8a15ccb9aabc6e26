//! Guests of different tenants do not learn from each other, however alike they are.

use std::time::Duration;

use serde_json::Value;
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::{Backend, Guest};
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::skip::skip_or_fail;

use crate::host::{Host, drain_and_end, vm};

const SET_MIB: usize = 2;
const LIMIT: Duration = Duration::from_secs(120);

/// Guests of any name hold the same pages and walk them in the same order.
fn guest(name: &str) -> Guest {
    let pattern = Pattern {
        mem_mib: 2 * SET_MIB,
        write_one_in: 0,
        rounds_on_command: true,
        access: Access::Follow { set_mib: SET_MIB, order_seed: 5, overlap_percent: 100 },
        ..Pattern::default()
    };
    let builder = Guest::builder(name).memory_mib(112).backend(Backend::AnonymousSmall).pattern(pattern);
    let mut guest = builder.start().unwrap();
    guest.wait_ready(LIMIT).unwrap();
    guest
}

fn walk(guest: &mut Guest) {
    guest.go().unwrap();
    assert!(guest.wait_phase(1, LIMIT).unwrap().ok, "{}", guest.console().text());
}

/// One guest walks, then the other one, with all of both in swap. What the agent knows of the other one then, and of
/// pairs.
fn one_after_the_other(host: &Host, other: &str) -> (Value, Value) {
    let of_others =
        "[[vm]]\nmatch = { name = \"of-*\" }\ntenant = \"others\"\n[[vm]]\nmatch = { name = \"tt-*\" }";
    let config = host.config("1h").replacen("[[vm]]\nmatch = { name = \"tt-*\" }", of_others, 1);
    let agent = Agent::start(&config, &[]).unwrap();
    let (mut leader, mut follower) = (guest("tt-one"), guest(other));
    for name in ["tt-one", other] {
        vm(&agent, name);
        agent.tiering(&["move", name, "--to", "nvme"]).unwrap();
    }
    walk(&mut leader);
    walk(&mut follower);
    // It compares every two seconds.
    std::thread::sleep(Duration::from_secs(4));
    let similar: Value = serde_json::from_str(&agent.tiering(&["similar", "--json"]).unwrap()).unwrap();
    let shown = vm(&agent, other);
    let [one, pairs] = [&["vm", "show", other][..], &["similar"]].map(|args| agent.tiering(args).unwrap());
    println!("{one}\n{pairs}\n{similar:#}");
    for mut guest in [leader, follower] {
        assert!(guest.finish().unwrap().checksum_ok, "{}", guest.console().text());
    }
    drain_and_end(agent, host);
    (shown, similar)
}

#[test]
fn equal_content_is_of_use_within_a_tenant_and_means_nothing_across_tenants() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let (follower, similar) = one_after_the_other(&host, "tt-two");
    // How many there are is a matter of the hour: what is on its way at the same address is not staged by content too.
    let by_content = |origin: &&Value| origin["match"] == "tag";
    let origins = follower["prefetch"]["origins"].as_array().unwrap().iter();
    let used: u64 = origins.filter(by_content).map(|origin| origin["used_pages"].as_u64().unwrap()).sum();
    assert!(used > 0, "{follower}");
    let pair = &similar["pairs"][0];
    assert!(pair["parts"]["content"].as_f64().unwrap() > 0.3, "{similar}");
    assert!(pair["score"].as_f64().unwrap() > 0.1, "{similar}");
    assert!(pair["why"].as_str().is_some_and(|why| !why.is_empty()), "{similar}");

    let (stranger, similar) = one_after_the_other(&host, "of-others");
    let prefetch = &stranger["prefetch"];
    assert_eq!(similar["pairs"].as_array().unwrap().len(), 0, "{similar}");
    for kind in ["gfn", "tag", "file"] {
        assert_eq!(prefetch["from"][kind], 0, "{prefetch}");
    }
    let of_others = |origin: &&Value| origin["leader"] != stranger["id"];
    assert_eq!(prefetch["origins"].as_array().unwrap().iter().filter(of_others).count(), 0, "{prefetch}");
    assert_eq!(stranger["tenant"], "others");
}

#[test]
fn what_is_not_sure_enough_for_memory_is_lifted_to_the_faster_swap_tier() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    // Nothing is ever as sure as this wants it.
    let config = format!("{}\n[prefetch]\npull = false\ntier0_threshold = 1.0\n", host.config("1h"));
    let agent = Agent::start(&config, &[]).unwrap();
    let (mut leader, mut follower) = (guest("tt-one"), guest("tt-two"));
    for name in ["tt-one", "tt-two"] {
        vm(&agent, name);
        agent.tiering(&["move", name, "--to", "qlc"]).unwrap();
    }
    // It compares every two seconds.
    std::thread::sleep(Duration::from_secs(4));
    walk(&mut leader);
    std::thread::sleep(Duration::from_secs(4));
    let ahead = vm(&agent, "tt-two");
    println!("{}", agent.tiering(&["vm", "show", "tt-two"]).unwrap());
    // Its first window.
    let lifted = ahead["prefetch"]["lifted_pages"].as_u64().unwrap();
    assert!(lifted >= 64, "{ahead}");
    let in_nvme = ahead["tier_bytes"]["nvme"].as_u64().unwrap() / 4096;
    assert!(in_nvme * 10 >= lifted * 9, "{ahead}");
    walk(&mut follower);
    // The status is a second old at most.
    std::thread::sleep(Duration::from_secs(2));
    let after = vm(&agent, "tt-two");
    let used = after["prefetch"]["used_pages"].as_u64().unwrap();
    assert!(used * 10 >= lifted * 9, "{used} used of {lifted}: {after}");
    for mut guest in [leader, follower] {
        assert!(guest.finish().unwrap().checksum_ok, "{}", guest.console().text());
    }
    drain_and_end(agent, &host);
}
