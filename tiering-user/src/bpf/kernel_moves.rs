//! What the kernel moves by itself.
//!
//! In: the loaded object. Out: totals of pages that its reclaim took, that it migrated between nodes, and of huge pages
//! that it made; apart from these, the same of what the agent had it do. The events come once for a batch of pages, so
//! they cost next to nothing.
//!
//! # Limits
//! Whose pages they were is not told: these events come from the kernel's own threads. What is reclaimed on purpose
//! (`MADV_PAGEOUT`) raises none of them. Compaction counts as migration. Splits of huge pages have no event.

use aya::Ebpf;
use aya::maps::{MapData, PerCpuArray};
use procfs::sys::kernel::Version;
use tiering_common::KernelMoves;

use super::attach_kind::AttachKind;
use super::error::BpfError;
use super::maps::typed;
use super::source::{Delivery, Source};

/// Program, and the event that it is for.
const PROGRAMS: [(&str, &str); 3] = [
    ("kern_reclaim", "mm_vmscan_lru_shrink_inactive"),
    ("kern_migrate", "mm_migrate_pages"),
    ("kern_collapse", "mm_collapse_huge_page"),
];

/// The map, and what was attached.
pub struct KernelMoveSource {
    totals: PerCpuArray<MapData, KernelMoves>,
    /// Programs that are attached.
    attached: Vec<&'static str>,
    /// Events that cannot be seen, and why.
    missing: Vec<String>,
}

impl KernelMoveSource {
    /// Attaches what can be.
    pub(super) fn attach(ebpf: &mut Ebpf) -> Result<Self, BpfError> {
        let (mut attached, mut missing) = (Vec::new(), Vec::new());
        for (program, event) in PROGRAMS {
            match AttachKind::Raw.attach(ebpf, program, "", event) {
                Ok(()) => attached.push(program),
                Err(reason) => missing.push(format!("{event}: {reason}")),
            }
        }
        if mglru_hides_reclaim() {
            missing.push("what MGLRU reclaims raises no event before Linux 6.7".to_owned());
        }
        Ok(Self { totals: typed(ebpf, "tier_kernel")?, attached, missing })
    }

    pub(super) fn programs(&self) -> &[&'static str] {
        &self.attached
    }

    /// Whether all its events are seen.
    pub fn shows_all(&self) -> bool {
        self.missing.is_empty()
    }

    /// So far: by the kernel or anybody else, and by the agent.
    pub fn totals(&self) -> [KernelMoves; 2] {
        [0, 1].map(|index| {
            let mut sum = KernelMoves::default();
            if let Ok(values) = self.totals.get(&index, 0) {
                for value in values.iter() {
                    sum.reclaimed += value.reclaimed;
                    sum.migrated += value.migrated;
                    sum.collapsed += value.collapsed;
                }
            }
            sum
        })
    }
}

/// Whether reclaim raises no event: MGLRU does since "mm: multi-gen LRU: reuse some legacy trace events" (Linux 6.7).
fn mglru_hides_reclaim() -> bool {
    let enabled = std::fs::read_to_string("/sys/kernel/mm/lru_gen/enabled").unwrap_or_default();
    let flags = u32::from_str_radix(enabled.trim().trim_start_matches("0x"), 16).unwrap_or(0);
    let is_before = Version::current().is_ok_and(|kernel| (kernel.major, kernel.minor) < (6, 7));
    flags != 0 && is_before
}

impl Source for KernelMoveSource {
    fn name(&self) -> &'static str {
        "kernel_moves"
    }

    fn delivery(&self) -> Delivery {
        match (self.attached.is_empty(), self.missing.is_empty()) {
            (_, true) => Delivery::Active(AttachKind::Raw.name().to_owned()),
            (false, false) => Delivery::Partly(format!("without {}", self.missing.join("; "))),
            (true, false) => Delivery::Unavailable(self.missing.join("; ")),
        }
    }

    fn lost_without(&self) -> &'static str {
        "what the kernel reclaims or migrates by itself is noticed by the next sweep, 2 to 30 s later"
    }
}
