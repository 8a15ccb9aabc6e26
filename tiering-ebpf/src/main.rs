//! The eBPF programs: page faults in the guest RAM of tracked processes become [`Sample`]s in a ring.
//!
//! Six programs, of which the agent loads one pair: `page_fault_user` and `page_fault_kernel` as BTF-typed,
//! raw or classic tracepoints, whichever the kernel takes first. All do the same: look the process up in
//! `tier_vms`, keep what lies in its RAM, count it in `tier_stats`, and put it into `tier_events`.
//!
//! Program and map names are at most 15 characters: the kernel cuts them there.
#![no_std]
#![no_main]
#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "each block is one helper call that the verifier checks"
)]

use aya_ebpf::{
    EbpfContext as _,
    btf_maps::{HashMap, PerCpuHashMap, RingBuf},
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_ringbuf_query},
    macros::{btf_map, btf_tracepoint, raw_tracepoint, tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext, TracePointContext},
};
use tiering_common::{
    MAX_VMS, RING_BYTES, RING_WAKE_BYTES, SAMPLE_KERNEL, SAMPLE_PRESENT, SAMPLE_WRITE, Sample, VmEntry,
    VmMoves, VmStats,
};
use tiering_ebpf::{Mode, is_guest_ram, sample_flags};

/// linux/bpf.h
const BPF_F_NO_PREALLOC: usize = 1;
const BPF_RB_AVAIL_DATA: u64 = 0;
const BPF_RB_NO_WAKEUP: u64 = 1;
const BPF_RB_FORCE_WAKEUP: u64 = 2;

#[btf_map(name = "tier_vms")]
static VMS: HashMap<u32, VmEntry, MAX_VMS> = HashMap::new();

#[btf_map(name = "tier_stats")]
static STATS: PerCpuHashMap<u32, VmStats, MAX_VMS, BPF_F_NO_PREALLOC> = PerCpuHashMap::new();

/// Written by the agent alone; here so that it is pinned and pretty-printed with the others.
#[btf_map(name = "tier_moves")]
static MOVES: HashMap<u32, VmMoves, MAX_VMS, BPF_F_NO_PREALLOC> = HashMap::new();

#[btf_map(name = "tier_events")]
static EVENTS: RingBuf<Sample, RING_BYTES> = RingBuf::new();

#[inline(always)]
fn on_fault(hva: u64, error_code: u64, mode: Mode) {
    let process = (bpf_get_current_pid_tgid() >> 32) as u32;
    let Some(vm) = (unsafe { VMS.get(process) }) else { return };
    if !is_guest_ram(vm, hva) {
        return;
    }
    let Some(stats) = STATS.get_ptr_mut(vm.vm) else { return };
    let stats = unsafe { &mut *stats };

    let flags = sample_flags(error_code, mode);
    stats.produced += 1;
    if flags & SAMPLE_WRITE != 0 {
        stats.writes += 1;
    } else {
        stats.reads += 1;
    }
    if flags & SAMPLE_PRESENT != 0 {
        stats.present += 1;
    }
    if flags & SAMPLE_KERNEL != 0 {
        stats.kernel += 1;
    }

    let Some(mut record) = EVENTS.reserve(0) else {
        stats.dropped += 1;
        return;
    };
    record.write(Sample { time_ns: unsafe { bpf_ktime_get_ns() }, hva, vm: vm.vm, flags });
    let ring = core::ptr::from_ref(&EVENTS).cast_mut().cast();
    let waiting = unsafe { bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA) };
    record.submit(if waiting >= RING_WAKE_BYTES { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP });
}

// Arguments of exceptions:page_fault_user and page_fault_kernel (arch/x86/include/asm/trace/exceptions.h,
// Linux 6.1 to 6.18): address, registers, error code.

#[btf_tracepoint(function = "page_fault_user")]
fn fault_user_btf(ctx: BtfTracePointContext) -> i32 {
    on_fault(ctx.arg(0), ctx.arg(2), Mode::User);
    0
}

#[btf_tracepoint(function = "page_fault_kernel")]
fn fault_kern_btf(ctx: BtfTracePointContext) -> i32 {
    on_fault(ctx.arg(0), ctx.arg(2), Mode::Kernel);
    0
}

#[raw_tracepoint(tracepoint = "page_fault_user")]
fn fault_user_raw(ctx: RawTracePointContext) -> i32 {
    on_fault(ctx.arg(0), ctx.arg(2), Mode::User);
    0
}

#[raw_tracepoint(tracepoint = "page_fault_kernel")]
fn fault_kern_raw(ctx: RawTracePointContext) -> i32 {
    on_fault(ctx.arg(0), ctx.arg(2), Mode::Kernel);
    0
}

/// The classic record: 8 bytes of common fields, then address, instruction pointer and error code.
#[inline(always)]
fn on_classic_fault(ctx: &TracePointContext, mode: Mode) {
    let fields: *const u64 = ctx.as_ptr().cast();
    let hva = unsafe { *fields.add(1) };
    let error_code = unsafe { *fields.add(3) };
    on_fault(hva, error_code, mode);
}

#[tracepoint(category = "exceptions", name = "page_fault_user")]
fn fault_user_tp(ctx: TracePointContext) -> u32 {
    on_classic_fault(&ctx, Mode::User);
    0
}

#[tracepoint(category = "exceptions", name = "page_fault_kernel")]
fn fault_kern_tp(ctx: TracePointContext) -> u32 {
    on_classic_fault(&ctx, Mode::Kernel);
    0
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
