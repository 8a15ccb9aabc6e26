//! The mapping table against pagemap, page by page.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::Backend;
use tiering_testkit::skip::skip_or_fail;

use crate::host::{
    At, Host, area_numbers, assert_memory_right, drain_and_end, guest, no_swap_is_on, pagemap, runs, vm,
    wait_for,
};

#[test]
fn every_page_of_a_stopped_guest_is_where_the_map_says() {
    let Some(()) = skip_or_fail(no_swap_is_on()) else { return };
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest("tt-map", Backend::Anonymous);
    let agent = Agent::start(&host.config("1s"), &[]).unwrap();
    vm(&agent, "tt-map");
    // Pages in both swap tiers at once; then some of them come back, and some go on to the next tier.
    let both = wait_for("pages in both swap tiers", || {
        let pages_in = pages_by_tier(&runs(&agent, "tt-map"));
        ["nvme", "qlc"].iter().all(|tier| pages_in.contains_key(*tier)).then_some(())
    });
    assert!(both.is_some(), "{}", agent.log().text());
    guest.stop().unwrap();
    // The agent goes on while the guest stands still, so a page can move between the two looks: look again then.
    let mut differences = Vec::new();
    for _ in 0..20 {
        differences = compare(&agent, guest.pid(), &host);
        if differences.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    assert!(differences.is_empty(), "{} pages differ, as {:?}", differences.len(), differences.first());

    guest.cont().unwrap();
    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}

#[test]
fn pages_are_found_by_their_address_in_the_guest_and_by_their_frame() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest("tt-map", Backend::Anonymous);
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    vm(&agent, "tt-map");
    let map = |args: &[&str]| -> Vec<Value> {
        let args: Vec<_> = ["map", "tt-map", "--json"].iter().chain(args).copied().collect();
        let map: Value = serde_json::from_str(&agent.tiering(&args).unwrap()).unwrap();
        map["runs"].as_array().unwrap().clone()
    };
    let number = |run: &Value, field: &str| run[field].as_u64().unwrap();

    // A guest of 128 MiB has its RAM from 0 on, but for video memory and firmware below 1 MiB.
    let start = guest.ram().unwrap().start;
    for run in map(&[]) {
        let offset = number(&run, "hva") - start;
        let expected = if (0xa_0000..0x10_0000).contains(&offset) { Value::Null } else { offset.into() };
        assert_eq!(run["gpa"], expected, "{run}");
    }
    let low = map(&["--gpa", "0..0x200000"]);
    let pages: u64 = low.iter().map(|run| number(run, "pages")).sum();
    assert_eq!((number(&low[0], "gpa"), pages), (0, 512 - 96), "{low:?}");

    let framed = map(&[]).into_iter().find(|run| run["frame_or_slot"]["pfn"].is_u64()).unwrap();
    let frame = framed["frame_or_slot"]["pfn"].to_string();
    let found = map(&["--pfn", &frame]);
    assert_eq!((found.len(), number(&found[0], "pages")), (1, 1), "{found:?}");
    assert_eq!((&found[0]["hva"], &found[0]["frame_or_slot"]), (&framed["hva"], &framed["frame_or_slot"]));

    for (args, says) in [
        (
            ["--gpa", "0xa0000..0x100000"],
            "is no RAM of tt-map, whose guest-physical addresses are 0x0..0xa0000, 0x100000..0x8000000",
        ),
        (["--hva", "0..0x1000"], "is no RAM of tt-map, whose host-virtual addresses are 0x"),
        (["--pfn", "0xffffffffff"], "no page of tt-map has frame 0xffffffffff now"),
    ] {
        let error = agent.tiering(&["map", "tt-map", args[0], args[1]]).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}

/// The map against pagemap: one line for each page on which they differ.
fn compare(agent: &Agent, pid: u32, host: &Host) -> Vec<String> {
    let areas_of = |tier: &str| area_numbers(&host.scratch.path().join(tier));
    let tiers: BTreeMap<&str, Vec<u64>> = ["nvme", "qlc"].map(|tier| (tier, areas_of(tier))).into();
    let mut differences = Vec::new();
    let runs = runs(agent, "tt-map");
    let pages_in = pages_by_tier(&runs);
    for run in runs {
        let (hva, pages) = (run["hva"].as_u64().unwrap(), run["pages"].as_u64().unwrap());
        let tier = run["tier"].as_str().unwrap();
        let found = pagemap(pid, hva, pages);
        for (page, at) in found.iter().enumerate() {
            let right = match at {
                At::Nowhere | At::Zero => tier == "untouched",
                At::Memory { .. } => tier == "dram",
                At::Swap { area, .. } => tiers.get(tier).is_some_and(|areas| areas.contains(area)),
            };
            if !right {
                differences.push(format!("page {page} of {run} is at {at:?}; areas {tiers:?}"));
            }
        }
        let first = match found[0] {
            At::Nowhere | At::Zero => Value::Null,
            At::Memory { pfn } => serde_json::json!({ "pfn": pfn }),
            At::Swap { area, slot } => serde_json::json!({ "area": area, "slot": slot }),
        };
        if run["frame_or_slot"] != first {
            differences.push(format!("the first page of {run} is at {first}"));
        }
    }
    println!("{pages_in:?}, {} differences", differences.len());
    assert_eq!(pages_in.values().sum::<u64>(), 128 * 256, "{pages_in:?}");
    differences
}

fn pages_by_tier(runs: &[Value]) -> BTreeMap<String, u64> {
    let mut pages_in = BTreeMap::new();
    for run in runs {
        *pages_in.entry(run["tier"].as_str().unwrap().to_owned()).or_default() +=
            run["pages"].as_u64().unwrap();
    }
    pages_in
}
