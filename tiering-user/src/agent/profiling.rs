//! The profiles of machines: kept up to date, and told.

use super::machine::Machine;
use crate::profile::{HORIZONS, Observed, Usage};
use crate::sys::{self, PAGE_BYTES};
use crate::telemetry::profile::{MissRatio, ProfileStatus, ReuseTimes, WorkingSet};
use crate::tiermap::Seconds;

/// Sizes of memory for which the miss ratio is told: RAM, its half, and so on.
const SIZES: u32 = 8;
/// Points of the last hour that are told, a minute each.
const EPOCHS_A_POINT: usize = 6;

impl Machine {
    /// Ends the epoch of its profile, if it is over.
    pub(super) fn end_profile_epoch(&mut self, clock: Seconds) {
        let now = sys::now();
        if self.profile.is_due(now) {
            let working_sets = self.pages.used_within(HORIZONS, clock);
            self.profile.end_epoch(now, Observed { working_sets, usage: self.braking.usage() });
        }
    }

    /// What `status` says of its profile; none before its first epoch is over.
    pub(super) fn profile_status(&self) -> Option<ProfileStatus> {
        let profile = &self.profile;
        if profile.epochs() == 0 {
            return None;
        }
        let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let (reads_per_s, writes_per_s) = profile.rates();
        let (read_bytes_per_s, written_bytes_per_s) = profile.disk_rates();
        let (phase_changes, phase) = profile.phases(sys::now());
        let ram = u64::from(self.pages.layout().pages());
        let sets = HORIZONS.into_iter().zip(profile.working_sets());
        let miss_ratio = |halves: u32| {
            let pages = ram >> halves;
            Some(MissRatio { bytes: pages * PAGE_BYTES, ratio: profile.miss_ratio(pages)? })
        };
        let reuse = |share| profile.reuse_time(share);
        let usage: Usage = profile.usage().unwrap_or_default();
        let epochs: Vec<f32> = profile.hour().map(|point| point.rate).collect();
        Some(ProfileStatus {
            reads_per_s,
            writes_per_s,
            sequential: profile.sequential().map(|(sequential, _)| sequential),
            strided: profile.sequential().map(|(_, strided)| strided),
            working_sets: sets
                .filter_map(|(within, pages)| Some((within, pages?)))
                .map(|(within, pages)| WorkingSet { within_ms: millis(within), bytes: pages * PAGE_BYTES })
                .collect(),
            miss_ratios: (0..SIZES).rev().filter_map(miss_ratio).collect(),
            reuse_ms: (|| Some(ReuseTimes { p50: reuse(0.5)?, p90: reuse(0.9)?, p99: reuse(0.99)? }))(),
            entropy_bits: profile.entropy(),
            period_ms: profile.period().map(|(period, _)| millis(period)),
            period_correlation: profile.period().map(|(_, correlation)| correlation),
            phase_changes_total: phase_changes,
            phase_ms: millis(phase),
            cpus: profile.cpus(),
            read_bytes_per_s,
            written_bytes_per_s,
            anonymous_bytes: usage.anonymous_bytes,
            file_bytes: usage.file_bytes,
            shared_bytes: usage.shared_bytes,
            hour: epochs
                .rchunks(EPOCHS_A_POINT)
                .rev()
                .map(|epochs| f64::from(epochs.iter().sum::<f32>()) / epochs.len() as f64)
                .collect(),
        })
    }
}
