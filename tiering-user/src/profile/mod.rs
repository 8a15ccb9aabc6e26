//! How a VM behaves: one [`Profile`] each, kept up to date with every access that is seen.
//!
//! In: accesses, and once an epoch the working sets of the mapping table and what the process used of the host. Out:
//! rates, the miss-ratio curve, how soon pages are used again, how accesses follow each other and over what they
//! spread, phases, and the period of the load. Pure: time is an argument. Memory is bounded: see docs/profile.md for
//! how much it is.
//!
//! # Limits
//! It knows what the sources of accesses show (docs/tracking.md): of a page that stays mapped at most one access a
//! round, and of VMs that are not watched in rounds none at all.

mod again;
mod fenwick;
mod forecast;
mod histogram;
mod reuse;
mod series;
mod spread;
mod streams;
mod vector;

use std::time::Duration;

use derive_more::{Add, Mul};

use self::again::Pages;
use self::reuse::Reuse;
use self::spread::{Spread, Width};
use self::streams::{Steps, Streams};
use crate::sys::Monotonic;
use crate::tiermap::PageIndex;

pub use self::forecast::{Forecast, Method, forecast};
pub use self::series::{Ahead, EPOCH, Point, Season, Series};
pub use self::vector::{COMPONENTS, Vector};
pub use crate::vm::Usage;

/// Times within which what was used is a working set.
pub const HORIZONS: [Duration; 4] =
    [Duration::from_secs(10), Duration::from_mins(1), Duration::from_mins(10), Duration::from_hours(1)];
/// How far ahead is looked.
pub const AHEAD: [Duration; 4] =
    [Duration::from_mins(1), Duration::from_mins(5), Duration::from_mins(10), Duration::from_mins(30)];
/// What is left of the past after an epoch, in rates and shares: half after half a minute.
const FADE_RATES: f64 = 0.794;
/// And in what is known of reuse: half after five minutes.
const FADE_REUSE: f32 = 0.977;

/// What is known of an epoch when it ends but for its accesses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Observed {
    /// Pages that were used within each of [`HORIZONS`].
    pub working_sets: [u64; HORIZONS.len()],
    /// None where the process does not tell.
    pub usage: Option<Usage>,
}

/// Sums over the last epochs, in which older ones count less.
#[derive(Clone, Copy, Debug, Default, Add, Mul)]
struct Recent {
    seconds: f64,
    reads: f64,
    writes: f64,
    steps: Steps,
    pages: Pages,
    cpu_seconds: f64,
    read_bytes: f64,
    written_bytes: f64,
}

/// How a VM behaves.
#[derive(Debug)]
pub struct Profile {
    epoch_began: Monotonic,
    epochs: u64,
    /// Of the running epoch.
    reads: u64,
    writes: u64,
    recent: Recent,
    streams: Streams,
    reuse: Reuse,
    spread: Spread,
    series: Series,
    observed: Observed,
    /// Of the last epoch: over what its accesses were spread, and to how many pages they were.
    width: Option<Width>,
    used_pages: f64,
    season: Option<Season>,
    comes_again: bool,
    ahead: [Option<Ahead>; AHEAD.len()],
    phase_began: Monotonic,
    began: Monotonic,
    pages: u32,
    vector: Option<Vector>,
}

impl Profile {
    /// Of a VM with so many pages of RAM.
    pub fn new(pages: u32, now: Monotonic) -> Self {
        Self {
            epoch_began: now,
            epochs: 0,
            reads: 0,
            writes: 0,
            recent: Recent::default(),
            streams: Streams::default(),
            reuse: Reuse::default(),
            spread: Spread::new(pages),
            series: Series::default(),
            observed: Observed::default(),
            width: None,
            used_pages: 0.0,
            season: None,
            comes_again: false,
            ahead: [None; AHEAD.len()],
            phase_began: now,
            began: now,
            pages,
            vector: None,
        }
    }

    /// Its history, which is what outlives it.
    pub fn series(&self) -> &Series {
        &self.series
    }

    /// Has the history go on where an earlier one ended.
    pub fn go_on_with(&mut self, series: Series) {
        self.series = series;
        self.look_for_season();
        self.ahead = AHEAD.map(|after| self.series.ahead(after, self.season));
    }

    /// An access that stands for `weight` of them.
    pub fn access(&mut self, page: PageIndex, write: bool, time: Monotonic, weight: u32) {
        *(if write { &mut self.writes } else { &mut self.reads }) += u64::from(weight);
        self.streams.access(page, write, weight.into());
        self.reuse.access(page, write, time, weight);
        self.spread.access(page, weight.into());
    }

    /// Whether the running epoch is over.
    pub fn is_due(&self, now: Monotonic) -> bool {
        now.since(self.epoch_began) >= EPOCH
    }

    pub fn end_epoch(&mut self, now: Monotonic, observed: Observed) {
        let length = now.since(self.epoch_began).as_secs_f64();
        let (reads, writes) =
            (std::mem::take(&mut self.reads) as f64, std::mem::take(&mut self.writes) as f64);
        // Since a process does not use less and less, the first time nothing is known of an epoch.
        let used = |total: fn(&Usage) -> f64| match (&self.observed.usage, &observed.usage) {
            (Some(before), Some(now)) => (total(now) - total(before)).max(0.0),
            _ => 0.0,
        };
        let ended = Recent {
            seconds: length,
            reads,
            writes,
            steps: self.streams.take(),
            pages: self.reuse.end_epoch(now),
            cpu_seconds: used(|usage| usage.cpu.as_secs_f64()),
            read_bytes: used(|usage| usage.read_bytes as f64),
            written_bytes: used(|usage| usage.written_bytes as f64),
        };
        self.used_pages = ended.pages.used;
        self.recent = self.recent * FADE_RATES + ended;
        // What is left of long ago says nothing.
        if self.recent.reads + self.recent.writes < 1.0 {
            let Recent { seconds, cpu_seconds, read_bytes, written_bytes, .. } = self.recent;
            self.recent = Recent { seconds, cpu_seconds, read_bytes, written_bytes, ..Recent::default() };
            self.streams.forget();
        }
        self.streams.fade(FADE_RATES as f32);
        self.reuse.fade(FADE_REUSE);
        let phases = self.spread.phase_changes();
        self.width = self.spread.end_epoch();
        if self.spread.phase_changes() > phases {
            self.phase_began = self.epoch_began;
        }
        let [_, minute, ..] = observed.working_sets;
        self.series.push(Point {
            rate: ((reads + writes) / length.max(f64::EPSILON)) as f32,
            working_set: u32::try_from(minute).unwrap_or(u32::MAX),
        });
        self.observed = observed;
        self.epochs += 1;
        // Six times a minute would be in vain, and it takes the longest of all this.
        if self.epochs.is_multiple_of(6) {
            self.look_for_season();
        }
        for (ahead, after) in self.ahead.iter_mut().zip(AHEAD) {
            if self.series.is_new(after, self.season) {
                *ahead = self.series.ahead(after, self.season);
            }
        }
        self.epoch_began = now;
        self.vector = Some(vector::of(self));
    }

    /// Epochs so far: before the first one is over nothing else is known.
    pub fn epochs(&self) -> u64 {
        self.epochs
    }

    /// Reads and writes a second, as far as they are seen.
    pub fn rates(&self) -> (f64, f64) {
        (self.per_second(self.recent.reads), self.per_second(self.recent.writes))
    }

    /// Whether anything was accessed lately.
    pub fn is_at_work(&self) -> bool {
        self.recent.steps.total() > 0.0
    }

    /// Shares of accesses, 0 to 1, that follow a walk page by page, and one in steps. None where there are no accesses.
    pub fn sequential(&self) -> Option<(f64, f64)> {
        let Steps { sequential, strided, .. } = self.recent.steps;
        let total = self.recent.steps.total();
        (total > 0.0).then(|| (sequential / total, strided / total))
    }

    /// Pages that were used within each of [`HORIZONS`]; none for those for which it was not watched long enough: a
    /// page that was found and not accessed yet is as if accessed when it was found.
    pub fn working_sets(&self) -> [Option<u64>; HORIZONS.len()] {
        let watched = self.epoch_began.since(self.began);
        let mut horizons = HORIZONS.iter();
        self.observed
            .working_sets
            .map(|pages| horizons.next().filter(|horizon| watched > **horizon + EPOCH).map(|_| pages))
    }

    /// See [`Reuse::miss_ratio`].
    pub fn miss_ratio(&self, pages: u64) -> Option<f64> {
        self.reuse.miss_ratio(pages)
    }

    /// [`Self::miss_ratio`] for 0, 1, ... of `N` - 1 equal parts of so many pages.
    pub fn miss_ratios<const N: usize>(&self, pages: u64) -> Option<[f64; N]> {
        let parts = N.saturating_sub(1).max(1) as u64;
        self.miss_ratio(pages)?;
        let missed = |part: usize| match part {
            0 => 1.0,
            _ => self.miss_ratio(part as u64 * pages / parts).unwrap_or(1.0),
        };
        Some(std::array::from_fn(missed))
    }

    /// Milliseconds after which this share of repeated accesses came.
    pub fn reuse_time(&self, share: f64) -> Option<u64> {
        self.reuse.time(share)
    }

    /// Of the last epoch's accesses over blocks, bits.
    pub fn entropy(&self) -> Option<f64> {
        self.width.map(|width| width.bits)
    }

    /// After how long its accesses come and go again.
    pub fn season(&self) -> Option<Season> {
        self.season
    }

    /// The same if it predicts best: so that something comes again, and not by chance.
    pub fn comes_again(&self) -> Option<Season> {
        self.season.filter(|_| self.comes_again)
    }

    /// Pages that are not used now and will be within `soon`, at most, if its load comes again.
    pub fn rise(&self, soon: Duration) -> u64 {
        let Some(now) = self.hour().last().map(|point| f64::from(point.working_set)) else { return 0 };
        let seasonal =
            self.ahead().filter(|ahead| ahead.after <= soon && ahead.working_set.method.is_seasonal());
        let most = seasonal.map(|ahead| ahead.working_set.upper).fold(now, f64::max);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "never negative, and pages of a VM"
        )]
        let rise = (most - now) as u64;
        rise.min(self.pages.into())
    }

    /// What will be after each of [`AHEAD`] of which anything can be said, as of the last points of the history.
    pub fn ahead(&self) -> impl Iterator<Item = Ahead> {
        self.ahead.iter().flatten().copied()
    }

    /// How often it began to work on other parts of its RAM, and how long ago the last time was, or the first access.
    pub fn phases(&self, now: Monotonic) -> (u64, Duration) {
        (self.spread.phase_changes(), now.since(self.phase_began))
    }

    /// Processors that the process keeps busy, 1 for one.
    pub fn cpus(&self) -> f64 {
        self.per_second(self.recent.cpu_seconds)
    }

    /// Bytes a second that the process reads from and writes to disks.
    pub fn disk_rates(&self) -> (f64, f64) {
        (self.per_second(self.recent.read_bytes), self.per_second(self.recent.written_bytes))
    }

    /// What the process held when that was looked at last.
    pub fn usage(&self) -> Option<Usage> {
        self.observed.usage
    }

    /// The last hour, one point an epoch, oldest first.
    pub fn hour(&self) -> impl ExactSizeIterator<Item = Point> {
        self.series.hour()
    }

    /// All of this as a vector, for comparison with that of another VM. As of the end of the last epoch; none
    /// before the first one.
    pub fn vector(&self) -> Option<&Vector> {
        self.vector.as_ref()
    }

    fn look_for_season(&mut self) {
        self.season = self.series.season();
        self.comes_again = self.season.is_some_and(|season| self.series.comes_again(season));
    }

    fn per_second(&self, sum: f64) -> f64 {
        if self.recent.seconds > 0.0 { sum / self.recent.seconds } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Monotonic {
        Monotonic::default().after(Duration::from_secs_f64(seconds))
    }

    /// One in four is a write; pages in order.
    fn steady(epochs: u64) -> Profile {
        let mut profile = Profile::new(4096, at(0.0));
        for epoch in 0..epochs {
            for access in 0..1000u32 {
                let time = at(epoch as f64 * 10.0 + f64::from(access) / 100.0);
                profile.access(access, access % 4 == 0, time, 2);
            }
            let usage =
                Usage { cpu: Duration::from_secs(5 * epoch), read_bytes: epoch << 20, ..Usage::default() };
            let observed = Observed { working_sets: [1000, 1000, 1000, 1000], usage: Some(usage) };
            assert!(!profile.is_due(at(epoch as f64 * 10.0 + 9.9)));
            assert!(profile.is_due(at(epoch as f64 * 10.0 + 10.0)));
            profile.end_epoch(at(epoch as f64 * 10.0 + 10.0), observed);
        }
        profile
    }

    #[test]
    fn a_steady_vm_is_described_as_it_is() {
        let profile = steady(30);
        let (reads, writes) = profile.rates();
        assert!((reads - 150.0).abs() < 1.0 && (writes - 50.0).abs() < 1.0, "{reads} {writes}");
        let (sequential, strided) = profile.sequential().unwrap();
        assert!(sequential > 0.99 && strided < 0.01, "{sequential} {strided}");
        assert!(profile.miss_ratio(700).unwrap() > 0.95);
        assert!(profile.miss_ratio(1100).unwrap() < 0.1);
        let [nothing, half, all] = profile.miss_ratios(1100).unwrap();
        assert!(nothing == 1.0 && half > 0.95 && all < 0.1, "{nothing} {half} {all}");
        let again = profile.reuse_time(0.5).unwrap();
        assert!((8000..=10_000).contains(&again), "{again} ms");
        assert_eq!(profile.entropy().map(f64::round), Some(1.0), "1,000 pages are two blocks");
        assert_eq!(profile.phases(at(300.0)), (0, Duration::from_secs(300)));
        assert_eq!(profile.season(), None);
        let ahead: Vec<Ahead> = profile.ahead().collect();
        assert_eq!(
            ahead.first().map(|ahead| (ahead.after, ahead.rate.expected.round())),
            Some((AHEAD[0], 200.0))
        );
        assert_eq!(ahead.len(), 1, "five minutes are too few for more");
        assert!((profile.cpus() - 0.5).abs() < 0.01, "{}", profile.cpus());
        assert!((profile.disk_rates().0 - (1 << 20) as f64 / 10.0).abs() < 2000.0);
        assert_eq!(profile.hour().len(), 30);
        assert_eq!(profile.working_sets(), [Some(1000), Some(1000), None, None], "after five minutes");
    }

    #[test]
    fn of_a_vm_that_does_nothing_nothing_is_said() {
        let mut profile = Profile::new(4096, at(0.0));
        profile.end_epoch(at(10.0), Observed::default());
        assert_eq!((profile.rates(), profile.sequential()), ((0.0, 0.0), None));
        assert_eq!((profile.miss_ratio(1), profile.reuse_time(0.5), profile.entropy()), (None, None, None));
        assert_eq!(profile.miss_ratios::<3>(100), None);
        assert_eq!((profile.cpus(), profile.usage()), (0.0, None));
    }

    #[test]
    fn vms_that_behave_alike_have_like_vectors() {
        let other = |stride: u32, write_every: u32| {
            let mut profile = Profile::new(4096, at(0.0));
            for epoch in 0..30 {
                for access in 0..1000u32 {
                    let page = access.wrapping_mul(stride) % 4096;
                    profile.access(page, access % write_every == 0, at(f64::from(epoch) * 10.0), 2);
                }
                profile.end_epoch(at(f64::from(epoch) * 10.0 + 10.0), Observed::default());
            }
            profile
        };
        let cosine = |one: &Profile, other: &Profile| {
            let (one, other) = (one.vector().unwrap(), other.vector().unwrap());
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
            dot(one, other) / (dot(one, one) * dot(other, other)).sqrt()
        };
        let (walk, scattered) = (other(1, 4), other(1_664_525, 1));
        assert!(cosine(&walk, &other(1, 5)) > 0.99);
        assert!(cosine(&walk, &scattered) < 0.8, "{}", cosine(&walk, &scattered));
        assert!(Profile::new(4096, at(0.0)).vector().is_none());
        assert!(walk.vector().unwrap().iter().all(|value| (-1.0..=1.0).contains(value)));
    }

    #[test]
    fn what_was_is_forgotten() {
        let mut profile = steady(30);
        for epoch in 30..60 {
            profile.end_epoch(at(epoch as f64 * 10.0 + 10.0), Observed::default());
        }
        let (reads, _) = profile.rates();
        assert!(reads < 1.0, "{reads}");
    }
}
