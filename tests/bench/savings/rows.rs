//! The rows of one stretch.

use super::stretch::{Stretch, free_of_all_mib};
use super::vm::Vm;
use tiering_testkit::results::Results;

/// The rows of each guest, and those of all together where there is more than one. So much of each should be free as
/// `wanted_mib` says.
pub fn show(
    results: &mut Results,
    who: &str,
    vms: &[Vm],
    stretches: &[Stretch],
    nones: &[Stretch],
    wanted_mib: Option<u64>,
) {
    let alone = vms.len() == 1;
    for ((vm, stretch), none) in vms.iter().zip(stretches).zip(nones) {
        let whose = if alone { who.to_owned() } else { format!("{who}, {}", vm.label) };
        if !std::ptr::eq(stretch, none) {
            free(results, &whose, &stretch.free_mib, wanted_mib);
            results.note(&format!("{whose}: in swap, MiB"), stretch.in_swap_mib);
            cost(results, &whose, stretch, none);
            by_minute(results, &whose, stretch, none);
        }
        work(results, &whose, stretch);
    }
    if let Some(any) = stretches.first().filter(|_| !std::ptr::eq(stretches, nones)) {
        results.note(&format!("{who}: pages read from swap"), any.host.reads);
    }
    host(results, who, stretches, nones);
    if !alone && !std::ptr::eq(stretches, nones) {
        free(results, &format!("{who}, all"), &free_of_all_mib(stretches), None);
    }
}

fn free(results: &mut Results, whose: &str, free_mib: &[(u64, u64)], wanted_mib: Option<u64>) {
    let at_end = free_mib.last().map_or(0, |(_, last)| *last);
    let what = format!("{whose}: free, MiB");
    match wanted_mib {
        Some(never) => {
            let target = format!("{} of {never} never touched again", never * 9 / 10);
            results.figure(&what, at_end, &target, at_end * 10 >= never * 9);
        }
        None => results.note(&what, at_end),
    }
    let told = free_mib.iter().map(|(minutes, free)| format!("{free} after {minutes} min"));
    results.note(&format!("{whose}: free, MiB, over time"), told.collect::<Vec<_>>().join(", "));
}

/// What the host did in each minute.
pub fn host(results: &mut Results, who: &str, stretches: &[Stretch], nones: &[Stretch]) {
    let (Some(any), Some(none)) = (stretches.first(), nones.first()) else { return };
    let steal = any.host.steal_by_minute.iter();
    results.note(&format!("{who}: CPU stolen from the host, % of each minute"), row(steal.copied(), 1));
    let pace = row(pace_by_minute(any, none), 0);
    results.note(&format!("{who}: pace of the host's processors, % of none"), pace);
}

/// What a guest did in each minute, percent of what it did in the last one without an agent; and what it did a second
/// of CPU time, at the pace of the host's processors: that is the same where only these changed, or its share of them.
/// The latter tells of the host: what the guest waited is not in it.
pub fn by_minute(results: &mut Results, whose: &str, stretch: &Stretch, none: &Stretch) {
    let percent = stretch.by_minute.iter().map(|per_s| per_s / none.per_s * 100.0);
    results.note(&format!("{whose}: throughput of each minute, % of none"), row(percent, 0));
    let Some(none_cpu_s) = none.cpu_s_by_minute.last() else { return };
    let minutes = stretch.by_minute.iter().zip(&stretch.cpu_s_by_minute).zip(pace_by_minute(stretch, none));
    let percent =
        minutes.map(|((per_s, cpu_s), pace)| per_s / cpu_s / (none.per_s / none_cpu_s) / pace * 1e4);
    results
        .note(&format!("{whose}: the same a CPU second and at the host's pace, % of none"), row(percent, 0));
}

/// How fast the host's processors were in each minute, percent of the last one without an agent.
fn pace_by_minute(stretch: &Stretch, none: &Stretch) -> impl Iterator<Item = f64> {
    let none = none.host.pace_by_minute.last().copied().unwrap_or(f64::NAN);
    stretch.host.pace_by_minute.iter().map(move |pace| pace / none * 100.0)
}

fn row(figures: impl Iterator<Item = f64>, digits: usize) -> String {
    figures.map(|figure| format!("{figure:.digits$}")).collect::<Vec<_>>().join(", ")
}

/// What the guest did less than without anybody who takes memory from it.
fn cost(results: &mut Results, whose: &str, stretch: &Stretch, none: &Stretch) {
    for (when, per_s, target) in [("last", stretch.per_s, 99.0), ("worst", stretch.worst_per_s, 95.0)] {
        let percent = per_s / none.per_s * 100.0;
        let what = format!("{whose}: throughput of the {when} minute, % of none");
        results.figure(&what, format!("{percent:.1}"), &format!("{target}"), percent >= target);
    }
}

fn work(results: &mut Results, whose: &str, stretch: &Stretch) {
    results.note(&format!("{whose}: waits (major faults)"), stretch.major_faults);
    results.note(&format!("{whose}: touches or operations a second"), format!("{:.2}", stretch.per_s));
    if let Some(p99_us) = stretch.p99_us {
        results.note(&format!("{whose}: p99 of a touch, worst second, us"), format!("{p99_us:.1}"));
    }
}
