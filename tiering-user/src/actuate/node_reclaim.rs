//! Has the kernel reclaim memory of the host, node by node (`/sys/devices/system/node/nodeN/reclaim`, Linux 6.17 and
//! later).
//!
//! In: the files of the first tier's nodes, an [`Order`]. Out: how much the whole host wrote to swap meanwhile, and by
//! how much its copies in the swap cache fell ([`Reclaimed`]). Not here: whether it should be done (`agent`).
//!
//! Nothing is reclaimed while a VM is there that must not be touched: the agent's word for it is looked at before each
//! write, and each VM five times a second, since a migration, say, begins at any time.
//!
//! # Limits
//! The kernel takes memory of any process of the host. Its choice is kept to anonymous and shared memory
//! (`swappiness=max`). A node takes one order at a time, whoever gives it (`EBUSY`). Pages that somebody else has
//! written to swap meanwhile count, up to what was asked for.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use procfs::{FromRead as _, VmStat};

use super::group_reclaim::{NoReclaim, Reclaimed, ask};
use super::target::{Roots, Target};
use crate::sys::PAGE_BYTES;
use crate::tiermap::BLOCK_PAGES;
use crate::tiers::Passage;
use crate::vm::{self, OnNodes};

/// How often VMs are looked at while memory is reclaimed.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// An order that waited for longer is not carried out: what it goes by may have changed.
const WAITED_MOST: Duration = Duration::from_secs(3);

/// The kernel counts caches of its own (slab) as reclaimed, and small requests are met by those alone. So where less than
/// this part of an order went to swap the kernel is asked for twice as much, up to so much altogether.
const ENOUGH_DIVISOR: u64 = 2;
const ASKED_MOST: u64 = 32 << 20;

/// An order for memory of the whole host.
#[derive(Clone, Debug)]
pub struct Order {
    /// Of the VMs that were known.
    pub vms: Vec<Target>,
    pub bytes: u64,
    /// Cleared by the agent when it must not be carried out, or go on.
    pub allowed: Arc<AtomicBool>,
    pub given: Instant,
}

impl Order {
    fn may_not(&self, roots: &Roots, looked: &Cell<Option<Instant>>) -> Option<String> {
        if !self.allowed.load(Ordering::Relaxed) {
            return Some("a VM that must not be touched has come, or an operator said so".to_owned());
        }
        if looked.get().is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return None;
        }
        looked.set(Some(Instant::now()));
        self.vms.iter().find_map(|vm| Some(format!("{}: {}", vm.info.vm.name, refusal(vm, roots)?)))
    }
}

/// Has the kernel reclaim what is ordered by these files, or as much as it finds.
pub(super) fn reclaim(
    files: &[PathBuf],
    order: &Order,
    roots: &Roots,
    passage: &Passage,
    stop: &AtomicBool,
) -> Result<Reclaimed, NoReclaim> {
    if order.given.elapsed() > WAITED_MOST {
        return Err(NoReclaim::Now("the kernel was busy with control groups".to_owned()));
    }
    let before = Counts::read(roots)?;
    let looked = Cell::default();
    let (most, mut asked_bytes, mut portion) = (order.bytes.max(ASKED_MOST), 0, order.bytes);
    let (after, result) = loop {
        let (asked, result) = ask(files, portion, || order.may_not(roots, &looked), passage, stop);
        asked_bytes += asked;
        let after = Counts::read(roots)?;
        let went = after.swapped_out.saturating_sub(before.swapped_out) * PAGE_BYTES;
        let enough = went >= order.bytes / ENOUGH_DIVISOR || asked_bytes >= most;
        if result.is_err() || enough || stop.load(Ordering::Relaxed) {
            break (after, result);
        }
        portion = (portion * 2).min(most - asked_bytes);
    };
    let bytes = |pages: u64| (pages * PAGE_BYTES).min(asked_bytes);
    let reclaimed = Reclaimed {
        asked_bytes: asked_bytes.min(order.bytes),
        memory_bytes: bytes(after.swapped_out.saturating_sub(before.swapped_out)),
        file_bytes: 0,
        first_tier: OnNodes::default(),
        copies_bytes: bytes(before.copies.saturating_sub(after.copies)),
        huge_bytes: bytes(before.huge.saturating_sub(after.huge)),
    };
    // What was reclaimed before an error counts.
    match result {
        Err(error) if reclaimed.bytes() == 0 => Err(error),
        _ => Ok(reclaimed),
    }
}

/// Pages of the host.
#[derive(Default)]
struct Counts {
    /// Sent to swap so far, those of zeroes too.
    swapped_out: u64,
    copies: u64,
    /// In anonymous huge pages.
    huge: u64,
}

impl Counts {
    fn read(roots: &Roots) -> Result<Self, NoReclaim> {
        let path = roots.proc.join("vmstat");
        let error = |error| NoReclaim::NotThere(format!("{}: {error}", path.display()));
        let VmStat(counts) = VmStat::from_file(&path).map_err(error)?;
        let count = |name: &str| counts.get(name).and_then(|count| u64::try_from(*count).ok()).unwrap_or(0);
        Ok(Self {
            swapped_out: count("pswpout") + count("swpout_zero"),
            copies: count("nr_swapcached"),
            huge: count("nr_anon_transparent_hugepages") * u64::from(BLOCK_PAGES),
        })
    }
}

/// Why this VM must not be touched now. One that has ended is in nobody's way.
fn refusal(vm: &Target, roots: &Roots) -> Option<vm::Refusal> {
    if !vm.process.is_alive() {
        return None;
    }
    vm::recheck(&roots.proc, &roots.cgroup, &vm.info.vm).filter(|refusal| !refusal.binds_the_kernel())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host of which nothing was swapped out, and an order for 3 MiB.
    fn host(folder: &std::path::Path) -> (Roots, Order) {
        let roots = Roots { proc: folder.join("proc"), cgroup: folder.join("cgroup") };
        std::fs::create_dir_all(&roots.proc).unwrap();
        std::fs::write(roots.proc.join("vmstat"), "nr_swapcached 7\npswpin 1\npswpout 0\n").unwrap();
        let allowed = Arc::new(AtomicBool::new(true));
        (roots, Order { vms: Vec::new(), bytes: 3 << 20, allowed, given: Instant::now() })
    }

    fn carry_out(files: &[PathBuf], order: &Order, roots: &Roots) -> Result<Reclaimed, NoReclaim> {
        reclaim(files, order, roots, &Passage::default(), &AtomicBool::new(false))
    }

    #[test]
    fn nodes_are_asked_in_turn_for_mapped_memory_and_what_the_host_says_counts() {
        let folder = tempfile::tempdir().unwrap();
        let (roots, order) = host(folder.path());
        let files = ["0", "2"].map(|node| folder.path().join(node));
        files.iter().for_each(|file| std::fs::write(file, "").unwrap());
        let result = carry_out(&files, &order, &roots).unwrap();
        assert_eq!(result, Reclaimed { asked_bytes: 3 << 20, ..Reclaimed::default() }, "nothing went");
        // Twice as much is asked for until it is enough: the last request of each node is of 16 MiB or less.
        let told = files.map(|file| std::fs::read_to_string(file).unwrap());
        assert!(told.iter().all(|text| text.ends_with(" swappiness=max")), "{told:?}");
        let bytes = |text: &String| text.split(' ').next().unwrap().parse::<u64>().unwrap();
        assert!(told.iter().map(bytes).all(|bytes| (4 << 20..=16 << 20).contains(&bytes)), "{told:?}");
    }

    #[test]
    fn a_kernel_without_reclaim_by_node_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (roots, order) = host(folder.path());
        let result = carry_out(&[folder.path().join("node0/reclaim")], &order, &roots);
        let Err(NoReclaim::NotThere(why)) = result else { panic!("{result:?}") };
        assert!(why.contains("node0/reclaim"), "{why}");
    }

    #[test]
    fn an_order_that_was_taken_back_or_has_waited_is_not_carried_out() {
        let folder = tempfile::tempdir().unwrap();
        let (roots, order) = host(folder.path());
        let file = folder.path().join("reclaim");
        std::fs::write(&file, "").unwrap();
        let old = Order { given: Instant::now().checked_sub(WAITED_MOST * 2).unwrap(), ..order.clone() };
        order.allowed.store(false, Ordering::Relaxed);
        for order in [order, old] {
            let result = carry_out(std::slice::from_ref(&file), &order, &roots);
            assert!(matches!(result, Err(NoReclaim::Now(_))), "{result:?}");
        }
        assert_eq!(std::fs::read_to_string(file).unwrap(), "", "nothing was asked for");
    }
}
