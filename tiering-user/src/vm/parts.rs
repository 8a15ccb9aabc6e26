//! What of a guest's memory is managed, and what is left alone. In: the layout, the command line, where parts were in
//! the guest when it was looked at before. Out: [`Parts`]. Pure.
//!
//! A reason that is about one part (an image file, RAM on a disk, huge pages beside others) leaves that part alone;
//! only where it is about all RAM is it a refusal.

use tiering_common::MAX_RANGES;

use super::cmdline::{CommandLine, Role};
use super::gpa::{InSlot, guest_ranges};
use super::ram::{Found, Layout, Medium};
use super::refusal::{Apart, LeftAlone, Refusal};
use super::{Backing, GuestRange, RamRegion};

/// Memory of a guest, sorted.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pub(super) ram: Vec<RamRegion>,
    pub(super) on_demand: Vec<RamRegion>,
    pub(super) guest_ranges: Vec<GuestRange>,
    pub(super) left_alone: Vec<LeftAlone>,
    pub(super) refusal: Option<Refusal>,
}

/// Sorts what was found. `before` are the guest's ranges at the last look, if there was one.
pub(super) fn sort(
    layout: &Layout,
    command: &CommandLine,
    is_amd: bool,
    before: Option<&[GuestRange]>,
) -> Parts {
    let mut parts = Parts::default();
    let is_persistent = |found: &Found| found.block.is_some_and(|block| command.blocks[block].persistent);
    let on_storage = |found: &&Found| found.medium == Medium::Storage || is_persistent(found);
    let is_ram = |found: &&Found| found.role != Role::Image;
    let what = |found: &Found| found.path.clone().unwrap_or_else(|| "persistent memory".to_owned());

    let ram = || layout.found.iter().filter(is_ram);
    let stored = ram().find(on_storage).filter(|_| ram().all(|found| on_storage(&found)));
    parts.refusal = stored.map(|found| Refusal::OnStorage { what: what(found) });
    for found in ram() {
        if on_storage(&found) && parts.refusal.is_none() {
            parts.leave(found.region.bytes, Apart::OnStorage { what: what(found) });
            continue;
        }
        if found.role == Role::VirtioMem {
            parts.on_demand.push(found.region.clone());
        }
        parts.ram.push(found.region.clone());
    }
    for (index, block) in (0..).zip(&command.blocks).filter(|(_, block)| block.role == Role::Image) {
        let image = layout.found.iter().find(|found| found.block == Some(index));
        let what = image.and_then(|found| found.path.clone()).unwrap_or_else(|| "read-only".to_owned());
        parts.leave(block.bytes, Apart::Image { what });
    }
    let is_hugetlb = |region: &&RamRegion| region.backing == Backing::Hugetlb;
    let hugetlb_bytes: u64 = parts.ram.iter().filter(is_hugetlb).map(|region| region.bytes).sum();
    if hugetlb_bytes > 0 && parts.ram.iter().all(|region| is_hugetlb(&region)) {
        parts.refusal = parts.refusal.or(Some(Refusal::Hugetlb));
    } else if hugetlb_bytes > 0 {
        parts.leave(hugetlb_bytes, Apart::Hugetlb);
    }
    parts.guest_ranges = ranges(layout, command, is_amd, before);
    parts.keep_what_can_be_watched();
    parts
}

impl Parts {
    fn leave(&mut self, bytes: u64, why: Apart) {
        self.left_alone.push(LeftAlone { bytes, why });
    }

    /// Ranges of parts that are left alone go, and parts for whose ranges there is no room.
    fn keep_what_can_be_watched(&mut self) {
        let mut room = MAX_RANGES;
        let (ranges, mut too_many) = (std::mem::take(&mut self.guest_ranges), 0);
        self.ram.retain(|region| {
            let of_region = || ranges.iter().filter(|range| region.contains(range.start));
            let fits = of_region().count() <= room;
            if fits {
                room -= of_region().count();
                self.guest_ranges.extend(of_region());
            } else {
                too_many += region.bytes;
            }
            fits
        });
        self.on_demand.retain(|region| self.ram.contains(region));
        if too_many > 0 {
            self.leave(too_many, Apart::TooManyParts);
        }
    }
}

/// Where the guest sees all that was found.
fn ranges(
    layout: &Layout,
    command: &CommandLine,
    is_amd: bool,
    before: Option<&[GuestRange]>,
) -> Vec<GuestRange> {
    let main: Vec<RamRegion> = layout
        .found
        .iter()
        .filter(|found| found.role == Role::Main)
        .map(|found| found.region.clone())
        .collect();
    let known = |found: &Found| {
        before?.iter().find(|range| range.start == found.region.start && range.bytes == found.region.bytes)
    };
    let mut slots = Vec::new();
    for (index, block) in (0..).zip(&command.blocks) {
        if !matches!(block.role, Role::Dimm | Role::VirtioMem | Role::Image) {
            continue;
        }
        let found = layout.found.iter().find(|found| found.block == Some(index));
        // What is not there any more has left its place to others.
        if found.is_none() && before.is_some() && block.role != Role::Image {
            continue;
        }
        slots.push(InSlot {
            start: found.map(|found| found.region.start),
            bytes: found.map_or(block.bytes, |found| found.region.bytes),
            align_bytes: found.map_or(2 << 20, |found| found.align_bytes),
            gpa: found.and_then(known).and_then(|range| range.gpa).map(|gpa| gpa.0).or(block.gpa),
        });
    }
    // Plugged while the VM ran: known from when that was seen, else not.
    let plugged = || layout.found.iter().filter(|found| found.block.is_none() && found.role == Role::Dimm);
    let news = plugged().filter(|found| known(found).is_none()).count();
    let mut unknown = Vec::new();
    for found in plugged() {
        let before_gpa = known(found).map(|range| range.gpa);
        let told = match before_gpa {
            Some(gpa) => gpa.is_some(),
            None => {
                before.is_some()
                    && news == 1
                    && plugged().all(|other| known(other).is_none_or(|range| range.gpa.is_some()))
            }
        };
        if told {
            slots.push(InSlot {
                start: Some(found.region.start),
                bytes: found.region.bytes,
                align_bytes: found.align_bytes,
                gpa: before_gpa.flatten().map(|gpa| gpa.0),
            });
        } else {
            unknown.push(GuestRange { start: found.region.start, bytes: found.region.bytes, gpa: None });
        }
    }
    // Those whose place is known first: the others go into the gaps between them.
    slots.sort_by_key(|slot| before.is_some() && slot.gpa.is_none());
    let mut ranges = guest_ranges(&main, &slots, layout.complete.then_some(&command.board), is_amd);
    ranges.extend(unknown);
    ranges
}
