//! A stretch of time in which guests work, and what became of each.
//!
//! In: guests at work, a length, perhaps something to do every ten seconds. Out: a [`Stretch`] a guest.

use super::pace::Pace;
use super::vm::{Done, Vm};
use anyhow::{Context, Result};
use procfs::CurrentSI as _;
use std::time::{Duration, Instant};
use tiering_testkit::stop;

pub const MINUTE: Duration = Duration::from_mins(1);
/// Minutes after which it is told how much is free.
const TOLD_MINUTES: [u64; 3] = [2, 5, 10];
const BETWEEN_STEPS: Duration = Duration::from_secs(10);

/// What became of a guest.
pub struct Stretch {
    /// Of the guest's RAM, at its end; copies of it may be in memory still, in the swap cache.
    pub in_swap_mib: u64,
    /// Of the guest's RAM, in swap and not in memory: after each of the minutes that are told.
    pub free_mib: Vec<(u64, u64)>,
    pub major_faults: u64,
    pub host: Meanwhile,
    /// What the guest did a second: in the last minute, in the worst one, and in each.
    pub per_s: f64,
    pub worst_per_s: f64,
    pub by_minute: Vec<f64>,
    /// What QEMU had of the CPU in each minute, seconds.
    pub cpu_s_by_minute: Vec<f64>,
    /// Of a touch, in the worst of the last minute's seconds.
    pub p99_us: Option<f64>,
}

/// What the host did in a stretch, for whomever.
#[derive(Clone)]
pub struct Meanwhile {
    /// Pages read from swap, with what the kernel read ahead.
    pub reads: u64,
    /// Of each minute's CPU time, what the host did not get from the hypervisor that it runs on, percent.
    pub steal_by_minute: Vec<f64>,
    /// How fast its processors were in each minute, of any unit.
    pub pace_by_minute: Vec<f64>,
}

/// What is free of all guests together, after each of the minutes that are told.
pub fn free_of_all_mib(stretches: &[Stretch]) -> Vec<(u64, u64)> {
    let mut all = stretches.first().map_or_else(Vec::new, |first| first.free_mib.clone());
    for stretch in stretches.iter().skip(1) {
        for ((_, all), (_, free)) in all.iter_mut().zip(&stretch.free_mib) {
            *all += free;
        }
    }
    all
}

/// What is noted of a guest on the way.
struct Watch {
    faults: u64,
    /// How much the guest had told, and QEMU's CPU seconds, at the end of each minute, and at the beginning.
    told: Vec<usize>,
    cpu_s: Vec<f64>,
    free_mib: Vec<(u64, u64)>,
}

/// So much time goes by; every ten seconds something is done, which is told how often before.
pub fn watch(
    vms: &mut [Vm],
    length: Duration,
    mut act: impl FnMut(&[Vm], u32) -> Result<()>,
) -> Result<Vec<Stretch>> {
    let (began, reads) = (Instant::now(), host_reads()?);
    let (mut ticks, pace, mut pace_by_minute) = (vec![HostTicks::now()?], Pace::start(), Vec::new());
    let mut watches = Vec::new();
    for vm in &*vms {
        let (faults, told, cpu_s) = (vm.major_faults()?, vec![vm.done()?.len()], vec![vm.cpu_seconds()?]);
        watches.push(Watch { faults, told, cpu_s, free_mib: Vec::new() });
    }
    let mut ended = 0;
    for step in 0.. {
        act(vms, step)?;
        let minutes = began.elapsed().as_secs() / MINUTE.as_secs();
        if minutes > ended {
            ended = minutes;
            ticks.push(HostTicks::now()?);
            pace_by_minute.push(pace.take());
            for (vm, watch) in vms.iter().zip(&mut watches) {
                watch.told.push(vm.done()?.len());
                watch.cpu_s.push(vm.cpu_seconds()?);
                if TOLD_MINUTES.contains(&minutes) {
                    watch.free_mib.push((minutes, vm.free_bytes()? >> 20));
                }
            }
        }
        if began.elapsed() >= length {
            break;
        }
        let next = BETWEEN_STEPS * (step + 1);
        stop::sleep(next.saturating_sub(began.elapsed()))?;
        vms.iter_mut().try_for_each(|vm| vm.guest.check_alive())?;
    }
    let steal_by_minute = ticks.windows(2).map(|two| two[1].stolen_percent_since(&two[0])).collect();
    let host = Meanwhile { reads: host_reads()? - reads, steal_by_minute, pace_by_minute };
    vms.iter().zip(watches).map(|(vm, watch)| watch.end(vm, host.clone())).collect()
}

/// CPU time of all of the host's processors since it was started, as its kernel counts it.
struct HostTicks {
    all: u64,
    stolen: u64,
}

impl HostTicks {
    fn now() -> Result<Self> {
        let total = procfs::KernelStats::current()?.total;
        let stolen = total.steal.unwrap_or(0);
        let others = [total.iowait, total.irq, total.softirq].into_iter().flatten().sum::<u64>();
        Ok(Self { all: total.user + total.nice + total.system + total.idle + others + stolen, stolen })
    }

    fn stolen_percent_since(&self, before: &Self) -> f64 {
        self.stolen.saturating_sub(before.stolen) as f64 / self.all.saturating_sub(before.all).max(1) as f64
            * 100.0
    }
}

fn host_reads() -> Result<u64> {
    let pages = procfs::vmstat()?.get("pswpin").copied().context("/proc/vmstat has no pswpin")?;
    Ok(u64::try_from(pages)?)
}

impl Watch {
    fn end(self, vm: &Vm, host: Meanwhile) -> Result<Stretch> {
        let done = vm.done()?;
        let [.., before_last, last] = self.told[..] else { anyhow::bail!("less than a minute") };
        let by_minute: Vec<f64> = self.told.windows(2).map(|two| per_s(&done, two[0], two[1])).collect();
        let (_, swapped) = vm.touched_and_swapped_bytes()?;
        Ok(Stretch {
            in_swap_mib: swapped >> 20,
            free_mib: self.free_mib,
            major_faults: vm.major_faults()? - self.faults,
            host,
            worst_per_s: by_minute.iter().copied().fold(f64::INFINITY, f64::min),
            by_minute,
            cpu_s_by_minute: self.cpu_s.windows(2).map(|two| two[1] - two[0]).collect(),
            per_s: per_s(&done, before_last, last),
            p99_us: done[before_last..].iter().filter_map(|done| done.p99_ns).max().map(|ns| ns as f64 / 1e3),
        })
    }
}

/// Between two lines that it has told; where it told nothing meanwhile, of the round that lasted longer. 0 where none
/// has ended since.
fn per_s(done: &[Done], from: usize, to: usize) -> f64 {
    let done = &done[from..to.max(from + 1).min(done.len())];
    let (Some(first), Some(last)) = (done.first(), done.last()) else { return 0.0 };
    let count: u64 = done.iter().map(|done| done.count).sum();
    count as f64 / ((last.end_ns - first.start_ns) as f64 / 1e9)
}
