//! What happens to a VM's memory is recorded, and the policy says afterwards what it would have done.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::Backend;
use tiering_testkit::paths;
use tiering_testkit::skip::skip_or_fail;

use crate::host::{Host, assert_memory_right, drain_and_end, guest, vm};

const NAME: &str = "tt-recorded";

fn accesses(agent: &Agent) -> u64 {
    let vm = vm(agent, NAME);
    vm["reads_total"].as_u64().unwrap() + vm["writes_total"].as_u64().unwrap()
}

/// Where a replay writes profiles.
fn epochs(host: &Host) -> PathBuf {
    host.scratch.path().join("epochs.csv")
}

/// What `tiering replay` says of the trace under the rules of a host that demotes after so long.
fn replayed(trace: &Path, host: &Host, demote_after: &str) -> Value {
    let config = host.scratch.path().join("replay.toml");
    std::fs::write(&config, host.config(demote_after)).unwrap();
    let mut command = Command::new(paths::tiering_bin().unwrap());
    command.args(["replay", "--json"]).arg(trace).arg("--config").arg(config);
    let output = command.arg("--epochs").arg(epochs(host)).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn what_happens_is_recorded_and_another_policy_is_tried_on_it() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest(NAME, Backend::AnonymousSmall);
    let agent = Agent::start(&(host.config("1h") + "[prefetch]\nenabled = false\n"), &[]).unwrap();
    let before = accesses(&agent);
    let trace = host.scratch.path().join("trace");
    let record = ["record", "--output", trace.to_str().unwrap(), "--vm", NAME, "--duration", "40s"];
    let said = std::thread::scope(|scope| {
        let recording = scope.spawn(|| agent.tiering(&record).unwrap());
        // Long enough for the replay to have sent down all that is idle.
        std::thread::sleep(Duration::from_secs(12));
        let other = host.scratch.path().join("other");
        let refused = agent.tiering(&["record", "--output", other.to_str().unwrap(), "--duration", "1s"]);
        assert!(format!("{:#}", refused.unwrap_err()).contains("somebody else records"));
        // An emulated guest shows an access where a page comes up from swap.
        agent.tiering(&["move", NAME, "--to", "nvme"]).unwrap();
        recording.join().unwrap()
    });
    let again = agent.tiering(&record).unwrap_err();
    assert!(format!("{again:#}").contains("is there already"), "{again:#}");
    let counted = accesses(&agent) - before;
    println!("{said}{counted} were counted");
    let short = replayed(&trace, &host, "2s");
    println!("{short:#}");
    let recorded = short["machines"][0]["accesses"].as_u64().unwrap();
    assert!(said.contains(&format!("{recorded} accesses of 1 VMs")) && said.contains(" 0 lost"), "{said}");
    assert!(recorded <= counted && recorded * 10 > counted * 9, "{recorded} of {counted}");
    assert!(recorded > 1000, "a walk of 24 MiB, or most of one: {recorded}");
    let number = |replayed: &Value, name: &str| replayed["machines"][0][name].as_u64().unwrap();
    assert!(
        number(&short, "demoted_bytes") > 8 << 20 && number(&short, "came_back_without_read") > 0,
        "{short}"
    );
    assert!(number(&short, "came_back_best") <= number(&short, "came_back_lru"), "{short}");
    // Three epochs or so, of which the last ones know what the process used.
    let epochs = std::fs::read_to_string(epochs(&host)).unwrap();
    let cpus = epochs.lines().next().unwrap().split(',').position(|name| name == "cpus").unwrap();
    let busy = epochs.lines().skip(1).filter(|row| row.split(',').nth(cpus) != Some("-1.0000"));
    assert!(busy.clone().count() > 0 && busy.clone().all(|row| row.starts_with(NAME)), "{epochs}");
    let long = replayed(&trace, &host, "1h");
    assert_eq!((number(&long, "demoted_bytes"), number(&long, "came_back")), (0, 0), "{long}");

    // As after a crash.
    let bytes = std::fs::read(&trace).unwrap();
    std::fs::write(&trace, &bytes[..bytes.len() - 5]).unwrap();
    let torn = agent.tiering(&["replay", trace.to_str().unwrap()]).unwrap();
    assert!(torn.contains("ends within a block") && torn.contains(NAME), "{torn}");
    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}
