//! Control groups with a limit that hold several VMs.
//!
//! In, once a second: of each VM, the limits of the groups it is in, as they were last read. Out: of each such group,
//! the VMs in it and how many pages of theirs should leave memory, so that some of the limit stays free. What each of
//! them gives is [`relief()`](super::relief())'s to say. Pure.
//!
//! Once such a group is full, the kernel reclaims by age alone: pages of a VM of high priority that are used now and
//! then go before those of one that never stops. So the agent makes room first.
//!
//! # Limits
//! What the group holds beside the VMs does not give way. A group with one VM and other processes is left to the kernel,
//! and so is one of which the agent manages one VM only.

use std::collections::BTreeMap;
use std::time::Duration;

use super::FreeSpace;
use crate::sys::{Monotonic, PAGE_BYTES};
use crate::track::VmId;
use crate::vm::ChargeLimit;

/// Of a limit, so much stays free: twice what staged pages leave of it ([`Room`](super::Room)).
const FREE_DIVISOR: u64 = 16;
const FREE_LEAST: u64 = 2 << 20;
const FREE_MOST: u64 = 128 << 20;
/// What was read longer ago says nothing of now: the look at that process hangs.
const TOO_OLD: Duration = Duration::from_secs(5);

/// What was read of the groups of one VM.
#[derive(Clone, Copy, Debug)]
pub struct GroupReading<'a> {
    pub vm: VmId,
    pub limits: &'a [ChargeLimit],
    pub at: Monotonic,
    /// Of the VM, staged and in the swap cache: these pages look as if they gave way, and are to stay.
    pub staged_bytes: u64,
}

/// A group that holds several VMs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedGroup {
    pub name: String,
    pub vms: Vec<VmId>,
    /// As of `read_at`.
    pub missing_pages: u64,
    pub read_at: Monotonic,
}

/// Watches how fast such groups fill, by name; asked once a second.
#[derive(Clone, Debug, Default)]
pub struct SharedGroups(BTreeMap<String, FreeSpace>);

/// A group while its VMs are gathered.
struct Gathered<'a> {
    vms: Vec<VmId>,
    limit: &'a ChargeLimit,
    read_at: Monotonic,
    staged_bytes: u64,
}

impl SharedGroups {
    /// The groups that hold several of these VMs, by name.
    pub fn look<'a>(
        &mut self,
        readings: impl IntoIterator<Item = GroupReading<'a>>,
        now: Monotonic,
    ) -> Vec<SharedGroup> {
        let mut groups: BTreeMap<&str, Gathered<'a>> = BTreeMap::new();
        for GroupReading { vm, limits, at, staged_bytes } in readings {
            for limit in limits {
                let new = || Gathered { vms: Vec::new(), limit, read_at: at, staged_bytes: 0 };
                let group = groups.entry(&limit.group).or_insert_with(new);
                group.vms.push(vm);
                group.staged_bytes += staged_bytes;
                if at > group.read_at {
                    (group.limit, group.read_at) = (limit, at);
                }
            }
        }
        groups.retain(|_, group| group.vms.len() > 1 && now.since(group.read_at) <= TOO_OLD);
        self.0.retain(|name, _| groups.contains_key(&**name));
        let shared = groups.into_iter().map(|(name, Gathered { vms, limit, read_at, staged_bytes })| {
            let held = limit.held_bytes + staged_bytes;
            let available = limit.limit_bytes.saturating_sub(held);
            let target = (limit.limit_bytes / FREE_DIVISOR).clamp(FREE_LEAST, FREE_MOST);
            // What a group has above its limit is missing, too.
            let above = held.saturating_sub(limit.limit_bytes);
            let missing = self.0.entry(name.to_owned()).or_default().missing(available, target + above, 0);
            SharedGroup { name: name.to_owned(), vms, missing_pages: missing.div_ceil(PAGE_BYTES), read_at }
        });
        shared.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(second: u64) -> Monotonic {
        Monotonic(second * 1_000_000_000)
    }

    fn limit(group: &str, limit_mib: u64, held_mib: u64) -> ChargeLimit {
        ChargeLimit { group: group.to_owned(), limit_bytes: limit_mib * MIB, held_bytes: held_mib * MIB }
    }

    /// Each VM's limits, all read at this second. Name, VMs and MiB that are missing.
    fn look(groups: &mut SharedGroups, vms: &[&[ChargeLimit]], second: u64) -> Vec<(String, usize, u64)> {
        let readings = (1..).zip(vms).map(|(number, limits)| GroupReading {
            vm: VmId(number),
            limits,
            at: at(second),
            staged_bytes: 0,
        });
        let shared = groups.look(readings, at(second));
        let mib = |group: &SharedGroup| group.missing_pages * PAGE_BYTES / MIB;
        shared.iter().map(|group| (group.name.clone(), group.vms.len(), mib(group))).collect()
    }

    fn both(missing: u64) -> Vec<(String, usize, u64)> {
        vec![("/both".to_owned(), 2, missing)]
    }

    #[test]
    fn a_group_counts_where_it_holds_several_vms_and_a_16th_of_its_limit_should_be_free() {
        let (high, low) =
            ([limit("/both", 160, 155), limit("/both/high", 100, 99)], [limit("/both", 160, 155)]);
        let mut groups = SharedGroups::default();
        assert_eq!(look(&mut groups, &[&high, &low], 0), both(5), "its own group is its own affair");
        assert_eq!(look(&mut groups, &[&high], 1), [], "who is alone is in nobody's way");
        let calm = [limit("/both", 160, 100)];
        assert_eq!(look(&mut SharedGroups::default(), &[&calm, &calm], 0), both(0));
        let above = [limit("/both", 160, 180)];
        assert_eq!(look(&mut SharedGroups::default(), &[&above, &above], 0), both(30), "above memory.high");
    }

    #[test]
    fn a_group_that_fills_is_relieved_ten_seconds_ahead() {
        let mut groups = SharedGroups::default();
        let fills = |held: &u64| {
            let limits = [limit("/both", 2048, *held)];
            look(&mut groups, &[&limits, &limits], *held)[0].2 > 0
        };
        assert_eq!(
            (1000..).find(fills),
            Some(2048 - 128 - 10 + 1),
            "MiB held, of a group that takes one a second"
        );
    }

    #[test]
    fn the_latest_reading_counts_and_staged_pages_do_not_give_way() {
        let (old, new) = ([limit("/both", 160, 100)], [limit("/both", 160, 155)]);
        let reading = |vm, limits, second, staged_mib: u64| GroupReading {
            vm: VmId(vm),
            limits,
            at: at(second),
            staged_bytes: staged_mib * MIB,
        };
        let readings = [reading(1, &old[..], 1, 2), reading(2, &new[..], 9, 1)];
        let shared = SharedGroups::default().look(readings, at(10));
        assert_eq!((shared[0].missing_pages * PAGE_BYTES / MIB, shared[0].read_at), (8, at(9)));
        assert_eq!(SharedGroups::default().look(readings, at(20)), [], "nothing is known of now");
    }
}
