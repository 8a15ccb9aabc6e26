//! What it costs to keep a VM's profile: time an access, time an epoch, and memory. No guests: accesses are made
//! up.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tiering_testkit::random::Random;
use tiering_testkit::repeats::Repeats;
use tiering_testkit::results::Results;
use tiering_user::profile::{EPOCH, Observed, Profile};
use tiering_user::sys::Monotonic;

/// Of 16 GiB.
const PAGES: u32 = 4 << 20;
const ACCESSES_AN_EPOCH: usize = 100_000;
/// A week, so that all of the history is there.
const EPOCHS_IN_A_WEEK: u64 = 7 * 24 * 360;

pub fn cost(results: &mut Results, quick: bool) -> Result<()> {
    let (mut an_access, mut an_epoch) = (Vec::new(), Vec::new());
    for repeat in 0..if quick { 3 } else { 5 } {
        let mut random = Random::new(repeat);
        let mut profile = Profile::new(PAGES, Monotonic::default());
        let mut time = Monotonic::default();
        let (mut accesses, mut epochs) = (Duration::ZERO, Duration::ZERO);
        let rounds = if quick { 20 } else { 100 };
        for _ in 0..rounds {
            let pages: Vec<u32> =
                (0..ACCESSES_AN_EPOCH).map(|_| random.below(PAGES as usize) as u32).collect();
            let began = Instant::now();
            for page in pages {
                profile.access(page, page % 4 == 0, time, 1);
            }
            accesses += began.elapsed();
            time = time.after(EPOCH);
            let began = Instant::now();
            profile.end_epoch(time, Observed::default());
            epochs += began.elapsed();
        }
        black_box(&profile);
        an_access.push(accesses.as_nanos() as f64 / (f64::from(rounds) * ACCESSES_AN_EPOCH as f64));
        an_epoch.push(epochs.as_micros() as f64 / f64::from(rounds));
    }
    let an_access = Repeats::of(&an_access).context("no repeats")?;
    let an_epoch = Repeats::of(&an_epoch).context("no repeats")?;
    results.note("an access of a VM of 16 GiB, ns", an_access);
    results.note("the end of an epoch, us", an_epoch);

    const VMS: usize = 20;
    let before = resident()?;
    let profiles: Vec<Profile> = (0..VMS).map(|vm| week(vm as u64)).collect();
    let each = (resident()?.saturating_sub(before)) / VMS as u64 / 1024;
    black_box(&profiles);
    results.note("memory of one after a week, KiB", each);
    results.headline(format!(
        "{:.0} ns an access, {:.0} us an epoch, {each} KiB a VM",
        an_access.median, an_epoch.median
    ));
    Ok(())
}

/// A VM that was watched for a week, and accessed more pages than are looked at.
fn week(seed: u64) -> Profile {
    let mut random = Random::new(seed);
    let mut profile = Profile::new(PAGES, Monotonic::default());
    let mut time = Monotonic::default();
    for _ in 0..EPOCHS_IN_A_WEEK {
        time = time.after(EPOCH);
        profile.access(random.below(PAGES as usize) as u32, false, time, 1);
        profile.end_epoch(time, Observed::default());
    }
    for _ in 0..ACCESSES_AN_EPOCH {
        profile.access(random.below(PAGES as usize) as u32, false, time, 1);
    }
    profile
}

fn resident() -> Result<u64> {
    Ok(procfs::process::Process::myself()?.statm()?.resident * 4096)
}
