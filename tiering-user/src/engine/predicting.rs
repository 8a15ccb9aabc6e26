//! What a touch predicts: for the VM itself, and for the others of its tenant.
//!
//! Three ways. *Push*: what one VM touches, the others may touch soon, so what corresponds to it there is to be
//! staged. *Pull*: what corresponds to the touched page stands on a tape, its own, that of its earlier self before it
//! was started anew, or another VM's, so what comes next there is to be staged, a window ahead. Pages of two
//! VMs correspond if they have the same content, else if they have the same guest-physical address; whether it is
//! known that their contents differ makes two kinds of the latter. *Readahead*: where a
//! VM goes on by address, what comes next there is to be staged, if the tape of no leader tells when that is needed.

use std::collections::BTreeMap;
use std::ops::Range;

use super::Engine;
use super::managed::{Earlier, ManagedVm, Returned};
use super::outcomes::note_waiting;
use super::tenants::Held;
use crate::config::Prefetch;
use crate::predict::{Chance, Match, Origin, Position, SHADOW_PAGES, Tag, Tape, readahead};
use crate::sys::Monotonic;
use crate::tiermap::PageIndex;
use crate::track::VmId;

/// Touches of one VM that are looked for on tapes, of those that are read in one go; and those that are read ahead of.
const PULLS_A_BATCH: usize = 4;
const READAHEADS_A_BATCH: usize = 64;

/// Who is no more than so many touches behind its leader gains nothing by following it: both wait for the same disk.
const IN_STEP: u64 = 16;

/// A page that was in swap until this touch, or had been staged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Touched {
    vm: VmId,
    page: PageIndex,
    /// The VM waited for a read.
    missed: bool,
    /// What it held, where that is known.
    tag: Option<Tag>,
    time: Monotonic,
    /// Where it stands on its VM's tape, and where it stood there before.
    at: Position,
    before: Option<Position>,
}

/// The touches of each VM. Of many the last few are followed: on a tape, what comes after the others comes after these
/// too, and each costs a look at every leader's.
fn by_vm(touched: &[Touched]) -> BTreeMap<VmId, Vec<Touched>> {
    let mut by_vm: BTreeMap<VmId, Vec<Touched>> = BTreeMap::new();
    for touched in touched {
        by_vm.entry(touched.vm).or_default().push(*touched);
    }
    by_vm
}

fn last(touched: &[Touched], most: usize) -> &[Touched] {
    &touched[touched.len().saturating_sub(most)..]
}

/// The ends of runs: what comes next by address after the others is touched already.
fn run_ends(touched: &[Touched]) -> Vec<Touched> {
    let goes_on = |two: &[Touched]| two[0].page.checked_add(1) == Some(two[1].page);
    let ends = touched.windows(2).filter(|two| !goes_on(two)).map(|two| two[0]);
    ends.chain(touched.last().copied()).collect()
}

/// Whether the configuration wants pages staged for this.
fn uses(rules: Prefetch, origin: Origin) -> bool {
    match origin.by() {
        None => rules.own_past,
        Some(_) if origin.leader().is_none() => rules.own_past,
        Some(Match::Content) => rules.by_content,
        Some(Match::Page | Match::Address) => rules.by_address,
    }
}

impl Engine {
    /// The VM `id` touched a page at `time` that had been in swap or was staged.
    pub(super) fn note_touch(&mut self, id: VmId, returned: Returned, time: Monotonic) -> Option<Touched> {
        let Returned { page, missed } = returned;
        let vm = self.vms.get_mut(&id)?;
        let mut tag = None;
        if let Some(tenant) = self.tenants.of_mut(vm) {
            tag = tenant.tags.remove(id, page);
            tenant.likeness.touch(id, vm.guest_page(page), tag);
        }
        let at = vm.prefetch.tape.end();
        let before = vm.prefetch.tape.record(page, tag);
        let tag = tag.filter(|_| self.config.prefetch.by_content);
        Some(Touched { vm: id, page, missed, tag, time, at, before })
    }

    /// Stages what these touches predict. All of them are noted by then: what was touched since need not be staged.
    pub(super) fn predict(&mut self, touched: &[Touched]) {
        let Prefetch { push, pull, readahead, .. } = self.config.prefetch;
        let by_vm = by_vm(touched);
        for touched in by_vm.values().filter(|_| pull) {
            for touched in last(touched, PULLS_A_BATCH) {
                self.pull(*touched);
            }
        }
        for touched in touched.iter().filter(|_| push) {
            self.push(*touched);
        }
        for touched in by_vm.values().filter(|_| readahead) {
            for touched in last(&run_ends(touched), READAHEADS_A_BATCH) {
                self.read_ahead(*touched);
            }
        }
    }

    fn push(&mut self, touched: Touched) {
        let rules = self.config.prefetch;
        let Touched { vm, page, tag, time, .. } = touched;
        let Some(leader) = self.vms.get(&vm) else { return };
        let Some(tenant) = self.tenants.of(leader) else { return };
        let held = rules.by_content.then_some(Held { vm: Some(vm), tape: &leader.prefetch.tape });
        let mut predicted = Vec::new();
        for neighbour in tenant.likeness.followers(vm) {
            let Some(there) = self.vms.get(neighbour) else { continue };
            let same_page = leader.same_page_in(there, page);
            let corresponding =
                tenant.corresponding(tag, *neighbour, same_page, held, |page| there.waits_in_swap(page));
            predicted.extend(corresponding.map(|(page, by)| (*neighbour, page, Origin::Touched(vm, by))));
        }
        for (neighbour, page, origin) in predicted.into_iter().filter(|(_, _, origin)| uses(rules, *origin)) {
            let Some(vm) = self.vms.get_mut(&neighbour) else { continue };
            if vm.never_to_swap().is_some() || !vm.braking.may_stage() {
                continue;
            }
            match vm.prefetch.stages.chance(origin, rules.threshold, time) {
                Chance::Taken => drop(vm.predicted(page, origin, time)),
                Chance::Shadowed => vm.shadowed(page, origin, rules.threshold, time),
                Chance::NoRoom => {}
            }
            note_waiting(&mut self.stages, vm);
        }
    }

    fn pull(&mut self, touched: Touched) {
        let rules = self.config.prefetch;
        let Some(vm) = self.vms.get_mut(&touched.vm) else { return };
        if vm.never_to_swap().is_some() || !vm.braking.may_stage() {
            return;
        }
        let mut ahead = std::mem::take(&mut vm.prefetch.ahead);
        let Some(vm) = self.vms.get(&touched.vm) else { return };
        let mut places = Vec::new();
        places.extend(touched.before.map(|place| (Origin::OwnPast, place)));
        let mut by_each = |leader, tape: &Tape, same_page, least, origin: &dyn Fn(Match) -> Origin| {
            if let Some(place) = ahead.place((leader, tape), touched.tag, same_page, touched.at)
                && tape.end().since(place) > least
            {
                places.extend([Match::Content, Match::Page, Match::Address].map(|by| (origin(by), place)));
            }
        };
        if let Some(Earlier { tape, same_shape }) = &vm.prefetch.earlier {
            by_each(None, tape, same_shape.then_some(touched.page), 0, &Origin::Earlier);
        }
        if let Some(tenant) = self.tenants.of(vm) {
            for leader in tenant.likeness.leaders(touched.vm) {
                let Some(there) = self.vms.get(leader) else { continue };
                let same_page = vm.same_page_in(there, touched.page);
                let origin = |by| Origin::Followed(*leader, by);
                by_each(Some(*leader), &there.prefetch.tape, same_page, IN_STEP, &origin);
            }
        }
        if let Some(vm) = self.vms.get_mut(&touched.vm) {
            vm.prefetch.ahead = ahead;
        }
        for (origin, place) in places.into_iter().filter(|(origin, _)| uses(rules, *origin)) {
            self.follow(touched, origin, place, rules.threshold);
        }
    }

    /// Stages what comes after the touched page in the order of addresses.
    fn read_ahead(&mut self, touched: Touched) {
        let rules = self.config.prefetch;
        let Touched { vm: id, page, missed, tag, time, at, .. } = touched;
        let Some(vm) = self.vms.get_mut(&id) else { return };
        if vm.never_to_swap().is_some() || !vm.braking.may_stage() {
            return;
        }
        let chance = vm.prefetch.stages.chance(Origin::Readahead, rules.threshold, time);
        if chance == Chance::NoRoom {
            return;
        }
        let window = vm.prefetch.stages.window(Origin::Readahead);
        let Range { start, end } = readahead(&vm.prefetch.tape, (page, at), missed, window);
        let next = start..end.min(vm.pages.layout().pages());
        let Some(vm) = self.vms.get(&id) else { return };
        // What has a copy in memory is there without a read.
        let is_away = |page: &PageIndex| vm.waits_in_swap(*page) && !vm.reclaim.has_copy(*page);
        let mut next: Vec<_> = next.filter(is_away).collect();
        if next.is_empty() {
            return;
        }
        if let Some(tenant) = self.tenants.of(vm) {
            let followed = self.followed(vm, at);
            let holds = |tag: Option<Tag>| {
                tag.is_some_and(|tag| followed.iter().any(|held| tenant.holds(*held, tag)))
            };
            if holds(tag) {
                return;
            }
            next.retain(|page| !holds(tenant.tags.of(id, *page)));
        }
        let Some(vm) = self.vms.get_mut(&id) else { return };
        for page in next {
            match chance {
                Chance::Shadowed => vm.shadowed(page, Origin::Readahead, rules.threshold, time),
                _ => drop(vm.predicted(page, Origin::Readahead, time)),
            }
        }
        note_waiting(&mut self.stages, vm);
    }

    /// The leaders that the VM follows by content, whose tapes tell when what they hold is needed; and its earlier
    /// self, if it follows that.
    fn followed<'a>(&'a self, vm: &'a ManagedVm, at: Position) -> Vec<Held<'a>> {
        let Prefetch { pull, by_content, own_past, .. } = self.config.prefetch;
        let tenant = self.tenants.of(vm).filter(|_| pull && by_content);
        let ids = tenant.map_or(&[][..], |tenant| tenant.likeness.leaders(vm.info.id)).iter();
        let leaders = ids.filter_map(|id| Some((Some(*id), &self.vms.get(id)?.prefetch.tape, IN_STEP)));
        let earlier = vm.prefetch.earlier.iter().filter(|_| pull && by_content && own_past);
        let earlier = earlier.map(|earlier| (None, &earlier.tape, 0));
        let is_followed = |(leader, tape, least): &(Option<VmId>, &Tape, u64)| {
            vm.prefetch.ahead.last(*leader, at).is_some_and(|place| tape.end().since(place) > *least)
        };
        earlier.chain(leaders).filter(is_followed).map(|(vm, tape, _)| Held { vm, tape }).collect()
    }

    /// What was touched is at this place on the tape that `origin` is about: stages of what comes next there as much as
    /// its window says.
    fn follow(&mut self, touched: Touched, origin: Origin, place: Position, threshold: f64) {
        let id = touched.vm;
        let Some(vm) = self.vms.get_mut(&id) else { return };
        let chance = vm.prefetch.stages.chance(origin, threshold, touched.time);
        // What has no room now is offered again at the next touch.
        if chance == Chance::NoRoom {
            return;
        }
        let window = vm.prefetch.stages.window(origin);
        let shadow = chance == Chance::Shadowed;
        let window = if shadow { window.min(SHADOW_PAGES) } else { window };
        let Some(vm) = self.vms.get(&id) else { return };
        let Some(tape) = self.tape_of(vm, origin) else { return };
        let part = vm.prefetch.ahead.part(origin, tape, place, (window, shadow));
        let next: Vec<_> = tape.part(part.places.clone()).collect();
        let mut until = part.places.end;
        for (at, page, tag) in next {
            let page = self.vms.get(&id).and_then(|vm| self.corresponding(vm, origin, page, tag));
            let Some((vm, page)) = self.vms.get_mut(&id).zip(page) else { continue };
            if shadow {
                vm.shadowed(page, origin, threshold, touched.time);
            } else if !vm.predicted(page, origin, touched.time) {
                // What finds no room is offered again.
                until = at;
                break;
            }
        }
        let Some(vm) = self.vms.get_mut(&id) else { return };
        vm.prefetch.ahead.followed(origin, &part, until);
        note_waiting(&mut self.stages, vm);
    }

    fn tape_of<'a>(&'a self, vm: &'a ManagedVm, origin: Origin) -> Option<&'a Tape> {
        match origin {
            Origin::OwnPast | Origin::Season(_) | Origin::Readahead => Some(&vm.prefetch.tape),
            Origin::Earlier(_) => vm.prefetch.earlier.as_ref().map(|earlier| &earlier.tape),
            Origin::Touched(leader, _) | Origin::Followed(leader, _) => {
                self.vms.get(&leader).map(|there| &there.prefetch.tape)
            }
        }
    }

    /// The page of `vm` that corresponds to this one on the tape that `origin` is about, if it does in the way
    /// that `origin` says.
    fn corresponding(
        &self,
        vm: &ManagedVm,
        origin: Origin,
        page: PageIndex,
        tag: Option<Tag>,
    ) -> Option<PageIndex> {
        let same_page = match origin {
            Origin::OwnPast | Origin::Season(_) | Origin::Readahead => return Some(page),
            Origin::Earlier(_) => vm.prefetch.earlier.as_ref()?.same_shape.then_some(page),
            Origin::Touched(leader, _) | Origin::Followed(leader, _) => {
                self.vms.get(&leader)?.same_page_in(vm, page)
            }
        };
        let found = match self.tenants.of(vm) {
            Some(tenant) => {
                let tag = tag.filter(|_| self.config.prefetch.by_content);
                let held = Held { vm: origin.leader(), tape: self.tape_of(vm, origin)? };
                let held = self.config.prefetch.by_content.then_some(held);
                tenant.corresponding(tag, vm.info.id, same_page, held, |page| vm.waits_in_swap(page))
            }
            // What has no tenant has no tags.
            None => same_page.map(|page| (page, Match::Page)),
        };
        found.filter(|(_, by)| Some(*by) == origin.by()).map(|(page, _)| page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touched(vm: u32, pages: impl IntoIterator<Item = PageIndex>) -> Vec<Touched> {
        let (vm, at, time) = (VmId(vm), Position::default(), Monotonic(0));
        let touch = |page| Touched { vm, page, missed: true, tag: None, time, at, before: None };
        pages.into_iter().map(touch).collect()
    }

    fn pages(touched: &[Touched]) -> Vec<PageIndex> {
        touched.iter().map(|touched| touched.page).collect()
    }

    #[test]
    fn of_many_touches_of_each_vm_the_last_few_are_followed() {
        let touches: Vec<_> =
            (0..100).flat_map(|page| [touched(1, [page]), touched(2, [page])]).flatten().collect();
        let of_each: Vec<_> = by_vm(&touches).values().map(|touched| pages(last(touched, 4))).collect();
        assert_eq!(of_each, [[96, 97, 98, 99]; 2]);
        assert_eq!(pages(last(&touched(1, 0..3), 4)), [0, 1, 2]);
        assert!(by_vm(&[]).is_empty());
    }

    #[test]
    fn of_a_run_of_touches_its_end_is_read_ahead_of() {
        assert_eq!(pages(&run_ends(&touched(1, [5, 6, 7, 9, 8, 20, 21]))), [7, 9, 8, 21]);
        assert!(run_ends(&[]).is_empty());
    }
}
