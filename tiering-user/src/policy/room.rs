//! How many pages of a VM its control groups have room for.
//!
//! In: [`GroupMemory`], as read right before a batch. Out: a [`Room`], and what limits it. Pure.
//!
//! Of each limit a margin stays free, a 32nd of it, 1 MiB at least and 64 MiB at most: others, the kernel's own reclaim
//! among them, use the same room meanwhile, and the kernel counts up to 64 pages a CPU late (`MEMCG_CHARGE_BATCH`,
//! include/linux/memcontrol.h, Linux 6.1 to 6.18).

use std::fmt;

use crate::sys::PAGE_BYTES;
use crate::vm::{GroupMemory, Headroom};

const MARGIN_DIVISOR: u64 = 32;
const MARGIN_LEAST: u64 = 1 << 20;
const MARGIN_MOST: u64 = 64 << 20;

/// What keeps pages from moving.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GroupLimit {
    Swap { group: String },
    Protected { group: String },
    Charge { group: String },
    Unreadable { file: String },
}

impl fmt::Display for GroupLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Swap { group } => {
                write!(
                    f,
                    "its control group {group} has used up its swap (memory.swap.max, memory.swap.high)"
                )
            }
            Self::Protected { group } => {
                write!(
                    f,
                    "its control group {group} would fall under what it was promised (memory.min, memory.low)"
                )
            }
            Self::Charge { group } => {
                write!(
                    f,
                    "its control group {group} has no room for pages from swap (memory.max, memory.high)"
                )
            }
            Self::Unreadable { file } => write!(f, "a limit of its control group cannot be read: {file}"),
        }
    }
}

/// How many pages may move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    pub pages: u64,
    /// What it comes from; none where there is no limit.
    pub limit: Option<GroupLimit>,
}

impl Room {
    /// Pages that may go from memory to swap.
    pub fn to_swap(memory: &GroupMemory) -> Self {
        let swap = Self::within(&memory.swap, |group| GroupLimit::Swap { group });
        let unprotected = Self::within(&memory.unprotected, |group| GroupLimit::Protected { group });
        if unprotected.pages < swap.pages { unprotected } else { swap }
    }

    /// Pages that may be read from swap: they are charged to the VM's group, where too many would have the kernel
    /// reclaim from it, throttle it, or kill in it.
    pub fn from_swap(memory: &GroupMemory) -> Self {
        Self::within(&memory.charge, |group| GroupLimit::Charge { group })
    }

    fn within(headroom: &Headroom, limit: impl Fn(String) -> GroupLimit) -> Self {
        match headroom {
            Headroom::Unlimited => Self { pages: u64::MAX, limit: None },
            Headroom::Left { left_bytes, limit_bytes, group } => {
                let margin = (limit_bytes / MARGIN_DIVISOR).clamp(MARGIN_LEAST, MARGIN_MOST);
                Self {
                    pages: left_bytes.saturating_sub(margin) / PAGE_BYTES,
                    limit: Some(limit(group.clone())),
                }
            }
            Headroom::Unreadable { file } => {
                let file = file.display().to_string();
                Self { pages: 0, limit: Some(GroupLimit::Unreadable { file }) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn left(left_mib: u64, limit_mib: u64) -> Headroom {
        Headroom::Left { left_bytes: left_mib * MIB, limit_bytes: limit_mib * MIB, group: "/vm".into() }
    }

    #[test]
    fn a_margin_stays_free_of_each_limit() {
        let room = |left_mib, limit_mib| {
            let memory = GroupMemory { swap: left(left_mib, limit_mib), ..GroupMemory::default() };
            Room::to_swap(&memory).pages * PAGE_BYTES / MIB
        };
        assert_eq!(room(16, 16), 15, "at least a MiB");
        assert_eq!(room(1024, 1024), 992, "a 32nd");
        assert_eq!(room(1 << 20, 1 << 20), (1 << 20) - 64, "at most 64 MiB");
        assert_eq!(room(1, 1024), 0);
    }

    #[test]
    fn the_tighter_of_swap_and_promise_is_named() {
        let mut memory = GroupMemory { swap: left(100, 100), ..GroupMemory::default() };
        assert_eq!(
            Room::to_swap(&memory).limit.unwrap().to_string(),
            "its control group /vm has used up its swap (memory.swap.max, memory.swap.high)"
        );
        memory.unprotected = left(50, 100);
        let room = Room::to_swap(&memory);
        assert_eq!(room.limit, Some(GroupLimit::Protected { group: "/vm".into() }));
        assert_eq!(Room::from_swap(&memory), Room { pages: u64::MAX, limit: None });
    }

    #[test]
    fn what_cannot_be_read_stops_with_its_file() {
        let memory = GroupMemory {
            charge: Headroom::Unreadable { file: "/sys/fs/cgroup/vm/memory.max".into() },
            ..GroupMemory::default()
        };
        let room = Room::from_swap(&memory);
        assert_eq!(room.pages, 0);
        assert!(room.limit.unwrap().to_string().ends_with("/sys/fs/cgroup/vm/memory.max"));
    }
}
