//! Why a machine and a page of it are where they are, as `tiering explain` tells it.

use serde_json::Value;
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::Backend;
use tiering_testkit::skip::skip_or_fail;

use crate::host::{Host, assert_memory_right, drain_and_end, guest, runs, vm, wait_for};

fn explain(agent: &Agent, args: &[&str]) -> Value {
    let args: Vec<_> = ["explain", "tt-explain", "--json"].iter().chain(args).copied().collect();
    serde_json::from_str(&agent.tiering(&args).unwrap()).unwrap()
}

#[test]
fn a_page_is_told_where_it_is_why_and_when_it_goes_on() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest("tt-explain", Backend::Anonymous);
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    vm(&agent, "tt-explain");
    // Nothing of it may be touched between a move and the question.
    guest.stop().unwrap();
    let there = runs(&agent, "tt-explain").into_iter().find(|run| run["tier"] == "dram").unwrap();
    let hva = there["hva"].as_u64().unwrap();
    let at = format!("{hva:#x}");

    let before = explain(&agent, &["--hva", &at]);
    let (page, next) = (&before["page"], &before["page"]["next"]);
    assert_eq!(
        (&page["tier"], &page["frame_or_slot"]),
        (&"dram".into(), &there["frame_or_slot"]),
        "{before}"
    );
    assert_eq!((&next["to"], &next["least_idle_ms"]), (&"nvme".into(), &3_600_000.into()), "{before}");
    assert_eq!(page["decisions"], serde_json::json!([]), "{before}");
    assert_eq!((&before["movable"], &before["reason"]), (&true.into(), &Value::Null), "{before}");

    agent.tiering(&["move", "tt-explain", "--to", "nvme"]).unwrap();
    // Each page down is four times as long in the tier before it goes on.
    let gpa = page["gpa"].as_u64().unwrap().to_string();
    let after = explain(&agent, &["--gpa", &gpa]);
    let (page, next) = (&after["page"], &after["page"]["next"]);
    assert_eq!((&page["hva"], &page["tier"]), (&hva.into(), &"nvme".into()), "{after}");
    assert_eq!((&next["to"], &next["least_idle_ms"]), (&"qlc".into(), &14_400_000.into()), "{after}");
    let step = &page["decisions"][0];
    assert_eq!((&step["to"], &step["page_in"]), (&"nvme".into(), &"nvme".into()), "{after}");
    assert_eq!(step["reason"], "an operator asked for it", "{after}");
    let moved: u64 =
        after["decisions"].as_array().unwrap().iter().map(|step| step["moved_pages"].as_u64().unwrap()).sum();
    assert!(moved > 10_000, "{after}");
    let text = agent.tiering(&["explain", "tt-explain", "--hva", &at]).unwrap();
    assert!(text.contains("goes to qlc after") && text.contains("an operator asked for it"), "{text}");

    let error = agent.tiering(&["explain", "tt-explain", "--hva", "0x10"]).unwrap_err().to_string();
    assert!(error.contains("is no RAM of tt-explain"), "{error}");
    guest.cont().unwrap();
    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}

#[test]
fn what_the_policy_did_is_told_with_its_reasons() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest("tt-explain", Backend::Anonymous);
    let agent = Agent::start(&host.config("1s"), &[]).unwrap();
    vm(&agent, "tt-explain");
    let told = wait_for("steps down and stages", || {
        let answer = explain(&agent, &[]);
        let steps = answer["decisions"].as_array().unwrap();
        let some = |action: &str, reason: &str| {
            steps
                .iter()
                .any(|step| step["action"] == action && step["reason"].as_str().unwrap().contains(reason))
        };
        (some("place", "idle for") && some("stage", "touched next, last time")).then_some(())
    });
    assert!(told.is_some(), "{}", explain(&agent, &[]));
    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}
