//! What it is worth to divide memory among VMs by what more of it spares each: the patterns of the test guests,
//! and as much memory as half of what they use. No guests: what waits is counted with each VM's least recently
//! used pages going first, within its share.

use std::collections::HashSet;

use anyhow::{Context, Result, ensure};
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::repeats::Repeats;
use tiering_testkit::results::Results;
use tiering_user::policy::{Claim, Waits, shares};
use tiering_user::profile::{EPOCH, Observed, Profile};
use tiering_user::replay::{AccessAt, lru};
use tiering_user::sys::Monotonic;
use tiering_user::track::VmId;

/// First so long they are watched, then what waits is counted for as long.
const WATCHED_S: u64 = 300;
/// Parts of memory in which the best division is looked for.
const DIVISIONS: u64 = 8;

/// One VM: what it touches, and how often in a second.
type Touching = (Access, u64);

fn mixes() -> [(&'static str, Vec<Touching>); 5] {
    let zipf = |skew_percent| Access::Zipf { set_mib: 96, skew_percent };
    let evenly = Access::Uniform { set_mib: 48 };
    let walk = |set_mib| Access::Sequential { set_mib };
    [
        ("skewed, and a walk that never fits", vec![(zipf(120), 500), (walk(160), 500)]),
        ("skewed, and a walk that fits", vec![(zipf(120), 500), (walk(48), 500)]),
        ("evenly, often and seldom", vec![(evenly, 1000), (evenly, 100)]),
        ("two alike", vec![(zipf(80), 500), (zipf(80), 500)]),
        (
            "a skewed one, an even one, two walks",
            vec![(zipf(120), 500), (evenly, 500), (walk(160), 500), (walk(24), 100)],
        ),
    ]
}

/// What a VM touches, and what the agent knows of it after half of that.
struct Watched {
    pages: Vec<u32>,
    half: usize,
    claim: Claim,
}

fn watch(vm: u32, (access, rate): Touching, seed: u64) -> Result<Watched> {
    let pattern = Pattern { mem_mib: 192, seed, access, ..Pattern::default() };
    let touches = pattern.touches().take((2 * WATCHED_S * rate) as usize);
    let writes: Vec<(u32, bool)> =
        touches.map(|touch| Ok((u32::try_from(touch.page)?, touch.write))).collect::<Result<_>>()?;
    let half = (WATCHED_S * rate) as usize;
    let mut profile = Profile::new(u32::try_from(pattern.pages())?, Monotonic::default());
    for (number, (page, write)) in (0u64..).zip(&writes[..half]) {
        let time = Monotonic(number * 1_000_000_000 / rate);
        if profile.is_due(time) {
            profile.end_epoch(time, Observed::default());
        }
        profile.access(*page, *write, time, 1);
    }
    profile.end_epoch(
        Monotonic::default().after(EPOCH * (WATCHED_S / EPOCH.as_secs()) as u32),
        Observed::default(),
    );
    let pages: Vec<u32> = writes.into_iter().map(|(page, _)| page).collect();
    let wants = pages[..half].iter().collect::<HashSet<_>>().len() as u64;
    let per_second = |ratios: Waits| ratios.map(|ratio| ratio * rate as f64);
    let waits = profile.miss_ratios(wants).map(per_second);
    let claim = Claim { vm: VmId(vm), wants, floor: wants / 10, weight: 1.0, waits };
    Ok(Watched { pages, half, claim })
}

impl Watched {
    /// Touches of the second half that wait, with so much memory.
    fn waits(&self, share: u64) -> u64 {
        let capacity = u32::try_from(share.max(1)).unwrap_or(u32::MAX);
        let came_back = |pages: &[u32]| {
            let accesses: Vec<_> = pages.iter().map(|page| AccessAt { page: *page, capacity }).collect();
            lru(&[], &accesses)
        };
        came_back(&self.pages) - came_back(&self.pages[..self.half])
    }
}

/// What waits if memory is divided so.
fn waits(vms: &[Watched], shares: &[u64]) -> u64 {
    vms.iter().zip(shares).map(|(vm, share)| vm.waits(*share)).sum()
}

/// The least that waits with two VMs, however memory is divided.
fn least(vms: &[Watched], pages: u64) -> Option<u64> {
    let [one, other] = vms else { return None };
    let divided =
        |part: u64| one.waits(pages * part / DIVISIONS) + other.waits(pages * (DIVISIONS - part) / DIVISIONS);
    (1..DIVISIONS).map(divided).min()
}

pub fn measure(results: &mut Results, quick: bool) -> Result<()> {
    let mut all = Vec::new();
    for (name, touching) in mixes() {
        let mut ratios = Vec::new();
        let (mut fairly, mut by_gain, mut at_best) = (0, 0, None);
        for seed in 0..if quick { 2 } else { 5 } {
            let vms = (1..)
                .zip(&touching)
                .map(|(vm, touching)| watch(vm, *touching, seed))
                .collect::<Result<Vec<_>>>()?;
            let claims: Vec<Claim> = vms.iter().map(|vm| vm.claim).collect();
            let pages = claims.iter().map(|claim| claim.wants).sum::<u64>() / 2;
            let blind: Vec<Claim> = claims.iter().map(|claim| Claim { waits: None, ..*claim }).collect();
            fairly = waits(&vms, &shares(&blind, pages));
            by_gain = waits(&vms, &shares(&claims, pages));
            at_best = least(&vms, pages);
            ensure!(fairly > 0, "nothing waits: {name}");
            ratios.push(by_gain as f64 / fairly as f64 * 100.0);
        }
        let best = at_best
            .map_or_else(String::new, |best| format!(", {best} with the best of {DIVISIONS} divisions"));
        let ratio = Repeats::of(&ratios).context("no repeats")?;
        results.figure(
            &format!("{name}: wait, of those that wait with fair shares, %"),
            format!("{:.1} ({:.1} to {:.1})", ratio.median, ratio.least, ratio.most),
            "100 at most",
            ratio.median <= 100.0,
        );
        results.note("   the last time, fairly and by gain", format!("{fairly}, {by_gain}{best}"));
        all.extend(ratios);
    }
    let ratio = Repeats::of(&all).context("no repeats")?;
    results.headline(format!(
        "shares by gain: {:.0} % ({:.0} to {:.0}) of the waits with fair ones",
        ratio.median, ratio.least, ratio.most
    ));
    Ok(())
}
