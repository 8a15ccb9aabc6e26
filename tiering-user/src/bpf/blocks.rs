//! The map `tier_map`: in which tier the pages of each block are, for `bpftool` and programs of others.
//!
//! In: blocks as they change. Out: entries of the map, gone with their VM.
//!
//! Limits: the map is bounded. Where it is full, the VM of which most is shown gives way to those of which less
//! is, so that a large VM does not hide the others. A block that is not shown for that is counted, and not shown
//! until it changes again.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::{HashMap, MapData};
use tiering_common::{BlockKey, MAX_BLOCKS, VmBlock};

use crate::track::VmId;

/// The map, and what is in it.
pub(super) struct BlockMap {
    map: HashMap<MapData, BlockKey, VmBlock>,
    shown: Shown,
    /// Times that a block did not fit.
    left_out: u64,
}

/// Which blocks are shown.
#[derive(Default)]
struct Shown(BTreeMap<VmId, BTreeSet<u32>>);

impl Shown {
    fn count(&self) -> usize {
        self.0.values().map(BTreeSet::len).sum()
    }

    /// The block that gives way to another one of `vm`, if one should.
    fn gives_way_to(&self, vm: VmId) -> Option<(VmId, u32)> {
        let own = self.0.get(&vm).map_or(0, BTreeSet::len);
        let (largest, blocks) = self.0.iter().max_by_key(|(_, blocks)| blocks.len())?;
        blocks.last().filter(|_| blocks.len() > own + 1).map(|block| (*largest, *block))
    }
}

impl BlockMap {
    pub(super) fn new(map: HashMap<MapData, BlockKey, VmBlock>) -> Self {
        Self { map, shown: Shown::default(), left_out: 0 }
    }

    /// Shows the block as it is now; `None` where it has no page any more.
    pub(super) fn show(&mut self, vm: VmId, block: u32, value: Option<VmBlock>) {
        let Some(value) = value else {
            self.hide(vm, block);
            return;
        };
        let is_new = !self.shown.0.get(&vm).is_some_and(|blocks| blocks.contains(&block));
        if is_new && self.shown.count() >= MAX_BLOCKS {
            self.left_out += 1;
            match self.shown.gives_way_to(vm) {
                Some((other, block)) => self.hide(other, block),
                None => return,
            }
        }
        match self.map.insert(BlockKey { vm: vm.0, block }, value, 0) {
            Ok(()) => drop(self.shown.0.entry(vm).or_default().insert(block)),
            Err(_) => self.left_out += 1,
        }
    }

    fn hide(&mut self, vm: VmId, block: u32) {
        if self.shown.0.get_mut(&vm).is_some_and(|blocks| blocks.remove(&block)) {
            // It is gone already where something else removed it.
            self.map.remove(&BlockKey { vm: vm.0, block }).ok();
        }
    }

    /// Removes all blocks of a VM.
    pub(super) fn forget(&mut self, vm: VmId) {
        for block in self.shown.0.remove(&vm).unwrap_or_default() {
            self.map.remove(&BlockKey { vm: vm.0, block }).ok();
        }
    }

    /// How many blocks are shown, and how often one did not fit.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.shown.count() as u64, self.left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vm_of_which_most_is_shown_gives_way_until_all_have_as_much() {
        let mut shown = Shown::default();
        shown.0.insert(VmId(1), (0..100).collect());
        let mut taken = 0;
        while let Some((vm, block)) = shown.gives_way_to(VmId(2)) {
            assert_eq!(vm, VmId(1));
            shown.0.get_mut(&vm).unwrap().remove(&block);
            shown.0.entry(VmId(2)).or_default().insert(taken);
            taken += 1;
        }
        assert_eq!((taken, shown.count()), (50, 100));
        assert_eq!(shown.gives_way_to(VmId(1)), None, "it takes nothing back");
    }
}
