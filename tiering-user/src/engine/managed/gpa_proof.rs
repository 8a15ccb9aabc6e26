//! Whether the guest-physical addresses of a VM are translated rightly.
//!
//! In: frames that KVM mapped into the guest, and a look at the process's page tables. Out: which ranges of guest RAM
//! are proved, or wrong. Without proof an address of a guest counts for nothing. Pure: time is an argument.

use tiering_common::Frame;

use crate::sys::{Monotonic, PAGE_BYTES};
use crate::vm::{Accel, Gpa, GuestRange, Hva, Proof, Verdict, Vm};

/// Frame numbers of up to 128 TiB of memory. Above them an entry has flags: of the hardware, of KVM, and on hosts with
/// memory encryption one inside what could be an address (bit 47 or 51).
const FRAME_BITS: u64 = (1 << 35) - 1;

/// What is known about one VM.
#[derive(Debug)]
pub struct GpaProof {
    ranges: Vec<(GuestRange, Proof)>,
    /// There is RAM of which nothing says where the guest sees it.
    has_unknown: bool,
    /// When frames were last taken.
    looked_at: Monotonic,
    /// While page tables are looked at: when frames were taken before.
    asked: Option<Monotonic>,
}

impl GpaProof {
    /// Nothing is proved yet; of an emulated VM nothing has to be.
    pub fn new(vm: &Vm, now: Monotonic) -> Self {
        let by_kvm = |range: &&GuestRange| vm.accel == Accel::Kvm && range.gpa.is_some();
        let ranges = vm.guest_ranges.iter().filter(by_kvm);
        Self {
            ranges: ranges.map(|range| (*range, Proof::default())).collect(),
            has_unknown: vm.guest_ranges.iter().any(|range| range.gpa.is_none()),
            looked_at: now,
            asked: None,
        }
    }

    /// More frames would tell more.
    pub fn is_open(&self) -> bool {
        !self.is_wrong() && self.ranges.iter().any(|(_, proof)| proof.verdict() == Verdict::Open)
    }

    /// There is RAM of which nothing says where the guest sees it.
    pub fn has_unknown(&self) -> bool {
        self.has_unknown
    }

    /// Every access of the guest counts, wherever it goes.
    pub fn is_complete(&self) -> bool {
        let proved = |(_, proof): &(GuestRange, Proof)| proof.verdict() == Verdict::Proved;
        !self.has_unknown && !self.ranges.is_empty() && self.ranges.iter().all(proved)
    }

    /// The VM's RAM does not lie where its machine type says.
    pub fn is_wrong(&self) -> bool {
        self.ranges.iter().any(|(_, proof)| proof.verdict() == Verdict::Wrong)
    }

    /// Some of the VM's RAM is proved to be where its machine type says, and none is not.
    pub fn is_proved(&self) -> bool {
        !self.is_wrong() && self.ranges.iter().any(|(_, proof)| proof.verdict() == Verdict::Proved)
    }

    /// An address that was translated for this range of RAM is right.
    pub fn trusts(&self, hva: Hva) -> bool {
        let range = self.ranges.iter().find(|(range, _)| range.contains(hva));
        !self.is_wrong() && range.is_some_and(|(_, proof)| proof.verdict() == Verdict::Proved)
    }

    /// Page tables are being looked at.
    pub fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    /// Takes frames that were mapped since the last look, and asks for the frames that the process has at the
    /// translated addresses.
    pub fn ask(&mut self, frames: &[Frame], now: Monotonic) -> Vec<(Frame, Hva)> {
        self.asked = Some(std::mem::replace(&mut self.looked_at, now));
        let hva = |gpa| self.ranges.iter().find_map(|(range, _)| range.hva(gpa));
        frames
            .iter()
            .filter_map(|frame| Some((*frame, hva(Gpa(frame.gfn.saturating_mul(PAGE_BYTES)))?)))
            .collect()
    }

    /// Takes the answer. What was moved meanwhile, at `moved_at` or later, is not where it was.
    pub fn answer(&mut self, found: &[(Frame, Hva, Option<u64>)], moved_at: Monotonic) {
        if self.asked.take().is_none_or(|since| moved_at >= since) {
            return;
        }
        for (frame, hva, pfn) in found {
            let proof = self.ranges.iter_mut().find(|(range, _)| range.contains(*hva));
            // What is not mapped any more tells nothing.
            if let (Some((_, proof)), Some(pfn)) = (proof, pfn) {
                proof.note((frame.spte / PAGE_BYTES) & FRAME_BITS == pfn & FRAME_BITS);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::{ProcessKey, testing};

    const START: Hva = Hva(0x7000_0000_0000);
    const PAGES: u64 = 8;
    const LONG_AGO: Monotonic = Monotonic(0);
    const NOW: Monotonic = Monotonic(5);

    fn vm(gpa: Option<Gpa>, accel: Accel) -> Vm {
        let key = ProcessKey { pid: 1, start_time_ticks: 0 };
        let mut vm = testing::vm(key, START, PAGES * PAGE_BYTES);
        vm.guest_ranges[0].gpa = gpa;
        Vm { accel, ..vm }
    }

    impl GpaProof {
        fn compare(&mut self, frames: &[Frame], frame_at: impl Fn(Hva) -> Option<u64>, moved_at: Monotonic) {
            let asked = self.ask(frames, NOW).into_iter();
            let found: Vec<_> = asked.map(|(frame, hva)| (frame, hva, frame_at(hva))).collect();
            self.answer(&found, moved_at);
        }
    }

    /// The process has frame 1000 + n at its page n.
    #[expect(clippy::unnecessary_wraps, reason = "the form compare wants")]
    fn process(hva: Hva) -> Option<u64> {
        Some(1000 + (hva.0 - START.0) / PAGE_BYTES)
    }

    /// KVM mapped the frame of page n at guest frame `at(n)`, with flags around it as processors and KVM set them.
    fn frames(at: impl Fn(u64) -> u64) -> Vec<Frame> {
        (0..PAGES).map(|n| Frame { gfn: at(n), spte: (1 << 63) | ((1000 + n) * PAGE_BYTES) | 0x77 }).collect()
    }

    #[test]
    fn frames_at_their_place_prove_a_layout_and_others_disprove_it() {
        let vm = vm(Some(Gpa(0)), Accel::Kvm);
        let mut proof = GpaProof::new(&vm, NOW);
        assert!(proof.is_open() && !proof.trusts(START));
        proof.compare(&frames(|n| n), process, NOW);
        assert!(proof.is_open(), "pages moved while they were looked at tell nothing");
        proof.compare(&frames(|n| n), |_| None, LONG_AGO);
        assert!(proof.is_open(), "nor do pages that are not mapped any more");
        proof.compare(&frames(|n| n), process, LONG_AGO);
        assert!(!proof.is_open() && !proof.is_wrong() && proof.is_proved() && proof.trusts(START));
        assert!(!proof.trusts(Hva(START.0 + PAGES * PAGE_BYTES)), "not of this range");

        let mut wrong = GpaProof::new(&vm, NOW);
        wrong.compare(&frames(|n| n ^ 1), process, LONG_AGO);
        assert!(wrong.is_wrong() && !wrong.is_open() && !wrong.trusts(START));
    }

    #[test]
    fn an_emulated_vm_and_one_of_unknown_layout_have_nothing_to_prove() {
        for (gpa, accel) in [(Some(Gpa(0)), Accel::Tcg), (None, Accel::Kvm)] {
            let proof = GpaProof::new(&vm(gpa, accel), NOW);
            assert!(!proof.is_open() && !proof.is_wrong() && !proof.trusts(START));
        }
    }
}
