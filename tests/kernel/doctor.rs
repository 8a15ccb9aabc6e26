//! `tiering doctor` and the running agent say the same of one host.

use std::time::Duration;

use serde_json::Value;
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::Backend;
use tiering_testkit::skip::skip_or_fail;

use crate::host::{Host, drain_and_end, guest, vm};

#[test]
fn doctor_says_of_each_source_what_the_running_agent_says() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let guest = guest("tt-doctor", Backend::Anonymous);
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    vm(&agent, "tt-doctor");
    // A source that a VM needs is tried within seconds.
    std::thread::sleep(Duration::from_secs(4));

    let doctor: Value = serde_json::from_str(&agent.tiering(&["doctor", "--json"]).unwrap()).unwrap();
    let status = agent.status().unwrap();
    for source in status["sources"].as_array().unwrap() {
        let name = format!("source {}", source["name"].as_str().unwrap());
        let Some(check) = doctor.as_array().unwrap().iter().find(|check| check["name"] == *name) else {
            panic!("doctor has no {name}: {doctor}");
        };
        let unavailable = source["state"] == "unavailable";
        assert_eq!(check["state"] == "missing", unavailable, "{check} {source}");
        if unavailable {
            assert_eq!(check["detail"], source["detail"]);
        }
    }
    drain_and_end(agent, &host);
    drop(guest);
}
