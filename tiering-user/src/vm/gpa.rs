//! Where guest-physical addresses lie in the process, and whether that is so. Pure.
//!
//! In: the RAM regions in guest-physical order, the machine type. Out: [`GuestRange`]s by QEMU's rule; then, from
//! frames that KVM was seen to map, a [`Verdict`] for each range.
//!
//! The rule (QEMU 7.2, hw/i386/pc_q35.c, pc_piix.c and microvm.c): RAM begins at 0; what does not fit below the hole
//! for devices goes on at 4 GiB. Where the hole begins depends on the machine type and on `max-ram-below-4g`. A guest
//! with AMD's processors for which that would reach the hole of their HyperTransport goes on at 1 TiB instead (from
//! machine type 7.1 on). What is plugged into slots lies behind all of it.
//!
//! Limits: unknown machine types have no guest-physical address here. SGX memory, CXL and `pci-hole64-size` are not
//! counted in; where a DIMM was plugged by a monitor command after another was unplugged is a guess. The proof tells.

use std::ops::Range;

use tiering_common::PC_GAP;

use super::cmdline::Board;
use super::options::round_up;
use super::{Hva, RamRegion};

const GIB: u64 = 1 << 30;
const FOUR_GIB: u64 = 4 << 30;
/// `AMD_HT_START` and `AMD_ABOVE_1TB_START` (hw/i386/pc.c).
const AMD_HT_START: u64 = 0xfd_0000_0000;
const ABOVE_AMD_HOLE: u64 = 1 << 40;
/// Room for devices behind all RAM: `pci-hole64-size`, by default.
const Q35_HOLE64_BYTES: u64 = 32 << 30;
const I440FX_HOLE64_BYTES: u64 = 2 << 30;
/// No x86 processor has longer physical addresses (52 bits).
const HIGHEST_GPA: u64 = 1 << 52;
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
        let gpa = self.gpa?.0.checked_add(address.0.checked_sub(self.start.0)?)?;
        (self.contains(address) && !PC_GAP.contains(&gpa)).then_some(Gpa(gpa))
    }

    /// Whether an address in the process lies in it.
    #[must_use]
    pub fn contains(&self, address: Hva) -> bool {
        self.start <= address && address < self.end()
    }
}

/// Memory that the guest sees in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InSlot {
    /// In the process; none where it is not there (any more), or is no RAM.
    pub(super) start: Option<Hva>,
    pub(super) bytes: u64,
    /// What its address is a multiple of.
    pub(super) align_bytes: u64,
    /// Where the command line puts it.
    pub(super) gpa: Option<u64>,
}

impl Board {
    fn is_q35(&self) -> bool {
        self.machine.as_deref().is_some_and(|machine| machine.contains("q35"))
    }

    fn is_i440fx(&self) -> bool {
        // QEMU's default on x86 is `pc`.
        let machine = self.machine.as_deref().unwrap_or("pc");
        machine == "pc" || machine.starts_with("pc-i440fx")
    }

    /// Bytes of RAM below the hole, of `ram_bytes` in all; none for an unknown machine type.
    fn below_4g(&self, ram_bytes: u64) -> Option<u64> {
        let limit = self.max_ram_below_4g_bytes;
        let least_in_two = if self.is_q35() {
            let low = if ram_bytes >= 0xb000_0000 { 0x8000_0000 } else { 0xb000_0000 };
            low.min(limit.unwrap_or(FOUR_GIB))
        } else if self.is_i440fx() {
            let low = limit.unwrap_or(0xe000_0000);
            // Large guests get a boundary of whole GiB.
            if ram_bytes >= low { low.min(0xc000_0000) } else { low }
        } else if self.machine.as_deref() == Some("microvm") {
            limit.unwrap_or(0xc000_0000).min(0xc000_0000)
        } else {
            return None;
        };
        Some(ram_bytes.min(least_in_two))
    }

    /// Where RAM goes on above the hole for devices.
    fn above_start(&self, ram_bytes: u64, above_bytes: u64, is_amd: bool) -> u64 {
        let hole64_bytes = if self.is_q35() { Q35_HOLE64_BYTES } else { I440FX_HOLE64_BYTES };
        let mut end = FOUR_GIB.saturating_add(above_bytes);
        if let Some(most) = self.max_ram_bytes.filter(|most| *most > ram_bytes) {
            let slots_bytes = (most - ram_bytes).saturating_add(self.slots.saturating_mul(GIB));
            end = round_up(end, GIB).saturating_add(slots_bytes);
        }
        let last = round_up(end, GIB).saturating_add(hole64_bytes) - 1;
        let moves = is_amd && last >= AMD_HT_START && self.keeps_amd_hole_free();
        if moves { ABOVE_AMD_HOLE } else { FOUR_GIB }
    }

    /// Machine types from 7.1 on do; one without a version is that of its QEMU, and taken for one of them.
    fn keeps_amd_hole_free(&self) -> bool {
        let machine = self.machine.as_deref().unwrap_or("pc");
        let version = machine.strip_prefix("pc-q35-").or_else(|| machine.strip_prefix("pc-i440fx-"));
        let number = |text: &str| {
            text.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u32>().ok()
        };
        let parsed = version.and_then(|version| {
            let (major, minor) = version.split_once('.')?;
            Some((number(major)?, number(minor)?))
        });
        (self.is_q35() || self.is_i440fx()) && parsed.is_none_or(|version| version >= (7, 1))
    }

    /// Whether the guest's processors are AMD's to it: a model of QEMU's has its maker's name, but under KVM, where it
    /// has that of the host (`x86_cpu_load_model`, target/i386/cpu.c, QEMU 7.2).
    pub(super) fn is_amd(&self, kvm: bool, host_is_amd: impl FnOnce() -> bool) -> bool {
        const AMD_MODELS: [&str; 7] = ["qemu64", "max", "EPYC", "Opteron", "phenom", "athlon", "Dhyana"];
        match (&self.cpu_vendor, kvm) {
            (Some(vendor), _) => vendor == "AuthenticAMD",
            (None, true) => host_is_amd(),
            (None, false) => {
                let model = self.cpu.as_deref().unwrap_or("qemu64");
                AMD_MODELS.iter().any(|amd| model.starts_with(amd))
            }
        }
    }
}

/// The ranges of the RAM that the VM begins with, in guest-physical order and cut where the hole begins, and of
/// what is in slots; all of unknown addresses without a board.
pub(super) fn guest_ranges(
    main: &[RamRegion],
    slots: &[InSlot],
    board: Option<&Board>,
    is_amd: bool,
) -> Vec<GuestRange> {
    let ram_bytes = main.iter().map(|region| region.bytes).sum();
    let below = board.and_then(|board| board.below_4g(ram_bytes)).zip(board);
    let Some((below, board)) = below else {
        let main = main.iter().map(|region| (region.start, region.bytes));
        let slots = slots.iter().filter_map(|slot| Some((slot.start?, slot.bytes)));
        return main.chain(slots).map(|(start, bytes)| GuestRange { start, bytes, gpa: None }).collect();
    };
    let above = board.above_start(ram_bytes, ram_bytes - below, is_amd);
    let mut ranges = Vec::new();
    let mut offset = 0;
    for region in main {
        let low_bytes = below.saturating_sub(offset).min(region.bytes);
        if low_bytes > 0 {
            ranges.push(GuestRange { start: region.start, bytes: low_bytes, gpa: Some(Gpa(offset)) });
        }
        if low_bytes < region.bytes {
            let gpa = above.saturating_add((offset + low_bytes).saturating_sub(below));
            ranges.push(GuestRange {
                start: Hva(region.start.0 + low_bytes),
                bytes: region.bytes - low_bytes,
                gpa: Some(Gpa(gpa)),
            });
        }
        offset += region.bytes;
    }
    let end_of_ram = above.saturating_add(ram_bytes - below);
    ranges.extend(in_slots(slots, round_up(end_of_ram, GIB)));
    ranges
}

/// Memory in slots lies above all other RAM, from a multiple of 1 GiB on (`pc_memory_init`, hw/i386/pc.c): each where
/// it is told to, else in the first gap that is large enough (`memory_device_get_free_addr`, hw/mem/memory-device.c).
/// Addresses that no guest can have are not believed: the command line may say anything.
fn in_slots(slots: &[InSlot], base: u64) -> Vec<GuestRange> {
    let mut taken: Vec<Range<u64>> = Vec::new();
    let mut ranges = Vec::new();
    for slot in slots {
        let fits = |gpa: &u64| gpa.checked_add(slot.bytes).is_some_and(|end| end <= HIGHEST_GPA);
        let gpa = slot.gpa.filter(fits).unwrap_or_else(|| first_gap(&taken, base, slot));
        let at = taken.partition_point(|range| range.start < gpa);
        taken.insert(at, gpa..gpa.saturating_add(slot.bytes));
        let gpa = Some(gpa).filter(fits).map(Gpa);
        let range = |start| GuestRange { start, bytes: slot.bytes, gpa };
        ranges.extend(slot.start.map(range));
    }
    ranges
}

/// `taken` is ascending.
fn first_gap(taken: &[Range<u64>], base: u64, slot: &InSlot) -> u64 {
    let mut gpa = round_up(base, slot.align_bytes);
    for range in taken {
        if gpa < range.end && range.start < gpa.saturating_add(slot.bytes) {
            gpa = round_up(range.end, slot.align_bytes);
        }
    }
    gpa
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

    const BASE: u64 = 0x7000_0000_0000;

    fn board(machine: Option<&str>) -> Board {
        Board { machine: machine.map(str::to_owned), ..Board::default() }
    }

    fn regions(sizes: &[u64]) -> Vec<RamRegion> {
        let starts = sizes.iter().scan(BASE, |next, bytes| Some(std::mem::replace(next, *next + bytes)));
        let region = |(start, bytes)| RamRegion { start: Hva(start), bytes, backing: Backing::Anonymous };
        starts.zip(sizes.iter().copied()).map(region).collect()
    }

    fn shown(found: &[GuestRange]) -> Vec<(u64, u64)> {
        found.iter().map(|range| (range.gpa.map_or(u64::MAX, |gpa| gpa.0), range.bytes)).collect()
    }

    fn ranges(machine: Option<&str>, limit: Option<u64>, sizes: &[u64]) -> Vec<(u64, u64)> {
        let board = Board { max_ram_below_4g_bytes: limit, ..board(machine) };
        let found = guest_ranges(&regions(sizes), &[], Some(&board), false);
        assert_eq!(found.iter().map(|range| range.bytes).sum::<u64>(), sizes.iter().sum::<u64>());
        shown(&found)
    }

    #[test]
    fn q35_has_two_gib_below_the_hole_unless_all_fits() {
        assert_eq!(ranges(Some("q35"), None, &[GIB / 4]), [(0, GIB / 4)]);
        let just = 0xb000_0000;
        assert_eq!(ranges(Some("pc-q35-7.2"), None, &[just - GIB / 4]), [(0, just - GIB / 4)]);
        assert_eq!(ranges(Some("q35"), None, &[just]), [(0, 2 * GIB), (4 * GIB, just - 2 * GIB)]);
        assert_eq!(ranges(Some("q35"), Some(GIB), &[2 * GIB]), [(0, GIB), (4 * GIB, GIB)]);
    }

    #[test]
    fn i440fx_has_three_gib_unless_all_fits_into_three_and_a_half() {
        assert_eq!(ranges(None, None, &[3 * GIB + GIB / 4]), [(0, 3 * GIB + GIB / 4)]);
        assert_eq!(ranges(Some("pc-i440fx-9.0+pve0"), None, &[4 * GIB]), [(0, 3 * GIB), (4 * GIB, GIB)]);
    }

    #[test]
    fn memory_objects_follow_each_other_across_the_hole() {
        assert_eq!(
            ranges(Some("q35"), None, &[3 * GIB, GIB, 2 * GIB]),
            [(0, 2 * GIB), (4 * GIB, GIB), (5 * GIB, GIB), (6 * GIB, 2 * GIB)]
        );
    }

    #[test]
    fn unknown_machines_have_no_addresses() {
        assert_eq!(ranges(Some("virt"), None, &[GIB]), [(u64::MAX, GIB)]);
    }

    #[test]
    fn memory_in_slots_is_behind_all_ram_in_the_first_gap() {
        let slot = |bytes, gpa| InSlot { start: Some(Hva(BASE)), bytes, align_bytes: 2 << 20, gpa };
        let found = |sizes: &[u64], slots: &[InSlot]| {
            let all = guest_ranges(&regions(sizes), slots, Some(&board(Some("q35"))), false);
            shown(&all).split_off(all.len() - slots.iter().filter(|slot| slot.start.is_some()).count())
        };
        let half = GIB / 2;
        assert_eq!(
            found(&[GIB / 4], &[slot(half, None), slot(GIB, None)]),
            [(4 * GIB, half), (4 * GIB + half, GIB)]
        );
        assert_eq!(
            found(&[3 * GIB + half], &[slot(half, None)]),
            [(6 * GIB, half)],
            "from a multiple of 1 GiB on"
        );
        let told = [slot(half, Some(5 * GIB)), slot(half, None), slot(half, None), slot(half, None)];
        assert_eq!(
            found(&[GIB], &told),
            [(5 * GIB, half), (4 * GIB, half), (4 * GIB + half, half), (5 * GIB + half, half)]
        );
        let image = InSlot { start: None, ..slot(half, None) };
        assert_eq!(
            found(&[GIB], &[image, slot(half, None)]),
            [(4 * GIB + half, half)],
            "it takes its place all the same"
        );
    }

    #[test]
    fn an_address_that_no_guest_can_have_is_not_believed() {
        let slot = |bytes, gpa| InSlot { start: Some(Hva(BASE)), bytes, align_bytes: 2 << 20, gpa };
        let found = |slots: &[InSlot]| {
            shown(&guest_ranges(&regions(&[GIB]), slots, Some(&board(Some("q35"))), false)).split_off(1)
        };
        for told in [0xffff_ffff_ffff_f000, u64::MAX, (1 << 52) - GIB + 1] {
            assert_eq!(found(&[slot(GIB, Some(told))]), [(4 * GIB, GIB)], "{told:#x}");
        }
        assert_eq!(found(&[slot(GIB, Some((1 << 52) - GIB))]), [((1 << 52) - GIB, GIB)]);
        let huge = InSlot { start: None, ..slot(u64::MAX, None) };
        assert_eq!(found(&[huge, slot(GIB, None)]), [(u64::MAX, GIB)], "its place is not known");
        let range = GuestRange { start: Hva(BASE), bytes: GIB, gpa: Some(Gpa(u64::MAX)) };
        assert_eq!(range.gpa_of(Hva(BASE + 1)), None);
    }

    #[test]
    fn a_guest_of_amd_does_not_reach_into_the_hole_below_one_tib() {
        let tib = 1024 * GIB;
        let high = |machine: &str, ram: u64, amd| {
            shown(&guest_ranges(&regions(&[ram]), &[], Some(&board(Some(machine))), amd))[1].0
        };
        assert_eq!(high("pc-q35-7.2", tib, true), tib);
        assert_eq!(high("q35", tib, true), tib);
        assert_eq!(high("pc-q35-7.0", tib, true), 4 * GIB, "older machines stay as they were");
        assert_eq!(high("pc-q35-7.2", tib, false), 4 * GIB);
        // 1012 GiB are free; 4 GiB lie below, and 2 GiB of RAM with them.
        assert_eq!(high("pc-q35-8.1", 978 * GIB, true), 4 * GIB, "room for devices fits as well");
        assert_eq!(high("pc-q35-8.1", 979 * GIB, true), tib);
        let slots = Board { max_ram_bytes: Some(tib), slots: 4, ..board(Some("q35")) };
        assert_eq!(shown(&guest_ranges(&regions(&[8 * GIB]), &[], Some(&slots), true))[1].0, tib);
    }

    #[test]
    fn whose_processors_a_guest_has_is_told_by_model_accelerator_and_host() {
        let is_amd = |cpu: Option<&str>, vendor: Option<&str>, kvm, host: bool| {
            let owned = |text: Option<&str>| text.map(str::to_owned);
            Board { cpu: owned(cpu), cpu_vendor: owned(vendor), ..Board::default() }.is_amd(kvm, || host)
        };
        assert!(is_amd(Some("host"), None, true, true) && !is_amd(Some("EPYC"), None, true, false));
        assert!(is_amd(None, None, false, false) && is_amd(Some("EPYC-Milan"), None, false, false));
        assert!(!is_amd(Some("Skylake-Server"), None, false, true));
        assert!(is_amd(Some("Skylake-Server"), Some("AuthenticAMD"), true, false));
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
