//! Which disks are below a folder or a block device.
//!
//! In: the root of sysfs, and the folder or the device. Out: the block device that the folder's file system is on, and
//! the whole disks that make it up, through partitions, device mapper, md and loop devices. Judges nothing.
//!
//! # Limits
//! A file system without a block device of its own (network, overlay, btrfs, ZFS) has no facts. What a virtual or RAID
//! controller's disk is made of is not told.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// Stacks of devices are not deeper than this; a loop in a broken tree ends here.
const DEEPEST: u32 = 8;

/// The number of a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceNumber {
    pub major: u32,
    pub minor: u32,
}

impl DeviceNumber {
    /// `stat(2)` gives both numbers in one (include/linux/kdev_t.h, glibc's `gnu_dev_major`).
    pub fn of(device: u64) -> Self {
        Self { major: libc::major(device), minor: libc::minor(device) }
    }
}

impl std::fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// What is below a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskFacts {
    /// Where the kernel counts what is read and written: the `stat` file of the disk, or of the device mapper's or md's
    /// device.
    pub stat: PathBuf,
    /// The whole disks.
    pub disks: Vec<Disk>,
}

/// A whole disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// `nvme0n1`, `sda`.
    pub name: String,
    pub model: Option<String>,
    /// What the kernel believes; virtual disks are often said to turn.
    pub rotational: Option<bool>,
    pub size_bytes: u64,
}

impl std::fmt::Display for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.model {
            Some(model) => write!(f, "{} ({model})", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}

/// The device of the file system that `folder`, or the nearest folder above it that is there, lies on.
///
/// # Errors
/// Where the folder cannot be looked at.
pub fn device_below(folder: &Path) -> io::Result<DeviceNumber> {
    Ok(DeviceNumber::of(fs::metadata(existing(folder))?.dev()))
}

/// The device that a path leads to.
///
/// # Errors
/// Where it cannot be looked at, or is no block device.
pub fn device_itself(path: &Path) -> io::Result<DeviceNumber> {
    let found = fs::metadata(path)?;
    if !found.file_type().is_block_device() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no block device"));
    }
    Ok(DeviceNumber::of(found.rdev()))
}

/// The folder, or the nearest one above it that is there.
pub fn existing(folder: &Path) -> &Path {
    folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

/// The disks below a device; none where sysfs does not know it. `sys_root` is `/sys`.
pub fn disk_facts(sys_root: &Path, device: DeviceNumber) -> Option<DiskFacts> {
    let folder = whole(&real_folder(sys_root, device)?);
    let mut disks = Vec::new();
    collect(sys_root, &folder, 0, &mut disks);
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    disks.dedup();
    Some(DiskFacts { stat: folder.join("stat"), disks })
}

/// The device's folder in sysfs.
pub(super) fn real_folder(sys_root: &Path, device: DeviceNumber) -> Option<PathBuf> {
    fs::canonicalize(sys_root.join(format!("dev/block/{device}"))).ok()
}

/// The folders of the device and of all that is below it: the disk of a partition, what device mapper and md are made
/// of, what the file of a loop device is on.
pub(super) fn stack(sys_root: &Path, device: DeviceNumber) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut next: Vec<_> = real_folder(sys_root, device).into_iter().collect();
    while let Some(folder) = next.pop() {
        if all.contains(&folder) {
            continue;
        }
        next.push(whole(&folder));
        next.extend(directly_below(sys_root, &folder));
        all.push(folder);
    }
    all
}

fn directly_below(sys_root: &Path, folder: &Path) -> Vec<PathBuf> {
    let slaves = fs::read_dir(folder.join("slaves")).into_iter().flatten().flatten();
    let mut below: Vec<_> = slaves.filter_map(|slave| fs::canonicalize(slave.path()).ok()).collect();
    // A loop device names its file.
    let file = text(&folder.join("loop/backing_file"));
    let on = file.and_then(|file| device_below(Path::new(&file)).ok());
    below.extend(on.and_then(|device| real_folder(sys_root, device)));
    below
}

/// The disk that a partition is on; anything else is whole already.
fn whole(folder: &Path) -> PathBuf {
    let is_partition = folder.join("partition").exists();
    folder.parent().filter(|_| is_partition).unwrap_or(folder).to_owned()
}

fn collect(sys_root: &Path, folder: &Path, depth: u32, disks: &mut Vec<Disk>) {
    if depth > DEEPEST {
        return;
    }
    let below = directly_below(sys_root, folder);
    if below.is_empty() {
        disks.push(disk(folder));
    }
    for device in below {
        collect(sys_root, &whole(&device), depth + 1, disks);
    }
}

fn disk(folder: &Path) -> Disk {
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let rotational = text(&folder.join("queue/rotational")).map(|flag| flag == "1");
    // In units of 512 bytes, whatever the disk's own are (Documentation/ABI/stable/sysfs-block).
    let sectors = text(&folder.join("size")).and_then(|size| size.parse::<u64>().ok()).unwrap_or(0);
    Disk { name, model: text(&folder.join("device/model")), rotational, size_bytes: sectors << 9 }
}

pub(super) fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            fs::create_dir_all(tree.0.path().join("dev/block")).unwrap();
            tree
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        /// A block device at `devices/AT`.
        fn device(&self, number: &str, at: &str, mib: u64) {
            self.write(&format!("devices/{at}/size"), &format!("{}\n", mib << 11));
            symlink(self.0.path().join("devices").join(at), self.0.path().join("dev/block").join(number))
                .unwrap();
        }

        fn disk(&self, number: &str, at: &str, mib: u64, model: &str, rotational: &str) {
            self.device(number, at, mib);
            self.write(&format!("devices/{at}/queue/rotational"), rotational);
            if !model.is_empty() {
                self.write(&format!("devices/{at}/device/model"), &format!("{model}   \n"));
            }
        }

        fn slave(&self, of: &str, at: &str) {
            let folder = self.0.path().join("devices").join(of).join("slaves");
            fs::create_dir_all(&folder).unwrap();
            let target = self.0.path().join("devices").join(at);
            symlink(&target, folder.join(target.file_name().unwrap())).unwrap();
        }

        fn facts(&self, major: u32, minor: u32) -> Option<DiskFacts> {
            disk_facts(self.0.path(), DeviceNumber { major, minor })
        }

        fn names(&self, major: u32, minor: u32) -> Vec<String> {
            self.facts(major, minor).unwrap().disks.into_iter().map(|disk| disk.name).collect()
        }
    }

    #[test]
    fn a_partition_leads_to_its_disk_with_model_and_size() {
        let tree = Tree::new();
        tree.disk("259:0", "pci/nvme/nvme0/nvme0n1", 1024, "Fast Disk 1T", "0\n");
        tree.device("259:1", "pci/nvme/nvme0/nvme0n1/nvme0n1p1", 512);
        tree.write("devices/pci/nvme/nvme0/nvme0n1/nvme0n1p1/partition", "1\n");
        let facts = tree.facts(259, 1).unwrap();
        let expected = Disk {
            name: "nvme0n1".into(),
            model: Some("Fast Disk 1T".into()),
            rotational: Some(false),
            size_bytes: 1 << 30,
        };
        assert_eq!(facts.disks, [expected]);
        assert!(facts.stat.ends_with("nvme0n1/stat"), "{}", facts.stat.display());
        assert_eq!(facts.disks[0].to_string(), "nvme0n1 (Fast Disk 1T)");
    }

    #[test]
    fn a_stack_of_devices_leads_to_all_disks_below_each_once() {
        let tree = Tree::new();
        for (minor, name) in [(0, "sda"), (16, "sdb")] {
            tree.disk(&format!("8:{minor}"), &format!("pci/{name}"), 64, "", "1\n");
            tree.device(&format!("8:{}", minor + 1), &format!("pci/{name}/{name}1"), 32);
            tree.write(&format!("devices/pci/{name}/{name}1/partition"), "1\n");
        }
        tree.device("9:0", "virtual/md0", 32);
        tree.slave("virtual/md0", "pci/sda/sda1");
        tree.slave("virtual/md0", "pci/sdb/sdb1");
        tree.device("252:0", "virtual/dm-0", 32);
        tree.slave("virtual/dm-0", "virtual/md0");
        tree.slave("virtual/dm-0", "pci/sda/sda1");
        assert_eq!(tree.names(252, 0), ["sda", "sdb"]);
        assert!(tree.facts(252, 0).unwrap().stat.ends_with("dm-0/stat"));
    }

    #[test]
    fn a_loop_device_leads_to_the_disk_of_its_file() {
        let tree = Tree::new();
        let file = tree.0.path().join("image");
        fs::write(&file, "").unwrap();
        let DeviceNumber { major, minor } = device_below(&file).unwrap();
        tree.disk(&format!("{major}:{minor}"), "pci/sdx", 64, "", "0\n");
        tree.device("7:0", "virtual/loop0", 8);
        tree.write("devices/virtual/loop0/loop/backing_file", file.to_str().unwrap());
        assert_eq!(tree.names(7, 0), ["sdx"]);
    }

    #[test]
    fn what_sysfs_does_not_know_is_none_and_a_broken_tree_ends() {
        let tree = Tree::new();
        assert_eq!(tree.facts(0, 44), None);
        tree.device("252:0", "virtual/dm-0", 32);
        tree.slave("virtual/dm-0", "virtual/dm-0");
        assert_eq!(tree.names(252, 0), [""; 0]);
    }

    #[test]
    fn a_folder_that_is_to_come_is_on_the_device_of_the_one_above() {
        let folder = tempfile::tempdir().unwrap();
        let to_come = folder.path().join("a/b");
        assert_eq!(existing(&to_come), folder.path());
        assert_eq!(device_below(&to_come).unwrap(), device_below(folder.path()).unwrap());
    }
}
