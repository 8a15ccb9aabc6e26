//! Where the pages of a guest are, by pagemap and the kernel's own list of which memory block is on which node: a look
//! that owes the agent nothing.
//!
//! In: a process, the addresses of its guest RAM. Out: how many pages are on each node and in each swap area. Changes
//! nothing. Pagemap shows nothing of shared memory in swap: such pages count as nowhere.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use anyhow::{Context, Result};
use tiering_testkit::observe::{At, PAGE, area_numbers, pagemap};

use crate::host::Host;

/// Pages of a guest by where they are.
#[derive(Debug, Default)]
pub struct Spread {
    pub all: u64,
    /// On nodes 0 and 1.
    pub node: [u64; 2],
    /// By the kernel's number of the swap area.
    pub swapped: BTreeMap<u64, u64>,
    pub nowhere: u64,
}

impl Spread {
    pub fn of(pid: u32, ram: &Range<u64>) -> Result<Self> {
        let mut spread = Self::default();
        let blocks = Blocks::read()?;
        for at in pagemap(pid, ram.start, (ram.end - ram.start) / PAGE)? {
            spread.all += 1;
            match at {
                At::Memory { pfn } => spread.node[usize::from(blocks.on_node_1(pfn)?)] += 1,
                At::Swap { area, .. } => *spread.swapped.entry(area).or_default() += 1,
                At::Zero | At::Nowhere => spread.nowhere += 1,
            }
        }
        Ok(spread)
    }

    /// Pages in this tier of the lab's ladder.
    pub fn in_tier(&self, host: &Host, tier: &str) -> Result<u64> {
        Ok(match tier {
            "dram" => self.node[0],
            "cxl" => self.node[1],
            swap => {
                let areas = area_numbers(&host.folder(swap))?;
                areas.iter().filter_map(|area| self.swapped.get(area)).sum()
            }
        })
    }
}

/// The node, 0 or 1, of each page that is in memory.
pub fn nodes(pid: u32, ram: &Range<u64>) -> Result<Vec<Option<u32>>> {
    let blocks = Blocks::read()?;
    let node = |at| match at {
        At::Memory { pfn } => blocks.on_node_1(pfn).map(|on_1| Some(u32::from(on_1))),
        At::Zero | At::Nowhere | At::Swap { .. } => Ok(None),
    };
    pagemap(pid, ram.start, (ram.end - ram.start) / PAGE)?.into_iter().map(node).collect()
}

/// What the lab's tiers are made of at one moment.
pub struct Tiers {
    blocks: Blocks,
    /// The kernel's numbers of the areas of each swap tier.
    areas: Vec<(&'static str, Vec<u64>)>,
}

impl Tiers {
    pub fn now(host: &Host) -> Result<Self> {
        let areas = |tier| Ok((tier, area_numbers(&host.folder(tier))?));
        Ok(Self {
            blocks: Blocks::read()?,
            areas: ["nvme", "qlc"].into_iter().map(areas).collect::<Result<_>>()?,
        })
    }

    /// What the map should call this place.
    pub fn of(&self, at: At) -> Result<&'static str> {
        Ok(match at {
            At::Nowhere | At::Zero => "untouched",
            At::Memory { pfn } => ["dram", "cxl"][usize::from(self.blocks.on_node_1(pfn)?)],
            At::Swap { area, .. } => {
                let tier = self.areas.iter().find(|(_, numbers)| numbers.contains(&area));
                tier.map_or("swap", |(tier, _)| tier)
            }
        })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nodes {:?}, swap areas {:?}, nowhere {}", self.node, self.swapped, self.nowhere)
    }
}

/// For each memory block, by number, whether it is on node 1; none for numbers that no block has.
struct Blocks {
    block_pages: u64,
    on_node_1: Vec<Option<bool>>,
}

impl Blocks {
    fn read() -> Result<Self> {
        let memory = PathBuf::from("/sys/devices/system/memory");
        let size = std::fs::read_to_string(memory.join("block_size_bytes"))?;
        let block = |number| memory.join(format!("memory{number}"));
        let on_node_1 = |number| block(number).exists().then(|| block(number).join("node1").exists());
        let block_pages = u64::from_str_radix(size.trim(), 16)? / PAGE;
        Ok(Self { block_pages, on_node_1: (0..1024).map(on_node_1).collect() })
    }

    fn on_node_1(&self, pfn: u64) -> Result<bool> {
        let number = usize::try_from(pfn / self.block_pages)?;
        self.on_node_1
            .get(number)
            .copied()
            .flatten()
            .with_context(|| format!("frame {pfn:#x} is in no block"))
    }
}
