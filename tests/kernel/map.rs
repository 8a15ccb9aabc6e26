//! The mapping table against pagemap, page by page.

use std::collections::BTreeMap;
use std::time::Duration;

use tiering_tests::agent::Agent;
use tiering_tests::guest::Backend;
use tiering_tests::skip::skip_or_fail;

use crate::host::{
    At, Host, PAGE, area_numbers, assert_memory_right, drain_and_end, guest, no_swap_is_on, pagemap, runs,
    vm, wait_until_quiet,
};

#[test]
fn every_page_of_a_stopped_guest_is_where_the_map_says() {
    let Some(()) = skip_or_fail(no_swap_is_on()) else { return };
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest("tt-map", Backend::Anonymous);
    let agent = Agent::start(&host.config("2s"), &[]).unwrap();
    vm(&agent, "tt-map");
    // Long enough for pages in both swap tiers, some of them come back, some staged.
    std::thread::sleep(Duration::from_secs(20));
    guest.stop().unwrap();
    wait_until_quiet(&agent, "tt-map");

    let tiers: BTreeMap<&str, Vec<u64>> =
        ["nvme", "qlc"].map(|tier| (tier, area_numbers(&host.scratch.path().join(tier)))).into();
    let mut pages_in: BTreeMap<String, u64> = BTreeMap::new();
    for run in runs(&agent, "tt-map") {
        let (hva, pages) = (run["hva"].as_u64().unwrap(), run["pages"].as_u64().unwrap());
        let tier = run["tier"].as_str().unwrap();
        *pages_in.entry(tier.to_owned()).or_default() += pages;
        let found = pagemap(guest.pid(), hva, pages);
        for (page, at) in found.iter().enumerate() {
            let right = match at {
                At::Nowhere => tier == "untouched",
                At::Memory { .. } => tier == "dram",
                At::Swap { area, .. } => tiers.get(tier).is_some_and(|areas| areas.contains(area)),
            };
            assert!(right, "page {page} of {run} is at {at:?}; areas {tiers:?}");
        }
        let first = match found[0] {
            At::Nowhere => serde_json::Value::Null,
            At::Memory { pfn } => serde_json::json!({ "pfn": pfn }),
            At::Swap { area, slot } => serde_json::json!({ "area": area, "slot": slot }),
        };
        assert_eq!(run["frame_or_slot"], first, "{run}");
    }
    println!("{pages_in:?}");
    assert_eq!(pages_in.values().sum::<u64>(), 128 * 256, "{pages_in:?}");
    for tier in ["dram", "nvme", "qlc", "untouched"] {
        assert!(pages_in.get(tier).is_some_and(|pages| *pages > 0), "nothing {tier}: {pages_in:?}");
    }
    let status = vm(&agent, "tt-map");
    for tier in ["dram", "nvme", "qlc"] {
        assert_eq!(status["tier_bytes"][tier], pages_in[tier] * PAGE, "{status}");
    }

    guest.cont().unwrap();
    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}
