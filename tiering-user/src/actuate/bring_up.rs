//! Brings pages up to the memory node of the first tier that their block was on last.
//!
//! A page that is brought up for another process lands on a node that the caller prefers, else on that of the caller.
//! So the lanes note the node of each block of 2 MiB before they take it out of the first tier, and prefer it whenever
//! they bring pages of it up, also those that are on their way from one swap tier to another: what is in memory already
//! when it is wanted, as a copy, is not moved from node to node. Where nothing was noted, because the kernel paged the
//! block out or another agent did, they take the first that is known of:
//!
//! 1. the node of those pages of the block that are in memory,
//! 2. the node of the nearest block that has one,
//! 3. the node of most processors that the VM's threads ran on last.
//!
//! # Limits
//! One node a block: a block whose pages lie on several nodes comes up on the one that had most of them. A
//! VM that binds its RAM has its own policy. What `swapoff` brings up (a drain, the agent's end) lands on the node
//! of the mover, whose policy counts there (`unuse_pte_range` in mm/swapfile.c, Linux 6.1 to 6.18).

use std::collections::BTreeMap;
use std::fs;
use std::io;

use super::page_states::PageStates;
use super::target::Target;
use crate::sys::{Advice, PageState, PreferNodes};
use crate::tiermap::{BLOCK_PAGES, PageIndex, Places};
use crate::tiers::TierId;

impl Target {
    /// Notes where those of these ascending pages were that were in the first tier.
    pub(super) fn note_homes(&self, look: &PageStates, pages: &[PageIndex], places: &Places) {
        if !self.has_homes(places) {
            return;
        }
        let found: Vec<_> = look.of(pages).collect();
        for block in found.chunk_by(|(a, _), (b, _)| a / BLOCK_PAGES == b / BLOCK_PAGES) {
            if let Some(node) = commonest(block.iter().filter_map(|(_, state)| node_of(*state, places))) {
                self.info.homes.note(block[0].0 / BLOCK_PAGES, node);
            }
        }
    }

    /// These ascending pages by the node that they should come up on in the tier `to`; none where any of its nodes is
    /// right.
    pub(super) fn by_home(
        &self,
        to: TierId,
        pages: &[PageIndex],
        places: &Places,
    ) -> Vec<(Option<u32>, Vec<PageIndex>)> {
        if to != TierId(0) || !self.has_homes(places) {
            return vec![(None, pages.to_vec())];
        }
        let mut by_home: BTreeMap<Option<u32>, Vec<PageIndex>> = BTreeMap::new();
        for pages in pages.chunk_by(|a, b| a / BLOCK_PAGES == b / BLOCK_PAGES) {
            let block = pages[0] / BLOCK_PAGES;
            let home = self.info.homes.get(block).or_else(|| {
                let likely = self.likely_home(block, places)?;
                self.info.homes.note(block, likely);
                Some(likely)
            });
            by_home.entry(home).or_default().extend(pages);
        }
        by_home.into_iter().collect()
    }

    /// Has `bring` bring up these ascending pages, those of each home on a thread that prefers it.
    pub(super) fn at_home(
        &self,
        pages: &[PageIndex],
        to: TierId,
        places: &Places,
        mut bring: impl FnMut(&[PageIndex]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.by_home(to, pages, places).into_iter().try_for_each(|(home, pages)| {
            let _prefer = self.prefer(home, to, places);
            bring(&pages)
        })
    }

    /// Reads what is in swap of these pages and maps it. The caller asks only for pages of shared memory that exist.
    pub(super) fn bring_up(&self, pages: &[PageIndex], to: TierId, places: &Places) -> io::Result<()> {
        self.at_home(pages, to, places, |pages| {
            self.advise(pages, Advice::WillNeed)?;
            self.touch_read(pages)
        })
    }

    /// Has what this thread brings up land on its home, if it has one, else in the tier, where there is a choice: with
    /// one memory tier, or a VM that binds its RAM to nodes, the kernel's own is right. Where it cannot be had, pages
    /// come up on the node that this thread runs on.
    fn prefer(&self, home: Option<u32>, to: TierId, places: &Places) -> Option<PreferNodes> {
        if let Some(home) = home {
            return PreferNodes::set(&[home]).ok();
        }
        let free_to_choose = places.nodes.tiers().0 > 1 && !self.info.vm.numa_bound;
        free_to_choose.then(|| PreferNodes::set(places.nodes.of_tier(to)).ok()).flatten()
    }

    fn likely_home(&self, block: u32, places: &Places) -> Option<u32> {
        let end = (block + 1).saturating_mul(BLOCK_PAGES).min(self.info.layout.pages());
        let pages: Vec<_> = (block * BLOCK_PAGES..end).collect();
        let states = self.states(&pages).unwrap_or_default();
        commonest(states.into_iter().filter_map(|state| node_of(state, places)))
            .or_else(|| self.info.homes.nearest(block))
            .or_else(|| {
                let cpus = last_cpus(self.process.pid()).unwrap_or_default();
                commonest(cpus.into_iter().filter_map(|cpu| places.nodes.first_tier_node_of_cpu(cpu)))
            })
    }
}

fn node_of(state: PageState, places: &Places) -> Option<u32> {
    match state {
        PageState::Present { pfn } => places.nodes.first_tier_node_of(pfn),
        PageState::Absent | PageState::Zero | PageState::Swapped { .. } => None,
    }
}

/// The processor that each thread of a process ran on last.
fn last_cpus(pid: i32) -> io::Result<Vec<u32>> {
    let stats = fs::read_dir(format!("/proc/{pid}/task"))?.flatten();
    let stats = stats.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    Ok(stats.filter_map(|stat| last_cpu(&stat)).collect())
}

/// Field 39 of `/proc/PID/task/TID/stat`. The second one, in parentheses, is a name that may hold anything.
fn last_cpu(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(36)?.parse().ok()
}

fn commonest(nodes: impl Iterator<Item = u32>) -> Option<u32> {
    let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
    nodes.for_each(|node| *counts.entry(node).or_default() += 1);
    counts.into_iter().max_by_key(|(_, count)| *count).map(|(node, _)| node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commonest_node_wins_and_a_threads_name_is_no_field() {
        assert_eq!(commonest([1, 0, 1].into_iter()), Some(1));
        assert_eq!(commonest(std::iter::empty()), None);
        let fields: Vec<_> = (3..=52).map(|field| field.to_string()).collect();
        assert_eq!(last_cpu(&format!("17 (CPU 0/KVM) 1 2) {}", fields.join(" "))), Some(39));
        assert!(!last_cpus(std::process::id().cast_signed()).unwrap().is_empty());
    }
}
