//! Has the kernel reclaim memory of machines that have a control group (v2) of their own: it knows best which of their
//! pages are old.
//!
//! In: a machine, what may go to the first swap tier, what its group says. Out: orders for the lane, and what came of
//! them. How much it is asked for, and when, is decided in `reclaim`. One order at a time for a machine.
//!
//! What went is found by sweeps. What a machine waits for is taken from its group (`workingset_refault_*`): a page that
//! went since the last sweep counts too; what the agent itself read does not.
//!
//! # Limits
//! Only where the ladder has one memory tier: `memory.reclaim` would pass over the others.

use std::collections::VecDeque;
use std::time::Duration;

use super::machine::Machine;
use super::state::State;
use crate::actuate::{Job, NoReclaim, Outcome, Reclaimed};
use crate::config::ReclaimBy;
use crate::policy::Action;
use crate::sys::{self, Monotonic, PAGE_BYTES};
use crate::tiermap::PageIndex;
use crate::tiers::TierId;
use crate::track::VmId;
use crate::vm::GroupMemory;

/// After so many orders in a row of which next to nothing came, nothing is asked for a while.
const LITTLE_MOST: u32 = 3;
/// Of what was asked for: less is next to nothing.
const LITTLE_DIVISOR: u64 = 8;
/// How long a read of the agent may take to show as a refault: those of pages that were in memory never do.
const OWN_READS_KEPT: Duration = Duration::from_secs(10);
/// After an order that was not carried out.
const SOON: Duration = Duration::from_secs(5);
const REST: Duration = Duration::from_mins(1);
/// How long the agent chooses where the kernel could not be asked.
const REFUSED: Duration = Duration::from_mins(10);
/// Of what is free in the first swap tier, so much is asked for at a time, of all machines.
const ROOM_DIVISOR: u64 = 2;
/// More of a machine than 1 / this, merged by KSM, may be in use by others.
const KSM_DIVISOR: u64 = 100;

/// What the kernel was asked for of one machine.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// Bytes of an order that is with the lane.
    under_way: Option<u64>,
    /// Copies that go with it.
    copies: Vec<PageIndex>,
    /// Since when the machine is known.
    since: Option<Monotonic>,
    /// When memory was last reclaimed: sweeps have to look.
    pub reclaimed_at: Option<Monotonic>,
    little: u32,
    /// Until when nothing is asked, and why.
    rests: Option<(Monotonic, String)>,
    /// Until when the agent chooses, and why.
    refused: Option<(Monotonic, String)>,
    refaults_total: Option<u64>,
    /// Pages that the agent has read and that no refault was seen of yet, and when.
    own_reads: VecDeque<(Monotonic, u64)>,
}

impl Asked {
    fn rests(&self, now: Monotonic) -> Option<&str> {
        self.rests.as_ref().filter(|(until, _)| now < *until).map(|(_, why)| why.as_str())
    }

    fn refused(&self, now: Monotonic) -> Option<&str> {
        self.refused.as_ref().filter(|(until, _)| now < *until).map(|(_, why)| why.as_str())
    }

    /// Pages that were read back since the last time, but for those that the agent read.
    fn refaults(&mut self, total: Option<u64>, now: Monotonic) -> u64 {
        let before = std::mem::replace(&mut self.refaults_total, total);
        let Some((before, total)) = before.zip(total) else { return 0 };
        self.own_reads.retain(|(at, _)| now.since(*at) <= OWN_READS_KEPT);
        let mut refaults = total.saturating_sub(before);
        while refaults > 0
            && let Some((_, own)) = self.own_reads.front_mut()
        {
            let seen = refaults.min(*own);
            refaults -= seen;
            *own -= seen;
            if *own == 0 {
                self.own_reads.pop_front();
            }
        }
        refaults
    }

    /// What came of an order.
    fn note(&mut self, reclaimed: Result<Reclaimed, NoReclaim>, now: Monotonic) -> Reclaimed {
        let mut last = String::new();
        let reclaimed = match reclaimed {
            Ok(reclaimed) => reclaimed,
            Err(NoReclaim::NotThere(why)) => {
                self.refused = Some((now.after(REFUSED), why));
                return Reclaimed::default();
            }
            Err(NoReclaim::Now(why)) => {
                self.rests = Some((now.after(SOON), why));
                return Reclaimed::default();
            }
            Err(NoReclaim::Found(why)) => {
                last = format!(" ({why})");
                Reclaimed::default()
            }
        };
        if reclaimed.bytes() > 0 && reclaimed.bytes() >= reclaimed.asked_bytes / LITTLE_DIVISOR {
            self.little = 0;
            return reclaimed;
        }
        self.little += 1;
        if self.little >= LITTLE_MOST {
            self.little = 0;
            let why = format!("the kernel finds next to nothing to reclaim in its control group{last}");
            self.rests = Some((now.after(REST), why));
        }
        reclaimed
    }
}

impl State {
    /// Why the agent itself chooses which pages of a machine leave the first tier; none where the kernel does.
    pub(super) fn chosen_by_agent(&self, machine: &Machine, now: Monotonic) -> Option<String> {
        let memory = machine.braking.gauge.as_ref().map(|gauge| &gauge.memory);
        if self.config.policy.reclaim == ReclaimBy::Off {
            return Some("policy.reclaim is off".to_owned());
        }
        if self.dry_run {
            return Some("dry run".to_owned());
        }
        if machine.target.keep_huge {
            return Some(
                "its huge pages are kept (huge = \"keep\"), and the kernel would split them".to_owned(),
            );
        }
        if self.ladder.node_tiers().0 > 1 {
            return Some(
                "there are several memory tiers, and the kernel would pass over the lower ones".to_owned(),
            );
        }
        let has_group = |memory: &&GroupMemory| memory.is_vms_own && memory.refaults_total.is_some();
        let Some(memory) = memory.filter(has_group) else {
            return Some("it has no control group (v2) of its own that counts memory".to_owned());
        };
        if !memory.can_reclaim {
            return Some("its control group has no memory.reclaim".to_owned());
        }
        let ksm_bytes = machine.braking.ksm_bytes().unwrap_or(0);
        if ksm_bytes * KSM_DIVISOR > machine.target.vm.ram_bytes() {
            return Some(
                "some of it is merged by KSM, and the kernel would not see who else uses it".to_owned(),
            );
        }
        machine.asked.refused(now).map(str::to_owned)
    }

    /// Has the kernel reclaim what may go now of at most `allowed` pages.
    pub(super) fn ask_kernel(&mut self, id: VmId, allowed: u64, demote_after: Duration) {
        let now = sys::now();
        let under_way: u64 = self.machines.values().filter_map(|machine| machine.asked.under_way).sum();
        let Some(machine) = self.machines.get(&id) else { return };
        // What the kernel finds no room for in the first swap tier goes to the next one.
        let first = TierId(machine.pages.node_tiers().0);
        let areas = self.places.areas.list();
        let made: u64 = areas.iter().filter(|area| area.tier == first).map(|area| area.bytes).sum();
        let free = made.saturating_sub(self.swap_used.get(&first).copied().unwrap_or(0));
        let room = (free / ROOM_DIVISOR).min(allowed * PAGE_BYTES).saturating_sub(under_way) / PAGE_BYTES;
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let relief = machine.braking.relief_pages(machine.excess_pages);
        // Nobody knows before how old its pages are.
        let known = now.since(*machine.asked.since.get_or_insert(now)) >= demote_after;
        let staged = machine.stages.up_unmapped().next().is_some();
        let idle = machine.asked.under_way.is_none() && !machine.freeing;
        let calm = known && machine.asked.rests(now).is_none();
        // What others lack does not wait.
        if staged || !idle || !calm && relief == 0 {
            return;
        }
        let touched = machine.touched_pages();
        let step = machine.reclaim.may_reclaim(touched, demote_after, machine.read_wait, now);
        let pages = room.min(step.max(relief));
        if pages > 0 {
            self.order(id, pages * PAGE_BYTES, Vec::new());
        }
    }

    /// Orders so many bytes, with which these copies go.
    pub(super) fn order(&mut self, id: VmId, bytes: u64, copies: Vec<PageIndex>) {
        let Some(machine) = self.machines.get_mut(&id) else { return };
        machine.asked.under_way = Some(bytes);
        machine.asked.copies = copies;
        self.lanes.send(Job::Reclaim(machine.target.clone(), bytes));
    }

    /// The kernel has reclaimed what it could.
    pub(super) fn on_reclaimed(&mut self, id: VmId, reclaimed: Result<Reclaimed, NoReclaim>) {
        let now = sys::now();
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let vm = &machine.target.vm.name;
        tracing::debug!(vm, ?reclaimed, asked = machine.asked.under_way, "reclaimed by the kernel");
        if let Err(NoReclaim::NotThere(why)) = &reclaimed
            && machine.asked.refused(now) != Some(why)
        {
            tracing::info!(vm, why, "the kernel cannot be asked for pages, the agent chooses them");
        }
        machine.asked.under_way = None;
        let Reclaimed { memory_bytes, file_bytes, copies_bytes, huge_bytes, .. } =
            machine.asked.note(reclaimed, now);
        machine.moved.huge_split += huge_bytes / PAGE_BYTES;
        let mut copies = std::mem::take(&mut machine.asked.copies);
        copies.truncate(usize::try_from(copies_bytes / PAGE_BYTES).unwrap_or(usize::MAX));
        machine.reclaim.freed(&copies);
        machine.freeing = false;
        machine.reclaim.reclaimed((memory_bytes + file_bytes) / PAGE_BYTES, now);
        let pages = memory_bytes / PAGE_BYTES;
        if pages == 0 {
            return;
        }
        machine.asked.reclaimed_at = Some(now);
        machine.braking.stalls.demoted(now);
        machine.moved.demoted += pages;
        let to = machine.pages.node_tiers().0;
        if let Some(budget) = self.budgets.get_mut(usize::from(to)) {
            budget.spend(memory_bytes);
        }
    }
}

impl Machine {
    /// Whether an order may be given: the kernel did not refuse the last one.
    pub(super) fn may_be_asked(&self, now: Monotonic) -> bool {
        self.asked.refused(now).is_none() && self.asked.rests(now).is_none()
    }

    /// Whether an order is with the lane.
    pub(super) fn is_asked(&self) -> bool {
        self.asked.under_way.is_some()
    }

    /// So many pages of its group were read back so far.
    pub(super) fn note_refaults(&mut self, total: Option<u64>, now: Monotonic) {
        // What the agent reads meanwhile is known when that is done.
        if self.in_flight.is_none() && self.staging.is_none() {
            let reads = self.asked.refaults(total, now);
            self.reclaim.read_back(reads, self.read_wait, now);
        }
    }

    /// A step is done, and not yet in the table: what it read is none of the machine's waits.
    pub(super) fn note_own_reads(&mut self, outcome: &Outcome) {
        if matches!(outcome.action, Action::Place { .. } | Action::Stage { .. }) {
            let was_in_swap = |page: &&PageIndex| self.pages.in_swap(self.pages.get(**page).place());
            let left = outcome.skipped.values().sum::<u64>().min(outcome.asked.len() as u64);
            let read = outcome.asked.iter().filter(was_in_swap).count() as u64;
            let read = read.min(outcome.asked.len() as u64 - left);
            if read > 0 {
                self.asked.own_reads.push_back((outcome.finished, read));
            }
        }
    }

    /// Why the kernel is asked for nothing now, where it chooses.
    pub(super) fn asks_nothing(&self, now: Monotonic) -> Option<String> {
        match self.asked.rests(now) {
            Some(why) => Some(why.to_owned()),
            None => self.reclaim.rests(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(second: u64) -> Monotonic {
        Monotonic(second * 1_000_000_000)
    }

    fn got(memory_mib: u64) -> Result<Reclaimed, NoReclaim> {
        Ok(Reclaimed { asked_bytes: 16 * MIB, memory_bytes: memory_mib * MIB, ..Reclaimed::default() })
    }

    #[test]
    fn a_group_in_which_nothing_is_found_is_left_alone_for_a_minute() {
        let mut asked = Asked::default();
        let again = || Err(NoReclaim::Found("/a/memory.reclaim: try again".to_owned()));
        for reclaimed in [again(), got(1), got(8), again(), got(0)] {
            asked.note(reclaimed, at(0));
            assert_eq!(asked.rests(at(0)), None);
        }
        asked.note(again(), at(0));
        let why = asked.rests(at(59)).unwrap().to_owned();
        assert!(why.contains("next to nothing") && why.contains("try again"), "{why}");
        assert_eq!((asked.rests(at(60)), asked.refused(at(60))), (None, None));
        for _ in 0..3 {
            asked.note(got(1), at(60));
        }
        let again = asked.rests(at(61)).unwrap();
        assert!(again.len() < why.len(), "{again}");
        asked.note(Err(NoReclaim::Now("a lower tier is being filled".to_owned())), at(200));
        assert_eq!(asked.rests(at(201)), Some("a lower tier is being filled"), "it was not even asked");
    }

    #[test]
    fn what_the_agent_reads_itself_is_no_wait_of_the_machine() {
        let mut asked = Asked::default();
        assert_eq!(asked.refaults(Some(100), at(0)), 0, "what was before is not known");
        assert_eq!(asked.refaults(Some(107), at(1)), 7);
        asked.own_reads.push_back((at(2), 50));
        assert_eq!(asked.refaults(Some(137), at(2)), 0);
        assert_eq!(asked.refaults(Some(167), at(3)), 10);
        asked.own_reads.push_back((at(3), 50));
        assert_eq!(asked.refaults(Some(177), at(20)), 10, "long after the agent read anything");
    }

    #[test]
    fn where_the_kernel_cannot_be_asked_the_agent_chooses_for_a_while() {
        let mut asked = Asked::default();
        let why = "/a/memory.reclaim: permission denied".to_owned();
        asked.note(Err(NoReclaim::NotThere(why.clone())), at(0));
        assert_eq!(asked.refused(at(599)), Some(why.as_str()));
        assert_eq!(asked.refused(at(600)), None);
    }
}
