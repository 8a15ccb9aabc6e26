//! The eBPF programs themselves: fed with invented faults, and attached to real ones.

use std::os::fd::AsRawFd as _;

use aya::maps::{HashMap, PerCpuHashMap, PerCpuValues, RingBuf};
use aya::programs::{RawTracePoint, RawTracePointRunOptions, TestRun as _};
use aya::{Ebpf, util::nr_cpus};
use tiering_common::{
    LAYOUT_VERSION, MAX_BLOCKS, MAX_RANGES, RING_BYTES, Range, SAMPLE_KERNEL, SAMPLE_KVM,
    SAMPLE_WEIGHT_SHIFT, SAMPLE_WRITE, Sample, VmBlock, VmEntry, VmStats,
};
use tiering_testkit::skip::{need_root, skip_or_fail};
use tiering_user::bpf::{AttachKind, Faults, OBJECT};
use tiering_user::sys::ZeroPages;
use tiering_user::track::VmId;
use tiering_user::vm::{GuestRange, Hva, ProcessKey, Vm};
use zerocopy::FromBytes as _;

const VM: u32 = 42;
const RAM: Range = Range { start: 0x7000_0000_0000, end: 0x7000_0010_0000, gpa: GPA };
const GPA: u64 = 0x1_0000_0000;

/// The raw programs, loaded but not attached, and this process tracked as a machine.
struct Loaded(Ebpf);

impl Loaded {
    fn new() -> Self {
        let mut ebpf = Ebpf::load(OBJECT).unwrap();
        for program in ["fault_user_raw", "fault_kern_raw", "kvm_fault_raw"] {
            let program: &mut RawTracePoint = ebpf.program_mut(program).unwrap().try_into().unwrap();
            program.load().unwrap();
        }
        let mut ranges = [Range::default(); MAX_RANGES];
        ranges[0] = RAM;
        let entry = VmEntry { vm: VM, layout: LAYOUT_VERSION, range_count: 1, one_in_log2: 0, ranges };
        let mut stats: PerCpuHashMap<_, u32, VmStats> =
            ebpf.map_mut("tier_stats").unwrap().try_into().unwrap();
        let zero = vec![VmStats::default(); nr_cpus().unwrap()];
        stats.insert(VM, PerCpuValues::try_from(zero).unwrap(), 0).unwrap();
        let mut vms: HashMap<_, u32, VmEntry> = ebpf.map_mut("tier_vms").unwrap().try_into().unwrap();
        vms.insert(std::process::id(), entry, 0).unwrap();
        Self(ebpf)
    }

    fn fault(&mut self, program: &str, hva: u64, error_code: u64) {
        let program: &mut RawTracePoint = self.0.program_mut(program).unwrap().try_into().unwrap();
        let mut options = RawTracePointRunOptions::new();
        options.args[0] = hva;
        options.args[2] = error_code;
        program.test_run(options).unwrap();
    }

    fn guest_fault(&mut self, gpa: u64, error_code: u64) {
        let program: &mut RawTracePoint = self.0.program_mut("kvm_fault_raw").unwrap().try_into().unwrap();
        let mut options = RawTracePointRunOptions::new();
        options.args[1] = gpa;
        options.args[2] = error_code;
        program.test_run(options).unwrap();
    }

    fn samples(&mut self) -> Vec<Sample> {
        let mut ring = RingBuf::try_from(self.0.map_mut("tier_events").unwrap()).unwrap();
        let mut samples = Vec::new();
        while let Some(record) = ring.next() {
            samples.push(Sample::read_from_bytes(&record).unwrap());
        }
        samples
    }

    fn stats(&self) -> VmStats {
        let stats: PerCpuHashMap<_, u32, VmStats> = self.0.map("tier_stats").unwrap().try_into().unwrap();
        let mut sum = VmStats::default();
        for cpu in stats.get(&VM, 0).unwrap().iter() {
            sum.seen += cpu.seen;
            sum.produced += cpu.produced;
            sum.dropped += cpu.dropped;
            sum.reads += cpu.reads;
            sum.writes += cpu.writes;
        }
        sum
    }

    fn ring_is_ready(&mut self) -> bool {
        let ring = RingBuf::try_from(self.0.map_mut("tier_events").unwrap()).unwrap();
        let fd = nix::poll::PollFd::new(
            // The ring outlives the poll below.
            std::os::fd::AsFd::as_fd(&ring),
            nix::poll::PollFlags::POLLIN,
        );
        assert!(ring.as_raw_fd() > 0);
        nix::poll::poll(&mut [fd], nix::poll::PollTimeout::ZERO).unwrap() > 0
    }
}

#[test]
fn a_fault_in_guest_ram_becomes_a_sample_and_any_other_does_not() {
    let Some(()) = skip_or_fail(need_root()) else { return };
    let mut loaded = Loaded::new();
    loaded.fault("fault_user_raw", RAM.start, 0x4);
    loaded.fault("fault_user_raw", RAM.start - 1, 0x4);
    loaded.fault("fault_user_raw", RAM.end, 0x4);
    loaded.fault("fault_kern_raw", RAM.end - 1, 0x2);

    let samples = loaded.samples();
    let shown: Vec<_> = samples.iter().map(|sample| (sample.vm, sample.hva, sample.flags)).collect();
    assert_eq!(shown, [(VM, RAM.start, 0), (VM, RAM.end - 1, SAMPLE_WRITE | SAMPLE_KERNEL)]);
    assert!(0 < samples[0].time_ns && samples[0].time_ns < samples[1].time_ns);
    let VmStats { produced, dropped, reads, writes, .. } = loaded.stats();
    assert_eq!((produced, dropped, reads, writes), (2, 0, 1, 1));
}

#[test]
fn a_fault_of_a_kvm_guest_is_translated_and_one_outside_its_ram_is_none() {
    let Some(()) = skip_or_fail(need_root()) else { return };
    let mut loaded = Loaded::new();
    const WRITE_OF_A_GUEST: u64 = 1 << 32 | 0x6;
    loaded.guest_fault(GPA, 0x4);
    loaded.guest_fault(GPA + 0xf_ffff, WRITE_OF_A_GUEST);
    for gpa in [GPA - 1, GPA + 0x10_0000, 0xfee0_0000, RAM.start] {
        loaded.guest_fault(gpa, 0x4);
    }

    let samples = loaded.samples();
    let shown: Vec<_> = samples.iter().map(|sample| (sample.vm, sample.hva, sample.flags)).collect();
    assert_eq!(shown, [(VM, RAM.start, SAMPLE_KVM), (VM, RAM.end - 1, SAMPLE_WRITE | SAMPLE_KVM)]);
    let VmStats { produced, reads, writes, .. } = loaded.stats();
    assert_eq!((produced, reads, writes), (2, 1, 1));
}

#[test]
fn a_process_that_is_not_tracked_gives_no_sample() {
    let Some(()) = skip_or_fail(need_root()) else { return };
    let mut loaded = Loaded::new();
    let mut vms: HashMap<_, u32, VmEntry> = loaded.0.map_mut("tier_vms").unwrap().try_into().unwrap();
    vms.remove(&std::process::id()).unwrap();
    loaded.fault("fault_user_raw", RAM.start, 0x4);
    assert_eq!(loaded.samples(), []);
    assert_eq!(loaded.stats(), VmStats::default());
}

#[test]
fn of_a_machine_that_makes_too_many_one_of_eight_is_put_into_the_ring_and_stands_for_all() {
    let Some(()) = skip_or_fail(need_root()) else { return };
    const FAULTS: u64 = 16_000;
    let mut loaded = Loaded::new();
    let mut vms: HashMap<_, u32, VmEntry> = loaded.0.map_mut("tier_vms").unwrap().try_into().unwrap();
    let entry = vms.get(&std::process::id(), 0).unwrap();
    vms.insert(std::process::id(), VmEntry { one_in_log2: 3, ..entry }, 0).unwrap();
    for fault in 0..FAULTS {
        loaded.fault("fault_user_raw", RAM.start + fault % 256 * 4096, 0x6);
    }
    let samples = loaded.samples();
    assert!(samples.iter().all(|sample| sample.flags == SAMPLE_WRITE | 3 << SAMPLE_WEIGHT_SHIFT));
    let VmStats { seen, produced, dropped, writes, .. } = loaded.stats();
    assert_eq!((seen, writes, dropped, produced), (FAULTS, FAULTS, 0, samples.len() as u64));
    // Chosen at random: 2,000, and six standard deviations of it.
    assert!((1750..=2250).contains(&produced), "{produced}");
}

#[test]
fn a_full_ring_drops_and_counts_what_it_drops() {
    let Some(()) = skip_or_fail(need_root()) else { return };
    let mut loaded = Loaded::new();
    assert!(!loaded.ring_is_ready());
    loaded.fault("fault_user_raw", RAM.start, 0x6);
    assert!(loaded.ring_is_ready(), "the first sample after a rest wakes the agent");
    assert_eq!(loaded.samples().len(), 1);
    // A record takes its 24 bytes and a header of 8.
    let fits = RING_BYTES as u64 / 32;
    for fault in 0..fits + 1000 {
        loaded.fault("fault_user_raw", RAM.start + fault % 256 * 4096, 0x6);
    }
    assert!(loaded.ring_is_ready(), "it is woken while it does not collect");
    let taken = loaded.samples().len() as u64 + 1;
    let VmStats { produced, dropped, writes, .. } = loaded.stats();
    assert_eq!(produced, fits + 1001);
    assert_eq!(writes, produced);
    assert!(dropped >= 1000, "{dropped}");
    assert_eq!(produced, taken + dropped);
}

/// This process as a machine whose RAM is `memory`.
fn this_process(memory: &ZeroPages) -> Vm {
    let key = ProcessKey { pid: std::process::id().cast_signed(), start_time_ticks: 0 };
    let (start, bytes) = (Hva(memory.start() as u64), memory.len() as u64 * 4096);
    Vm { guest_ranges: vec![GuestRange { start, bytes, gpa: None }], ..Vm::plain(key, "self", start, bytes) }
}

#[test]
fn every_attach_kind_sees_every_real_fault() {
    let Some(()) = skip_or_fail(need_root()) else { return };
    const PAGES: usize = 500;
    for attach_kind in [AttachKind::TpBtf, AttachKind::Raw, AttachKind::Classic] {
        let mut memory = ZeroPages::map(PAGES).unwrap();
        let vm = this_process(&memory);
        let mut faults = Faults::attach(&[attach_kind], None).unwrap();
        faults.track(VmId(VM), &vm).unwrap();
        // The first write to each page faults.
        memory.page_out(0, PAGES).unwrap();
        faults.detach();

        let mut samples = Vec::new();
        while faults.drain(&mut samples, 100) > 0 {}
        let first = memory.start() as u64;
        let expected: Vec<_> = (0..PAGES as u64).map(|page| first + page * 4096).collect();
        let mut seen: Vec<_> = samples.iter().map(|sample| sample.hva & !0xfff).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, expected, "{attach_kind:?}");
        assert!(samples.iter().all(|sample| sample.flags & SAMPLE_WRITE != 0), "{attach_kind:?}");
        let counters = faults.counters(VmId(VM));
        assert_eq!(counters.produced, faults.consumed() + counters.dropped, "{attach_kind:?}");
    }
}

#[test]
fn blocks_that_do_not_fit_are_counted_and_those_of_a_machine_go_with_it() {
    let Some(()) = skip_or_fail(need_root()) else { return };
    let mut faults = Faults::attach(&[AttachKind::Raw], None).unwrap();
    let block = |hva| VmBlock { hva, tiers: [500, 12, 0, 0, 0, 0, 0, 0], hot: 7, ..VmBlock::default() };
    let most = u32::try_from(MAX_BLOCKS).unwrap();
    for number in 0..most {
        faults.show_block(VmId(1), number, Some(block(u64::from(number) << 21)));
    }
    assert_eq!(faults.blocks(), (u64::from(most), 0));
    faults.show_block(VmId(2), 0, Some(block(0)));
    assert_eq!(faults.blocks(), (u64::from(most), 1), "the larger machine gives way");
    faults.show_block(VmId(1), most - 1, Some(block(0)));
    assert_eq!(faults.blocks(), (u64::from(most), 2), "and takes nothing back");
    faults.show_block(VmId(1), 3, None);
    faults.show_block(VmId(2), 1, Some(block(0)));
    assert_eq!(faults.blocks(), (u64::from(most), 2), "there is room again");
    faults.untrack(VmId(1), &this_process(&ZeroPages::map(1).unwrap()));
    assert_eq!(faults.blocks(), (2, 2));
}
