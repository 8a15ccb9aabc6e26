//! The eBPF programs: accesses to the guest RAM of tracked processes become [`Sample`]s in a ring.
//!
//! Of the programs for one event the agent loads one: for a BTF-typed, a raw or a classic tracepoint, whichever the
//! kernel takes first.
//!
//! | event | who accessed | |
//! |---|---|---|
//! | `page_fault_user`, `page_fault_kernel` | QEMU itself, and guests that it emulates | host-virtual address |
//! | `kvm_page_fault` | guests under KVM | guest-physical address, translated by the ranges in `tier_vms` |
//! | `kvm_mmu_set_spte` | | which frame KVM mapped where, while the agent wants to know: into `tier_frames` |
//! | `mm_vmscan_lru_shrink_inactive`, `mm_migrate_pages`, `mm_collapse_huge_page` | | what the kernel moved by itself, of the whole host: into `tier_kernel` |
//! | `damon_aggregated` | | what DAMON found, where it watches for the agent: into `tier_regions` |
//! | `mm_filemap_add_to_page_cache` | whoever reads a watched image | which part of the file: into `tier_reads` |
//!
//! Those that tell of accesses do the same: look the process up in `tier_vms`, keep what lies in its RAM, count it in
//! `tier_stats`, and put it, or of a VM that floods the ring one of many, into `tier_events`. Events of KVM are
//! module tracepoints, which BTF-typed programs cannot be attached to with this version of aya.
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
    btf_maps::{Array, HashMap, PerCpuArray, PerCpuHashMap, RingBuf},
    helpers::{
        bpf_get_current_pid_tgid, bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_probe_read_kernel,
        bpf_ringbuf_query,
    },
    macros::{btf_map, btf_tracepoint, raw_tracepoint, tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext, TracePointContext},
};
use tiering_common::{
    BlockKey, Damon, EXTENT_PAGES, FileRead, Frame, ImageEntry, ImageKey, KernelMoves, MAX_BLOCKS,
    MAX_FRAMES, MAX_IMAGES, MAX_VMS, READS_RING_BYTES, REGIONS_RING_BYTES, REST_NS, RING_BYTES,
    RING_WAKE_BYTES, Reading, Region, SAMPLE_KERNEL, SAMPLE_PRESENT, SAMPLE_WRITE, Sample, VmBlock, VmEntry,
    VmFrames, VmMoves, VmStats,
};
use tiering_ebpf::{Mode, guest_ram, is_chosen, is_guest_ram, sample_flags, weighted};

/// mm/khugepaged.c, Linux 6.1 to 6.18.
const SCAN_SUCCEED: u32 = 1;
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

/// Written by the agent alone, as [`MOVES`].
#[btf_map(name = "tier_map")]
static BLOCKS: HashMap<BlockKey, VmBlock, MAX_BLOCKS, BPF_F_NO_PREALLOC> = HashMap::new();

#[btf_map(name = "tier_events")]
static EVENTS: RingBuf<Sample, RING_BYTES> = RingBuf::new();

/// There only for VMs whose guest-physical layout is not proved yet.
#[btf_map(name = "tier_frames")]
static FRAMES: HashMap<u32, VmFrames, MAX_VMS, BPF_F_NO_PREALLOC> = HashMap::new();

#[btf_map(name = "tier_images")]
static IMAGES: HashMap<ImageKey, ImageEntry, MAX_IMAGES> = HashMap::new();

#[btf_map(name = "tier_reads")]
static READS: RingBuf<FileRead, READS_RING_BYTES> = RingBuf::new();

#[btf_map(name = "tier_reading")]
static READING: PerCpuArray<Reading, 1> = PerCpuArray::new();

#[btf_map(name = "tier_kernel")]
static KERNEL: PerCpuArray<KernelMoves, 2> = PerCpuArray::new();

#[btf_map(name = "tier_damon")]
static DAMON: Array<Damon, 1> = Array::new();

#[btf_map(name = "tier_regions")]
static REGIONS: RingBuf<Region, REGIONS_RING_BYTES> = RingBuf::new();

/// The agent's process; it writes it before the programs are loaded.
#[unsafe(no_mangle)]
static AGENT: u32 = 0;

/// When a sample of this processor woke the agent last for having rested, in nanoseconds.
#[btf_map(name = "tier_woken")]
static WOKEN: PerCpuArray<u64, 1> = PerCpuArray::new();

/// The tracked VM that this process is.
#[inline(always)]
fn this_vm() -> Option<&'static VmEntry> {
    let process = (bpf_get_current_pid_tgid() >> 32) as u32;
    unsafe { VMS.get(process) }
}

/// A fault of the process.
#[inline(always)]
fn on_fault(hva: u64, error_code: u64, mode: Mode) {
    let Some(vm) = this_vm() else { return };
    if is_guest_ram(vm, hva) {
        put_sample(vm, hva, error_code, mode);
    }
}

/// A fault of the guest that the process runs.
#[inline(always)]
fn on_guest_fault(gpa: u64, error_code: u64) {
    let Some(vm) = this_vm() else { return };
    if let Some(hva) = guest_ram(vm, gpa) {
        put_sample(vm, hva, error_code, Mode::Guest);
    }
}

#[inline(always)]
fn put_sample(vm: &VmEntry, hva: u64, error_code: u64, mode: Mode) {
    let Some(stats) = STATS.get_ptr_mut(vm.vm) else { return };
    let stats = unsafe { &mut *stats };

    let flags = sample_flags(error_code, mode);
    stats.seen += 1;
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

    if !is_chosen(vm, || unsafe { bpf_get_prandom_u32() }) {
        return;
    }
    stats.produced += 1;
    let Some(mut record) = EVENTS.reserve(0) else {
        stats.dropped += 1;
        return;
    };
    let time_ns = unsafe { bpf_ktime_get_ns() };
    record.write(Sample { time_ns, hva, vm: vm.vm, flags: weighted(flags, vm) });
    let ring = core::ptr::from_ref(&EVENTS).cast_mut().cast();
    let waiting = unsafe { bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA) };
    record.submit(if wakes(waiting, time_ns) { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP });
}

/// Whether this sample wakes the agent: the first one after some rest, and when many wait. Else the agent's tick
/// collects: a wake-up for each would cost the guests more than all the rest of this program.
#[inline(always)]
fn wakes(waiting: u64, now_ns: u64) -> bool {
    let Some(woken) = WOKEN.get_ptr_mut(0) else { return true };
    let rested = now_ns.saturating_sub(unsafe { *woken }) >= REST_NS;
    if rested {
        unsafe { *woken = now_ns };
    }
    rested || waiting >= RING_WAKE_BYTES
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

/// KVM maps a frame into the guest that this process runs.
#[inline(always)]
fn on_guest_map(gfn: u64, spte: u64) {
    let Some(vm) = this_vm() else { return };
    let Some(latest) = FRAMES.get_ptr_mut(vm.vm) else { return };
    let latest = unsafe { &mut *latest };
    let slot = latest.seen as usize & (MAX_FRAMES - 1);
    if let Some(frame) = latest.frames.get_mut(slot) {
        *frame = Frame { gfn, spte };
    }
    latest.seen += 1;
}

// Arguments of kvm:kvm_page_fault (arch/x86/kvm/trace.h, Linux 6.1 to 6.18): virtual processor, guest-physical address,
// error code; of kvmmmu:kvm_mmu_set_spte (arch/x86/kvm/mmu/mmutrace.h): level, guest frame, where the entry is.

#[raw_tracepoint(tracepoint = "kvm_page_fault")]
fn kvm_fault_raw(ctx: RawTracePointContext) -> i32 {
    on_guest_fault(ctx.arg(1), ctx.arg(2));
    0
}

#[raw_tracepoint(tracepoint = "kvm_mmu_set_spte")]
fn kvm_spte_raw(ctx: RawTracePointContext) -> i32 {
    let entry: *const u64 = ctx.arg(2);
    if let Ok(spte) = unsafe { bpf_probe_read_kernel(entry) } {
        on_guest_map(ctx.arg(1), spte);
    }
    0
}

/// The classic record: 8 bytes of common fields, then virtual processor, instruction pointer, address, error code.
#[tracepoint(category = "kvm", name = "kvm_page_fault")]
fn kvm_fault_tp(ctx: TracePointContext) -> u32 {
    let fields: *const u64 = ctx.as_ptr().cast();
    let gpa = unsafe { *fields.add(3) };
    let error_code = unsafe { *fields.add(4) };
    on_guest_fault(gpa, error_code);
    0
}

/// The classic record: 8 bytes of common fields, then guest frame and entry.
#[tracepoint(category = "kvmmmu", name = "kvm_mmu_set_spte")]
fn kvm_spte_tp(ctx: TracePointContext) -> u32 {
    let fields: *const u64 = ctx.as_ptr().cast();
    let gfn = unsafe { *fields.add(1) };
    let spte = unsafe { *fields.add(2) };
    on_guest_map(gfn, spte);
    0
}

/// The tracked VM that this process is has pages of a watched image read into the page cache.
#[inline(always)]
fn on_file_read(key: ImageKey, first_page: u64, order: impl FnOnce() -> u8) {
    let Some(vm) = this_vm() else { return };
    let Some(entry) = (unsafe { IMAGES.get(key) }) else { return };
    let Some(reading) = READING.get_ptr_mut(0) else { return };
    let reading = unsafe { &mut *reading };

    let pages = if entry.has_order == 0 { 1 } else { 1 << (order() & 15) };
    let extent = (first_page / EXTENT_PAGES) as u32;
    let count = ((first_page + pages - 1) / EXTENT_PAGES) as u32 - extent + 1;
    if count == 1 && (reading.last_image, reading.last_extent) == (entry.image, extent) {
        return;
    }
    reading.last_image = entry.image;
    reading.last_extent = extent + count - 1;
    let Some(mut record) = READS.reserve(0) else {
        reading.dropped += 1;
        return;
    };
    let time_ns = unsafe { bpf_ktime_get_ns() };
    record.write(FileRead { time_ns, extent, count, vm: vm.vm, image: entry.image });
    record.submit(0);
}

// The classic record of filemap:mm_filemap_add_to_page_cache (include/trace/events/filemap.h, Linux 6.1 to 6.18): 8
// bytes of common fields, then frame, inode, first page, device; on newer kernels the order of the folio. The agent
// compares that with the kernel's own description.
#[tracepoint(category = "filemap", name = "mm_filemap_add_to_page_cache")]
fn file_read_tp(ctx: TracePointContext) -> u32 {
    let fields: *const u64 = ctx.as_ptr().cast();
    let inode = unsafe { *fields.add(2) };
    let first_page = unsafe { *fields.add(3) };
    let device = unsafe { *fields.add(4).cast::<u32>() };
    // Not read directly: the kernel refuses a program that could read behind the end of the record.
    let order = || unsafe { bpf_probe_read_kernel(fields.cast::<u8>().add(36)) }.unwrap_or(0);
    on_file_read(ImageKey { inode, device, _pad: 0 }, first_page, order);
    0
}

// The classic record of damon:damon_aggregated (include/trace/events/damon.h, Linux 6.12 to 6.18): 8 bytes of common
// fields, then number of the target, how many regions it has, start, end, accesses, age. It comes in the thread that
// watches.
#[tracepoint(category = "damon", name = "damon_aggregated")]
fn damon_region(ctx: TracePointContext) -> u32 {
    let Some(damon) = DAMON.get_ptr_mut(0) else { return 0 };
    let damon = unsafe { &mut *damon };
    if bpf_get_current_pid_tgid() as u32 != damon.kdamond {
        return 0;
    }
    let fields: *const u64 = ctx.as_ptr().cast();
    let region = unsafe {
        Region {
            start: *fields.add(3),
            end: *fields.add(4),
            target: *fields.add(1) as u32,
            accesses: *fields.add(5).cast::<u32>(),
        }
    };
    damon.regions += 1;
    match REGIONS.reserve(0) {
        Some(mut record) => {
            record.write(region);
            record.submit(BPF_RB_NO_WAKEUP);
        }
        None => damon.dropped += 1,
    }
    0
}

/// What the kernel moves: by itself, or since the agent has it do so.
#[inline(always)]
fn on_kernel_move(count: impl FnOnce(&mut KernelMoves)) {
    let agent = unsafe { core::ptr::read_volatile(&AGENT) };
    let own = (bpf_get_current_pid_tgid() >> 32) as u32 == agent;
    if let Some(moves) = KERNEL.get_ptr_mut(own.into()) {
        count(unsafe { &mut *moves });
    }
}

// Arguments of vmscan:mm_vmscan_lru_shrink_inactive (include/trace/events/vmscan.h, Linux 6.1 to 6.18): node, pages
// scanned, pages reclaimed, details, priority, and not 0 where they were of files; of migrate:mm_migrate_pages
// (include/trace/events/migrate.h): pages that were moved, and more that differs; of huge_memory:mm_collapse_huge_page
// (include/trace/events/huge_memory.h): address space, whether isolated, outcome.

#[raw_tracepoint(tracepoint = "mm_vmscan_lru_shrink_inactive")]
fn kern_reclaim(ctx: RawTracePointContext) -> i32 {
    let (pages, of_files): (u64, u64) = (ctx.arg(2), ctx.arg(5));
    if of_files as u32 == 0 {
        on_kernel_move(|moves| moves.reclaimed += pages);
    }
    0
}

#[raw_tracepoint(tracepoint = "mm_migrate_pages")]
fn kern_migrate(ctx: RawTracePointContext) -> i32 {
    let pages: u64 = ctx.arg(0);
    on_kernel_move(|moves| moves.migrated += pages);
    0
}

#[raw_tracepoint(tracepoint = "mm_collapse_huge_page")]
fn kern_collapse(ctx: RawTracePointContext) -> i32 {
    let outcome: u64 = ctx.arg(2);
    if outcome as u32 == SCAN_SUCCEED {
        on_kernel_move(|moves| moves.collapsed += 1);
    }
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
