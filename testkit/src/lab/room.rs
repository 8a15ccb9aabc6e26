//! Whether this machine has the memory and the disk that a lab can come to need.
//!
//! In: the lab's nodes and disks, what is free. Out: an error that says what to ask for less of. A lab takes what it
//! touches, so this is the most that it can need.

use super::spec::{Disk, Nodes};
use anyhow::{Result, ensure};
use std::path::Path;

/// What this machine has.
#[derive(Debug, Clone, Copy)]
pub struct Free {
    pub memory_bytes: u64,
    pub disk_bytes: u64,
}

/// Fails where the lab can come to need more than is free; its disks are files in `folder`.
pub fn check(nodes: &Nodes, disks: &[Disk], free: Free, folder: &Path) -> Result<()> {
    let memory: u64 = nodes.0.iter().map(|node| node.bytes).sum();
    let disk: u64 = disks.iter().map(|disk| disk.bytes).sum();
    ensure!(
        memory <= free.memory_bytes,
        "the lab's nodes take {} MiB of memory, this machine has {} MiB available: give smaller --nodes",
        memory >> 20,
        free.memory_bytes >> 20
    );
    ensure!(
        disk <= free.disk_bytes,
        "the lab's disks can grow to {} MiB, {} has {} MiB free: give smaller --nvme and --qlc",
        disk >> 20,
        folder.display(),
        free.disk_bytes >> 20
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_memory_and_too_little_disk_are_told_apart() {
        let nodes = "dram:1G,cxl:2G".parse().unwrap();
        let disks = ["2G", "4G@iops=2000"].map(|disk| disk.parse().unwrap());
        let check = |memory_bytes, disk_bytes| {
            let checked = check(&nodes, &disks, Free { memory_bytes, disk_bytes }, Path::new("/target"));
            checked.map_err(|error| error.to_string())
        };
        assert_eq!(check(3 << 30, 6 << 30), Ok(()));
        assert!(check((3 << 30) - 1, 6 << 30).unwrap_err().contains("3072 MiB of memory"));
        let error = check(3 << 30, 5 << 30).unwrap_err();
        assert!(error.contains("/target has 5120 MiB free") && error.contains("--qlc"), "{error}");
    }
}
