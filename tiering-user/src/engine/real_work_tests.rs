//! Staging, judged by recorded real work: two guests of one image, of which the second one does what the first one did.
//!
//! `traces/boots.json` is of `cargo xtask bench prefetch --part boots`, which writes such a file into the folder
//! `recordings` of the target folder. For each guest it has runs of pages in the order in which they were touched, and
//! what all pages held: runs of contents, each with its length, its first number, and by how much that grows from page
//! to page. Equal numbers are equal contents; 0 is a page of zeroes.

use std::collections::HashSet;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use tiering_common::Sample;

use super::Event;
use super::testing::{Host, SWAP};
use crate::predict::{StageCounts, Tag};
use crate::replay::{SimulatedHost, Wait};
use crate::sys::PAGE_BYTES;
use crate::tiermap::{PageIndex, PageRun};
use crate::tiers::TierId;
use crate::track::VmId;
use crate::vm::Hva;

/// What an emulated guest needs for a touch, and touches that the agent reads at a time.
const TOUCH: Duration = Duration::from_micros(500);
const BATCH: usize = 4;

#[derive(Deserialize)]
struct Recorded {
    leader: Work,
    follower: Work,
}

#[derive(Deserialize)]
struct Work {
    /// First page and count.
    touched: Vec<(PageIndex, u32)>,
    /// Count, first content, and by how much that grows.
    held: Vec<(u32, u64, u64)>,
}

impl Work {
    fn contents(&self) -> Vec<u64> {
        let run = |(count, first, step): &(u32, u64, u64)| {
            let (first, step) = (*first, *step);
            (0..u64::from(*count)).map(move |number| first + number * step)
        };
        self.held.iter().flat_map(run).collect()
    }

    fn touches(&self) -> impl Iterator<Item = PageIndex> {
        self.touched.iter().flat_map(|(first, count)| *first..first + count)
    }
}

/// All of both is in swap, and what it holds is known.
fn swapped_out(work: [&Work; 2]) -> (Host, [VmId; 2]) {
    let config = SWAP.replace("10s", "1h") + "[[vm]]\nmatch = { name = \"*\" }\ntenant = \"t\"\n";
    let mut host = Host::new(&config);
    let vms = [1, 2].map(|id| {
        let contents = work[id as usize - 1].contents();
        let count = u32::try_from(contents.len()).unwrap();
        let vm = host.start(id, &format!("web-{id}"), count);
        host.reclaimed(vm, PageRun { first: 0, count }, TierId(1));
        (vm, contents)
    });
    host.idle(40);
    let engine = host.engine_mut();
    for (id, contents) in &vms {
        let vm = &engine.vms[id];
        let tenant = engine.tenants.of_mut(vm).unwrap();
        for (page, content) in (0..).zip(contents).filter(|(_, content)| **content != 0) {
            if tenant.tags.insert(*id, page, Tag(scattered(*content))) {
                tenant.likeness.hold(*id, vm.guest_page(page), Tag(scattered(*content)));
            }
        }
    }
    host.idle(4);
    (host, vms.map(|(vm, _)| vm))
}

/// As hashes are.
fn scattered(content: u64) -> u64 {
    content.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32)
}

/// A VM touches these pages. What is staged is there for the touches after those that the agent reads at a time.
/// Returns the pages for which it waited.
fn work(host: &mut Host, vm: VmId, touches: impl Iterator<Item = PageIndex>) -> Vec<PageIndex> {
    let Hva(start) = host.guest(vm).vm.guest_ranges[0].start;
    let touches: Vec<PageIndex> = touches.collect();
    let (mut waited, mut second) = (Vec::new(), host.now());
    for batch in touches.chunks(BATCH) {
        let mut samples = Vec::new();
        for page in batch {
            let now = host.now().after(TOUCH);
            host.set_now(now);
            let wait = host.touch(vm, *page);
            waited.extend((wait == Wait::Read).then_some(*page));
            if wait != Wait::Nothing {
                let hva = start + u64::from(*page) * PAGE_BYTES;
                samples.push(Sample { time_ns: now.0, hva, vm: vm.0, flags: 0 });
            }
        }
        host.tell(Event::Samples(&samples));
        if host.now().since(second) >= Duration::from_secs(1) {
            second = host.now();
            host.with(SimulatedHost::second);
        }
        host.asked();
    }
    waited
}

#[test]
fn most_of_what_the_leader_touched_is_there_when_the_follower_needs_it() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("traces/boots.json");
    let recorded: Recorded = serde_json::from_reader(BufReader::new(File::open(path).unwrap())).unwrap();
    let Recorded { leader: first, follower: second } = &recorded;
    let (mut host, [leader, follower]) = swapped_out([first, second]);
    work(&mut host, leader, first.touches());
    host.idle(14);
    let waited = work(&mut host, follower, second.touches());
    host.idle(12);

    let [of_leader, of_follower] = [first, second].map(Work::contents);
    let known: HashSet<u64> = first.touches().map(|page| of_leader[page as usize]).collect();
    let is_known = |page: &PageIndex| {
        let content = of_follower[*page as usize];
        content != 0 && known.contains(&content)
    };
    let pages: HashSet<PageIndex> = second.touches().filter(is_known).collect();
    let (touched, all) = (pages.len(), second.touches().count());
    let missed = waited.iter().filter(|page| is_known(page)).count();
    let StageCounts { issued, used, .. } = host.engine().vms[&follower].prefetch.stages.counts();
    let told = format!(
        "waited for {} of {all} touches, for {missed} of {touched} contents that the leader had touched; \
         {used} of {issued} staged pages were used",
        waited.len()
    );
    println!("{told}");
    assert!(missed * 100 < touched * 2, "{told}");
    assert!(waited.len() * 100 < all * 11, "{told}");
    assert!(used * 100 > issued * 92, "{told}");
}
