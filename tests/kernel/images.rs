//! What a guest read from a base image is read ahead for the next one of its tenant, and for nobody else.

use std::time::Duration;

use serde_json::Value;
use tiering_testkit::agent::Agent;
use tiering_testkit::disk_image::{self, DiskImage, fetched_bytes};
use tiering_testkit::guest::{Backend, Guest};
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::skip::skip_or_fail;

use crate::host::{Host, drain_and_end, vm, wait_for};

/// Large enough that few of the pages which a walk reads are in one extent: else the walk would be a help to itself.
const MIB: usize = 128;
const TOUCHES: u64 = 512;
const PAGES_BYTES: u64 = TOUCHES * 4096;
const EXTENTS_BYTES: f64 = (TOUCHES * (64 << 10)) as f64;
const IMAGE_SEED: u64 = 11;
const LIMIT: Duration = Duration::from_secs(120);

/// A guest of this name reads pages all over the image, in a random order that is the same for all, none of them in the
/// page cache at first; then it is switched off. What it had to fetch itself, bytes, and what the agent says of the
/// image.
fn walk(agent: &Agent, name: &str, image: &DiskImage) -> (u64, Value) {
    let access = Access::Follow { set_mib: MIB, order_seed: 5, overlap_percent: 100 };
    let pattern = Pattern { rounds_on_command: true, round_touches: TOUCHES, access, ..Pattern::default() };
    let builder = Guest::builder(name).memory_mib(112).backend(Backend::AnonymousSmall);
    let mut guest = builder.pattern(pattern.on_disk(MIB, IMAGE_SEED)).disk(image.path()).start().unwrap();
    guest.wait_ready(LIMIT).unwrap();
    vm(agent, name);
    image.leave_cache().unwrap();
    let before = fetched_bytes(guest.pid()).unwrap();
    guest.go().unwrap();
    let phase = guest.wait_phase(1, LIMIT).unwrap();
    assert!(phase.ok, "{}", guest.console().text());
    let fetched = fetched_bytes(guest.pid()).unwrap() - before;
    // The status is of the second before.
    std::thread::sleep(Duration::from_secs(2));
    let status = agent.status().unwrap();
    println!("{name} fetched {} KiB\n{}", fetched >> 10, agent.tiering(&["status"]).unwrap());
    let id = &vm(agent, name)["id"];
    let is_read =
        |known: &&Value| known["name"] == disk_image::NAME && known["vms"].as_array().unwrap().contains(id);
    let images = status["images"].as_array().unwrap();
    let of_image = images.iter().find(is_read).unwrap_or_else(|| panic!("no image of {name}: {status}"));
    guest.poweroff().unwrap();
    let gone = wait_for("the agent to notice that the guest has ended", || {
        let status = agent.status().unwrap();
        status["vms"].as_array().unwrap().iter().all(|vm| vm["name"] != name).then_some(())
    });
    assert!(gone.is_some(), "{}", agent.log().text());
    (fetched, of_image.clone())
}

fn number(image: &Value, field: &str) -> f64 {
    image[field].as_f64().unwrap_or_else(|| panic!("no {field} in {image}"))
}

/// Nobody of the tenant has been there.
fn assert_left_to_itself((fetched, image): &(u64, Value)) {
    assert_eq!(image["read_ahead_bytes_total"], 0, "{image}");
    assert!(*fetched >= PAGES_BYTES * 9 / 10, "it fetched {fetched} bytes: who has read the rest? {image}");
    assert!(number(image, "known_bytes") >= EXTENTS_BYTES * 0.8, "{image}");
}

fn assert_read_ahead((fetched, image): &(u64, Value)) {
    assert!(number(image, "read_ahead_bytes_total") > EXTENTS_BYTES / 2.0, "{image}");
    assert!(number(image, "confidence") > 0.8, "{image}");
    assert!(*fetched < PAGES_BYTES / 2, "it fetched {fetched} bytes itself: {image}");
}

#[test]
fn what_came_next_in_an_image_is_read_ahead_within_a_tenant_and_not_for_another_one() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let of_others =
        "[[vm]]\nmatch = { name = \"of-*\" }\ntenant = \"others\"\n[[vm]]\nmatch = { name = \"tt-*\" }";
    let config = host.config("1h").replacen("[[vm]]\nmatch = { name = \"tt-*\" }", of_others, 1);
    let image = DiskImage::create(host.scratch.path(), MIB, IMAGE_SEED).unwrap();
    let agent = Agent::start(&config, &[]).unwrap();
    assert_left_to_itself(&walk(&agent, "tt-first", &image));
    assert_read_ahead(&walk(&agent, "tt-second", &image));
    assert_left_to_itself(&walk(&agent, "of-others", &image));
    drain_and_end(agent, &host);
}

#[test]
fn what_came_next_in_an_image_is_known_to_the_next_agent_also_without_a_tenant() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let config = host.config("1h").replace("tenant = \"test\"\n", "");
    let image = DiskImage::create(host.scratch.path(), MIB, IMAGE_SEED).unwrap();
    let agent = Agent::start(&config, &[]).unwrap();
    assert_left_to_itself(&walk(&agent, "tt-again", &image));
    assert_left_to_itself(&walk(&agent, "tt-other", &image));
    assert_eq!(agent.interrupt().unwrap().code, Some(0));
    let agent = Agent::start(&config, &[]).unwrap();
    assert_read_ahead(&walk(&agent, "tt-again", &image));
    drain_and_end(agent, &host);
}
