//! The profile of a VM, as `tiering vm show` prints it: rows, and two small plots.

use super::units::{nanoseconds, size};
use crate::telemetry::profile::{AheadStatus, ProfileStatus};

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Name and value of each row.
pub(super) fn rows(profile: &ProfileStatus) -> Vec<(&'static str, String)> {
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    let mut rows = vec![("accesses", {
        let walks = match (profile.sequential, profile.strided) {
            (Some(sequential), Some(strided)) => {
                format!("; {} go on page by page, {} in steps", percent(sequential), percent(strided))
            }
            _ => String::new(),
        };
        format!("{} reads/s, {} writes/s{walks}", rate(profile.reads_per_s), rate(profile.writes_per_s))
    })];
    if let Some(most) = most(&profile.hour) {
        let minutes = profile.hour.len();
        rows.push((
            "  by the minute",
            format!("{} {minutes} min, {}/s at most", bars(&profile.hour, most), rate(most)),
        ));
    }
    if !profile.working_sets.is_empty() {
        let sets = profile.working_sets.iter();
        let sets =
            sets.map(|set| format!("{} in {}", size(set.bytes), nanoseconds(set.within_ms * 1_000_000)));
        rows.push(("used", sets.collect::<Vec<_>>().join(", ")));
    }
    if let [least, .., ram] = &profile.miss_ratios[..] {
        let ratios: Vec<f64> = profile.miss_ratios.iter().map(|of| of.ratio).collect();
        let ends = [least, ram].map(|of| format!("{} with {}", percent(of.ratio), size(of.bytes)));
        rows.push(("would miss", format!("{} {} to {}", bars(&ratios, 1.0), ends[0], ends[1])));
    }
    if let Some(reuse) = profile.reuse_ms {
        let [p50, p90, p99] =
            [reuse.p50, reuse.p90, reuse.p99].map(|ms| nanoseconds(ms.saturating_mul(1_000_000)));
        rows.push(("used again after", format!("p50 {p50}, p90 {p90}, p99 {p99}")));
    }
    if let Some(entropy) = profile.entropy_bits {
        rows.push((
            "spread",
            format!("{entropy:.1} bits: as over {:.0} blocks of 2 MiB evenly", entropy.exp2()),
        ));
    }
    if let (Some(ms), Some(correlation)) = (profile.period_ms, profile.period_correlation) {
        rows.push((
            "comes and goes every",
            format!("{} (correlation {correlation:.2})", nanoseconds(ms * 1_000_000)),
        ));
    }
    rows.extend(profile.ahead.iter().map(|ahead| {
        let AheadStatus { accesses_per_s, used_bytes, .. } = ahead;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "bytes of a machine, never negative"
        )]
        let bytes = |bytes: f64| size(bytes as u64);
        let value = format!(
            "{}/s ({} to {}), {} used ({} to {}); in {}, {}",
            rate(accesses_per_s.expected),
            rate(accesses_per_s.lower),
            rate(accesses_per_s.upper),
            bytes(used_bytes.expected),
            bytes(used_bytes.lower),
            bytes(used_bytes.upper),
            nanoseconds(ahead.after_ms * 1_000_000),
            accesses_per_s.method,
        );
        ("expected", value)
    }));
    rows.push((
        "at work here for",
        format!(
            "{}, moved {} times",
            nanoseconds(profile.phase_ms.saturating_mul(1_000_000)),
            profile.phase_changes_total
        ),
    ));
    rows.push((
        "process",
        format!(
            "{:.2} processors, {:.0} B/s read, {:.0} B/s written; {} anonymous, {} of files, {} shared",
            profile.cpus,
            profile.read_bytes_per_s,
            profile.written_bytes_per_s,
            size(profile.anonymous_bytes),
            size(profile.file_bytes),
            size(profile.shared_bytes)
        ),
    ));
    rows
}

fn rate(per_s: f64) -> String {
    if per_s < 10.0 { format!("{per_s:.1}") } else { format!("{per_s:.0}") }
}

fn most(values: &[f64]) -> Option<f64> {
    values.iter().copied().max_by(f64::total_cmp).filter(|most| *most > 0.0)
}

/// A bar for each value, the highest one for `most`.
fn bars(values: &[f64], most: f64) -> String {
    let last = BARS.len() - 1;
    let bar = |value: &f64| {
        let part = value / most * last as f64;
        BARS.into_iter()
            .enumerate()
            .rfind(|(level, _)| *level as f64 <= part.round())
            .map_or(BARS[0], |(_, bar)| bar)
    };
    values.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::profile::{ForecastStatus, MissRatio, ReuseTimes, WorkingSet};

    #[test]
    fn a_profile_is_shown_with_its_plots() {
        let profile = ProfileStatus {
            reads_per_s: 412.4,
            writes_per_s: 2.25,
            sequential: Some(0.38),
            strided: Some(0.02),
            working_sets: vec![WorkingSet { within_ms: 10_000, bytes: 12 << 20 }],
            miss_ratios: vec![
                MissRatio { bytes: 1 << 20, ratio: 1.0 },
                MissRatio { bytes: 2 << 20, ratio: 0.5 },
                MissRatio { bytes: 4 << 20, ratio: 0.0 },
            ],
            reuse_ms: Some(ReuseTimes { p50: 10, p90: 2000, p99: 60_000 }),
            entropy_bits: Some(3.0),
            period_ms: Some(480_000),
            period_correlation: Some(0.9),
            ahead: vec![AheadStatus {
                after_ms: 60_000,
                accesses_per_s: ForecastStatus {
                    expected: 300.0,
                    lower: 250.0,
                    upper: 410.5,
                    method: "seasonal".into(),
                    error: None,
                },
                used_bytes: ForecastStatus {
                    expected: 2e6,
                    lower: 0.0,
                    upper: 4e6,
                    ..ForecastStatus::default()
                },
            }],
            hour: vec![0.0, 100.0, 400.0],
            ..ProfileStatus::default()
        };
        let rows = rows(&profile);
        let row = |name: &str| rows.iter().find(|(row, _)| *row == name).unwrap().1.as_str();
        assert_eq!(row("accesses"), "412 reads/s, 2.2 writes/s; 38 % go on page by page, 2 % in steps");
        assert_eq!(row("  by the minute"), "▁▃█ 3 min, 400/s at most");
        assert_eq!(row("would miss"), "█▅▁ 100 % with 1.0 MiB to 0 % with 4.0 MiB");
        assert_eq!(row("spread"), "3.0 bits: as over 8 blocks of 2 MiB evenly");
        assert_eq!(row("expected"), "300/s (250 to 410), 1.9 MiB used (0 B to 3.8 MiB); in 60.0 s, seasonal");
    }

    #[test]
    fn of_what_is_not_known_there_is_no_row() {
        let rows = rows(&ProfileStatus::default());
        let names: Vec<_> = rows.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["accesses", "at work here for", "process"]);
    }
}
