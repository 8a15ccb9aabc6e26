//! How long a guest takes to fault all of its memory back in, and for how many pages it waits.
//!
//! Two emulated guests that stand still, of which one will touch all its pages in order, the other one at random. Each
//! does so once while all is in memory. An agent in its default configuration frees what it takes for cold; then the
//! guests are woken, one after the other. Beside it the kernel alone: as much of each guest is swapped out through its
//! control group, with no copy left in memory, before it is woken; at page-cluster 0, 3 and 5.

use super::plain_swap::PlainSwap;
use super::stretch::MINUTE;
use super::vm::{Load, Vm};
use crate::host::{Host, disk_at_rest, known_name};
use crate::walk::PAGE_CLUSTERS;
use anyhow::{Result, ensure};
use std::fmt::{self, Display};
use std::time::{Duration, Instant};
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::readahead::Readahead;
use tiering_testkit::results::Results;
use tiering_testkit::stop;

const MEM_MIB: usize = 192;
const MEMORY_MIB: u32 = 320;
const GUESTS: [(&str, Access); 2] = [
    ("in-order", Access::Sequential { set_mib: MEM_MIB }),
    ("at-random", Access::Follow { set_mib: MEM_MIB, order_seed: 5, overlap_percent: 100 }),
];
/// Of what a guest has touched, free before it is woken.
const FREE_PERCENT: u64 = 80;
const WAKE_LIMIT: Duration = Duration::from_secs(300);
const SWAP_OUT_LIMIT: Duration = Duration::from_secs(300);
/// What is being written is not free yet, so the kernel would page out more than it was asked for.
const STEP_BYTES: u64 = 1 << 20;
const POLL: Duration = Duration::from_secs(1);

/// A guest that stands still until it is woken.
struct Sleeper {
    vm: Vm,
    woken: u64,
}

/// All its pages are touched.
struct Wake {
    ms: f64,
    major_faults: u64,
}

pub fn measure(results: &mut Results, quick: bool) -> Result<()> {
    let host = Host::new()?;
    let readahead = Readahead::keep()?;
    let mut sleepers = Vec::new();
    for (label, access) in GUESTS {
        sleepers.push(Sleeper::start(label, access)?);
    }
    for sleeper in &mut sleepers {
        sleeper.vm.wait_ready()?;
        let in_dram = sleeper.wake()?;
        results.note(&format!("{}: all touched in DRAM", sleeper.vm.label), in_dram);
    }

    let agent = host.agent_by_default()?;
    sleepers.iter().try_for_each(|sleeper| known_name(&agent, sleeper.vm.guest.name()))?;
    wait_until_free(results, &sleepers, MINUTE * if quick { 6 } else { 12 })?;
    let mut ours = Vec::new();
    for sleeper in &mut sleepers {
        let (percent, free) = sleeper.free(results, "agent", FREE_PERCENT)?;
        let wake = sleeper.wake()?;
        results.note(&format!("{}, agent: all back after", sleeper.vm.label), &wake);
        ours.push((percent, free, wake));
    }
    // Its swap files go only when they are empty.
    agent.tiering(&["drain", "nvme"])?;
    agent.interrupt()?;

    let mut kernels = Vec::new();
    for cluster in PAGE_CLUSTERS {
        readahead.set(cluster)?;
        for (sleeper, (percent, free, _)) in sleepers.iter_mut().zip(&ours) {
            let swap = PlainSwap::on(&host.folder("by-hand"))?;
            sleeper.swap_out(*free)?;
            let who = format!("kernel alone, page-cluster {cluster}");
            let (kernels_percent, _) = sleeper.free(results, &who, *percent)?;
            let wake = sleeper.wake()?;
            drop(swap);
            results.note(&format!("{}, {who}: all back after", sleeper.vm.label), &wake);
            kernels.push((sleeper.vm.label, kernels_percent, wake));
        }
    }
    for (sleeper, (percent, _, wake)) in sleepers.iter_mut().zip(&ours) {
        let label = sleeper.vm.label;
        let as_much = kernels.iter().filter(|(whose, free, _)| *whose == label && free >= percent);
        let best = as_much.min_by(|(.., a), (.., b)| a.ms.total_cmp(&b.ms));
        let best = best.map(|(_, percent, wake)| format!(" (kernel's best: {:.0} ms, {percent} %)", wake.ms));
        results.headline(format!(
            "{label}: all back after {:.0} ms, {percent} % were free{}",
            wake.ms,
            best.unwrap_or_else(|| " (the kernel alone never had as much free)".to_owned())
        ));
        let right = sleeper.vm.finish()?;
        results.check(&format!("{label}: its memory is right"), right, "true", right);
    }
    Ok(())
}

/// Goes on with less where time runs out: how much is free is told for each guest.
fn wait_until_free(results: &mut Results, sleepers: &[Sleeper], limit: Duration) -> Result<()> {
    let began = Instant::now();
    let mut all_free = false;
    while !all_free && began.elapsed() < limit {
        stop::sleep(POLL)?;
        all_free = true;
        for sleeper in sleepers {
            let (touched, free) = sleeper.touched_and_free_bytes()?;
            all_free &= free * 100 >= touched * FREE_PERCENT;
        }
    }
    results.note("agent: waited for memory to be free, s", began.elapsed().as_secs());
    Ok(())
}

impl Sleeper {
    fn start(label: &'static str, access: Access) -> Result<Self> {
        let pattern = Pattern { mem_mib: MEM_MIB, rounds_on_command: true, access, ..Pattern::default() };
        Ok(Self { vm: Vm::start(label, MEMORY_MIB, Load::Pattern(pattern))?, woken: 0 })
    }

    fn wake(&mut self) -> Result<Wake> {
        let before = self.vm.major_faults()?;
        self.vm.guest.go()?;
        self.woken += 1;
        let phase = self.vm.guest.wait_phase(self.woken, WAKE_LIMIT)?;
        let ms = (phase.end_ns - phase.start_ns) as f64 / 1e6;
        Ok(Wake { ms, major_faults: self.vm.major_faults()? - before })
    }

    /// Of its RAM.
    fn touched_and_free_bytes(&self) -> Result<(u64, u64)> {
        let (touched, _) = self.vm.touched_and_swapped_bytes()?;
        Ok((touched, self.vm.free_bytes()?))
    }

    /// Tells how much is free, %, and returns that and the bytes.
    fn free(&self, results: &mut Results, who: &str, wanted_percent: u64) -> Result<(u64, u64)> {
        let (touched, free) = self.touched_and_free_bytes()?;
        let percent = free * 100 / touched;
        let what = format!("{}, {who}: free, % of {} MiB", self.vm.label, touched >> 20);
        results.figure(&what, percent, &wanted_percent.to_string(), percent >= wanted_percent);
        Ok((percent, free))
    }

    /// So much of it goes to swap, and out of memory.
    fn swap_out(&self, bytes: u64) -> Result<()> {
        let began = Instant::now();
        loop {
            let (_, swapped) = self.vm.touched_and_swapped_bytes()?;
            if swapped >= bytes {
                break;
            }
            ensure!(
                began.elapsed() < SWAP_OUT_LIMIT,
                "{} of {} MiB of {} went to swap in {SWAP_OUT_LIMIT:?}",
                swapped >> 20,
                bytes >> 20,
                self.vm.label
            );
            self.vm.group.reclaim(STEP_BYTES.min(bytes - swapped))?;
            disk_at_rest()?;
        }
        self.vm.group.free_swap_cache()
    }
}

impl Display for Wake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} ms, {} major faults", self.ms, self.major_faults)
    }
}
