//! The last look at a VM, for steps that come many times a second.
//!
//! To look whether a VM may be touched, and what room its control groups have, costs 250 to 400 us (Linux 6.18, a
//! QEMU of some 10 threads), a hundred times what staging a page does. Nothing that begins meanwhile is harmed by pages
//! that come up for a moment longer.
//!
//! In: a VM. Out: what was found at most [`LOOK_AGAIN`] ago, and what is left of the room.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::target::{Outcome, Roots, Skip, Target};
use crate::policy::{Action, Room};
use crate::track::VmId;
use crate::vm::GroupMemory;

const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// VMs that are remembered; of more, those that were looked at long ago are forgotten.
const MOST: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Recent(HashMap<VmId, PageStates>);

#[derive(Debug)]
struct PageStates {
    at: Instant,
    refusal: Option<Skip>,
    room: Room,
}

impl Recent {
    /// Leaves out pages of `outcome` that may not come up now. Returns why none may, if so.
    pub(super) fn leave_out(
        &mut self,
        target: &Target,
        roots: &Roots,
        outcome: &mut Outcome,
    ) -> Option<Skip> {
        if self.0.len() >= MOST {
            self.0.retain(|_, look| look.at.elapsed() < LOOK_AGAIN);
        }
        let look = || PageStates {
            at: Instant::now(),
            refusal: target.refusal(roots, false),
            room: Room::from_swap(&GroupMemory::of(&roots.proc, &roots.cgroup, target.info.vm.key)),
        };
        let last = self.0.entry(target.info.id).or_insert_with(look);
        if last.at.elapsed() >= LOOK_AGAIN {
            *last = look();
        }
        // What is mapped was charged when it was staged.
        if last.refusal.is_none() && outcome.action != Action::MapStaged {
            take_room(&mut last.room, outcome);
        }
        last.refusal.clone()
    }
}

fn take_room(room: &mut Room, outcome: &mut Outcome) {
    let Some(limit) = &room.limit else { return };
    let fit = outcome.asked.len().min(usize::try_from(room.pages).unwrap_or(usize::MAX));
    room.pages -= fit as u64;
    outcome.left_out = outcome.asked.split_off(fit);
    outcome.skip(Skip::NoRoom(limit.clone()), outcome.left_out.len() as u64);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{GroupLimit, Reason};
    use crate::tiers::TierId;

    #[test]
    fn room_is_used_up_step_by_step() {
        let limit = GroupLimit::Charge { group: "/vm".into() };
        let mut room = Room { pages: 5, limit: Some(limit.clone()) };
        let mut step = |pages: u32| {
            let action = Action::Stage { to: TierId(0) };
            let asked = (0..pages).collect();
            let mut outcome = Outcome::new(VmId(1), action, Reason::FollowedLastTime, asked);
            take_room(&mut room, &mut outcome);
            (
                outcome.asked.len(),
                outcome.left_out,
                outcome.skipped.get(&Skip::NoRoom(limit.clone())).copied(),
            )
        };
        assert_eq!(step(3), (3, vec![], None));
        assert_eq!(step(3), (2, vec![2], Some(1)));
        assert_eq!(step(2), (0, vec![0, 1], Some(2)));
    }
}
