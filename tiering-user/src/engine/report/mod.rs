//! The status: what is known, in the form that users and scripts see.

mod explain;

use std::collections::BTreeMap;
use std::time::Duration;

use nix::sys::stat::{major, minor};
use tiering_common::{EXTENT_PAGES, KernelMoves};

use super::Engine;
use super::facts::SwapFacts;
use super::images::Image;
use super::managed::ManagedVm;
use crate::bpf::Counters;
use crate::predict::{Calibration, Delays, Match, Origin, OriginCounts, Stages, Worth};
use crate::sys::{Monotonic, PAGE_BYTES};
use crate::telemetry::latency::Latency;
use crate::telemetry::prefetch::{
    CalibrationBin, PrefetchByMatch, PrefetchCalibration, PrefetchCounts, PrefetchLastDay, PrefetchLastDayBy,
    PrefetchMatch, PrefetchOrigin, PrefetchOrigins, PrefetchWay,
};
use crate::telemetry::savings::HostSavingsStatus;
use crate::telemetry::status::{
    self, BlockCounts, ClassStatus, EventCounts, ImageStatus, KernelMovesStatus, LeftAloneStatus,
    SourceStatus, Status, TierStatus, VmStatus,
};
use crate::tiermap::{BLOCK_PAGES, Place};
use crate::tiers::{NodeMemory, Tier, TierId, TierKind};
use crate::track::VmId;
use crate::vm::{Accel, FileId};

/// What a sweep found of a VM that is not moved is out of date after that.
const SWEPT_LATELY: Duration = Duration::from_mins(1);

/// What the status tells and the decisions do not need.
#[derive(Debug, Default)]
pub struct Readings {
    pub counters: BTreeMap<VmId, Counters>,
    /// Moves by others, and by the kernel at the agent's request.
    pub moves: [KernelMoves; 2],
    /// Samples taken from the ring.
    pub consumed: u64,
    pub sources: Vec<SourceStatus>,
    pub blocks: BlockCounts,
    pub image_reads_lost: u64,
    pub swap: SwapFacts,
    /// When the state was last written to disk.
    pub saved_unix_s: Option<u64>,
    /// What keeps the agent from a part of its work now, each in a line.
    pub warnings: Vec<String>,
}

impl Engine {
    pub fn status(&mut self, readings: Readings) -> Status {
        let now = self.clock.now;
        for vm in self.vms.values_mut() {
            vm.came_up.add_to(&mut self.read_bytes);
            for (place, pages) in places(vm, self.clock.now) {
                let peak = vm.peaks.entry(place).or_default();
                *peak = pages.max(*peak);
            }
        }
        let mut sum = self.gone;
        let mut vms = Vec::new();
        for vm in self.vms.values() {
            let counters = readings.counters.get(&vm.info.id).copied().unwrap_or_default();
            sum = sum.plus(counters);
            vms.push(self.vm_status(vm, counters));
        }
        vms.extend(self.bystanders.status());
        let savings = HostSavingsStatus::of(&vms);
        let used = readings.swap.used_by_tier();
        let tiers = self.ladder.tiers().iter().map(|tier| {
            let pages = |vm| places(vm, now).get(&Place::In(tier.id)).copied().unwrap_or(0);
            let vm_pages: u64 = self.vms.values().map(pages).sum();
            let swap_used = used.get(&tier.id).copied().unwrap_or(0);
            TierStatus {
                vm_bytes: vm_pages * PAGE_BYTES,
                trouble: self.tier_health.of(tier.id).map(str::to_owned),
                written_bytes_total: self.written_bytes.get(usize::from(tier.id.0)).copied().unwrap_or(0),
                read_bytes_total: self.read_bytes.get(usize::from(tier.id.0)).copied().unwrap_or(0),
                ..tier_status(tier, swap_used, self.facts.memory_of(tier.id))
            }
        });
        let [moved_by_others, moved_by_agent] = readings.moves.map(kernel_moves);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: self.clock.uptime().as_secs_f64(),
            dry_run: self.dry_run,
            agent: self.ceiling.status(),
            swap_cached_bytes: self.facts.swap_cached_bytes,
            tiers: tiers.collect(),
            vms,
            savings,
            events: EventCounts {
                seen: sum.seen,
                produced: sum.produced,
                consumed: readings.consumed,
                dropped: sum.dropped,
            },
            sources: readings.sources,
            images: self.image_status(),
            state_saved_unix_s: readings.saved_unix_s,
            blocks: readings.blocks,
            moved_by_others,
            moved_by_agent,
            kernel_demotion: self.demotion_status(),
            warnings: [readings.warnings, self.demotion_warnings()].concat(),
            cpu_percent: self.braking.cpu_percent,
            image_reads_lost_total: readings.image_reads_lost,
        }
    }

    /// What is known of where the RAM of KVM guests lies, for the source that sees their accesses.
    pub fn proved_layouts(&self) -> String {
        let guests = || self.vms.values().filter(|vm| vm.info.vm.accel == Accel::Kvm);
        let proved = guests().filter(|vm| vm.gpa_proof.is_proved()).count();
        format!("layout proved for {proved} of {} guests", guests().count())
    }

    fn image_status(&self) -> Vec<ImageStatus> {
        let status = |(id, image): (&FileId, &Image)| ImageStatus {
            name: image.name().to_owned(),
            tenant: self.readers(image).map(tenant).next().unwrap_or_default(),
            device: format!("{}:{}", major(id.device), minor(id.device)),
            inode: id.inode,
            bytes: image.bytes(),
            vms: self.readers(image).map(|vm| vm.id.clone()).collect(),
            known_bytes: image.tape.tape().len() as u64 * EXTENT_PAGES * PAGE_BYTES,
            read_ahead_bytes_total: image.asked_bytes,
            confidence: image.tape.confidence(),
            window_bytes: u64::from(image.tape.window()) * EXTENT_PAGES * PAGE_BYTES,
        };
        self.images.iter().map(status).collect()
    }

    fn readers(&self, image: &Image) -> impl Iterator<Item = &ManagedVm> {
        image.readers.iter().filter_map(|vm| self.vms.get(vm))
    }

    fn origins(&self, vm: &ManagedVm) -> Vec<PrefetchOrigin> {
        let status = |(origin, known): (Origin, OriginCounts)| {
            let (leader, way, by) = match origin {
                Origin::OwnPast => (None, PrefetchWay::Followed, None),
                Origin::Season(_) => (None, PrefetchWay::Season, None),
                Origin::Readahead => (None, PrefetchWay::Readahead, None),
                Origin::Earlier(by) => (None, PrefetchWay::Earlier, Some(by)),
                Origin::Touched(vm, by) => (Some(vm), PrefetchWay::Touched, Some(by)),
                Origin::Followed(vm, by) => (Some(vm), PrefetchWay::Followed, Some(by)),
            };
            let leader = match leader {
                None => vm.id.clone(),
                Some(vm) => self.vms.get(&vm)?.id.clone(),
            };
            Some(PrefetchOrigin {
                leader,
                way,
                by: kind(by),
                issued_pages: known.counts.issued,
                used_pages: known.counts.used,
                wasted_pages: known.counts.wasted,
                late_pages: known.counts.late,
                shadow_right_pages: known.foreseen.right,
                shadow_wrong_pages: known.foreseen.wrong,
                confidence: known.confidence,
                window_pages: known.window,
            })
        };
        vm.prefetch.stages.origins().filter_map(status).collect()
    }

    fn last_day(&self, vm: &ManagedVm) -> PrefetchLastDay {
        let mut day = PrefetchLastDay::default();
        for (leader, Worth { avoided, wasted }) in vm.prefetch.stages.last_day().sums(self.clock.now) {
            let leader = match leader {
                None => Some(vm.id.clone()),
                Some(leader) => self.vms.get(&leader).map(|leader| leader.id.clone()),
            };
            day.avoided_pages += avoided;
            day.wasted_pages += wasted;
            day.by.push(PrefetchLastDayBy { leader, avoided_pages: avoided, wasted_pages: wasted });
        }
        day
    }

    fn vm_status(&self, vm: &ManagedVm, counters: Counters) -> VmStatus {
        let process = &vm.info.vm;
        let blocked = vm.unmovable().or_else(|| vm.moves.refused_now().map(str::to_owned));
        let stages = vm.prefetch.stages.counts();
        let class = vm.class.class().map(|(class, confidence, source)| ClassStatus {
            name: class.name().to_owned(),
            confidence: confidence.into(),
            source: Some(source.name().to_owned()),
        });
        VmStatus {
            id: vm.id.clone(),
            name: process.name.clone(),
            namespace: process.namespace.clone(),
            pid: process.key.pid.cast_unsigned(),
            tenant: tenant(vm),
            priority: vm.priority(),
            class: class.unwrap_or_default(),
            movable: blocked.is_none(),
            reason: blocked.or_else(|| vm.never_to_swap()),
            limited_by: vm.braking.limited_by(),
            ram_bytes: process.ram_bytes().saturating_sub(vm.sweeps.unplugged_bytes()),
            left_alone: vm.left_alone(),
            tier_bytes: self.bytes_by_name(&places(vm, self.clock.now)),
            page_tables_read: page_tables_read(vm, self.clock.now),
            tier_bytes_peak: self.bytes_by_name(&vm.peaks),
            huge_bytes: vm.sweeps.huge_bytes(),
            huge_lost_bytes: vm.pages.split_blocks() * u64::from(BLOCK_PAGES) * PAGE_BYTES,
            huge_kept_bytes: vm.huge_kept_pages() * PAGE_BYTES,
            huge_split_bytes_total: vm.moves.totals.huge_split * PAGE_BYTES,
            collapsed_bytes_total: vm.moves.totals.collapsed * PAGE_BYTES,
            ksm_bytes: vm.braking.ksm_bytes(),
            swap_cached_bytes: Some(vm.swap_cached_bytes()),
            freed_bytes: vm.freed_bytes(),
            savings: self.savings_status(vm),
            free_page_reporting: Some(process.free_page_reporting),
            untouched_bytes: process
                .ram_bytes()
                .saturating_sub(places(vm, self.clock.now).values().sum::<u64>() * PAGE_BYTES)
                .saturating_sub(vm.sweeps.unplugged_bytes()),
            wss_bytes: vm.working_set_pages * PAGE_BYTES,
            profile: vm.profile_status(self.clock.now),
            reads_total: counters.reads,
            writes_total: counters.writes,
            faults_total: counters.seen,
            sampled_total: counters.produced,
            sampled_one_in: self.sampling.one_in(vm.info.id),
            rearm: self.rearm_status(vm),
            stall_ns_total: None,
            demoted_bytes_total: vm.moves.totals.demoted * PAGE_BYTES,
            promoted_bytes_total: vm.promoted_pages() * PAGE_BYTES,
            ping_pong_pages: vm.moves.totals.ping_pong,
            prefetch: PrefetchCounts {
                issued_pages: stages.issued,
                used_pages: stages.used,
                wasted_pages: stages.wasted,
                late_pages: stages.late,
                mapped_pages: stages.mapped,
                lifted_pages: stages.lifted,
                delay_ns: delay(&vm.prefetch.stages.delays),
                mapping_delay_ns: delay(&vm.prefetch.stages.mapping_delays),
                from: PrefetchOrigins {
                    own: vm.prefetch.stages.counts_by(None).issued,
                    gfn: [Match::Page, Match::Address]
                        .map(|by| vm.prefetch.stages.counts_by(Some(by)).issued)
                        .into_iter()
                        .sum(),
                    tag: vm.prefetch.stages.counts_by(Some(Match::Content)).issued,
                    ..PrefetchOrigins::default()
                },
                by_match: by_match(&vm.prefetch.stages),
                origins: self.origins(vm),
                last_day: self.last_day(vm),
                calibration: calibration(vm.prefetch.stages.calibration()),
            },
        }
    }
}

impl ManagedVm {
    fn left_alone(&self) -> Vec<LeftAloneStatus> {
        let parts = self.info.vm.left_alone.iter();
        let parts = parts.map(|part| LeftAloneStatus { bytes: part.bytes, reason: part.why.to_string() });
        let unplugged = (self.sweeps.unplugged_bytes() > 0).then(|| LeftAloneStatus {
            bytes: self.sweeps.unplugged_bytes(),
            reason: "room of virtio-mem that is not plugged, or was never touched".to_owned(),
        });
        parts.chain(unplugged).collect()
    }
}

fn tenant(vm: &ManagedVm) -> String {
    vm.settings.tenant.clone().unwrap_or_else(|| vm.id.clone())
}

fn kind(by: Option<Match>) -> PrefetchMatch {
    match by {
        None => PrefetchMatch::Own,
        Some(Match::Page) => PrefetchMatch::Gfn,
        Some(Match::Address) => PrefetchMatch::GfnOnly,
        Some(Match::Content) => PrefetchMatch::Tag,
    }
}

fn by_match(stages: &Stages) -> Vec<PrefetchByMatch> {
    let status = |by| {
        let (counts, foreseen) = (stages.counts_by(by), stages.predicted_by(by));
        PrefetchByMatch {
            by: kind(by),
            issued_pages: counts.issued,
            used_pages: counts.used,
            wasted_pages: counts.wasted,
            late_pages: counts.late,
            mapped_pages: counts.mapped,
            lifted_pages: counts.lifted,
            shadow_right_pages: foreseen.right,
            shadow_wrong_pages: foreseen.wrong,
        }
    };
    [None, Some(Match::Page), Some(Match::Address), Some(Match::Content)].map(status).to_vec()
}

fn delay(delays: &Delays) -> Option<Latency> {
    Some(Latency { p50: delays.quantile_ns(0.5)?, p99: delays.quantile_ns(0.99)? })
}

fn calibration(known: &Calibration) -> PrefetchCalibration {
    let bins = known.bins().iter().filter(|bin| bin.ended > 0).map(|bin| CalibrationBin {
        pages: bin.ended,
        confidence: bin.confidence / bin.ended as f64,
        used: bin.used as f64 / bin.ended as f64,
    });
    PrefetchCalibration { brier: known.brier(), bins: bins.collect() }
}

/// Whether the table tells where the VM's pages are. One that is not moved is swept only when somebody asks.
fn page_tables_read(vm: &ManagedVm, now: Monotonic) -> bool {
    let lately = |began| now.since(began) < SWEPT_LATELY;
    vm.sweeps.have_held() && (vm.unmovable().is_none() || vm.sweeps.began().is_some_and(lately))
}

/// Pages by place. Of a VM whose page tables are not read, since it is not moved, what its process has in memory.
fn places(vm: &ManagedVm, now: Monotonic) -> BTreeMap<Place, u64> {
    if let Some(usage) = vm.braking.usage().filter(|_| !page_tables_read(vm, now) && vm.unmovable().is_some())
    {
        let pages = (usage.anonymous_bytes + usage.shared_bytes) / PAGE_BYTES;
        return [(Place::In(TierId(0)), pages.min(vm.pages.layout().pages().into()))].into();
    }
    let counts = vm.pages.counts();
    let tiers = (0..14).map(|level| Place::In(TierId(level)));
    tiers.chain([Place::OtherSwap]).map(|place| (place, counts.get(place))).filter(|(_, n)| *n > 0).collect()
}

fn tier_status(tier: &Tier, swap_used_bytes: u64, memory: NodeMemory) -> TierStatus {
    let (kind, nodes, capacity_bytes, used_bytes) = match &tier.kind {
        TierKind::Node { nodes } => {
            (status::TierKind::Node, nodes.clone(), memory.total, memory.total.saturating_sub(memory.free))
        }
        TierKind::Swap { capacity_bytes, .. } => {
            (status::TierKind::Swap, Vec::new(), *capacity_bytes, swap_used_bytes)
        }
    };
    TierStatus {
        name: tier.name.clone(),
        level: tier.id.0.into(),
        kind,
        nodes,
        capacity_bytes,
        used_bytes,
        ..TierStatus::default()
    }
}

fn kernel_moves(moves: KernelMoves) -> KernelMovesStatus {
    KernelMovesStatus {
        reclaimed_bytes_total: moves.reclaimed * PAGE_BYTES,
        migrated_bytes_total: moves.migrated * PAGE_BYTES,
        collapsed_bytes_total: moves.collapsed * u64::from(BLOCK_PAGES) * PAGE_BYTES,
    }
}
