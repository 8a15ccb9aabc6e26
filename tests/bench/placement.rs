//! Whether pages are where they were sent: several gigabytes of moves between three tiers, of anonymous and of shared
//! memory.
//!
//! Anonymous pages are looked at one by one (pagemap). Shared ones do not show there once they are paged out: what the
//! mapping has in swap is told by smaps, and how much of it is in nvme by the growth of its area, which nobody else
//! uses.

use crate::host::{self, Host};
use anyhow::{Context, Result};
use tiering_testkit::filled::Filled;
use tiering_testkit::guest::Backend;
use tiering_testkit::observe::{At, PAGE, area_numbers, pagemap};
use tiering_testkit::results::Results;

const MEMORY_MIB: u32 = 512;
const TARGET_PERCENT: f64 = 99.0;
/// Down, further down, up one tier, to memory, straight to the last tier, up.
const ROUTE: [&str; 6] = ["nvme", "qlc", "nvme", "dram", "qlc", "dram"];

/// What was sent to a tier, and what was found there.
#[derive(Default)]
struct Tally {
    sent: u64,
    found: u64,
}

impl Tally {
    fn percent(&self) -> f64 {
        self.found as f64 / self.sent as f64 * 100.0
    }
}

pub fn measure(results: &mut Results, bytes: u64) -> Result<()> {
    let host = Host::new()?;
    let private = host::still("tt-private", MEMORY_MIB, Backend::AnonymousSmall)?;
    let shared = host::still("tt-shared", MEMORY_MIB, Backend::Memfd)?;
    let agent = host.agent(false)?;
    let guests = [("anonymous", &private), ("memfd", &shared)];
    let mut tallies: [[Tally; 3]; 2] = Default::default();
    let mut shared_in_nvme = 0;
    for (_, guest) in guests {
        host::known(&agent, guest)?;
        host::look(&agent, guest)?;
    }
    let mut moved = 0;
    let mut version = 0;
    while moved < bytes {
        for tier in ROUTE {
            for ((kind, guest), tallies) in guests.into_iter().zip(&mut tallies) {
                let others_in_nvme = area_pages(&host, "nvme")?.saturating_sub(shared_in_nvme);
                let outcome = host::move_to(&agent, guest, tier)?;
                let found = if kind == "memfd" {
                    let found = Found::shared(&host, guest, others_in_nvme)?;
                    shared_in_nvme = found.nvme;
                    found
                } else {
                    Found::private(&host, guest)?
                };
                let index = TIERS.iter().position(|name| *name == tier).context("a tier of the route")?;
                let there = found.in_tier(tier);
                tallies[index].sent += guest.all_pages();
                tallies[index].found += there;
                moved += guest.all_pages() * PAGE;
                if there * 100 < guest.all_pages() * 99 {
                    println!("{kind} to {tier}: {there} of {} pages; {outcome}", guest.all_pages());
                }
            }
        }
        // What is written takes new slots on the next way down.
        version += 1;
        for (_, guest) in guests {
            guest.fill(version)?;
            host::look(&agent, guest)?;
        }
        shared_in_nvme = 0;
    }
    show(results, moved, &guests.map(|(kind, _)| kind), &tallies);
    for (kind, guest) in guests {
        let changed = guest.changed_pages(version)?;
        results.check(&format!("{kind}: pages whose content changed"), changed, "0", changed == 0);
    }
    Ok(())
}

const TIERS: [&str; 3] = ["dram", "nvme", "qlc"];

fn show(results: &mut Results, moved: u64, kinds: &[&str], tallies: &[[Tally; 3]]) {
    results.note("moved, MiB", moved >> 20);
    let mut all = Tally::default();
    for (kind, tallies) in kinds.iter().zip(tallies) {
        for (tier, tally) in TIERS.iter().zip(tallies) {
            let found = format!("{:.2} ({} of {})", tally.percent(), tally.found, tally.sent);
            let met = tally.percent() >= TARGET_PERCENT;
            results.figure(&format!("{kind} to {tier}: pages found there, %"), found, "99 %", met);
            all.sent += tally.sent;
            all.found += tally.found;
        }
    }
    let met = all.percent() >= TARGET_PERCENT;
    results.figure("all: pages found where they were sent, %", format!("{:.2}", all.percent()), "99 %", met);
    results.headline(format!("placement {:.2} % of {} GiB", all.percent(), moved >> 30));
}

/// Pages of one guest by where they are.
#[derive(Default)]
struct Found {
    dram: u64,
    nvme: u64,
    qlc: u64,
}

impl Found {
    fn in_tier(&self, tier: &str) -> u64 {
        match tier {
            "dram" => self.dram,
            "nvme" => self.nvme,
            _ => self.qlc,
        }
    }

    fn private(host: &Host, guest: &Filled) -> Result<Self> {
        let (nvme, qlc) = (area_numbers(&host.folder("nvme"))?, area_numbers(&host.folder("qlc"))?);
        let mut found = Self::default();
        for at in pagemap(guest.guest().pid(), guest.ram().start, guest.all_pages())? {
            match at {
                At::Memory { .. } => found.dram += 1,
                At::Swap { area, .. } if nvme.contains(&area) => found.nvme += 1,
                At::Swap { area, .. } if qlc.contains(&area) => found.qlc += 1,
                _ => {}
            }
        }
        Ok(found)
    }

    /// `others_in_nvme` is what nvme holds of others.
    fn shared(host: &Host, guest: &Filled, others_in_nvme: u64) -> Result<Self> {
        let swapped = guest.smaps_kib("Swap")? * 1024 / PAGE;
        let nvme = area_pages(host, "nvme")?.saturating_sub(others_in_nvme).min(swapped);
        Ok(Self { dram: guest.smaps_kib("Rss")? * 1024 / PAGE, nvme, qlc: swapped - nvme })
    }
}

/// Pages in use in a tier's areas.
fn area_pages(host: &Host, tier: &str) -> Result<u64> {
    let swaps = std::fs::read_to_string("/proc/swaps").context("reading /proc/swaps")?;
    let folder = host.folder(tier);
    let ours = swaps.lines().skip(1).filter(|line| line.starts_with(&*folder.to_string_lossy()));
    let kib = ours.filter_map(|line| line.split_whitespace().nth(3)?.parse::<u64>().ok());
    Ok(kib.sum::<u64>() * 1024 / PAGE)
}
