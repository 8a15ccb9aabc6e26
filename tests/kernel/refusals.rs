//! Machines that must not be touched are not, and the reason is told.

use std::time::Duration;

use tiering_testkit::agent::Agent;
use tiering_testkit::guest::Backend;
use tiering_testkit::skip::skip_or_fail;

use crate::host::{Host, assert_memory_right, drain_and_end, guest, vm};

#[test]
fn a_locked_guest_is_left_alone() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest("tt-locked", Backend::Locked);
    let agent = Agent::start(&host.config("1s"), &[]).unwrap();
    vm(&agent, "tt-locked");
    std::thread::sleep(Duration::from_secs(4));

    let status = vm(&agent, "tt-locked");
    assert_eq!(status["movable"], false, "{status}");
    assert!(status["reason"].as_str().unwrap().contains("lock"), "{status}");
    assert_eq!(status["demoted_bytes_total"], 0, "{status}");
    let error = agent.tiering(&["move", "tt-locked", "--to", "nvme"]).unwrap_err();
    assert!(format!("{error:#}").contains("lock"), "{error:#}");

    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}

#[test]
fn a_guest_that_the_operator_excluded_is_left_alone() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest("excluded", Backend::Anonymous);
    let agent = Agent::start(&host.config("1s"), &[]).unwrap();
    vm(&agent, "excluded");
    std::thread::sleep(Duration::from_secs(4));

    let status = vm(&agent, "excluded");
    assert_eq!(status["movable"], false, "{status}");
    assert_eq!(status["tier_bytes"]["nvme"], 0, "{status}");
    let error = agent.tiering(&["move", "excluded", "--to", "nvme"]).unwrap_err();
    assert!(format!("{error:#}").contains("managed = false"), "{error:#}");

    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}
