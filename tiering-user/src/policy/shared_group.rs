//! Control groups with a limit that hold several VMs.
//!
//! In, once a second: of each VM, the limits of the groups it is in. Out: of each such group, the VMs in it and how many
//! pages of theirs should leave memory, so that some of the limit stays free. What each of them gives is [`relief`]'s to
//! say. Pure.
//!
//! Once such a group is full, the kernel reclaims by age alone: pages of a VM of high priority that are used now and
//! then go before those of one that never stops. So the agent makes room first.
//!
//! # Limits
//! What the group holds beside the VMs does not give way.
//!
//! [`relief`]: super::relief

use std::collections::BTreeMap;

use super::FreeSpace;
use crate::sys::PAGE_BYTES;
use crate::track::VmId;
use crate::vm::ChargeLimit;

/// Of a limit, so much stays free: twice what staged pages leave of it ([`Room`](super::Room)).
const FREE_DIVISOR: u64 = 16;
const FREE_LEAST: u64 = 2 << 20;
const FREE_MOST: u64 = 128 << 20;

/// A group that holds several VMs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedGroup {
    pub name: String,
    pub vms: Vec<VmId>,
    pub missing_pages: u64,
}

/// Watches how fast such groups fill, by name; asked once a second.
#[derive(Clone, Debug, Default)]
pub struct SharedGroups(BTreeMap<String, FreeSpace>);

impl SharedGroups {
    /// The groups that hold several of these VMs, by name.
    pub fn look<'a>(&mut self, vms: impl IntoIterator<Item = (VmId, &'a [ChargeLimit])>) -> Vec<SharedGroup> {
        let mut members: BTreeMap<&str, (Vec<VmId>, &ChargeLimit)> = BTreeMap::new();
        for (vm, limits) in vms {
            for limit in limits {
                members.entry(&limit.group).or_insert_with(|| (Vec::new(), limit)).0.push(vm);
            }
        }
        members.retain(|_, (vms, _)| vms.len() > 1);
        self.0.retain(|name, _| members.contains_key(&**name));
        let shared = members.into_iter().map(|(name, (vms, limit))| {
            let available = limit.limit_bytes.saturating_sub(limit.held_bytes);
            let target = (limit.limit_bytes / FREE_DIVISOR).clamp(FREE_LEAST, FREE_MOST);
            let missing = self.0.entry(name.to_owned()).or_default().missing(available, target, 0);
            SharedGroup { name: name.to_owned(), vms, missing_pages: missing.div_ceil(PAGE_BYTES) }
        });
        shared.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn limit(group: &str, limit_mib: u64, held_mib: u64) -> ChargeLimit {
        ChargeLimit { group: group.to_owned(), limit_bytes: limit_mib * MIB, held_bytes: held_mib * MIB }
    }

    fn missing_mib(groups: &[SharedGroup]) -> Vec<(&str, usize, u64)> {
        groups
            .iter()
            .map(|group| (&*group.name, group.vms.len(), group.missing_pages * PAGE_BYTES / MIB))
            .collect()
    }

    #[test]
    fn a_group_counts_where_it_holds_several_vms_and_a_16th_of_its_limit_should_be_free() {
        let both = |held| [limit("/both", 160, held)];
        let alone = [limit("/both", 160, 155), limit("/both/high", 100, 99)];
        let mut groups = SharedGroups::default();
        let full = both(155);
        let shared = groups.look([(VmId(1), &alone[..]), (VmId(2), &full[..])]);
        assert_eq!(missing_mib(&shared), [("/both", 2, 5)], "its own group is its own affair");
        assert_eq!(groups.look([(VmId(1), &alone[..])]), [], "who is alone is in nobody's way");
        let calm = both(100);
        let shared = SharedGroups::default().look([(VmId(1), &calm[..]), (VmId(2), &calm[..])]);
        assert_eq!(missing_mib(&shared), [("/both", 2, 0)]);
    }

    #[test]
    fn a_group_that_fills_is_relieved_ten_seconds_ahead() {
        let mut groups = SharedGroups::default();
        let at = (1000..).find(|held| {
            let limits = [limit("/both", 2048, *held)];
            groups.look([(VmId(1), &limits[..]), (VmId(2), &limits[..])])[0].missing_pages > 0
        });
        assert_eq!(at, Some(2048 - 128 - 10 + 1), "MiB held, of a group that grows by one a second");
    }
}
