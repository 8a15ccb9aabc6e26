//! Has the kernel reclaim memory of the host, node by node (`/sys/devices/system/node/nodeN/reclaim`, Linux 6.17 and
//! later).
//!
//! In: the files of the first tier's nodes, the VMs of the host, a number of bytes. Out: by how much mapped memory and
//! copies in the swap cache fell, of the whole host ([`Reclaimed`]). Not here: whether it should be done (`agent`).
//!
//! Nothing is reclaimed while a VM is there that must not be touched now: one that is being migrated, say. That is
//! looked at before each write.
//!
//! # Limits
//! The kernel takes memory of any process of the host. Its choice is kept to anonymous and shared memory
//! (`swappiness=max`). A node takes one order at a time, whoever gives it (`EBUSY`).

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use procfs::{FromRead as _, Meminfo};

use super::group_reclaim::{NoReclaim, Reclaimed, ask};
use super::target::{Roots, Target};
use crate::tiers::Passage;
use crate::vm;

/// Has the kernel reclaim so many bytes by these files, or as much as it finds.
pub(super) fn reclaim(
    orders: &[PathBuf],
    vms: &[Target],
    roots: &Roots,
    passage: &Passage,
    bytes: u64,
    stop: &AtomicBool,
) -> Result<Reclaimed, NoReclaim> {
    let look = || {
        let path = roots.proc.join("meminfo");
        let error = |error| NoReclaim::NotThere(format!("{}: {error}", path.display()));
        Meminfo::from_file(&path).map_err(error)
    };
    let may_not = || vms.iter().find_map(|vm| Some(format!("{}: {}", vm.vm.name, refusal(vm, roots)?)));
    let before = look()?;
    let (asked_bytes, result) = ask(orders, bytes, may_not, passage, stop);
    let after = look()?;
    let memory = |of: &Meminfo| of.anon_pages.unwrap_or(0) + of.shmem.unwrap_or(0);
    let reclaimed = Reclaimed {
        asked_bytes,
        memory_bytes: memory(&before).saturating_sub(memory(&after)),
        file_bytes: 0,
        copies_bytes: before.swap_cached.saturating_sub(after.swap_cached),
        huge_bytes: before.anon_hugepages.unwrap_or(0).saturating_sub(after.anon_hugepages.unwrap_or(0)),
    };
    // What was reclaimed before an error counts.
    match result {
        Err(error) if reclaimed.bytes() == 0 => Err(error),
        _ => Ok(reclaimed),
    }
}

/// Why this VM must not be touched now. One that has ended is in nobody's way.
fn refusal(vm: &Target, roots: &Roots) -> Option<vm::Refusal> {
    if !vm.process.is_alive() {
        return None;
    }
    vm::recheck(&roots.proc, &roots.cgroup, &vm.vm).filter(|refusal| !refusal.binds_the_kernel())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roots(folder: &std::path::Path) -> Roots {
        let roots = Roots { proc: folder.join("proc"), cgroup: folder.join("cgroup") };
        std::fs::create_dir_all(&roots.proc).unwrap();
        let meminfo = "MemTotal: 100 kB\nMemFree: 50 kB\nBuffers: 0 kB\nCached: 0 kB\nSwapCached: 4 kB\nActive: 0 kB\n\
                       Inactive: 0 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\nDirty: 0 kB\nWriteback: 0 kB\nAnonPages: 8 kB\n\
                       Mapped: 0 kB\nShmem: 4 kB\nSlab: 0 kB\nCommitted_AS: 0 kB\nVmallocTotal: 0 kB\nVmallocUsed: 0 kB\n\
                       VmallocChunk: 0 kB\n";
        std::fs::write(roots.proc.join("meminfo"), meminfo).unwrap();
        roots
    }

    #[test]
    fn nodes_are_asked_in_turn_for_mapped_memory_and_what_the_host_says_counts() {
        let folder = tempfile::tempdir().unwrap();
        let roots = roots(folder.path());
        let files = ["0", "2"].map(|node| folder.path().join(node));
        files.iter().for_each(|file| std::fs::write(file, "").unwrap());
        let go = AtomicBool::new(false);
        let result = reclaim(&files, &[], &roots, &Passage::default(), 3 << 20, &go).unwrap();
        assert_eq!(result, Reclaimed { asked_bytes: 3 << 20, ..Reclaimed::default() }, "nothing fell");
        let told = files.map(|file| std::fs::read_to_string(file).unwrap());
        assert_eq!(told, ["1048576 swappiness=max", "2097152 swappiness=max"]);
    }

    #[test]
    fn a_kernel_without_reclaim_by_node_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let roots = roots(folder.path());
        let go = AtomicBool::new(false);
        let result =
            reclaim(&[folder.path().join("node0/reclaim")], &[], &roots, &Passage::default(), 1 << 20, &go);
        let Err(NoReclaim::NotThere(why)) = result else { panic!("{result:?}") };
        assert!(why.contains("node0/reclaim"), "{why}");
    }
}
