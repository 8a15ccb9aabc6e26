//! What guests do and suffer in a stretch of time.
//!
//! In: running guests, each in a memory control group of its own. Out: how long their touches took, which pages these
//! were (by the patterns), how many pages came back from swap.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tiering_testkit::guest::{Backend, Guest};
use tiering_testkit::observe::mapped_and_swapped;
use tiering_testkit::pattern::{Access, Pattern, PhaseResult};
use tiering_testkit::results::Results;

use crate::host::{BOOT, Memcg, kvm_guest};

const PAGES_A_MIB: usize = 256;
const CGROUPS: &str = "/sys/fs/cgroup";
/// QEMU 7.2 emulates cmpxchg16b in a way that now and then crashes a guest's kernel in its boot (1 of 4 in one run).
const BOOT_TRIES: u32 = 3;

/// A guest, what it does, and its group.
pub struct Member {
    pub guest: Guest,
    pub pattern: Pattern,
    /// As it is called in the lab's cgroup tree.
    group: String,
    memcg: Memcg,
}

/// What the kernel counts of a group.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Pages that were evicted, and read again.
    pub refaults: u64,
    /// Faults that had to wait for a disk.
    pub major: u64,
}

/// What one guest did and suffered.
#[derive(Debug)]
pub struct Seen {
    pub name: String,
    /// (Largest ns of a bucket, touches).
    pub latency: BTreeMap<u64, u64>,
    /// How long its rounds took, by its own clock.
    pub rounds_ns: u64,
    /// Pages of the pattern that were touched, and all of them.
    pub touched: usize,
    pub pages: usize,
    pub counts: Counts,
}

impl Member {
    /// Starts a guest of 112 MiB in a group that is called as it is, and waits until it is ready.
    pub fn start(results: &mut Results, name: &str, pattern: Pattern) -> Result<Self> {
        Self::start_in(results, name, name, pattern)
    }

    /// The same in a group of another name: a path below the root of the tree.
    pub fn start_in(results: &mut Results, name: &str, group: &str, pattern: Pattern) -> Result<Self> {
        let builder = kvm_guest(name, Backend::AnonymousSmall).memory_mib(112).pattern(pattern.clone());
        let mut tries = 1;
        loop {
            let mut guest = builder.clone().start()?;
            let memcg = Memcg::of(group, guest.pid())?;
            let booted = guest.wait_ready(BOOT);
            match booted {
                Ok(()) => {
                    results.note("ready", guest.name());
                    return Ok(Self { guest, pattern, group: group.to_owned(), memcg });
                }
                Err(error) if tries == BOOT_TRIES => return Err(error),
                Err(error) => results
                    .note("did not boot, once more", format!("{error:#}").lines().next().unwrap_or(name)),
            }
            drop(guest);
            std::fs::remove_dir(Path::new(CGROUPS).join(group))
                .context("removing the group of a guest that ended")?;
            tries += 1;
        }
    }

    /// Its group, below the root of the tree.
    pub fn group(&self) -> &str {
        &self.group
    }

    pub fn counts(&self) -> Result<Counts> {
        let stat = std::fs::read_to_string(Path::new(CGROUPS).join(&self.group).join("memory.stat"))?;
        let field = |name: &str| {
            let value = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            value.and_then(|value| value.parse().ok()).with_context(|| format!("memory.stat has no {name}"))
        };
        Ok(Counts { refaults: field("workingset_refault_anon")?, major: field("pgmajfault")? })
    }

    /// Pages of its RAM that are mapped, and that are in swap.
    pub fn mapped_and_swapped(&self) -> Result<(u64, u64)> {
        mapped_and_swapped(self.guest.pid(), &self.guest.ram()?)
    }

    /// Has the kernel reclaim until so many pages of its RAM are in swap, as far as it goes in one try.
    pub fn reclaim_to(&self, swapped: u64) -> Result<()> {
        let (_, now) = self.mapped_and_swapped()?;
        if now < swapped {
            self.memcg.reclaim((swapped - now) * 4096);
        }
        Ok(())
    }

    fn last_phase(&self) -> Result<u64> {
        Ok(self.guest.phases()?.last().map_or(0, |phase| phase.number))
    }

    fn seen(&self, phases: &[PhaseResult], counts: Counts) -> Seen {
        let mut latency = BTreeMap::new();
        for (ns, touches) in phases.iter().flat_map(|phase| &phase.latency) {
            *latency.entry(*ns).or_default() += touches;
        }
        let mut touched: HashSet<usize> = phases
            .iter()
            .flat_map(|phase| phase.truth(&self.pattern).map(|touch| touch.page).collect::<Vec<_>>())
            .collect();
        // Its hot set is touched between the rounds, of which no phase tells.
        if let Access::HotAndLoop { hot_mib, .. } = self.pattern.access {
            touched.extend(0..hot_mib * PAGES_A_MIB);
        }
        let rounds_ns = phases.iter().map(|phase| phase.end_ns - phase.start_ns).sum();
        let (name, pages) = (self.guest.name().to_owned(), self.pattern.pages());
        Seen { name, latency, rounds_ns, touched: touched.len(), pages, counts }
    }
}

/// Lets the guests run for so long, doing `each` once a second or so, and tells what they did meanwhile.
pub fn watch(
    members: &mut [Member],
    time: Duration,
    mut each: impl FnMut(&mut [Member]) -> Result<()>,
) -> Result<Vec<Seen>> {
    let before: Vec<(u64, Counts)> =
        members.iter().map(|member| Ok((member.last_phase()?, member.counts()?))).collect::<Result<_>>()?;
    let began = Instant::now();
    while began.elapsed() < time {
        each(members)?;
        members.iter_mut().try_for_each(|member| member.guest.check_alive())?;
        std::thread::sleep(Duration::from_secs(1));
    }
    let seen = members.iter().zip(before).map(|(member, (last, before))| {
        let mut phases = member.guest.phases()?;
        // The first one that ended in the window began before it.
        phases.retain(|phase| phase.number > last + 1);
        let now = member.counts()?;
        let counts = Counts { refaults: now.refaults - before.refaults, major: now.major - before.major };
        Ok(member.seen(&phases, counts))
    });
    seen.collect()
}

impl Seen {
    /// Mean of the touches' times, ns; a bucket counts as its largest value.
    pub fn mean_ns(&self) -> f64 {
        let touches: u64 = self.latency.values().sum();
        let sum: f64 = self.latency.iter().map(|(ns, touches)| *ns as f64 * *touches as f64).sum();
        sum / touches.max(1) as f64
    }

    /// 99 % of the touches took at most this.
    pub fn p99_ns(&self) -> u64 {
        let touches: u64 = self.latency.values().sum();
        let mut rest = touches - touches / 100;
        for (ns, touches) in &self.latency {
            rest = rest.saturating_sub(*touches);
            if rest == 0 {
                return *ns;
            }
        }
        0
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let touches: u64 = self.latency.values().sum();
        let Counts { refaults, major } = self.counts;
        write!(
            f,
            "{touches:>6} touches, mean {:>5.0} us, p99 {:>6} us; {refaults} refaults, {major} major faults",
            self.mean_ns() / 1000.0,
            self.p99_ns() / 1000
        )
    }
}

/// Mean slowdown of each guest against itself, percent.
pub fn slowdown_percent(before: &[Seen], after: &[Seen]) -> f64 {
    let ratios: Vec<f64> =
        before.iter().zip(after).map(|(before, after)| after.mean_ns() / before.mean_ns()).collect();
    (ratios.iter().sum::<f64>() / ratios.len().max(1) as f64 - 1.0) * 100.0
}

/// Ends the guests, one after the other, and notes whether their memory is right.
pub fn finish(results: &mut Results, members: &mut [Member]) -> Result<()> {
    for member in members {
        let right = member.guest.finish()?.checksum_ok;
        results.check(&format!("{}: memory right", member.guest.name()), right, "true", right);
    }
    Ok(())
}
