//! What a VM's control groups have no room for is left out before a batch, and what the kernel left is explained
//! after it.
//!
//! Before: pages in memory that are to go to swap need swap, and take from what the groups were promised; pages in swap
//! that come up, if only on their way to another swap tier, are charged to the VM. After: of pages that stayed,
//! the frame tells whether they are merged, locked or mapped elsewhere, and the group whether it was refused swap.
//!
//! # Limits
//! What other processes of the groups do meanwhile is covered by the margin of [`Room`] alone. A page that stayed is
//! looked at after the fact: it may be another one by then.

use super::page_states::PageStates;
use super::target::{Outcome, Roots, Skip, Target};
use crate::policy::{Action, Room};
use crate::sys::{FrameFacts, Frames, PageState};
use crate::tiermap::{PageIndex, Places};
use crate::vm::GroupMemory;

/// Leaves out pages of `outcome` for which there is no room. Returns how often the kernel had found no swap for the
/// group so far, if it tells.
pub(super) fn leave_out(
    target: &Target,
    roots: &Roots,
    places: &Places,
    look: &PageStates,
    outcome: &mut Outcome,
) -> Option<u64> {
    // What was staged is charged already; what the kernel has let go of since comes up a few pages at a time.
    if matches!(outcome.action, Action::MapStaged | Action::DropStage { .. } | Action::Free) {
        return None;
    }
    let memory = GroupMemory::of(&roots.proc, &roots.cgroup, target.info.vm.key);
    let to_memory = matches!(outcome.action, Action::Place { to } if places.nodes.tiers().contains(to));
    let (down, up) = match outcome.action {
        Action::Place { .. } if !to_memory => (Some(Room::to_swap(&memory)), Room::from_swap(&memory)),
        _ => (None, Room::from_swap(&memory)),
    };
    // Whole blocks or nothing.
    if outcome.action == Action::Collapse {
        let asked = outcome.asked.len() as u64;
        if let Some(limit) = up.limit.filter(|_| up.pages < asked) {
            outcome.left_out = std::mem::take(&mut outcome.asked);
            outcome.skip(Skip::NoRoom(limit), asked);
        }
        return memory.swap_fails;
    }
    let limited = down.as_ref().is_some_and(|room| room.limit.is_some()) || up.limit.is_some();
    if limited {
        let in_memory = |state| matches!(state, PageState::Present { .. });
        let asked = std::mem::take(&mut outcome.asked);
        let (mut down, mut up) = (Quota::new(down), Quota::new(Some(up)));
        for (page, state) in look.of(&asked) {
            let quota = if in_memory(state) { &mut down } else { &mut up };
            match quota.take() {
                None => outcome.asked.push(page),
                Some(why) => {
                    outcome.left_out.push(page);
                    outcome.skip(why, 1);
                }
            }
        }
    }
    memory.swap_fails
}

/// Room that is used up page by page.
struct Quota(Option<Room>);

impl Quota {
    fn new(room: Option<Room>) -> Self {
        Self(room)
    }

    /// Takes room for one page; why there is none, if so.
    fn take(&mut self) -> Option<Skip> {
        let Some(Room { pages, limit: Some(limit) }) = &mut self.0 else { return None };
        match pages.checked_sub(1) {
            Some(rest) => {
                *pages = rest;
                None
            }
            None => Some(Skip::NoRoom(limit.clone())),
        }
    }
}

/// Says of pages that stayed why, as far as it can be told from where `look` found them after the step.
pub(super) fn explain(
    target: &Target,
    roots: &Roots,
    places: &Places,
    fails_before: Option<u64>,
    look: &PageStates,
    outcome: &mut Outcome,
) {
    let to_swap = matches!(outcome.action, Action::Place { to } if !places.nodes.tiers().contains(to));
    if !to_swap {
        return;
    }
    let Some(stayed) = outcome.skipped.remove(&Skip::Stayed) else { return };
    let whys = why_stayed(roots, places, look, outcome, stayed);
    let untold = stayed - whys.len() as u64;
    for why in whys {
        outcome.skip(why, 1);
    }
    // The kernel counts a failure too where a huge page finds no room in one piece, and then goes page by page
    // (mm/swapfile.c, `folio_alloc_swap`, Linux 6.1 to 6.18).
    let fails = GroupMemory::of(&roots.proc, &roots.cgroup, target.info.vm.key).swap_fails;
    let why = if untold > 0 && fails > fails_before { Skip::NoSwap } else { Skip::Stayed };
    outcome.skip(why, untold);
}

/// Why pages stayed, one by one, of those of which the frame tells.
fn why_stayed(
    roots: &Roots,
    places: &Places,
    look: &PageStates,
    outcome: &Outcome,
    stayed: u64,
) -> Vec<Skip> {
    let in_memory = outcome.found.iter().filter(|(_, place)| places.in_memory(*place));
    // What was not tried for want of room in the tier stands behind what was.
    let pages: Vec<PageIndex> = in_memory
        .flat_map(|(run, _)| run.pages())
        .take(usize::try_from(stayed).unwrap_or(usize::MAX))
        .collect();
    let Ok(frames) = Frames::open(&roots.proc) else { return Vec::new() };
    let facts = look.of(&pages).filter_map(|(_, state)| match state {
        PageState::Present { pfn } if pfn > 0 => frames.read(pfn).ok(),
        _ => None,
    });
    facts.filter_map(why).collect()
}

/// What the frame says, the plainest first: a merged page is mapped several times too.
fn why(frame: FrameFacts) -> Option<Skip> {
    match frame {
        FrameFacts { ksm: true, .. } => Some(Skip::Merged),
        FrameFacts { unevictable: true, .. } => Some(Skip::Locked),
        FrameFacts { mapped: 2.., .. } => Some(Skip::Shared),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::GroupLimit;

    #[test]
    fn a_quota_gives_what_it_has_and_then_says_why_not() {
        let limit = GroupLimit::Swap { group: "/vm".into() };
        let mut quota = Quota::new(Some(Room { pages: 2, limit: Some(limit.clone()) }));
        assert_eq!([quota.take(), quota.take()], [None, None]);
        assert_eq!(quota.take(), Some(Skip::NoRoom(limit)));
        assert_eq!(Quota::new(None).take(), None, "no limit, no end");
    }

    #[test]
    fn a_frame_tells_why_its_page_stayed() {
        let frame = FrameFacts { ksm: false, unevictable: false, mapped: 1 };
        assert_eq!(why(frame), None);
        assert_eq!(why(FrameFacts { ksm: true, mapped: 9, ..frame }), Some(Skip::Merged));
        assert_eq!(why(FrameFacts { unevictable: true, ..frame }), Some(Skip::Locked));
        let shared = why(FrameFacts { mapped: 2, ..frame }).unwrap();
        assert_eq!(shared.to_string(), "left by the kernel: mapped by another process too");
    }
}
