//! The map `tier_map`: in which tier the pages of each block are, for `bpftool` and programs of others.
//!
//! In: blocks as they change. Out: entries of the map, gone with their machine.
//!
//! Limits: the map is bounded. A block that does not fit is counted and not shown until it changes again.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::{HashMap, MapData};
use tiering_common::{BlockKey, VmBlock};

use crate::track::VmId;

/// The map, and what is in it.
pub(super) struct BlockMap {
    map: HashMap<MapData, BlockKey, VmBlock>,
    shown: BTreeMap<VmId, BTreeSet<u32>>,
    /// Times that a block did not fit.
    left_out: u64,
}

impl BlockMap {
    pub(super) fn new(map: HashMap<MapData, BlockKey, VmBlock>) -> Self {
        Self { map, shown: BTreeMap::new(), left_out: 0 }
    }

    /// Shows the block as it is now; `None` where it has no page any more.
    pub(super) fn show(&mut self, vm: VmId, block: u32, value: Option<VmBlock>) {
        let key = BlockKey { vm: vm.0, block };
        let shown = self.shown.entry(vm).or_default();
        match value {
            Some(value) if self.map.insert(key, value, 0).is_ok() => {
                shown.insert(block);
            }
            Some(_) => self.left_out += 1,
            None => {
                if shown.remove(&block) {
                    // It is gone already where something else removed it.
                    self.map.remove(&key).ok();
                }
            }
        }
    }

    /// Removes all blocks of a machine.
    pub(super) fn forget(&mut self, vm: VmId) {
        for block in self.shown.remove(&vm).unwrap_or_default() {
            self.map.remove(&BlockKey { vm: vm.0, block }).ok();
        }
    }

    /// How many blocks are shown, and how often one did not fit.
    pub(super) fn counts(&self) -> (u64, u64) {
        (self.shown.values().map(|blocks| blocks.len() as u64).sum(), self.left_out)
    }
}
