//! Where guest-physical addresses lie in the process, and whether that is so. Pure.
//!
//! In: the RAM regions in guest-physical order, the machine type. Out: [`GuestRange`]s by QEMU's rule; then, from frames
//! that KVM was seen to map, a [`Verdict`] for each range.
//!
//! The rule (QEMU 7.2, hw/i386/pc_q35.c, pc_piix.c and microvm.c): RAM begins at 0; what does not fit below the hole for
//! devices goes on at 4 GiB. Where the hole begins depends on the machine type and on `max-ram-below-4g`.
//!
//! Limits: DIMMs and unknown machine types have no guest-physical address here. An AMD host with a guest of about 1 TiB
//! moves the upper part (7.1 and later): the proof then fails.

use tiering_common::PC_GAP;

use super::{Hva, RamRegion};

const FOUR_GIB: u64 = 4 << 30;
/// Frames that must agree before a range counts as proved, and that may disagree before it counts as wrong. A page can
/// be moved between KVM's mapping it and our looking it up, so a few disagree also where all is right.
const ENOUGH: u32 = 4;

/// A guest-physical address, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

/// A part of guest RAM that is contiguous in the process and in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestRange {
    pub start: Hva,
    pub bytes: u64,
    /// Where `start` is in the guest; none where that is not known.
    pub gpa: Option<Gpa>,
}

impl GuestRange {
    /// The first address behind the range.
    #[must_use]
    pub fn end(&self) -> Hva {
        Hva(self.start.0.saturating_add(self.bytes))
    }

    /// The address in the process of a guest-physical one in this range; none where a PC has no RAM.
    #[must_use]
    pub fn hva(&self, address: Gpa) -> Option<Hva> {
        let offset = address.0.checked_sub(self.gpa?.0)?;
        let is_ram = offset < self.bytes && !PC_GAP.contains(&address.0);
        is_ram.then(|| Hva(self.start.0 + offset))
    }

    /// Where an address in the process is in the guest; none outside this range, and where a PC has no RAM.
    #[must_use]
    pub fn gpa_of(&self, address: Hva) -> Option<Gpa> {
        let gpa = self.gpa?.0 + address.0.checked_sub(self.start.0)?;
        (self.contains(address) && !PC_GAP.contains(&gpa)).then_some(Gpa(gpa))
    }

    /// Whether an address in the process lies in it.
    #[must_use]
    pub fn contains(&self, address: Hva) -> bool {
        self.start <= address && address < self.end()
    }
}

/// What of the command line decides where RAM lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Board<'a> {
    pub(super) machine: Option<&'a str>,
    pub(super) max_ram_below_4g_bytes: Option<u64>,
    /// How many regions, at the end, are DIMMs.
    pub(super) dimms: usize,
}

impl Board<'_> {
    /// Bytes of RAM below the hole, of `ram_bytes` in all; none for an unknown machine type.
    fn below_4g(&self, ram_bytes: u64) -> Option<u64> {
        // QEMU's default on x86 is `pc`.
        let machine = self.machine.unwrap_or("pc");
        let limit = self.max_ram_below_4g_bytes;
        let least_in_two = if machine.contains("q35") {
            let low = if ram_bytes >= 0xb000_0000 { 0x8000_0000 } else { 0xb000_0000 };
            low.min(limit.unwrap_or(FOUR_GIB))
        } else if machine == "pc" || machine.starts_with("pc-i440fx") {
            let low = limit.unwrap_or(0xe000_0000);
            // Large guests get a boundary of whole GiB.
            if ram_bytes >= low { low.min(0xc000_0000) } else { low }
        } else if machine == "microvm" {
            limit.unwrap_or(0xc000_0000).min(0xc000_0000)
        } else {
            return None;
        };
        Some(ram_bytes.min(least_in_two))
    }
}

/// The ranges of these regions, cut where the hole begins; without a board all of unknown addresses.
pub(super) fn guest_ranges(regions: &[RamRegion], board: Option<&Board<'_>>) -> Vec<GuestRange> {
    let soldered = regions.len().saturating_sub(board.map_or(0, |board| board.dimms));
    let ram_bytes = regions[..soldered].iter().map(|region| region.bytes).sum();
    let below = board.and_then(|board| board.below_4g(ram_bytes));
    let mut ranges = Vec::new();
    let mut offset = 0;
    for (index, region) in regions.iter().enumerate() {
        let whole = GuestRange { start: region.start, bytes: region.bytes, gpa: None };
        let Some(below) = below.filter(|_| index < soldered) else {
            ranges.push(whole);
            continue;
        };
        let low_bytes = below.saturating_sub(offset).min(region.bytes);
        if low_bytes > 0 {
            ranges.push(GuestRange { bytes: low_bytes, gpa: Some(Gpa(offset)), ..whole });
        }
        if low_bytes < region.bytes {
            let gpa = FOUR_GIB + (offset + low_bytes - below);
            ranges.push(GuestRange {
                start: Hva(region.start.0 + low_bytes),
                bytes: region.bytes - low_bytes,
                gpa: Some(Gpa(gpa)),
            });
        }
        offset += region.bytes;
    }
    ranges
}

/// Whether a range is where the rule says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Too little was seen.
    Open,
    Proved,
    Wrong,
}

/// Frames that were compared for one range.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Proof {
    agreed: u32,
    disagreed: u32,
}

impl Proof {
    /// Takes in whether the frame that KVM mapped is the one that is there in the process.
    pub fn note(&mut self, agrees: bool) {
        if agrees {
            self.agreed += 1;
        } else {
            self.disagreed += 1;
        }
    }

    /// What follows from all frames so far.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let clearly = |more: u32, less: u32| more >= ENOUGH && more >= 4 * less;
        if clearly(self.agreed, self.disagreed) {
            Verdict::Proved
        } else if clearly(self.disagreed, self.agreed) {
            Verdict::Wrong
        } else {
            Verdict::Open
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::Backing;

    const GIB: u64 = 1 << 30;
    const BASE: u64 = 0x7000_0000_0000;

    fn ranges(machine: Option<&str>, limit: Option<u64>, regions: &[u64], dimms: usize) -> Vec<(u64, u64)> {
        let mut start = BASE;
        let regions: Vec<_> = regions
            .iter()
            .map(|&bytes| {
                let region = RamRegion { start: Hva(start), bytes, backing: Backing::Anonymous };
                start += bytes;
                region
            })
            .collect();
        let board = Board { machine, max_ram_below_4g_bytes: limit, dimms };
        let found = guest_ranges(&regions, Some(&board));
        assert_eq!(found.iter().map(|range| range.bytes).sum::<u64>(), start - BASE);
        found.iter().map(|range| (range.gpa.map_or(u64::MAX, |gpa| gpa.0), range.bytes)).collect()
    }

    #[test]
    fn q35_has_two_gib_below_the_hole_unless_all_fits() {
        assert_eq!(ranges(Some("q35"), None, &[GIB / 4], 0), [(0, GIB / 4)]);
        let just = 0xb000_0000;
        assert_eq!(ranges(Some("pc-q35-7.2"), None, &[just - GIB / 4], 0), [(0, just - GIB / 4)]);
        assert_eq!(ranges(Some("q35"), None, &[just], 0), [(0, 2 * GIB), (4 * GIB, just - 2 * GIB)]);
        assert_eq!(ranges(Some("q35"), Some(GIB), &[2 * GIB], 0), [(0, GIB), (4 * GIB, GIB)]);
    }

    #[test]
    fn i440fx_has_three_gib_unless_all_fits_into_three_and_a_half() {
        assert_eq!(ranges(None, None, &[3 * GIB + GIB / 4], 0), [(0, 3 * GIB + GIB / 4)]);
        assert_eq!(ranges(Some("pc-i440fx-9.0+pve0"), None, &[4 * GIB], 0), [(0, 3 * GIB), (4 * GIB, GIB)]);
    }

    #[test]
    fn memory_objects_follow_each_other_across_the_hole() {
        assert_eq!(
            ranges(Some("q35"), None, &[3 * GIB, GIB, 2 * GIB], 0),
            [(0, 2 * GIB), (4 * GIB, GIB), (5 * GIB, GIB), (6 * GIB, 2 * GIB)]
        );
    }

    #[test]
    fn dimms_and_unknown_machines_are_nowhere() {
        assert_eq!(ranges(Some("q35"), None, &[GIB, GIB], 1), [(0, GIB), (u64::MAX, GIB)]);
        assert_eq!(ranges(Some("virt"), None, &[GIB], 0), [(u64::MAX, GIB)]);
    }

    #[test]
    fn an_address_of_the_guest_is_found_in_its_range_only() {
        let range = GuestRange { start: Hva(BASE), bytes: 0x1000, gpa: Some(Gpa(4 * GIB)) };
        assert_eq!(range.hva(Gpa(4 * GIB + 0xfff)), Some(Hva(BASE + 0xfff)));
        assert_eq!(range.hva(Gpa(4 * GIB + 0x1000)), None);
        assert_eq!(range.hva(Gpa(0)), None);
        let low = GuestRange { bytes: GIB, gpa: Some(Gpa(0)), ..range };
        assert_eq!(low.hva(Gpa(0x9_f000)), Some(Hva(BASE + 0x9_f000)));
        assert_eq!(low.hva(Gpa(0xc_0000)), None, "firmware");
        assert_eq!(low.gpa_of(Hva(BASE + 0x9_f000)), Some(Gpa(0x9_f000)));
        assert_eq!(low.gpa_of(Hva(BASE + 0xc_0000)), None, "firmware");
        assert_eq!(range.gpa_of(Hva(BASE + 0xfff)), Some(Gpa(4 * GIB + 0xfff)));
        assert_eq!((range.gpa_of(Hva(BASE + 0x1000)), range.gpa_of(Hva(BASE - 1))), (None, None));
        assert_eq!(GuestRange { gpa: None, ..range }.hva(Gpa(0)), None);
    }

    #[test]
    fn a_few_pages_that_moved_meanwhile_do_not_disprove_a_layout() {
        let verdict = |agreed, disagreed| Proof { agreed, disagreed }.verdict();
        assert_eq!(verdict(0, 0), Verdict::Open);
        assert_eq!(verdict(3, 0), Verdict::Open);
        assert_eq!(verdict(4, 1), Verdict::Proved);
        assert_eq!(verdict(4, 2), Verdict::Open);
        assert_eq!(verdict(1, 4), Verdict::Wrong);
        let mut proof = Proof::default();
        (0..4).for_each(|_| proof.note(true));
        assert_eq!(proof.verdict(), Verdict::Proved);
    }
}
