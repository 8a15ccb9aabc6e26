//! What the programs decide, without any eBPF in it, so that it is tested on the host.
//!
//! Written for the verifier: bounded loops, no indexing that could panic.
#![no_std]

use tiering_common::{
    MAX_ONE_IN_LOG2, NO_GPA, PC_GAP, Range, SAMPLE_FETCH, SAMPLE_KERNEL, SAMPLE_KVM, SAMPLE_PRESENT,
    SAMPLE_WEIGHT_SHIFT, SAMPLE_WRITE, VmEntry,
};

/// Bits of the x86 page-fault error code (arch/x86/include/asm/trap_pf.h, Linux 6.1 to 6.18). Of KVM's only the write
/// bit can be used: on Intel it gives its exit qualification (`handle_ept_violation`, arch/x86/kvm/vmx/vmx.c), of which
/// only that bit means the same.
const PF_PROT: u64 = 1 << 0;
const PF_WRITE: u64 = 1 << 1;
const PF_INSTR: u64 = 1 << 4;

/// Where a fault was raised.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    User,
    Kernel,
    /// In a guest, seen by KVM.
    Guest,
}

/// The `SAMPLE_*` bits of a fault with this error code.
#[inline(always)]
pub fn sample_flags(error_code: u64, mode: Mode) -> u32 {
    let mut flags = 0;
    if error_code & PF_WRITE != 0 {
        flags |= SAMPLE_WRITE;
    }
    if mode == Mode::Guest {
        return flags | SAMPLE_KVM;
    }
    if error_code & PF_PROT != 0 {
        flags |= SAMPLE_PRESENT;
    }
    if error_code & PF_INSTR != 0 {
        flags |= SAMPLE_FETCH;
    }
    if mode == Mode::Kernel {
        flags |= SAMPLE_KERNEL;
    }
    flags
}

/// Whether an access of `vm` is put into the ring, with a random number where only some are.
#[inline(always)]
pub fn is_chosen(vm: &VmEntry, random: impl FnOnce() -> u32) -> bool {
    vm.one_in_log2 == 0 || random() & ((1 << one_in_log2(vm)) - 1) == 0
}

/// The flags of a sample of `vm`, with how many accesses it stands for.
#[inline(always)]
pub fn weighted(flags: u32, vm: &VmEntry) -> u32 {
    flags | one_in_log2(vm) << SAMPLE_WEIGHT_SHIFT
}

#[inline(always)]
fn one_in_log2(vm: &VmEntry) -> u32 {
    if vm.one_in_log2 > MAX_ONE_IN_LOG2 { MAX_ONE_IN_LOG2 } else { vm.one_in_log2 }
}

/// Whether `hva` lies in the guest RAM of `vm`.
#[inline(always)]
pub fn is_guest_ram(vm: &VmEntry, hva: u64) -> bool {
    let mut seen = 0;
    for Range { start, end, .. } in &vm.ranges {
        if seen == vm.range_count {
            return false;
        }
        if hva >= *start && hva < *end {
            return true;
        }
        seen += 1;
    }
    false
}

/// The host-virtual address of a guest-physical one; none where there is no RAM of `vm`, or it is not known where.
#[inline(always)]
pub fn guest_ram(vm: &VmEntry, gpa: u64) -> Option<u64> {
    if PC_GAP.contains(&gpa) {
        return None;
    }
    let mut seen = 0;
    for range in &vm.ranges {
        if seen == vm.range_count {
            return None;
        }
        if range.gpa != NO_GPA && gpa >= range.gpa && gpa - range.gpa < range.end.wrapping_sub(range.start) {
            return Some(range.start.wrapping_add(gpa - range.gpa));
        }
        seen += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use tiering_common::{LAYOUT_VERSION, MAX_RANGES};

    fn vm(ranges: &[(u64, u64)]) -> VmEntry {
        let mut all = [Range::default(); MAX_RANGES];
        for (slot, (start, end)) in all.iter_mut().zip(ranges) {
            *slot = Range { start: *start, end: *end, gpa: NO_GPA };
        }
        let range_count = u32::try_from(ranges.len()).unwrap();
        VmEntry { vm: 1, layout: LAYOUT_VERSION, range_count, one_in_log2: 0, ranges: all }
    }

    #[test]
    fn a_range_holds_its_start_and_not_its_end() {
        let vm = vm(&[(0x1000, 0x3000), (0x8000, 0x9000)]);
        for (hva, inside) in
            [(0xfff, false), (0x1000, true), (0x2fff, true), (0x3000, false), (0x8fff, true), (0x9000, false)]
        {
            assert_eq!(is_guest_ram(&vm, hva), inside, "{hva:#x}");
        }
    }

    #[test]
    fn only_ranges_in_use_count() {
        let mut vm = vm(&[(0x1000, 0x2000)]);
        vm.ranges[1] = Range { start: 0x5000, end: 0x6000, gpa: NO_GPA };
        assert!(!is_guest_ram(&vm, 0x5000));
        vm.range_count = 2;
        assert!(is_guest_ram(&vm, 0x5000));
    }

    #[test]
    fn every_range_can_be_used() {
        let last = MAX_RANGES as u64 * 0x10000;
        let mut ranges = [(0, 0); MAX_RANGES];
        for (range, start) in ranges.iter_mut().zip((0x10000..).step_by(0x10000)) {
            *range = (start, start + 0x1000);
        }
        assert!(is_guest_ram(&vm(&ranges), last + 0xfff));
        assert!(!is_guest_ram(&vm(&ranges), last + 0x1000));
    }

    #[test]
    fn guest_physical_addresses_become_host_virtual_ones() {
        const LOW: u64 = 0x8000_0000;
        const HIGH: u64 = 0x1_0000_0000;
        let mut vm = vm(&[(0x7000_0000_0000, 0x7000_8000_0000), (0x7000_8000_0000, 0x7000_a000_0000)]);
        assert_eq!(guest_ram(&vm, 0x1000), None, "not known where");
        vm.ranges[0].gpa = 0;
        vm.ranges[1].gpa = HIGH;
        for (gpa, hva) in [
            (0, Some(0x7000_0000_0000)),
            (0x9_ffff, Some(0x7000_0009_ffff)),
            (0xa_0000, None),
            (0xf_ffff, None),
            (0x10_0000, Some(0x7000_0010_0000)),
            (LOW - 1, Some(0x7000_7fff_ffff)),
            (LOW, None),
            (HIGH - 1, None),
            (HIGH, Some(0x7000_8000_0000)),
            (HIGH + 0x1fff_ffff, Some(0x7000_9fff_ffff)),
            (HIGH + 0x2000_0000, None),
            (NO_GPA, None),
        ] {
            assert_eq!(guest_ram(&vm, gpa), hva, "{gpa:#x}");
        }
    }

    #[test]
    fn of_many_accesses_one_is_chosen_and_stands_for_all() {
        let mut vm = vm(&[]);
        assert!(is_chosen(&vm, || panic!("no need to choose")));
        assert_eq!(weighted(SAMPLE_WRITE, &vm), SAMPLE_WRITE);
        for (log2, one_in) in [(1, 2), (3, 8), (MAX_ONE_IN_LOG2, 65_536), (u32::MAX, 65_536)] {
            vm.one_in_log2 = log2;
            let chosen = (0..1 << 17).filter(|random| is_chosen(&vm, || *random)).count();
            assert_eq!(chosen * one_in, 1 << 17);
            let weight = weighted(SAMPLE_WRITE, &vm) >> SAMPLE_WEIGHT_SHIFT;
            assert_eq!(1 << weight, one_in);
        }
    }

    #[test]
    fn error_codes_become_flags() {
        assert_eq!(sample_flags(0x4, Mode::User), 0, "a user-mode read of an absent page");
        assert_eq!(sample_flags(0x6, Mode::User), SAMPLE_WRITE);
        assert_eq!(sample_flags(0x7, Mode::User), SAMPLE_WRITE | SAMPLE_PRESENT);
        assert_eq!(sample_flags(0x14, Mode::User), SAMPLE_FETCH);
        assert_eq!(sample_flags(0x2, Mode::Kernel), SAMPLE_WRITE | SAMPLE_KERNEL);
        let nested_page_walk = 1 << 32 | 0x6;
        assert_eq!(sample_flags(nested_page_walk, Mode::Guest), SAMPLE_WRITE | SAMPLE_KVM);
        let (read, write) = (0x181, 0x19a);
        assert_eq!(sample_flags(read, Mode::Guest), SAMPLE_KVM, "Intel: a read");
        assert_eq!(sample_flags(write, Mode::Guest), SAMPLE_WRITE | SAMPLE_KVM, "Intel: a write");
    }
}
