//! Whether the guest-physical addresses of a machine are translated rightly.
//!
//! In: frames that KVM mapped into the guest, and the process's page tables. Out: which ranges of guest RAM are proved,
//! or wrong. Without proof an address of a guest counts for nothing.

use tiering_common::Frame;

use crate::sys::{self, Monotonic, PAGE_BYTES, PageState, Pagemap};
use crate::vm::{Accel, Gpa, GuestRange, Hva, Proof, Verdict, Vm};

/// Frame numbers of up to 128 TiB of memory. Above them an entry has flags: of the hardware, of KVM, and on hosts with
/// memory encryption one inside what could be an address (bit 47 or 51).
const FRAME_BITS: u64 = (1 << 35) - 1;

/// What is known about one machine.
#[derive(Debug)]
pub(super) struct LayoutProof {
    ranges: Vec<(GuestRange, Proof)>,
    /// When frames were last compared, or thrown away.
    looked_at: Monotonic,
}

impl LayoutProof {
    /// Nothing is proved yet; of an emulated machine nothing has to be.
    pub(super) fn new(vm: &Vm) -> Self {
        let by_kvm = |range: &&GuestRange| vm.accel == Accel::Kvm && range.gpa.is_some();
        let ranges = vm.guest_ranges.iter().filter(by_kvm);
        Self { ranges: ranges.map(|range| (*range, Proof::default())).collect(), looked_at: sys::now() }
    }

    /// More frames would tell more.
    pub(super) fn is_open(&self) -> bool {
        !self.is_wrong() && self.ranges.iter().any(|(_, proof)| proof.verdict() == Verdict::Open)
    }

    /// The machine's RAM does not lie where its machine type says.
    pub(super) fn is_wrong(&self) -> bool {
        self.ranges.iter().any(|(_, proof)| proof.verdict() == Verdict::Wrong)
    }

    /// Some of the machine's RAM is proved to be where its machine type says, and none is not.
    pub(super) fn is_proved(&self) -> bool {
        !self.is_wrong() && self.ranges.iter().any(|(_, proof)| proof.verdict() == Verdict::Proved)
    }

    /// An address that was translated for this range of RAM is right.
    pub(super) fn trusts(&self, hva: Hva) -> bool {
        let range = self.ranges.iter().find(|(range, _)| range.contains(hva));
        !self.is_wrong() && range.is_some_and(|(_, proof)| proof.verdict() == Verdict::Proved)
    }

    /// Compares frames that were mapped since the last look with what the process has at the translated addresses. What
    /// was moved meanwhile, at `moved_at` or later, is not where it was.
    pub(super) fn compare(&mut self, frames: &[Frame], pagemap: &Pagemap, moved_at: Monotonic) {
        if moved_at < std::mem::replace(&mut self.looked_at, sys::now()) {
            self.compare_all(frames, pagemap);
        }
    }

    fn compare_all(&mut self, frames: &[Frame], pagemap: &Pagemap) {
        for frame in frames {
            let gpa = Gpa(frame.gfn.saturating_mul(PAGE_BYTES));
            let found = self.ranges.iter_mut().find_map(|(range, proof)| Some((range.hva(gpa)?, proof)));
            let Some((hva, proof)) = found else { continue };
            // What is not mapped any more, or without the right to see frames, tells nothing.
            if let Ok([PageState::Present { pfn: pfn @ 1.. }]) = pagemap.read(hva.0, 1).as_deref() {
                proof.note((frame.spte / PAGE_BYTES) & FRAME_BITS == pfn & FRAME_BITS);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::{Backing, ProcessKey, RamRegion};

    const PAGES: usize = 8;

    fn memory() -> Vec<u8> {
        vec![1; (PAGES + 1) * PAGE_BYTES as usize]
    }

    /// This process as a machine of `PAGES` pages, and the frames it has.
    fn machine(memory: &[u8], gpa: Option<Gpa>, accel: Accel) -> (Vm, Vec<Frame>, Pagemap) {
        let start = Hva((memory.as_ptr().addr() as u64).next_multiple_of(PAGE_BYTES));
        let bytes = PAGES as u64 * PAGE_BYTES;
        let own = Pagemap::of_self().unwrap();
        let states = own.read(start.0, PAGES).unwrap();
        let frames = (0..).zip(states).map(|(gfn, state)| match state {
            PageState::Present { pfn } => Frame { gfn, spte: (1 << 63) | (pfn * PAGE_BYTES) | 7, level: 1 },
            other => panic!("page {gfn} is {other:?}"),
        });
        let frames = frames.collect();
        let vm = Vm {
            key: ProcessKey { pid: 1, start_time_ticks: 0 },
            name: "self".into(),
            uuid: None,
            namespace: None,
            accel,
            ram: vec![RamRegion { start, bytes, backing: Backing::Anonymous }],
            guest_ranges: vec![GuestRange { start, bytes, gpa }],
            refusal: None,
            fixed_refusal: None,
            incoming: false,
            cgroup: None,
            numa_bound: false,
        };
        (vm, frames, own)
    }

    #[test]
    fn frames_at_their_place_prove_a_layout_and_others_disprove_it() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let memory = memory();
        let (vm, frames, pagemap) = machine(&memory, Some(Gpa(0)), Accel::Kvm);
        let first = vm.ram[0].start;
        let mut proof = LayoutProof::new(&vm);
        assert!(proof.is_open() && !proof.trusts(first));
        proof.compare(&frames, &pagemap, sys::now());
        assert!(proof.is_open(), "pages moved while they were looked at tell nothing");
        proof.compare(&frames, &pagemap, Monotonic::default());
        assert!(!proof.is_open() && !proof.is_wrong() && proof.trusts(first));
        assert!(!proof.trusts(Hva(first.0 + PAGES as u64 * PAGE_BYTES)), "not of this range");

        let shifted: Vec<_> = frames.iter().map(|frame| Frame { gfn: frame.gfn ^ 1, ..*frame }).collect();
        let mut wrong = LayoutProof::new(&vm);
        wrong.compare(&shifted, &pagemap, Monotonic::default());
        assert!(wrong.is_wrong() && !wrong.is_open() && !wrong.trusts(first));
    }

    #[test]
    fn an_emulated_machine_and_one_of_unknown_layout_have_nothing_to_prove() {
        for (gpa, accel) in [(Some(Gpa(0)), Accel::Tcg), (None, Accel::Kvm)] {
            let (vm, ..) = machine(&memory(), gpa, accel);
            let proof = LayoutProof::new(&vm);
            assert!(!proof.is_open() && !proof.is_wrong() && !proof.trusts(vm.ram[0].start));
        }
    }
}
