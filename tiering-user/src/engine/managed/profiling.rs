//! The profiles of VMs: kept up to date, and told.

use super::ManagedVm;
use crate::policy::Waits;
use crate::profile::{Forecast, HORIZONS, Observed, Usage};
use crate::sys::{Monotonic, PAGE_BYTES};
use crate::telemetry::profile::{
    AheadStatus, ForecastStatus, MissRatio, ProfileStatus, ReuseTimes, WorkingSet,
};
use crate::tiermap::Seconds;

/// Sizes of memory for which the miss ratio is told: RAM, its half, and so on.
const SIZES: u32 = 8;
/// Points of the last hour that are told, a minute each.
const EPOCHS_A_POINT: usize = 6;

impl ManagedVm {
    /// Ends the epoch of its profile, if it is over. Returns what its process had used by then.
    pub fn end_profile_epoch(&mut self, now: Monotonic, clock: Seconds) -> Option<Option<Usage>> {
        self.profile.is_due(now).then(|| {
            let working_sets = self.pages.used_within(HORIZONS, clock);
            let usage = self.braking.usage();
            self.profile.end_epoch(now, Observed { working_sets, usage });
            self.prefetch.marks.mark(now, self.prefetch.tape.end());
            usage
        })
    }

    /// Accesses of a round that would wait if it had parts of so many pages of the first tier. None where accesses to
    /// pages in memory do not show.
    ///
    /// Of rounds, not of seconds: rounds of VMs that do the same all the time are far apart, though they use as
    /// much.
    pub fn waits(&self, pages: u64) -> Option<Waits> {
        self.watch.armed_at()?;
        let used = self.watch.rounds.last().used as f64;
        Some(self.profile.miss_ratios(pages)?.map(|ratio| ratio * used))
    }

    /// What `status` says of its profile; none before its first epoch is over.
    pub fn profile_status(&self, now: Monotonic) -> Option<ProfileStatus> {
        let profile = &self.profile;
        if profile.epochs() == 0 {
            return None;
        }
        let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let (reads_per_s, writes_per_s) = profile.rates();
        let (read_bytes_per_s, written_bytes_per_s) = profile.disk_rates();
        let (phase_changes, phase) = profile.phases(now);
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
            period_ms: profile.season().map(|season| millis(season.period)),
            period_correlation: profile.season().map(|season| season.correlation),
            ahead: profile
                .ahead()
                .map(|ahead| AheadStatus {
                    after_ms: millis(ahead.after),
                    accesses_per_s: forecast(ahead.rate, 1.0),
                    used_bytes: forecast(ahead.working_set, PAGE_BYTES as f64),
                })
                .collect(),
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

/// Of values of which each is so many of what is told.
fn forecast(forecast: Forecast, unit: f64) -> ForecastStatus {
    ForecastStatus {
        expected: forecast.expected * unit,
        lower: forecast.lower * unit,
        upper: forecast.upper * unit,
        method: forecast.method.to_string(),
        error: forecast.error,
    }
}
