//! Where the kernel should put what comes into shared guest RAM later.
//!
//! A block of 2 MiB that goes to a lower memory tier is cold: what is allocated there later, by a first touch or from
//! swap, should not take DRAM either. The policy belongs to the file, so the agent can set it through a mapping of its
//! own ([`SharedFile::prefer`]). It is taken back when the block goes to the first tier, and for all VMs when the
//! agent ends.
//!
//! # Limits
//! Private memory has no such policy that another process could set. An agent that is killed leaves the policies
//! behind; they go with the VM, or with a move to the first tier by the next agent. A policy of the VM's own
//! (`policy=preferred`) is replaced; one with `policy=bind` is left alone.

use std::collections::BTreeMap;

use super::target::Target;
use crate::tiermap::{BLOCK_PAGES, PageIndex, PageRun, Places, SharedFile, into_runs};
use crate::tiers::TierId;
use crate::track::VmId;
use crate::vm::Hva;

/// The VMs of whose RAM some part prefers a lower memory tier.
#[derive(Debug, Default)]
pub(super) struct Preferences(BTreeMap<VmId, Target>);

impl Preferences {
    /// Whole blocks among these pages of shared memory prefer the nodes of `to` from now on. The first tier: all blocks
    /// that have one of these pages prefer nothing any more, since they are not cold as a whole.
    pub(super) fn set(&mut self, target: &Target, pages: &[PageIndex], to: TierId, places: &Places) {
        let first_tier = to == TierId(0);
        let known = self.0.contains_key(&target.info.id);
        if places.nodes.tiers().0 <= 1 || target.info.vm.numa_bound {
            return;
        }
        let nodes = if first_tier { &[][..] } else { places.nodes.of_tier(to) };
        let blocks = if first_tier { blocks_of(pages) } else { whole_blocks(pages) };
        prefer(target, &blocks, nodes);
        if !known && !first_tier {
            self.0.retain(|_, other| other.process.is_alive());
            self.0.insert(target.info.id, target.clone());
        }
    }
}

impl Drop for Preferences {
    fn drop(&mut self) {
        for target in self.0.values().filter(|target| target.process.is_alive()) {
            let all: Vec<PageRun> = target.info.layout.regions().map(|(region, ..)| region).collect();
            prefer(target, &all, &[]);
        }
    }
}

fn prefer(target: &Target, runs: &[PageRun], nodes: &[u32]) {
    for run in runs {
        for (start, pages) in parts(target, *run) {
            let set = SharedFile::behind(&target.process, start).and_then(|file| file.prefer(pages, nodes));
            if let Err(error) = set {
                // Only where later allocations go depends on it.
                tracing::debug!(vm = target.info.vm.name, %error, "no policy for later allocations");
            }
        }
    }
}

/// The shared parts of a run: the start of the region, and the pages as counted from there.
fn parts(target: &Target, run: PageRun) -> Vec<(Hva, PageRun)> {
    let shared = target.info.layout.regions().filter(|(.., shared)| *shared);
    let part = |(region, start, _): (PageRun, Hva, bool)| {
        let first = run.first.max(region.first);
        let end = (run.first + run.count).min(region.first + region.count);
        (first < end).then(|| (start, PageRun { first: first - region.first, count: end - first }))
    };
    shared.filter_map(part).collect()
}

/// The blocks that have one of these ascending pages, as runs.
fn blocks_of(pages: &[PageIndex]) -> Vec<PageRun> {
    let firsts =
        pages.chunk_by(|a, b| a / BLOCK_PAGES == b / BLOCK_PAGES).map(|block| block[0] / BLOCK_PAGES);
    let pages: Vec<_> = firsts.flat_map(|block| block * BLOCK_PAGES..(block + 1) * BLOCK_PAGES).collect();
    into_runs(&pages, u32::MAX)
}

/// The blocks of which all pages are among these ascending ones, as runs.
fn whole_blocks(pages: &[PageIndex]) -> Vec<PageRun> {
    let blocks = pages.chunk_by(|a, b| a / BLOCK_PAGES == b / BLOCK_PAGES);
    let whole = blocks.filter(|block| block.len() == BLOCK_PAGES as usize).flatten();
    into_runs(&whole.copied().collect::<Vec<_>>(), u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_blocks_count_on_the_way_down_and_any_on_the_way_up() {
        let mut pages: Vec<PageIndex> = (100..3 * BLOCK_PAGES).collect();
        let run = |first, count| PageRun { first, count };
        assert_eq!(whole_blocks(&pages), [run(BLOCK_PAGES, 2 * BLOCK_PAGES)]);
        pages.retain(|page| *page != 2 * BLOCK_PAGES + 7);
        assert_eq!(whole_blocks(&pages), [run(BLOCK_PAGES, BLOCK_PAGES)]);
        assert_eq!(whole_blocks(&[1, 2, 3]), []);
        assert_eq!(
            blocks_of(&[1, 2, 513, 2000]),
            [run(0, 2 * BLOCK_PAGES), run(3 * BLOCK_PAGES, BLOCK_PAGES)]
        );
    }
}
