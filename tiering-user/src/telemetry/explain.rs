//! Why a VM or a page is where it is, and what comes next, as it stands in JSON.
//!
//! In: nothing; the agent fills it in. Out: serde types, whose fields are added and never renamed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::location::Location;
use super::savings::CanFreeStatus;

/// One address that a question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address {
    /// Host-virtual.
    Hva(u64),
    /// Guest-physical.
    Gpa(u64),
}

/// The answer about a VM, and about one of its pages where one was asked for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Explanation {
    /// The VM's id.
    pub vm: String,
    pub name: String,
    pub movable: bool,
    /// Why it is not movable; for one that is, why it is moved between memory tiers only.
    pub reason: Option<String>,
    /// What holds the agent back from planning anything for it now.
    pub limited_by: Option<String>,
    /// Where memory is short, and what the VM gives of it; none where it gives nothing.
    pub gives: Option<String>,
    /// Who chooses the pages that leave the first tier, and how, or why.
    pub pages_chosen_by: String,
    /// What becomes of its huge pages: `split` where they may go to swap, `keep` where they stay in memory as a whole.
    pub huge: String,
    /// So much memory is held by huge pages that are kept.
    pub huge_kept_bytes: u64,
    /// How much more of it can be freed, and from what that follows.
    pub can_free: CanFreeStatus,
    /// After moves that failed nothing is planned for so long.
    pub resting_ms: Option<u64>,
    /// Pages that wait for the mover, or are with it.
    pub waiting_pages: u64,
    /// Steps that were carried out or tried, newest first: the last ones of the VM.
    pub decisions: Vec<DecisionInfo>,
    pub page: Option<PageInfo>,
    pub known_before: KnownBefore,
    pub seen_by: AccessesSeen,
}

/// Accesses that the agent knows of, by what told of them; a sample counts for those that it stands for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AccessesSeen {
    /// Faults of QEMU itself, or of a guest that it emulates.
    pub page_fault: u64,
    /// Faults of a KVM guest.
    pub kvm_page_fault: u64,
    /// The same, of pages in memory that were armed for it.
    pub rearming: u64,
    /// Pages whose soft-dirty bit said at the end of a round that they were written in it, and that had shown no
    /// access.
    pub soft_dirty: u64,
    /// Pages of regions that DAMON found accessed.
    pub damon: u64,
    /// Pages that a sweep found back in memory.
    pub sweeps: u64,
}

/// What earlier agents knew of the VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KnownBefore {
    /// Blocks of 2 MiB whose pages began with the back-off and heat that an earlier agent had seen there.
    pub blocks: u64,
    pub demoted_bytes: u64,
    pub promoted_bytes: u64,
}

/// One step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DecisionInfo {
    pub ago_ms: u64,
    /// `place`, `collapse`, `stage`, `map_staged`, or `drop_stage`: what was staged and not used goes back.
    pub action: String,
    /// The tier, where pages were to be placed or staged.
    pub to: Option<String>,
    pub reason: String,
    pub pages: u64,
    /// Of these, those that are where they should be and were not before.
    pub moved_pages: u64,
    /// Guest RAM that was in huge pages before the step and is in none after it.
    pub huge_split_bytes: u64,
    /// Those that were left alone, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// For a question about a page: where that page was afterwards, if it was read back.
    pub page_in: Option<String>,
}

/// One page.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PageInfo {
    pub hva: u64,
    /// Where the layout is known.
    pub gpa: Option<u64>,
    /// As the mapping table has it; see `tiering map` for the names.
    pub tier: String,
    /// As read from the kernel for this answer.
    pub frame_or_slot: Option<Location>,
    /// Time since the last access seen, or since the page was found; `None` if it was never touched.
    pub idle_ms: Option<u64>,
    /// Of that, the time in which an access would have been seen: it was certainly not accessed for so long.
    pub surely_idle_ms: Option<u64>,
    pub heat: u32,
    /// Accesses an epoch, over the epochs that have ended: what `heat` was before the running one.
    pub frequency: u32,
    /// How often it came back soon: the idle time it must reach is doubled so often.
    pub backoff: u32,
    pub staged: bool,
    pub written: bool,
    pub next: NextMove,
    /// The steps it was part of, newest first.
    pub decisions: Vec<DecisionInfo>,
}

/// What would have to happen for a page to move.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NextMove {
    /// In words.
    pub when: String,
    /// The tier it goes to when it was idle for long enough.
    pub to: Option<String>,
    /// How long that is, under the present rules.
    pub least_idle_ms: Option<u64>,
    /// How much of it is left.
    pub in_ms: Option<u64>,
}
