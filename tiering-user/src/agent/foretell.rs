//! What a touch foretells: for the machine itself, and for the others of its tenant.
//!
//! Two ways. *Push*: what one machine touches, the others may touch soon, so what corresponds to it there is to be staged.
//! *Pull*: what corresponds to the touched page stands on a tape, its own earlier one or another machine's, so what comes
//! next there is to be staged, a window ahead. Pages of two machines correspond if they have the same content, else if they have the
//! same guest-physical address; whether it is known that their contents differ makes two kinds of the latter.

use super::state::State;
use crate::predict::{Match, Origin, Position, Tag};
use crate::sys::Monotonic;
use crate::tiermap::PageIndex;
use crate::track::VmId;

/// A page that was in swap until this touch, or had been staged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Touched {
    vm: VmId,
    page: PageIndex,
    /// What it held, where that is known.
    tag: Option<Tag>,
    time: Monotonic,
    /// Where it stood on its machine's tape.
    before: Option<Position>,
}

impl State {
    /// `vm` touched `page` at `time`; it had been in swap or was staged.
    pub(super) fn note_touch(&mut self, vm: VmId, page: PageIndex, time: Monotonic) -> Option<Touched> {
        let machine = self.machines.get_mut(&vm)?;
        let mut tag = None;
        if let Some(tenant) = self.tenants.of_mut(machine) {
            tag = tenant.remove_tag(vm, page);
            tenant.likeness.touch(vm, machine.guest_page(page), tag);
        }
        let before = machine.tape.record(page, tag);
        Some(Touched { vm, page, tag, time, before })
    }

    /// Stages what these touches foretell. All of them are noted by then: what was touched since need not be staged.
    pub(super) fn foretell(&mut self, touched: &[Touched], threshold: f64) {
        for touched in touched {
            self.push(*touched, threshold);
            self.pull(*touched, threshold);
        }
    }

    fn push(&mut self, touched: Touched, threshold: f64) {
        let Touched { vm, page, tag, time, .. } = touched;
        let Some(leader) = self.machines.get(&vm) else { return };
        let Some(tenant) = self.tenants.of(leader) else { return };
        let mut foretold = Vec::new();
        for neighbour in tenant.likeness.followers(vm) {
            let Some(there) = self.machines.get(neighbour) else { continue };
            let same_page = leader.same_page_in(there, page);
            let corresponding = tenant.corresponding(tag, *neighbour, same_page);
            foretold.extend(corresponding.map(|(page, by)| (*neighbour, page, Origin::Touched(vm, by))));
        }
        for (neighbour, page, origin) in foretold {
            if let Some(machine) = self.machines.get_mut(&neighbour)
                && machine.never_to_swap().is_none()
                && machine.stages.worth_it(origin, threshold, time)
            {
                machine.foretold(page, origin, time);
            }
        }
    }

    fn pull(&mut self, touched: Touched, threshold: f64) {
        let Some(machine) = self.machines.get(&touched.vm) else { return };
        if machine.never_to_swap().is_some() {
            return;
        }
        if let Some(place) = touched.before {
            self.follow(touched, (touched.vm, place), Origin::OwnPast, threshold);
        }
        let Some(machine) = self.machines.get(&touched.vm) else { return };
        let Some(tenant) = self.tenants.of(machine) else { return };
        let mut places = Vec::new();
        for leader in tenant.likeness.leaders(touched.vm) {
            let Some(there) = self.machines.get(leader) else { continue };
            let same_content = touched.tag.and_then(|tag| there.tape.find_tag(tag));
            let same_page =
                || machine.same_page_in(there, touched.page).and_then(|page| there.tape.find(page));
            places.extend(same_content.or_else(same_page).map(|place| (*leader, place)));
        }
        for place in places {
            for by in [Match::Content, Match::Page, Match::Address] {
                self.follow(touched, place, Origin::Followed(place.0, by), threshold);
            }
        }
    }

    /// What was touched is at this place on the tape of `leader`: stages of what comes next there as much as the window
    /// of `origin` says.
    fn follow(
        &mut self,
        touched: Touched,
        (leader, place): (VmId, Position),
        origin: Origin,
        threshold: f64,
    ) {
        let vm = touched.vm;
        let Some(machine) = self.machines.get_mut(&vm) else { return };
        if !machine.stages.worth_it(origin, threshold, touched.time) {
            return;
        }
        let window = machine.stages.window(origin);
        let (Some(machine), Some(there)) = (self.machines.get(&vm), self.machines.get(&leader)) else {
            return;
        };
        let tenant = self.tenants.of(machine);
        let part = machine.ahead.part(origin, &there.tape, place, window);
        let end = part.end;
        let corresponding = |page, tag| {
            if leader == vm {
                return Some((page, origin));
            }
            let (page, by) = tenant?.corresponding(tag, vm, there.same_page_in(machine, page))?;
            Some((page, Origin::Followed(leader, by)))
        };
        let next: Vec<_> = there
            .tape
            .part(part)
            .filter_map(|(at, page, tag)| Some((at, corresponding(page, tag)?)))
            .filter(|(_, (_, of))| *of == origin)
            .map(|(at, (page, _))| (at, page))
            .collect();
        let Some(machine) = self.machines.get_mut(&vm) else { return };
        // What finds no room is offered again.
        let refused = next.into_iter().find(|(_, page)| !machine.foretold(*page, origin, touched.time));
        machine.ahead.followed(origin, refused.map_or(end, |(at, _)| at));
    }
}
