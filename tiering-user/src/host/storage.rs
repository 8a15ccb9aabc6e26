//! What there is to put pages on.

use std::fs;
use std::path::Path;

use super::Check;
use crate::config::Config;
use crate::sys::{FIRST_SPECIAL, frames_are_shown};
use crate::tiers::{
    BASE_PRIORITY, Ladder, Nodes, Tier, TierKind, areas_of_others, check_nodes, check_tier, read_proc_swaps,
};

/// Swap areas at most: the kernel takes 27 or 28 (23 with device memory), of which this many can be told from what else
/// pagemap shows as swapped.
const MOST_AREAS: usize = FIRST_SPECIAL as usize;

pub(super) fn checks(config: &Config) -> Vec<Check> {
    let mut checks = vec![swap_areas(), zswap(), page_cluster(), huge_pages()];
    let ladder = Ladder::new(config);
    checks.extend(ladder.tiers().iter().map(tier));
    if ladder.node_tiers().0 > 1 {
        checks.push(memory_tiers(&ladder));
    }
    checks
}

/// Whether it can be told which page is in which memory tier.
fn memory_tiers(ladder: &Ladder) -> Check {
    const NAME: &str = "memory tiers";
    match Nodes::open(Path::new("/sys"), ladder) {
        Err(error) => Check::missing(NAME, error.to_string(), "the agent does not start"),
        Ok(_) if !frames_are_shown() => {
            let consequence = "all that is in memory counts as the first tier: give the agent CAP_SYS_ADMIN";
            Check::degraded(NAME, "pagemap shows no frame numbers", consequence)
        }
        Ok(nodes) => {
            let tiers = nodes.tiers().0;
            Check::ok(NAME, format!("{tiers} in the ladder, {} in the kernel", kernel_tiers()))
        }
    }
}

/// Into how many tiers the kernel itself has sorted its memory nodes; the ladder need not be the same.
fn kernel_tiers() -> usize {
    let entries = fs::read_dir("/sys/devices/virtual/memory_tiering").into_iter().flatten().flatten();
    entries.filter(|entry| entry.path().join("nodelist").exists()).count()
}

fn swap_areas() -> Check {
    const NAME: &str = "swap areas";
    let on = match read_proc_swaps() {
        Ok(on) => on,
        Err(error) => {
            return Check::missing(
                NAME,
                error.to_string(),
                "this kernel has no swap: nothing can be demoted",
            );
        }
    };
    let detail = format!("{} of {MOST_AREAS} on", on.len());
    let others = areas_of_others().unwrap_or_default();
    let above = others.iter().find(|area| area.priority >= BASE_PRIORITY);
    let zram = on.iter().any(|area| area.path.starts_with("/dev/zram"));
    if on.len() + 2 > MOST_AREAS {
        Check::missing(NAME, detail, "there is no room for the tiers' areas: switch some off")
    } else if let Some(area) = above {
        let detail = format!("{detail}; {} has priority {}", area.path.display(), area.priority);
        Check::degraded(NAME, detail, "it fills before the tiers: give it a lower priority")
    } else if zram {
        Check::degraded(
            NAME,
            format!("{detail}; zram among them"),
            "what goes there stays in memory, compressed",
        )
    } else {
        Check::ok(NAME, detail)
    }
}

fn zswap() -> Check {
    const NAME: &str = "zswap";
    if read("/sys/module/zswap/parameters/enabled") == "Y" {
        Check::degraded(
            NAME,
            "on",
            "demoted pages may stay in memory, compressed: a tier's used bytes are not what left it",
        )
    } else {
        Check::ok(NAME, "off")
    }
}

fn page_cluster() -> Check {
    Check::ok("swap readahead", format!("2^{} pages", read("/proc/sys/vm/page-cluster")))
}

fn huge_pages() -> Check {
    const NAME: &str = "huge pages";
    let text = read("/sys/kernel/mm/transparent_hugepage/enabled");
    let mode = text.split(['[', ']']).nth(1).unwrap_or("not in this kernel");
    if mode == "always" || mode == "madvise" {
        Check::degraded(
            NAME,
            mode,
            "a huge page is split when a part of it goes to swap; it is made huge again once it is back in the first tier",
        )
    } else {
        Check::ok(NAME, mode)
    }
}

fn tier(tier: &Tier) -> Check {
    let name = format!("tier {}", tier.name);
    match &tier.kind {
        TierKind::Node { nodes } => match check_nodes(Path::new("/sys"), &tier.name, nodes) {
            Ok(()) => Check::ok(&name, format!("nodes {nodes:?}")),
            Err(error) => Check::missing(&name, error.to_string(), "the agent does not start"),
        },
        TierKind::Swap { place, capacity_bytes, .. } => {
            match check_tier(&tier.name, place, *capacity_bytes) {
                Ok(()) => {
                    let path = place.path().display();
                    Check::ok(&name, format!("{path} can hold {} MiB", capacity_bytes >> 20))
                }
                Err(error) => Check::missing(&name, error.to_string(), "the agent does not start"),
            }
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}
