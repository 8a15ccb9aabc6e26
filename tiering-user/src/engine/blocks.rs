//! What changed in the tables, for those who look from outside: `tier_map`, and what is remembered of each VM.
//!
//! In: the blocks that changed. Out: their summaries. So many a second and no more: after a large change they follow
//! within seconds.

use tiering_common::VmBlock;

use super::Engine;
use super::command::Command;
use crate::policy::Verdict;
use crate::tiermap::{BLOCK_PAGES, BlockSummary, Layout};

/// Blocks looked at in one second, of all VMs together: 4 GiB of guest RAM.
const BLOCKS_A_SECOND: usize = 2048;

impl Engine {
    /// Shows the blocks that changed.
    pub(super) fn show_blocks(&mut self) {
        let now = self.clock.now;
        let each = BLOCKS_A_SECOND / self.vms.len().max(1);
        for (id, vm) in &mut self.vms {
            for block in vm.pages.take_changed(each.max(1)) {
                let summary = vm.pages.summary(block);
                let shown = (!summary.is_empty()).then(|| wire(block, &summary, vm.pages.layout()));
                let in_use = vm.reclaim.verdict(block, now) == Verdict::InUse;
                vm.knowledge.note(block, summary.habit, in_use);
                self.commands.push(Command::ShowBlock(*id, block, shown));
            }
        }
    }
}

fn wire(block: u32, summary: &BlockSummary, layout: &Layout) -> VmBlock {
    VmBlock {
        hva: layout.locate(block * BLOCK_PAGES).map_or(0, |(hva, _)| hva.0),
        tiers: summary.tiers,
        other_swap: summary.other_swap,
        untouched: summary.untouched,
        hot: summary.hot,
        _pad: 0,
    }
}
