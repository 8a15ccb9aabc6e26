//! A machine's profile says how its guest behaves, and its history outlives the agent.

use serde_json::{Value, json};
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::{Backend, Guest};
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::skip::skip_or_fail;

use crate::host::{Host, assert_memory_right, drain_and_end, vm, wait_for};

const NAME: &str = "tt-walker";

/// Walks through 48 MiB in order; a page every 2 ms, so that one walk takes more than two epochs.
fn walker() -> Guest {
    let pattern = Pattern {
        mem_mib: 64,
        write_one_in: 0,
        touches_per_s: 500,
        round_touches: 500,
        access: Access::Sequential { set_mib: 48 },
        ..Pattern::default()
    };
    let builder = Guest::builder(NAME).memory_mib(128).backend(Backend::AnonymousSmall).pattern(pattern);
    let mut guest = builder.start().unwrap();
    guest.wait_ready(std::time::Duration::from_secs(120)).unwrap();
    guest
}

fn profile(agent: &Agent) -> Option<Value> {
    Some(vm(agent, NAME)["profile"].clone()).filter(|profile| !profile.is_null())
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

#[test]
fn a_machine_is_described_as_it_behaves_and_the_next_agent_goes_on() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = walker();
    let config = host.config("1h") + "[prefetch]\nenabled = false\n";
    let agent = Agent::start(&config, &[]).unwrap();
    let known = wait_for("the agent to know the guest", || vm(&agent, NAME)["pid"].as_u64());
    assert!(known.is_some(), "{}", agent.log().text());
    // An emulated guest shows an access where a page comes up from swap.
    agent.tiering(&["move", NAME, "--to", "nvme"]).unwrap();
    let described = wait_for("a profile with the walk and the processor time", || {
        profile(&agent)
            .filter(|profile| number(&profile["sequential"]) > 0.8 && number(&profile["cpus"]) > 0.0)
    });
    let Some(described) = described else { panic!("{}", vm(&agent, NAME)["profile"]) };
    println!("{}", agent.tiering(&["vm", "show", NAME]).unwrap());
    assert!(number(&described["reads_per_s"]) > 5.0 * number(&described["writes_per_s"]), "{described}");
    assert!(number(&described["strided"]) < 0.2, "{described}");
    // An epoch's walk is of 5,000 pages: ten blocks or so.
    let entropy = number(&described["entropy_bits"]);
    assert!((1.0..5.0).contains(&entropy), "{described}");
    assert!(number(&described["anonymous_bytes"]) > 3e7, "{described}");
    let misses = described["miss_ratios"].as_array().unwrap();
    assert!(misses.windows(2).all(|two| number(&two[0]["ratio"]) >= number(&two[1]["ratio"])), "{described}");
    let shown = agent.tiering(&["vm", "show", NAME]).unwrap();
    assert!(shown.contains("go on page by page"), "{shown}");
    assert_eq!(vm(&agent, NAME)["priority"], 50, "what is guessed of it changes nothing");
    assert_eq!(agent.interrupt().unwrap().code, Some(0));

    // All of the walk is mapped by now, and shows nothing any more: what there was is the former agent's.
    let of_a_class = "tenant = \"test\"\nclass = \"batch\"\n[class.batch]\npriority = 33\n";
    let config = config.replacen("tenant = \"test\"\n", of_a_class, 1);
    let agent = Agent::start(&config, &[]).unwrap();
    let next = wait_for("the profile of the next agent", || profile(&agent)).unwrap();
    let most = |profile: &Value| profile["hour"].as_array().unwrap().iter().map(number).fold(0.0, f64::max);
    let now = vm(&agent, NAME);
    assert_eq!(now["class"], json!({"name": "batch", "confidence": 1.0, "source": "operator"}));
    assert_eq!(now["priority"], 33);
    let shown = agent.tiering(&["vm", "show", NAME]).unwrap();
    assert!(shown.contains("batch, by operator"), "{shown}");
    assert!(most(&next) > most(&described) / 10.0, "{next}\nbefore: {described}");
    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}
