//! What a guest's RAM is on the host decides where it can go: each kind moves as far as the kernel lets it, and what
//! cannot be moved is refused with its reason.

use anyhow::{Result, ensure};
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::Backend;
use tiering_testkit::results::Results;

use crate::host::{Host, drain_and_end, known_vm, move_to, number, wait_for};
use crate::scenario::Scenario;
use crate::still::Still;

/// A memfd, as virtiofs and vhost-user need it.
fn shared(results: &mut Results, agent: &Agent, host: &Host) -> Result<()> {
    let still = Still::new(agent, "shared", Backend::Memfd)?;
    for (tier, wanted) in [("cxl", "prefer (many):1"), ("dram", "default")] {
        still.check_move(results, agent, host, tier)?;
        let policies = still.policies()?;
        let what = format!("shared in {tier}: where the kernel puts what comes later");
        results.check(&what, format!("{policies:?}"), wanted, policies == [wanted]);
    }
    // Pagemap shows nothing of shared memory in swap; what left the page table and memory is in the tier's files.
    let there = number(&move_to(agent, &still.name, "nvme", &[])?["in_tier_pages"]);
    let gone = still.spread()?.nowhere;
    let ok = there.min(gone) * 100 >= still.all_pages() * 99;
    results.check("shared to nvme: pages there; not mapped", format!("{there}; {gone}"), "99 % of all", ok);
    still.check_move(results, agent, host, "cxl")?;
    still.check_content(results)
}

/// Huge pages in the pools of the two nodes, given back when dropped.
struct Pool;

impl Pool {
    fn of(pages: u32) -> Result<Self> {
        for node in 0..2 {
            std::fs::write(Self::file(node), pages.to_string())?;
            let made = std::fs::read_to_string(Self::file(node))?;
            ensure!(
                made.trim() == pages.to_string(),
                "node {node} has {} of {pages} huge pages",
                made.trim()
            );
        }
        Ok(Self)
    }

    fn file(node: u32) -> String {
        format!("/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages")
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for node in 0..2 {
            std::fs::write(Self::file(node), "0").unwrap();
        }
    }
}

/// Pages from the hugetlb pool: the kernel does not swap them.
fn from_the_pool(results: &mut Results, agent: &Agent, host: &Host) -> Result<()> {
    let _pool = Pool::of(40)?;
    let still = Still::new(agent, "hugetlb", Backend::Hugetlb)?;
    check_reason(results, agent, &still, "hugetlb", true)?;
    check_refused(results, agent, &still, "hugetlb", "nvme");
    for tier in ["cxl", "dram", "cxl"] {
        still.check_move(results, agent, host, tier)?;
    }
    still.check_content(results)
}

/// Transparent huge pages move between nodes as a whole.
fn huge(results: &mut Results, agent: &Agent, host: &Host) -> Result<()> {
    let still = Still::new(agent, "huge", Backend::Anonymous)?;
    let before = still.huge_kib()?;
    results.check("huge: MiB in huge pages", before >> 10, "> 32", before > 32 << 10);
    for tier in ["cxl", "dram", "cxl"] {
        still.check_move(results, agent, host, tier)?;
        let now = still.huge_kib()?;
        let wanted = format!("{} still", before >> 10);
        results.check(&format!("huge in {tier}: MiB in huge pages"), now >> 10, &wanted, now == before);
    }
    let told = number(&known_vm(agent, &still.name)?["huge_bytes"]) >> 20;
    results.check("huge: MiB in huge pages, by the status", told, "the same", told == before >> 10);
    still.check_move(results, agent, host, "nvme")?;
    let split = still.huge_kib()?;
    results.check("huge in nvme: MiB in huge pages", split >> 10, "0", split == 0);
    still.check_move(results, agent, host, "dram")?;
    let again = wait_for("its blocks to be huge again", || {
        let now = still.huge_kib()?;
        Ok((now == before).then_some(now))
    });
    let now = still.huge_kib()? >> 10;
    results.check(
        "huge, back in dram: MiB in huge pages",
        now,
        &format!("{} again", before >> 10),
        again.is_ok(),
    );
    let lost = wait_for("the status to tell", || {
        let vm = known_vm(agent, &still.name)?;
        Ok((number(&vm["huge_lost_bytes"]) == 0).then(|| number(&vm["collapsed_bytes_total"]) >> 20))
    });
    let told = lost.as_ref().copied().unwrap_or(0);
    // The kernel's own khugepaged makes some.
    let ok = lost.is_ok() && told > 0;
    results.check("huge: MiB that the agent made again; none is lost", told, "> 0", ok);
    still.check_content(results)
}

/// The same, never in huge pages.
fn small(results: &mut Results, agent: &Agent, host: &Host) -> Result<()> {
    let still = Still::new(agent, "small", Backend::AnonymousSmall)?;
    let huge = still.huge_kib()?;
    results.check("small: KiB in huge pages", huge, "0", huge == 0);
    for tier in ["cxl", "qlc", "dram"] {
        still.check_move(results, agent, host, tier)?;
    }
    still.check_content(results)
}

/// Locked memory stays, and nothing is tried.
fn locked(results: &mut Results, agent: &Agent, _: &Host) -> Result<()> {
    let still = Still::new(agent, "locked", Backend::Locked)?;
    check_reason(results, agent, &still, "lock", false)?;
    for tier in ["cxl", "nvme"] {
        check_refused(results, agent, &still, "lock", tier);
    }
    let spread = still.spread()?;
    results.check("locked: pages where they were", spread.node[0], "all", spread.node[0] == spread.all);
    still.check_content(results)
}

fn check_reason(
    results: &mut Results,
    agent: &Agent,
    still: &Still,
    word: &str,
    movable: bool,
) -> Result<()> {
    let vm = known_vm(agent, &still.name)?;
    let (told, reason) = (&vm["movable"], vm["reason"].as_str().unwrap_or_default());
    let ok = *told == movable && reason.contains(word);
    results.check(&format!("{}: movable, and why", still.name), format!("{told}: {reason}"), word, ok);
    Ok(())
}

fn check_refused(results: &mut Results, agent: &Agent, still: &Still, word: &str, tier: &str) {
    let said = agent
        .tiering(&["move", &still.name, "--to", tier])
        .map_or_else(|error| format!("{error:#}"), |_| "moved".into());
    // The command line before it is long.
    let reason = said.rsplit_once("status: ").map_or(&*said, |(_, reason)| reason);
    results.check(
        &format!("{}: a move to {tier}", still.name),
        reason,
        "refused with this word",
        said.contains(word),
    );
}

#[test]
#[ignore = "long: five guests one after the other"]
fn each_kind_of_ram_goes_as_far_as_it_can() {
    Scenario::default().run(
        "kinds_of_ram::each_kind_of_ram_goes_as_far_as_it_can",
        |results: &mut Results| {
            let host = Host::new()?;
            let agent = Agent::start(&host.config("1h"), &[])?;
            for kind in [shared, from_the_pool, huge, small, locked] {
                // The others are still worth knowing.
                if let Err(error) = kind(results, &agent, &host) {
                    results.check("no error", format!("{error:#}"), "none", false);
                }
            }
            drain_and_end(results, agent, &host)
        },
    );
}
