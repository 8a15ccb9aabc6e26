//! An operator's moves end where they were meant to, by pagemap.

use serde_json::Value;
use tiering_testkit::agent::Agent;
use tiering_testkit::filled::Filled;
use tiering_testkit::guest::{Backend, Guest};
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::skip::{Skip, skip_or_fail};

use crate::host::{
    At, BOOT, Host, PAGE, area_numbers, assert_memory_right, drain_and_end, guest, no_swap_is_on, pagemap,
    runs, vm, wait_for,
};

fn move_to(agent: &Agent, tier: &str) -> Value {
    move_of(agent, &["tt-moves", "--to", tier])
}

fn move_of(agent: &Agent, args: &[&str]) -> Value {
    let args: Vec<_> = ["move"].iter().chain(args).chain(&["--json"]).copied().collect();
    serde_json::from_str(&agent.tiering(&args).unwrap()).unwrap()
}

/// Of the pages that the map knows, how many pagemap shows in these areas, and how many in memory.
fn count(agent: &Agent, pid: u32, areas: &[u64]) -> (u64, u64, u64) {
    let (mut all, mut in_areas, mut in_memory) = (0, 0, 0);
    for run in runs(agent, "tt-moves").iter().filter(|run| run["tier"] != "untouched") {
        for at in pagemap(pid, run["hva"].as_u64().unwrap(), run["pages"].as_u64().unwrap()) {
            all += 1;
            match at {
                At::Swap { area, .. } if areas.contains(&area) => in_areas += 1,
                At::Memory { .. } => in_memory += 1,
                _ => {}
            }
        }
    }
    (all, in_areas, in_memory)
}

#[test]
fn at_least_99_of_100_pages_land_in_the_tier_that_was_named() {
    let Some(()) = skip_or_fail(no_swap_is_on()) else { return };
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest("tt-moves", Backend::Anonymous);
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    vm(&agent, "tt-moves");
    guest.stop().unwrap();
    let folder = |tier: &str| host.scratch.path().join(tier);

    // Down, further down, up one tier, up to memory.
    for tier in ["nvme", "qlc", "nvme"] {
        let outcome = move_to(&agent, tier);
        let areas = area_numbers(&folder(tier));
        let (all, there, _) = count(&agent, guest.pid(), &areas);
        println!("to {tier}: {there} of {all} pages by pagemap; {outcome}");
        assert!(all >= 64 * 256, "the guest filled 64 MiB, the map knows {all} pages");
        assert!(there * 100 >= all * 99, "{there} of {all} pages in {tier} (areas {areas:?}): {outcome}");
    }
    let outcome = move_to(&agent, "dram");
    let (all, _, in_memory) = count(&agent, guest.pid(), &[]);
    println!("to dram: {in_memory} of {all} pages by pagemap; {outcome}");
    assert_eq!(in_memory, all, "{outcome}");

    guest.cont().unwrap();
    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}

/// The guest fills its memory while the agent looks on: of a huge page that comes in one fault, that shows one page.
#[test]
fn what_was_touched_since_the_last_sweep_goes_too() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    let pattern = Pattern { mem_mib: 64, access: Access::Idle, ..Pattern::default() };
    let builder = Guest::builder("tt-moves").memory_mib(128).pattern(pattern);
    let mut guest = builder.backend(Backend::Anonymous).start().unwrap();
    vm(&agent, "tt-moves");
    guest.wait_ready(BOOT).unwrap();
    guest.stop().unwrap();

    let outcome = move_to(&agent, "nvme");
    let areas = area_numbers(&host.scratch.path().join("nvme"));
    let (all, there, _) = count(&agent, guest.pid(), &areas);
    println!("{there} of {all} pages by pagemap; {outcome}");
    assert!(all >= 64 * 256, "the guest filled 64 MiB, the map knows {all} pages");
    assert!(there * 100 >= all * 99, "{there} of {all} pages in nvme: {outcome}");
    guest.cont().unwrap();
    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}

#[test]
fn shared_memory_is_moved_too() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest("tt-moves", Backend::Memfd);
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    let before = vm(&agent, "tt-moves");
    guest.stop().unwrap();

    for tier in ["nvme", "qlc"] {
        let outcome = move_to(&agent, tier);
        println!("to {tier}: {outcome}");
        let (asked, there) = (&outcome["asked_pages"], &outcome["in_tier_pages"]);
        assert!(asked.as_u64().unwrap() * PAGE >= before["tier_bytes"]["dram"].as_u64().unwrap() * 9 / 10);
        assert!(there.as_u64().unwrap() * 100 >= asked.as_u64().unwrap() * 99, "{outcome}");
        // What left the page table left memory for the tier's files.
        let used = agent.status().unwrap()["tiers"].as_array().unwrap().clone();
        let used = used.iter().find(|found| found["name"] == tier).unwrap()["used_bytes"].as_u64().unwrap();
        assert!(used >= there.as_u64().unwrap() * PAGE * 99 / 100, "{used} bytes used in {tier}: {outcome}");
    }

    guest.cont().unwrap();
    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}

#[test]
fn a_part_can_be_moved_and_the_rest_stays() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest("tt-moves", Backend::Anonymous);
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    vm(&agent, "tt-moves");
    guest.stop().unwrap();
    let (start, end) = {
        let runs = runs(&agent, "tt-moves");
        let largest = runs.iter().max_by_key(|run| run["pages"].as_u64()).unwrap();
        let start = largest["hva"].as_u64().unwrap();
        (start, start + largest["pages"].as_u64().unwrap().min(1000) * PAGE)
    };

    let range = format!("{start:#x}..{end:#x}");
    let outcome = agent.tiering(&["move", "tt-moves", "--to", "nvme", "--hva", &range, "--json"]).unwrap();
    let outcome: Value = serde_json::from_str(&outcome).unwrap();
    let inside = pagemap(guest.pid(), start, (end - start) / PAGE);
    // A page the guest never wrote may lie between: it takes no memory afterwards and is not in the tier.
    let swapped = inside.iter().filter(|at| matches!(at, At::Swap { .. })).count();
    let zero = inside.iter().filter(|at| matches!(at, At::Zero)).count();
    assert_eq!(swapped + zero, inside.len(), "{outcome}");
    assert!(swapped >= inside.len() * 9 / 10, "{swapped} of {}: {outcome}", inside.len());
    assert_eq!(outcome["in_tier_pages"].as_u64(), Some(swapped as u64), "{outcome}");
    let status = vm(&agent, "tt-moves");
    assert_eq!(status["tier_bytes"]["nvme"], swapped as u64 * PAGE, "{status}");

    guest.cont().unwrap();
    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}

#[test]
fn a_guest_that_dies_in_the_middle_of_a_move_does_no_harm() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut doomed = guest("tt-moves", Backend::Anonymous);
    let mut other = guest("tt-other", Backend::Anonymous);
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    vm(&agent, "tt-moves");

    std::thread::scope(|scope| {
        let mover = scope.spawn(|| agent.tiering(&["move", "tt-moves", "--to", "qlc", "--json"]));
        std::thread::sleep(std::time::Duration::from_millis(30));
        doomed.kill();
        // Done before it died, or told that it has.
        if let Err(error) = mover.join().unwrap() {
            let error = format!("{error:#}");
            assert!(error.contains("ended") || error.contains("no VM"), "{error}");
        }
    });
    let left = wait_for("the agent to notice", || {
        let status = agent.status().unwrap();
        let names: Vec<_> =
            status["vms"].as_array().unwrap().iter().map(|vm| vm["name"].to_string()).collect();
        (!names.iter().any(|name| name.contains("tt-moves"))).then_some(names)
    });
    assert!(left.unwrap().iter().any(|name| name.contains("tt-other")));

    assert_memory_right(&mut other);
    drain_and_end(agent, &host);
}

#[test]
fn a_tier_that_is_full_says_so_and_is_left_in_peace() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mut guest = guest("tt-moves", Backend::Anonymous);
    // No multiple of the usual file size, and smaller than what wants to go there.
    let config = host.config("1s").replace("1GiB", "40MiB");
    let agent = Agent::start(&config, &[]).unwrap();
    let written = || {
        let status = agent.status().unwrap();
        let qlc = status["tiers"].as_array().unwrap().iter().find(|tier| tier["name"] == "qlc").unwrap();
        assert!(qlc["used_bytes"].as_u64().unwrap() <= 40 << 20, "{qlc}");
        qlc["written_bytes_total"].as_u64().unwrap()
    };
    vm(&agent, "tt-moves");
    guest.stop().unwrap();
    let full = wait_for("the tier to fill", || (written() > 38 << 20).then_some(()));
    assert!(full.is_some(), "{}", written());

    let swapped_out = || -> u64 {
        let vmstat = std::fs::read_to_string("/proc/vmstat").unwrap();
        vmstat.lines().find_map(|line| line.strip_prefix("pswpout ")).unwrap().parse().unwrap()
    };
    let before = swapped_out();
    std::thread::sleep(std::time::Duration::from_secs(10));
    let since = swapped_out() - before;
    // Idle pages are tried again now and then, not all the time: the guest's cold memory is 36 MiB.
    assert!(since < 20_000, "{since} pages written in 10 s");

    guest.cont().unwrap();
    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}

#[test]
fn a_tiers_folder_may_be_a_link() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let real = host.scratch.path().join("real");
    std::fs::create_dir_all(&real).unwrap();
    let link = host.scratch.path().join("link");
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let folder = host.scratch.path().to_str().unwrap();
    let config = host.config("1h").replace(&format!("{folder}/nvme"), &format!("{folder}/link/nvme"));
    let mut guest = guest("tt-moves", Backend::Anonymous);
    let agent = Agent::start(&config, &[]).unwrap();
    vm(&agent, "tt-moves");
    guest.stop().unwrap();
    let outcome = move_to(&agent, "nvme");
    let (all, there, _) = count(&agent, guest.pid(), &area_numbers(&real));
    assert!(there * 100 >= all * 99, "{there} of {all}: {outcome}");
    guest.cont().unwrap();
    assert_memory_right(&mut guest);
    drain_and_end(agent, &host);
}

/// A guest that stands still, most of its RAM in huge pages. Its last MiB is too short for one.
fn huge_guest(name: &str) -> Result<Filled, Skip> {
    let pattern = Pattern { mem_mib: 16, access: Access::Idle, ..Pattern::default() };
    let guest = Guest::builder(name).memory_mib(97).pattern(pattern).backend(Backend::Anonymous);
    let guest = Filled::new(guest).unwrap();
    match huge_bytes(&guest) {
        0 => Err(Skip(
            "no huge page is to be had: write madvise to /sys/kernel/mm/transparent_hugepage/enabled"
                .to_owned(),
        )),
        _ => Ok(guest),
    }
}

/// By the kernel.
fn huge_bytes(guest: &Filled) -> u64 {
    guest.smaps_kib("AnonHugePages").unwrap() << 10
}

fn swapped_pages(guest: &Filled) -> u64 {
    let at = pagemap(guest.guest().pid(), guest.ram().start, guest.all_pages());
    at.iter().filter(|at| matches!(at, At::Swap { .. })).count() as u64
}

/// The VMs called `tt-keep*` keep their huge pages.
fn config_that_keeps(host: &Host, demote_after: &str) -> String {
    let rule = "[[vm]]\nmatch = { name = \"tt-keep*\" }\ntenant = \"test\"\nhuge = \"keep\"\n[[vm]]";
    host.config(demote_after).replacen("[[vm]]", rule, 1)
}

#[test]
fn huge_pages_that_are_kept_stay_and_the_small_pages_beside_them_go() {
    let Some(()) = skip_or_fail(no_swap_is_on()) else { return };
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let Some(kept) = skip_or_fail(huge_guest("tt-keep")) else { return };
    let Some(split) = skip_or_fail(huge_guest("tt-split")) else { return };
    let (kept_before, split_before) = (huge_bytes(&kept), huge_bytes(&split));
    let agent = Agent::start(&config_that_keeps(&host, "1h"), &[]).unwrap();
    for name in ["tt-keep", "tt-split"] {
        vm(&agent, name);
        // The agent reads the page tables before it shows a map.
        runs(&agent, name);
    }
    let explain = |name: &str, args: &[&str]| agent.tiering(&[&["explain", name], args].concat()).unwrap();
    let told: Value = serde_json::from_str(&explain("tt-keep", &["--json"])).unwrap();
    assert_eq!((&told["huge"], &told["huge_kept_bytes"]), (&"keep".into(), &kept_before.into()), "{told}");
    let text = explain("tt-keep", &[]);
    assert!(text.contains("kept (huge = \"keep\")"), "{text}");
    assert!(text.contains("its huge pages are kept"), "the kernel is not asked: {text}");
    assert!(explain("tt-split", &[]).contains("split where they go to swap"));

    let outcome = move_of(&agent, &["tt-keep", "--to", "nvme"]);
    println!("kept: {kept_before} bytes in huge pages; {outcome}");
    assert_eq!(huge_bytes(&kept), kept_before, "{outcome}");
    let small = kept.all_pages() - kept_before / PAGE;
    assert!(
        small >= 256 && swapped_pages(&kept) * 100 >= small * 99,
        "{} of {small}: {outcome}",
        swapped_pages(&kept)
    );
    let left =
        outcome["skipped"].as_object().unwrap().iter().find(|(why, _)| why.contains("huge = \"keep\""));
    assert_eq!(left.unwrap().1, &Value::from(kept_before / PAGE), "{outcome}");
    assert_eq!(outcome["huge_split_bytes"], 0, "{outcome}");
    // A part of a huge page stays too.
    let start = kept.ram().start + (33 << 20);
    let range = format!("{start:#x}..{:#x}", start + 16 * PAGE);
    let outcome = move_of(&agent, &["tt-keep", "--to", "nvme", "--hva", &range]);
    assert_eq!((&outcome["asked_pages"], &outcome["moved_pages"]), (&16.into(), &0.into()), "{outcome}");
    assert_eq!(huge_bytes(&kept), kept_before, "{outcome}");
    let page = explain("tt-keep", &["--hva", &format!("{start:#x}")]);
    assert!(page.contains("does not go to nvme: part of a huge page"), "{page}");

    let outcome = move_of(&agent, &["tt-split", "--to", "nvme"]);
    println!("split: {split_before} bytes in huge pages; {outcome}");
    assert_eq!(huge_bytes(&split), 0, "{outcome}");
    assert_eq!(outcome["huge_split_bytes"], split_before, "{outcome}");
    let total = |name: &str| vm(&agent, name)["huge_split_bytes_total"].clone();
    assert_eq!((total("tt-keep"), total("tt-split")), (0.into(), split_before.into()));

    assert_eq!((kept.changed_pages(0).unwrap(), split.changed_pages(0).unwrap()), (0, 0));
    drop((kept, split));
    drain_and_end(agent, &host);
}

#[test]
fn the_policy_sends_only_small_pages_of_a_vm_that_keeps_its_huge_ones() {
    let Some(()) = skip_or_fail(no_swap_is_on()) else { return };
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let Some(kept) = skip_or_fail(huge_guest("tt-keep")) else { return };
    let before = huge_bytes(&kept);
    let small = kept.all_pages() - before / PAGE;
    let agent = Agent::start(&config_that_keeps(&host, "1s"), &[]).unwrap();
    let gone = wait_for("its small pages to go", || (swapped_pages(&kept) * 10 >= small * 9).then_some(()));
    assert!(gone.is_some(), "{} of {small}: {}", swapped_pages(&kept), vm(&agent, "tt-keep"));
    // Long enough to find out whether what is left is in use.
    std::thread::sleep(std::time::Duration::from_secs(10));
    assert_eq!(huge_bytes(&kept), before, "{}", vm(&agent, "tt-keep"));
    assert_eq!(vm(&agent, "tt-keep")["huge_kept_bytes"], before);
    assert_eq!(kept.changed_pages(0).unwrap(), 0);
    drop(kept);
    drain_and_end(agent, &host);
}
