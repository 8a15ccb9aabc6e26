//! What a touch foretells: for the machine itself, and for the others of its tenant.
//!
//! Two ways. *Push*: what one machine touches, the others may touch soon, so what corresponds to it there is to be staged.
//! *Pull*: what corresponds to the touched page stands on a tape, its own earlier one or another machine's, so what comes
//! next there is to be staged, a window ahead. Pages of two machines correspond if they have the same content, else if they have the
//! same guest-physical address; whether it is known that their contents differ makes two kinds of the latter.

use super::state::State;
use crate::predict::{Match, Origin, Position, Tag};
use crate::tiermap::PageIndex;
use crate::track::VmId;

/// A page that was in swap until this touch, or had been staged.
#[derive(Clone, Copy)]
struct Touched {
    vm: VmId,
    page: PageIndex,
    /// What it held, where that is known.
    tag: Option<Tag>,
    /// Where it stood on its machine's tape.
    before: Option<Position>,
}

/// How two pages of the same address correspond.
fn by_address(here: Option<Tag>, there: Option<Tag>) -> Match {
    match (here, there) {
        (Some(here), Some(there)) if here != there => Match::Address,
        _ => Match::Page,
    }
}

impl State {
    /// `vm` touched `page`, which had been in swap or was staged. Without a `threshold` that is only noted.
    pub(super) fn foretell(&mut self, vm: VmId, page: PageIndex, threshold: Option<f64>) {
        let Some(machine) = self.machines.get_mut(&vm) else { return };
        let tenant = self.tenants.of_mut(machine);
        let tag = tenant.and_then(|tenant| tenant.tags.remove(vm, page));
        let before = machine.tape.record(page, tag);
        let Some(threshold) = threshold else { return };
        let touched = Touched { vm, page, tag, before };
        self.push(touched, threshold);
        self.pull(touched, threshold);
    }

    fn push(&mut self, touched: Touched, threshold: f64) {
        let Touched { vm, page, tag, .. } = touched;
        let Some(leader) = self.machines.get(&vm) else { return };
        let Some(tenant) = self.tenants.of(leader) else { return };
        let copies = tag.into_iter().flat_map(|tag| tenant.tags.copies(tag, vm));
        let mut foretold: Vec<_> =
            copies.map(|(neighbour, copy)| (neighbour, copy, Match::Content)).collect();
        for neighbour in tenant.members.iter().filter(|member| **member != vm) {
            let same = self.machines.get(neighbour).and_then(|there| leader.same_page_in(there, page));
            foretold.extend(
                same.map(|page| (*neighbour, page, by_address(tag, tenant.tags.of(*neighbour, page)))),
            );
        }
        for (neighbour, page, by) in foretold {
            if let Some(machine) = self.machines.get_mut(&neighbour) {
                machine.foretold(page, Origin::Touched(vm, by), threshold);
            }
        }
    }

    fn pull(&mut self, touched: Touched, threshold: f64) {
        let vm = touched.vm;
        let Some(machine) = self.machines.get_mut(&vm) else { return };
        let mut ahead = std::mem::take(&mut machine.ahead);
        let Some(machine) = self.machines.get(&vm) else { return };
        let tenant = self.tenants.of(machine);
        let mut foretold = Vec::new();
        if let Some(place) = touched.before {
            let window = machine.stages.window(Origin::OwnPast);
            let part = ahead.advance(vm, &machine.tape, place, window);
            foretold.extend(machine.tape.part(part).map(|(page, _)| (page, Origin::OwnPast)));
        }
        let members = tenant.into_iter().flat_map(|tenant| &tenant.members);
        for leader in members.filter(|member| **member != vm) {
            let Some(there) = self.machines.get(leader) else { continue };
            let same_content = touched.tag.and_then(|tag| there.tape.find_tag(tag));
            let same_page =
                || machine.same_page_in(there, touched.page).and_then(|page| there.tape.find(page));
            let Some(place) = same_content.or_else(same_page) else { continue };
            let window = |by| machine.stages.window(Origin::Followed(*leader, by));
            let window = window(Match::Content).max(window(Match::Page)).max(window(Match::Address));
            for (page, tag) in there.tape.part(ahead.advance(*leader, &there.tape, place, window)) {
                let copy = tag.and_then(|tag| tenant?.tags.copy_in(tag, vm));
                let same_content = copy.map(|page| (page, Match::Content));
                let found = same_content.or_else(|| {
                    let page = there.same_page_in(machine, page)?;
                    Some((page, by_address(tag, tenant?.tags.of(vm, page))))
                });
                foretold.extend(found.map(|(page, by)| (page, Origin::Followed(*leader, by))));
            }
        }
        let Some(machine) = self.machines.get_mut(&vm) else { return };
        machine.ahead = ahead;
        for (page, origin) in foretold {
            machine.foretold(page, origin, threshold);
        }
    }
}
