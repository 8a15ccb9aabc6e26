//! How right forecasts are, and how often their bounds hold. No guests: the loads are made up, epoch by epoch, and
//! pushed into the history of a profile, which is asked as the agent asks it.
//!
//! An error is that of the expected value by that of the naive method (as it is now) for as far ahead: below 1 is
//! better. The first third of a load is to learn from.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tiering_testkit::random::Random;
use tiering_testkit::repeats::Repeats;
use tiering_testkit::results::Results;
use tiering_user::profile::{AHEAD, Ahead, EPOCH, Point, Series};

const EPOCHS_A_MINUTE: usize = 6;
const EPOCHS_A_DAY: usize = 8640;
const HOURS: usize = 12;
const DAYS: usize = 9;

/// What is wanted: of periodic loads in the mean, and of others at worst.
const PERIODIC_MOST: f64 = 0.8;
const OTHERS_MOST: f64 = 1.05;
/// Points above the upper bound, %.
const ABOVE: std::ops::RangeInclusive<f64> = 3.0..=7.0;

/// Accesses a second of one epoch after another.
type Load = fn(epoch: usize, before: f64, random: &mut Random) -> f64;

struct Case {
    name: &'static str,
    periodic: bool,
    epochs: usize,
    load: Load,
}

const CASES: [Case; 10] = [
    Case { name: "2 minutes of work in every 8", periodic: true, epochs: HOURS * 360, load: bursts },
    Case { name: "a wave of half an hour", periodic: true, epochs: HOURS * 360, load: wave },
    Case { name: "a saw of 20 min 15 s that grows", periodic: true, epochs: HOURS * 360, load: saw },
    Case { name: "a job of an hour each night", periodic: true, epochs: DAYS * EPOCHS_A_DAY, load: nightly },
    Case { name: "days and nights", periodic: true, epochs: DAYS * EPOCHS_A_DAY, load: days },
    Case { name: "noise", periodic: false, epochs: HOURS * 360, load: white },
    Case { name: "a random walk", periodic: false, epochs: HOURS * 360, load: walk },
    Case { name: "noise that lasts", periodic: false, epochs: HOURS * 360, load: lasting },
    Case { name: "work now and then", periodic: false, epochs: HOURS * 360, load: now_and_then },
    Case { name: "levels that change", periodic: false, epochs: HOURS * 360, load: levels },
];

/// From -1 to 1.
fn noise(random: &mut Random) -> f64 {
    random.below(2_000_001) as f64 / 1e6 - 1.0
}

fn bursts(epoch: usize, _: f64, random: &mut Random) -> f64 {
    50.0 + 20.0 * noise(random) + if epoch % 48 < 12 { 1000.0 + 200.0 * noise(random) } else { 0.0 }
}

fn wave(epoch: usize, _: f64, random: &mut Random) -> f64 {
    500.0 + 400.0 * (epoch as f64 / 180.0 * std::f64::consts::TAU).sin() + 100.0 * noise(random)
}

fn saw(epoch: usize, _: f64, random: &mut Random) -> f64 {
    (epoch as f64 % 121.5) * 10.0 + epoch as f64 / 20.0 + 100.0 * noise(random)
}

fn nightly(epoch: usize, _: f64, random: &mut Random) -> f64 {
    50.0 + 20.0 * noise(random) + if epoch % EPOCHS_A_DAY < 360 { 1000.0 } else { 0.0 }
}

fn days(epoch: usize, _: f64, random: &mut Random) -> f64 {
    let day = (epoch as f64 / EPOCHS_A_DAY as f64 * std::f64::consts::TAU).sin().max(0.0);
    150.0 + 900.0 * day + 100.0 * noise(random)
}

fn white(_: usize, _: f64, random: &mut Random) -> f64 {
    500.0 + 400.0 * noise(random)
}

fn walk(_: usize, before: f64, random: &mut Random) -> f64 {
    (before + 30.0 * noise(random)).max(0.0)
}

fn lasting(_: usize, before: f64, random: &mut Random) -> f64 {
    500.0 + 0.95 * (before - 500.0) + 100.0 * noise(random)
}

/// Two minutes in the mean, at any time, of ten.
fn now_and_then(_: usize, before: f64, random: &mut Random) -> f64 {
    let works = if before > 500.0 { random.below(12) > 0 } else { random.below(48) == 0 };
    50.0 + 20.0 * noise(random) + if works { 1000.0 } else { 0.0 }
}

/// Another one every two hours in the mean.
fn levels(_: usize, before: f64, random: &mut Random) -> f64 {
    let level = (before / 100.0).round() * 100.0;
    let level = if random.below(720) == 0 { 100.0 * random.below(20) as f64 } else { level };
    (level + 30.0 * noise(random)).max(0.0)
}

/// Of one case and one look ahead.
#[derive(Default)]
struct Tally {
    error: f64,
    naive: f64,
    count: u32,
    above: u32,
    below: u32,
}

impl Tally {
    fn error(&self) -> f64 {
        self.error / self.naive
    }

    fn above_percent(&self) -> f64 {
        f64::from(self.above) / f64::from(self.count) * 100.0
    }

    fn below_percent(&self) -> f64 {
        f64::from(self.below) / f64::from(self.count) * 100.0
    }
}

fn epochs_in(time: Duration) -> usize {
    (time.as_secs() / EPOCH.as_secs()) as usize
}

/// The mean of so long until this epoch, which is part of it.
fn mean(rates: &[f64], epoch: usize, over: Duration) -> Option<f64> {
    let epochs = epochs_in(over);
    let part = rates.get((epoch + 1).checked_sub(epochs)?..=epoch)?;
    Some(part.iter().sum::<f64>() / epochs as f64)
}

/// Asks for the period once a minute, and for each forecast when it has a new point to go by; how long that took for an
/// epoch.
fn go_through(case: &Case, seed: u64) -> ([Tally; AHEAD.len()], Duration) {
    let mut random = Random::new(seed);
    let mut rates = Vec::with_capacity(case.epochs);
    let mut before = 500.0;
    for epoch in 0..case.epochs {
        before = (case.load)(epoch, before, &mut random);
        rates.push(before);
    }
    let mut tallies: [Tally; AHEAD.len()] = Default::default();
    let mut took = Duration::ZERO;
    let (mut series, mut season) = (Series::default(), None);
    let learned = case.epochs / 3;
    for (epoch, rate) in rates.iter().enumerate() {
        series.push(Point { rate: *rate as f32, working_set: 0 });
        let began = Instant::now();
        if (epoch + 1).is_multiple_of(EPOCHS_A_MINUTE) {
            season = series.season();
        }
        if epoch < learned {
            continue;
        }
        let ahead =
            AHEAD.map(|after| series.is_new(after, season).then(|| series.ahead(after, season)).flatten());
        took += began.elapsed();
        for (tally, said) in tallies.iter_mut().zip(ahead) {
            let Some(Ahead { after, over, rate, .. }) = said else { continue };
            let then = epoch + epochs_in(after);
            let (Some(came), Some(now)) = (mean(&rates, then, over), mean(&rates, epoch, over)) else {
                continue;
            };
            tally.error += (rate.expected - came).abs();
            tally.naive += (now - came).abs();
            tally.above += u32::from(came > rate.upper);
            tally.below += u32::from(came < rate.lower);
            tally.count += 1;
        }
    }
    (tallies, took / (case.epochs - learned) as u32)
}

pub fn measure(results: &mut Results, quick: bool) -> Result<()> {
    let (mut periodic, mut others, mut above, mut times) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for case in &CASES {
        let mut errors: [Vec<f64>; AHEAD.len()] = Default::default();
        let (mut aboves, mut belows) = (Vec::new(), Vec::new());
        for seed in 0..if quick { 1 } else { 5 } {
            let (tallies, took) = go_through(case, seed);
            times.push(took.as_micros() as f64);
            for (errors, tally) in errors.iter_mut().zip(&tallies) {
                if tally.count > 0 {
                    errors.push(tally.error());
                    aboves.push(tally.above_percent());
                    belows.push(tally.below_percent());
                }
            }
        }
        let medians: Vec<f64> =
            errors.iter().filter_map(|errors| Repeats::of(errors)).map(|errors| errors.median).collect();
        let shown: Vec<String> = medians.iter().map(|error| format!("{error:.2}")).collect();
        let worst = medians.iter().copied().fold(0.0, f64::max);
        let mean = medians.iter().sum::<f64>() / medians.len() as f64;
        let (value, wanted) = if case.periodic { (mean, PERIODIC_MOST) } else { (worst, OTHERS_MOST) };
        let of = if case.periodic { "in the mean" } else { "each" };
        results.figure(
            &format!("{}: error in 1, 5, 10, 30 min", case.name),
            shown.join(", "),
            &format!("{of} at most {wanted}"),
            value <= wanted,
        );
        if case.periodic { &mut periodic } else { &mut others }.push(value);
        let (over, under) = (Repeats::of(&aboves).context("none")?, Repeats::of(&belows).context("none")?);
        results.figure(
            "   above the upper bound, %; below the lower one",
            format!("{:.1} ({:.1} to {:.1}); {:.1}", over.median, over.least, over.most, under.median),
            "5, and 2 more or less",
            ABOVE.contains(&over.median),
        );
        above.push(over.median);
    }
    let took = Repeats::of(&times).context("no times")?;
    results.note("period and forecasts of a machine, us an epoch", took);
    let mean = periodic.iter().sum::<f64>() / periodic.len() as f64;
    let worst = others.iter().copied().fold(0.0, f64::max);
    let (least, most) =
        (above.iter().copied().fold(100.0, f64::min), above.iter().copied().fold(0.0, f64::max));
    results.headline(format!(
        "forecasts: error {mean:.2} of periodic loads in the mean, {worst:.2} of others at worst, {least:.1} to {most:.1} % above the bound"
    ));
    Ok(())
}
