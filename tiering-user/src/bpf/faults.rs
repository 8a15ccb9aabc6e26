//! The programs and maps as one value: attached, written, read, drained.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{HashMap, MapData, MapError, PerCpuHashMap, RingBuf};
use aya::{Ebpf, EbpfError, EbpfLoader, include_bytes_aligned};
use tiering_common::{
    Frame, ImageKey, LAYOUT_VERSION, MAX_FRAMES, MAX_RANGES, NO_GPA, Range, Sample, VmBlock, VmEntry,
    VmFrames, VmMoves, VmStats,
};
use zerocopy::FromBytes as _;

use super::attach_kind::{AttachKind, Attachment, chain};
use super::blocks::BlockMap;
use super::damon::{self, Regions};
use super::error::BpfError;
use super::kernel_moves::KernelMoveSource;
use super::kvm::{KVM_ATTACH_KINDS, KvmSource};
use super::maps::{map_error, typed};
use super::pins::{PinError, Pins};
use super::reads::{PROGRAM, Reads};
use super::rearming::Rearming;
use super::source::{Delivery, Source};
use crate::track::VmId;
use crate::vm::Vm;

/// The eBPF object, as built and embedded.
pub static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tiering-bpf"));

/// Sums over CPUs and VMs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub seen: u64,
    pub produced: u64,
    pub dropped: u64,
    pub reads: u64,
    pub writes: u64,
}

impl Counters {
    fn add(&mut self, stats: &VmStats) {
        self.seen += stats.seen;
        self.produced += stats.produced;
        self.dropped += stats.dropped;
        self.reads += stats.reads;
        self.writes += stats.writes;
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            seen: self.seen + other.seen,
            produced: self.produced + other.produced,
            dropped: self.dropped + other.dropped,
            reads: self.reads + other.reads,
            writes: self.writes + other.writes,
        }
    }
}

/// The attached programs and their maps.
pub struct Faults {
    /// Keeps the programs attached; `None` once detached.
    ebpf: Option<Ebpf>,
    attach_kind: AttachKind,
    vms: HashMap<MapData, u32, VmEntry>,
    stats: PerCpuHashMap<MapData, u32, VmStats>,
    moves: HashMap<MapData, u32, VmMoves>,
    frames: HashMap<MapData, u32, VmFrames>,
    blocks: BlockMap,
    kvm: KvmSource,
    rearming: Rearming,
    ring: RingBuf<MapData>,
    /// What VMs read from images.
    pub reads: Reads,
    pub kernel_moves: KernelMoveSource,
    /// What DAMON finds.
    pub regions: Regions,
    /// Samples taken from the ring.
    consumed: u64,
    pins: Option<Pins>,
}

impl Faults {
    /// Loads the object and attaches the first of `attach_kinds` that works. With `pins`, pins programs and maps there.
    ///
    /// # Errors
    /// Any [`BpfError`]; nothing stays loaded or pinned.
    pub fn attach(attach_kinds: &[AttachKind], pins: Option<Pins>) -> Result<Self, BpfError> {
        let own_pid = std::process::id();
        let loaded = EbpfLoader::new().override_global("AGENT", &own_pid, true).load(OBJECT);
        let mut ebpf = loaded.map_err(|error| match permission(&error) {
            true => BpfError::NotPermitted(error.to_string()),
            false => BpfError::Load(error),
        })?;
        let attach_kind = attach_first(&mut ebpf, attach_kinds)?;
        if let Some(pins) = &pins {
            pin_programs(&mut ebpf, programs(attach_kind).map(|one| one.program), pins)?;
            pin_maps(&mut ebpf, pins)?;
        }
        let kernel_moves = KernelMoveSource::attach(&mut ebpf)?;
        if let Some(pins) = &pins {
            pin_programs(&mut ebpf, kernel_moves.programs().iter().copied(), pins)?;
        }
        let not_tried = KvmSource::Unavailable("not tried".to_owned());
        let mut faults = Self {
            vms: typed(&mut ebpf, "tier_vms")?,
            stats: typed(&mut ebpf, "tier_stats")?,
            moves: typed(&mut ebpf, "tier_moves")?,
            frames: typed(&mut ebpf, "tier_frames")?,
            blocks: BlockMap::new(typed(&mut ebpf, "tier_map")?),
            ring: typed(&mut ebpf, "tier_events")?,
            reads: Reads::new(&mut ebpf)?,
            kernel_moves,
            regions: Regions::new(&mut ebpf)?,
            rearming: Rearming::of(&not_tried),
            kvm: not_tried,
            ebpf: Some(ebpf),
            attach_kind,
            consumed: 0,
            pins,
        };
        faults.attach_kvm(&KVM_ATTACH_KINDS);
        Ok(faults)
    }

    /// Attaches to the faults of KVM guests by the first of `attach_kinds` that works, if that is not done yet: KVM may
    /// have been loaded since.
    pub fn attach_kvm(&mut self, attach_kinds: &[AttachKind]) {
        let Some(ebpf) = &mut self.ebpf else { return };
        if matches!(self.kvm, KvmSource::Active(_)) {
            return;
        }
        self.kvm = KvmSource::attach(ebpf, attach_kinds);
        self.rearming = Rearming::of(&self.kvm);
        if let Some(pins) = &self.pins
            && let Err(error) = pin_programs(ebpf, self.kvm.programs(), pins)
        {
            tracing::warn!(%error, "bpftool will not show the programs for KVM");
        }
    }

    /// Tries whether reads of images can be seen.
    pub fn probe_reads(&mut self) {
        if let Some(ebpf) = &mut self.ebpf {
            self.reads.attach(ebpf);
        }
    }

    /// Tries whether DAMON may be used, and what it finds can be seen.
    pub fn probe_regions(&mut self) {
        if self.attach_regions() {
            self.regions.probe(&damon::host_admin(), &damon::host_mark());
        }
    }

    /// Begins to tell of what a kdamond of ours finds. Returns whether it can be.
    pub fn attach_regions(&mut self) -> bool {
        if let Some(ebpf) = &mut self.ebpf
            && self.regions.attach(ebpf)
            && let Some(pins) = &self.pins
            && let Err(error) = pin_programs(ebpf, [damon::PROGRAM], pins)
        {
            tracing::warn!(%error, "bpftool will not show the program for DAMON");
        }
        self.regions.is_attached()
    }

    /// All ways to see something, page faults first.
    pub fn sources(&self) -> [&dyn Source; 6] {
        [self, &self.kvm, &self.rearming, &self.regions, &self.reads, &self.kernel_moves]
    }

    /// Begins to tell of what VMs read from an image, under this number.
    ///
    /// # Errors
    /// [`BpfError::Map`] where there are too many.
    pub fn watch_image(&mut self, key: ImageKey, image: u32) -> Result<(), BpfError> {
        let Some(ebpf) = &mut self.ebpf else { return Ok(()) };
        if self.reads.attach(ebpf)
            && let Some(pins) = &self.pins
            && let Err(error) = pin_programs(ebpf, [PROGRAM], pins)
        {
            tracing::warn!(%error, "bpftool will not show the program for reads of images");
        }
        self.reads.watch(key, image)
    }

    /// Whether faults of KVM guests are seen.
    pub fn kvm(&self) -> &KvmSource {
        &self.kvm
    }

    /// Whether mapped pages of KVM guests can be made to show their accesses anew.
    pub fn rearming(&self) -> &Rearming {
        &self.rearming
    }

    /// How the programs are attached.
    pub fn attach_kind(&self) -> AttachKind {
        self.attach_kind
    }

    /// Begins to track `vm` under the number `id`.
    ///
    /// # Errors
    /// [`BpfError::TooManyRanges`], or [`BpfError::Map`] where the map is full.
    pub fn track(&mut self, id: VmId, vm: &Vm) -> Result<(), BpfError> {
        let mut ranges = [Range::default(); MAX_RANGES];
        if vm.guest_ranges.len() > MAX_RANGES {
            return Err(BpfError::TooManyRanges(vm.name.clone()));
        }
        for (range, part) in ranges.iter_mut().zip(&vm.guest_ranges) {
            let gpa = part.gpa.map_or(NO_GPA, |gpa| gpa.0);
            *range = Range { start: part.start.0, end: part.end().0, gpa };
        }
        let range_count = u32::try_from(vm.guest_ranges.len()).unwrap_or(0);
        let entry = VmEntry { vm: id.0, layout: LAYOUT_VERSION, range_count, one_in_log2: 0, ranges };
        // Counters first: a fault that finds the process but no counters is not counted at all.
        let cpus =
            aya::util::nr_cpus().map_err(|(_, error)| map_error("tier_stats")(MapError::IoError(error)))?;
        let zero = aya::maps::PerCpuValues::try_from(vec![VmStats::default(); cpus])
            .map_err(|error| map_error("tier_stats")(MapError::IoError(error)))?;
        self.stats.insert(id.0, zero, 0).map_err(map_error("tier_stats"))?;
        self.moves.insert(id.0, VmMoves::default(), 0).map_err(map_error("tier_moves"))?;
        self.vms.insert(pid_key(vm), entry, 0).map_err(map_error("tier_vms"))
    }

    /// From now on, of 2 to this power accesses of `vm` one is put into the ring.
    ///
    /// # Errors
    /// [`BpfError::Map`] where it is not tracked.
    pub fn sample_one_in(&mut self, vm: &Vm, log2: u32) -> Result<(), BpfError> {
        let key = pid_key(vm);
        let entry = self.vms.get(&key, 0).map_err(map_error("tier_vms"))?;
        self.vms.insert(key, VmEntry { one_in_log2: log2, ..entry }, 0).map_err(map_error("tier_vms"))
    }

    /// Begins to collect the frames that KVM maps into the VM `id`.
    ///
    /// # Errors
    /// [`BpfError::Map`] where the map is full.
    pub fn want_frames(&mut self, id: VmId) -> Result<(), BpfError> {
        self.frames.insert(id.0, VmFrames::default(), 0).map_err(map_error("tier_frames"))
    }

    /// The frames that were collected since the last call.
    pub fn take_frames(&mut self, id: VmId) -> Vec<Frame> {
        let Ok(collected) = self.frames.get(&id.0, 0) else { return Vec::new() };
        if collected.seen > 0 {
            // A frame that is put in between is lost: there will be others.
            self.frames.insert(id.0, VmFrames::default(), 0).ok();
        }
        let count = usize::try_from(collected.seen).map_or(MAX_FRAMES, |seen| seen.min(MAX_FRAMES));
        collected.frames[..count].to_vec()
    }

    /// Ends collecting frames of the VM `id`.
    pub fn enough_frames(&mut self, id: VmId) {
        // It is gone already where nobody wanted any.
        self.frames.remove(&id.0).ok();
    }

    /// Ends tracking of `vm`. Returns its last counters.
    pub fn untrack(&mut self, id: VmId, vm: &Vm) -> Counters {
        self.vms.remove(&pid_key(vm)).ok();
        let last = self.counters(id);
        self.stats.remove(&id.0).ok();
        self.moves.remove(&id.0).ok();
        self.enough_frames(id);
        self.blocks.forget(id);
        last
    }

    /// The counters of one VM; zero where it is not tracked.
    pub fn counters(&self, id: VmId) -> Counters {
        let mut sum = Counters::default();
        if let Ok(values) = self.stats.get(&id.0, 0) {
            values.iter().for_each(|stats| sum.add(stats));
        }
        sum
    }

    /// Shows what was done for one VM to `bpftool`.
    pub fn show_moves(&mut self, id: VmId, moves: VmMoves) {
        // The entry goes when the VM does; then there is nothing to show.
        self.moves.insert(id.0, moves, 0).ok();
    }

    /// Shows where the pages of a block are to `bpftool`; `None` where it has none any more.
    pub fn show_block(&mut self, id: VmId, block: u32, value: Option<VmBlock>) {
        self.blocks.show(id, block, value);
    }

    /// How many blocks are shown, and how often one did not fit.
    pub fn blocks(&self) -> (u64, u64) {
        self.blocks.counts()
    }

    /// Takes what is in the ring, at most `most` samples, and appends it to `batch`. Returns how many.
    pub fn drain(&mut self, batch: &mut Vec<Sample>, most: usize) -> usize {
        let mut taken = 0;
        while taken < most
            && let Some(record) = self.ring.next()
        {
            // Every record is a sample: nothing else is ever put into this ring.
            if let Ok(sample) = Sample::read_from_bytes(&record) {
                batch.push(sample);
            }
            taken += 1;
        }
        self.consumed += taken as u64;
        taken
    }

    /// A descriptor that becomes readable when the ring's fill threshold is passed.
    ///
    /// # Errors
    /// Where this process may not open another descriptor.
    pub fn ring_fd(&self) -> io::Result<OwnedFd> {
        self.ring.as_fd().try_clone_to_owned()
    }

    /// Samples taken from the ring so far.
    pub fn consumed(&self) -> u64 {
        self.consumed
    }

    /// Detaches the programs, and gives those that run 20 ms to end, so that the counters stand still.
    pub fn detach(&mut self) {
        self.ebpf = None;
        // A program that began before it was detached runs for microseconds; detaching itself waits for a grace
        // period only on some kernels.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

impl Source for Faults {
    fn name(&self) -> &'static str {
        "page_fault"
    }

    fn delivery(&self) -> Delivery {
        Delivery::Active(self.attach_kind.name().to_owned())
    }

    fn lost_without(&self) -> &'static str {
        "no access is seen: the agent does not start"
    }
}

fn pid_key(vm: &Vm) -> u32 {
    vm.key.pid.cast_unsigned()
}

/// The program for each of the two events, by attach kind.
fn programs(attach_kind: AttachKind) -> [Attachment; 2] {
    let [user, kernel] = match attach_kind {
        AttachKind::TpBtf => ["fault_user_btf", "fault_kern_btf"],
        AttachKind::Raw => ["fault_user_raw", "fault_kern_raw"],
        AttachKind::Classic => ["fault_user_tp", "fault_kern_tp"],
    };
    let of = |program, event| Attachment { program, category: "exceptions", event };
    [of(user, "page_fault_user"), of(kernel, "page_fault_kernel")]
}

fn attach_first(ebpf: &mut Ebpf, attach_kinds: &[AttachKind]) -> Result<AttachKind, BpfError> {
    let mut reasons = Vec::new();
    for attach_kind in attach_kinds {
        match attach_kind.attach_all(ebpf, &programs(*attach_kind)) {
            Ok(()) => return Ok(*attach_kind),
            Err(reason) => reasons.push(format!("{}: {reason}", attach_kind.name())),
        }
    }
    Err(BpfError::NoAttachKind(reasons.join("; ")))
}

fn pin_programs(
    ebpf: &mut Ebpf,
    names: impl IntoIterator<Item = &'static str>,
    pins: &Pins,
) -> Result<(), BpfError> {
    for name in names {
        let path = pins.path(name);
        let program = ebpf.program_mut(name).ok_or(BpfError::Missing(name))?;
        program.pin(&path).map_err(|error| PinError::new(&path, "pin", io::Error::other(error)))?;
    }
    Ok(())
}

fn pin_maps(ebpf: &mut Ebpf, pins: &Pins) -> Result<(), BpfError> {
    for (name, map) in ebpf.maps_mut().filter(|(name, _)| name.starts_with("tier_")) {
        let path = pins.path(name);
        map.pin(&path).map_err(|error| PinError::new(&path, "pin", io::Error::other(error)))?;
    }
    Ok(())
}

/// An error with what caused it, in one line.
fn permission(error: &EbpfError) -> bool {
    chain(error).contains("Operation not permitted")
}
