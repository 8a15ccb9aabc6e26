//! The types on the wire between the eBPF programs and the agent, and nothing else.
//!
//! Every type is `#[repr(C)]` with explicit padding, holds no `bool`, `Option` or `usize`, and has its size
//! asserted below. [`LAYOUT_VERSION`] changes with any of them and stands in every [`VmEntry`], where
//! `bpftool map dump` shows it.
#![no_std]

/// Version of everything in this crate.
pub const LAYOUT_VERSION: u32 = 6;

/// Most RAM ranges of one VM that the kernel side looks at.
pub const MAX_RANGES: usize = 16;

/// Here, in guest-physical addresses, a PC has video memory and firmware in the place of RAM.
pub const PC_GAP: core::ops::Range<u64> = 0xa_0000..0x10_0000;

/// Most VMs tracked at a time.
pub const MAX_VMS: usize = 1024;

/// Bytes of the ring buffer `tier_events`.
pub const RING_BYTES: usize = 4 << 20;

/// A sample that comes so long after the last one that woke the agent wakes it at once; what follows is collected by
/// the agent's own tick.
pub const REST_NS: u64 = 5_000_000;
/// Bytes waiting in the ring from which a sample wakes the agent in any case.
///
/// Waking for every sample costs the faulting guest 1.7 times the fault itself (measured on 6.18: +168 %,
/// against +20 % with a threshold of a quarter and a tick).
pub const RING_WAKE_BYTES: u64 = (RING_BYTES / 4) as u64;

/// The access was a write.
pub const SAMPLE_WRITE: u32 = 1 << 0;
/// The page was present and the fault one of protection (copy on write, write-protected).
pub const SAMPLE_PRESENT: u32 = 1 << 1;
/// The fault was an instruction fetch.
pub const SAMPLE_FETCH: u32 = 1 << 2;
/// The fault happened in kernel mode (a system call that touched guest RAM).
pub const SAMPLE_KERNEL: u32 = 1 << 3;
/// The guest itself accessed it under KVM: the address was translated from a guest-physical one.
pub const SAMPLE_KVM: u32 = 1 << 4;

/// The bits of [`Sample::flags`] from this one on tell for how many accesses the sample stands: 2 to that power.
pub const SAMPLE_WEIGHT_SHIFT: u32 = 8;
/// Of so many accesses, 2 to this power, one at least is put into the ring.
pub const MAX_ONE_IN_LOG2: u32 = 16;

/// [`Range::gpa`] of RAM whose guest-physical address is not known.
pub const NO_GPA: u64 = u64::MAX;

/// Frames that [`VmFrames`] holds.
pub const MAX_FRAMES: usize = 16;

/// Most tiers of a ladder.
pub const MAX_TIERS: usize = 8;

/// Blocks that the map `tier_map` has room for: 128 GiB of guest RAM.
pub const MAX_BLOCKS: usize = 65_536;

/// Images that are watched at a time.
pub const MAX_IMAGES: usize = 256;

/// Bytes of the ring buffer `tier_regions`: 32,768 records, more than DAMON is allowed regions.
pub const REGIONS_RING_BYTES: usize = 1 << 20;
/// Bytes of the ring buffer `tier_reads`.
pub const READS_RING_BYTES: usize = 256 << 10;

/// Pages of an extent, by which reads of images are counted: 64 KiB.
pub const EXTENT_PAGES: u64 = 16;

/// One access, as the kernel saw it. A record of the ring `tier_events`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct Sample {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub time_ns: u64,
    /// Host-virtual address in the VM's process.
    pub hva: u64,
    /// [`VmEntry::vm`] of the process that faulted.
    pub vm: u32,
    /// `SAMPLE_*` bits, and from [`SAMPLE_WEIGHT_SHIFT`] on [`VmEntry::one_in_log2`] as it was then.
    pub flags: u32,
}

/// A file that VMs read through the host's page cache. Key of the map `tier_images`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageKey {
    pub inode: u64,
    /// Of the file system, as the kernel encodes it: major number << 20 | minor number.
    pub device: u32,
    pub _pad: u32,
}

/// A watched image. Value of the map `tier_images`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageEntry {
    /// Number the agent gave it.
    pub image: u32,
    /// Not 0 where the kernel's records of reads say how large a folio is.
    pub has_order: u32,
}

/// A VM had this part of an image read into the page cache. A record of the ring `tier_reads`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct FileRead {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub time_ns: u64,
    /// First extent of the file, of [`EXTENT_PAGES`] pages each.
    pub extent: u32,
    /// How many extents from there on.
    pub count: u32,
    /// [`VmEntry::vm`] of the process that read.
    pub vm: u32,
    /// [`ImageEntry::image`].
    pub image: u32,
}

/// A range of a process's addresses, and how often DAMON found it accessed. A record of the ring `tier_regions`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "user", derive(zerocopy::FromBytes, zerocopy::Immutable, zerocopy::KnownLayout))]
pub struct Region {
    /// First byte, host-virtual.
    pub start: u64,
    /// Behind the last byte.
    pub end: u64,
    /// Which of the processes that DAMON was told to watch, from 0.
    pub target: u32,
    /// Of the looks at some page of the range, so many found that it had been accessed since the one before.
    pub accesses: u32,
}

/// What the agent has DAMON do. The one value of the array `tier_damon`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damon {
    /// The thread that watches for the agent; 0 where there is none. What others have theirs watch is not told of.
    pub kdamond: u32,
    pub _pad: u32,
    /// Regions that it told of.
    pub regions: u64,
    /// Of these, those that did not fit into the ring.
    pub dropped: u64,
}

/// Of the reads of images on one CPU. Value of the per-CPU array `tier_reading`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The image and the extent that was read last, so that an extent is told of once.
    pub last_image: u32,
    pub last_extent: u32,
    /// Records that did not fit into the ring.
    pub dropped: u64,
}

/// A range of guest RAM in host-virtual addresses, `start` included, `end` excluded, bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    pub start: u64,
    pub end: u64,
    /// Guest-physical address of `start`, or [`NO_GPA`].
    pub gpa: u64,
}

/// A tracked process. Value of the map `tier_vms`; the key is the process id (`u32`, initial namespace).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmEntry {
    /// Number the agent gave this VM; never given twice in one run.
    pub vm: u32,
    /// [`LAYOUT_VERSION`] of the agent that wrote the entry.
    pub layout: u32,
    /// How many of `ranges` are in use.
    pub range_count: u32,
    /// Of 2 to this power accesses one is put into the ring, chosen at random; at most [`MAX_ONE_IN_LOG2`].
    pub one_in_log2: u32,
    pub ranges: [Range; MAX_RANGES],
}

/// Counters of one VM on one CPU. Value of the per-CPU map `tier_stats`; the key is
/// [`VmEntry::vm`]. Only the kernel side writes it, so that the sums always balance:
/// `produced` = samples the agent consumed + `dropped`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmStats {
    /// Accesses seen in guest RAM.
    pub seen: u64,
    /// Of `seen`, those for the ring: all of them, or as many as [`VmEntry::one_in_log2`] says.
    pub produced: u64,
    /// Of `produced`, lost because the ring was full.
    pub dropped: u64,
    /// Of `seen`: reads, and writes.
    pub reads: u64,
    pub writes: u64,
    /// Of `seen`: faults of protection on a present page.
    pub present: u64,
    /// Of `seen`: faults in kernel mode.
    pub kernel: u64,
}

/// Frames that KVM mapped into one VM lately: what tells whether [`Range::gpa`] is right. Value of the
/// map `tier_frames`; the key is [`VmEntry::vm`]. There only as long as the agent wants to know.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmFrames {
    /// How many were seen; the last [`MAX_FRAMES`] are there, in a ring.
    pub seen: u64,
    pub frames: [Frame; MAX_FRAMES],
}

/// A guest-physical address and the host frame that KVM mapped there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Guest frame number, pages of 4 KiB; of a huge page the first.
    pub gfn: u64,
    /// KVM's page-table entry: the host frame in the bits of an address, flags around it.
    pub spte: u64,
}

/// What the agent did for one VM, pages. Value of the map `tier_moves`; the key is
/// [`VmEntry::vm`]. Only the agent writes it (a second writer of `tier_stats` would lose counts).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmMoves {
    pub demoted: u64,
    pub promoted: u64,
    /// Pages brought up ahead of need, and how many of them were touched, or not touched in time.
    pub prefetched: u64,
    pub used: u64,
    pub wasted: u64,
}

/// What was moved by others than the agent, the kernel above all, or by the agent: values 0 and 1 of the per-CPU array
/// `tier_kernel`. Of the whole host.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelMoves {
    /// Anonymous and shared pages that reclaim took.
    pub reclaimed: u64,
    /// Pages that went to another place in memory.
    pub migrated: u64,
    /// Huge pages that were made.
    pub collapsed: u64,
}

/// A block of 2 MiB of one VM. Key of the map `tier_map`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockKey {
    /// [`VmEntry::vm`].
    pub vm: u32,
    /// Blocks are numbered from 0 through the VM's RAM, in order of address.
    pub block: u32,
}

/// Where the pages of a block are, pages of 4 KiB. Value of the map `tier_map`; there only for blocks of which some
/// page was touched. Only the agent writes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmBlock {
    /// Host-virtual address of the first page.
    pub hva: u64,
    /// In each tier, by level.
    pub tiers: [u16; MAX_TIERS],
    /// In a swap area that is none of the ladder's, or cannot be told.
    pub other_swap: u16,
    pub untouched: u16,
    /// Of all these, those with accesses seen lately.
    pub hot: u16,
    pub _pad: u16,
}

const _: () = {
    assert!(size_of::<Sample>() == 24);
    assert!(size_of::<Range>() == 24);
    assert!(size_of::<VmEntry>() == 16 + 24 * MAX_RANGES);
    assert!(size_of::<VmFrames>() == 8 + 16 * MAX_FRAMES);
    assert!(MAX_FRAMES.is_power_of_two());
    assert!(size_of::<VmStats>() == 56);
    assert!(size_of::<VmMoves>() == 40);
    assert!(size_of::<KernelMoves>() == 24);
    assert!(size_of::<BlockKey>() == 8);
    assert!(size_of::<VmBlock>() == 16 + 2 * MAX_TIERS);
    assert!(size_of::<ImageKey>() == 16);
    assert!(size_of::<ImageEntry>() == 8);
    assert!(size_of::<FileRead>() == 24);
    assert!(size_of::<Reading>() == 16);
    assert!(size_of::<Region>() == 24);
    assert!(size_of::<Damon>() == 24);
    assert!(RING_BYTES.is_power_of_two() && READS_RING_BYTES.is_power_of_two());
    assert!(REGIONS_RING_BYTES.is_power_of_two());
};

#[cfg(feature = "user")]
mod user {
    // SAFETY: `repr(C)`, made of integers only, without padding: any bytes are a value and may be shown to
    // the kernel.
    unsafe impl aya::Pod for super::VmEntry {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::VmStats {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::VmMoves {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Damon {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::VmFrames {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::BlockKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::VmBlock {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ImageKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ImageEntry {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Reading {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::KernelMoves {}
}
