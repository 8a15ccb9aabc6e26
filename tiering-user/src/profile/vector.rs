//! A profile as a vector, for comparison with those of other VMs.
//!
//! What depends on how large a VM is, how large its data are, or for how long it was watched is left out, or told
//! as a share: a large database should look like a small one.

use super::Profile;
use super::streams::Steps;

/// What the components of [`Profile::vector`] say.
pub const COMPONENTS: [&str; 26] = [
    "accesses",
    "writes",
    "sequential",
    "strided",
    "near",
    "walks",
    "long_walks",
    "upward",
    "sequential_writes",
    "step_p25",
    "step_p50",
    "step_p75",
    "written_pages",
    "kept",
    "written_again",
    "even",
    "dense",
    "cpus",
    "cpu_an_access",
    "disk_reads",
    "disk_writes",
    "disk_writes_an_access",
    "missed_half",
    "missed_4th",
    "missed_8th",
    "missed_16th",
];

/// Components from -1 to 1, 0 in the middle of what is usual.
pub type Vector = [f32; COMPONENTS.len()];

/// As of the end of the last epoch.
pub(super) fn of(profile: &Profile) -> Vector {
    let (reads, writes) = profile.rates();
    let rate = reads + writes;
    let (read_bytes, written_bytes) = profile.disk_rates();
    let share = |part: f64, of: f64| if of > 0.0 { part / of } else { 0.0 };
    // Orders of magnitude from `least` on, of so many.
    let decades = |value: f64, least: f64, most: f64| (value / least).max(1.0).log10() / most;
    // Where hardly anything is accessed this says nothing.
    let an_access = |value: f64| value / rate.max(0.1);
    let steps = profile.recent.steps;
    let of_steps = |part: fn(&Steps) -> f64| share(part(&steps), steps.total());
    // The farthest step is that through a TiB.
    let step = |share| {
        profile.streams.distance(share).map_or(0.0, |pages| pages.max(1) as f64).max(1.0).log2() / 28.0
    };
    let pages = profile.recent.pages;
    let (even, dense) = profile.width.map_or((0.0, 0.0), |width| {
        let blocks = f64::from(width.blocks);
        let pages = profile.used_pages / blocks;
        (width.bits / blocks.log2().max(1.0), pages.max(1.0).log2() / 9.0)
    });
    let missed = |share| profile.reuse.miss_ratio_of_repeated(share).unwrap_or(1.0);
    let writes = share(writes, rate);
    [
        decades(rate, 1.0, 5.0),
        writes,
        of_steps(|steps| steps.sequential),
        of_steps(|steps| steps.strided),
        of_steps(|steps| steps.near),
        of_steps(|steps| steps.in_walks),
        of_steps(|steps| steps.in_long_walks),
        of_steps(|steps| steps.upward),
        // As many of them as of all are in the middle.
        if steps.sequential > 0.0 {
            (1.0 + steps.sequential_writes / steps.sequential - writes) / 2.0
        } else {
            0.5
        },
        step(0.25),
        step(0.5),
        step(0.75),
        share(pages.written, pages.used),
        share(pages.kept, pages.used_before),
        share(pages.written_again, pages.kept_written),
        even,
        dense,
        profile.cpus() / 4.0,
        // Microseconds.
        decades(an_access(profile.cpus() * 1e6), 1.0, 5.0),
        decades(read_bytes, 1.0, 9.0),
        decades(written_bytes, 1.0, 9.0),
        // From a thousandth of a page on.
        decades(an_access(written_bytes), 4.0, 5.0),
        missed(0.5),
        missed(0.25),
        missed(0.125),
        missed(0.0625),
    ]
    .map(|share| (2.0 * share.clamp(0.0, 1.0) - 1.0) as f32)
}
