//! A profile as a vector, for comparison with those of other machines.

use super::Profile;
use crate::sys::PAGE_BYTES;
use crate::tiermap::BLOCK_PAGES;

/// What the components of [`Profile::vector`] say.
pub const COMPONENTS: [&str; 20] = [
    "accesses",
    "writes",
    "sequential",
    "strided",
    "reuse_p50",
    "reuse_p90",
    "spread",
    "cpus",
    "disk_reads",
    "disk_writes",
    "used",
    "used_minute",
    "phases",
    "missed_half",
    "missed_4th",
    "missed_8th",
    "missed_16th",
    "missed_64th",
    "missed_256th",
    "anonymous",
];

/// Components from -1 to 1, 0 in the middle of what is usual.
pub type Vector = [f32; COMPONENTS.len()];

/// As of the end of the last epoch.
pub(super) fn of(profile: &Profile) -> Vector {
    let (reads, writes) = profile.rates();
    let (read_bytes, written_bytes) = profile.disk_rates();
    let (sequential, strided) = profile.sequential().unwrap_or_default();
    let pages = f64::from(profile.pages.max(1));
    let blocks = (pages / f64::from(BLOCK_PAGES)).ceil().log2().max(1.0);
    // A fifth of a day's milliseconds is 2^24.
    let again = |share| profile.reuse_time(share).map_or(1.0, |ms| (ms as f64).max(1.0).log2() / 20.0);
    let decades = |per_s: f64, most: f64| per_s.max(1.0).log10() / most;
    let used = |horizon: usize| profile.observed.working_sets[horizon] as f64 / pages;
    let missed = |halves: u32| profile.miss_ratio(u64::from(profile.pages) >> halves).unwrap_or(1.0);
    let anonymous =
        profile.usage().map_or(0.0, |usage| usage.anonymous_bytes as f64 / (pages * PAGE_BYTES as f64));
    [
        decades(reads + writes, 5.0),
        writes / (reads + writes).max(f64::EPSILON),
        sequential,
        strided,
        again(0.5),
        again(0.9),
        profile.entropy().unwrap_or(0.0) / blocks,
        profile.cpus() / 4.0,
        decades(read_bytes, 9.0),
        decades(written_bytes, 9.0),
        used(0),
        used(1),
        profile.spread.apart(),
        missed(1),
        missed(2),
        missed(3),
        missed(4),
        missed(6),
        missed(8),
        anonymous,
    ]
    .map(|share| (2.0 * share.clamp(0.0, 1.0) - 1.0) as f32)
}
