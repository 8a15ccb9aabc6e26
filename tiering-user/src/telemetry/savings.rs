//! What is saved of VMs' memory, how lasting that is, and how much more can be freed, as it stands in JSON.
//!
//! In: nothing; the agent fills in what it knows of each VM. Out: serde types, whose fields are added and never
//! renamed. The sums of a host are made in `host_savings`. A figure that is not known is `None`, never zero.

use serde::{Deserialize, Serialize};

/// Of one VM.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SavingsStatus {
    /// Memory that was free, because pages were in swap, through all of the last `over_s` seconds.
    pub reusable_bytes: u64,
    /// 24 hours, or since the VM is known to this agent, where that is shorter.
    pub over_s: u64,
    /// The same through the last hour.
    pub free_for_1h_bytes: u64,
    /// What is free now and was not all that time.
    pub opportunistic_bytes: u64,
    /// How much more can be freed, beyond `freed_bytes` and copies in the swap cache.
    pub can_free: CanFreeStatus,
    /// Touched memory that is neither in swap nor expected to be freed; `None` where the latter is not known.
    pub working_set_bytes: Option<u64>,
    /// The share, 0 to 1, of touched memory that is in swap or expected to be freed; `None` where that is not known.
    pub cold_share: Option<f64>,
}

/// An estimate of what can still be freed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CanFreeStatus {
    /// What it follows from; `None` where nobody knows yet.
    pub source: Option<SavingsSource>,
    /// Of a host: the sum over those VMs of which it is known; `None` where it is of none.
    pub expected_bytes: Option<u64>,
    /// Bounds, as far as the source has any; of a host the sums of those of its VMs.
    pub lower_bytes: Option<u64>,
    pub upper_bytes: Option<u64>,
    /// In words: what it follows from, or why it is not known and what would make it known.
    pub detail: Option<String>,
}

/// What an estimate follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SavingsSource {
    /// How old the kernel says the pages are (MGLRU). Without a lower bound: what was accessed since the kernel looked
    /// does not show.
    PageAges,
    /// Pages that were paged out to see whether they come back.
    Tried,
    /// What the kernel reclaimed was read back, so nothing is left.
    ReadBack,
    /// The VM's pages do not go to swap.
    NotMoved,
    /// Of a host: more than one of these.
    Several,
}

/// Of all VMs of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostSavingsStatus {
    /// Sums over the VMs, as [`SavingsStatus`] has them.
    pub reusable_bytes: u64,
    /// The shortest of the VMs that have some of it.
    pub over_s: u64,
    pub free_for_1h_bytes: u64,
    pub opportunistic_bytes: u64,
    pub can_free: CanFreeStatus,
    /// VMs of which it is known what can be freed; those that are not moved are in neither of the two.
    pub vms_known: u64,
    pub vms_unknown: u64,
}

impl SavingsSource {
    /// As JSON has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PageAges => "page_ages",
            Self::Tried => "tried",
            Self::ReadBack => "read_back",
            Self::NotMoved => "not_moved",
            Self::Several => "several",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_called_as_in_json() {
        use SavingsSource::{NotMoved, PageAges, ReadBack, Several, Tried};
        for source in [PageAges, Tried, ReadBack, NotMoved, Several] {
            assert_eq!(serde_json::to_value(source).unwrap(), source.name());
        }
    }
}
