//! Places on other disks that could hold a swap tier.
//!
//! In: `/proc/self/mountinfo` and sysfs below their roots, and the folder that is taken already. Out: one [`Candidate`]
//! a disk. Nothing is made or used there.

use std::fs;
use std::path::{Path, PathBuf};

use super::disk_facts::{DeviceNumber, Disk, device_below, disk_facts};
use super::swap::area;

/// Types of file systems that hold swap files as the agent makes them.
const FIT: [&str; 2] = ["ext4", "xfs"];
/// With less than this free it is no candidate: a quarter of it is the least tier that is proposed.
const LEAST_FREE_BYTES: u64 = 4 << 30;

/// A mounted file system on another disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub mount_point: PathBuf,
    pub disks: Vec<Disk>,
    pub free_bytes: u64,
}

/// One line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    device: DeviceNumber,
    point: PathBuf,
}

/// File systems on disks that `taken` is not on.
pub(super) fn candidates(sys_root: &Path, proc_root: &Path, taken: &Path) -> Vec<Candidate> {
    let below = |device| disk_facts(sys_root, device).map(|facts| facts.disks).unwrap_or_default();
    let mut seen = device_below(taken).map(below).unwrap_or_default();
    let text = fs::read_to_string(proc_root.join("self/mountinfo")).unwrap_or_default();
    let mut candidates = Vec::new();
    for Mount { device, point } in text.lines().filter_map(fit_mount) {
        let disks = below(device);
        if disks.is_empty() || disks.iter().any(|disk| seen.contains(disk)) {
            continue;
        }
        let Ok(free_bytes) = area::free_for_swap(&point) else { continue };
        if free_bytes >= LEAST_FREE_BYTES {
            seen.extend(disks.clone());
            candidates.push(Candidate { mount_point: point, disks, free_bytes });
        }
    }
    candidates
}

/// A mount that can be written, of a file system that is fit (Documentation/filesystems/proc.rst, 3.5).
fn fit_mount(line: &str) -> Option<Mount> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(2);
    let (major, minor) = fields.next()?.split_once(':')?;
    let (_root, point, options) = (fields.next()?, fields.next()?, fields.next()?);
    let fit = FIT.contains(&filesystem.split(' ').next()?) && options.split(',').any(|option| option == "rw");
    // A name with blanks is written in octal digits; such a place is left to the operator.
    let mount = Mount {
        device: DeviceNumber { major: major.parse().ok()?, minor: minor.parse().ok()? },
        point: point.into(),
    };
    (fit && !point.contains('\\')).then_some(mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writable_mounts_of_fit_file_systems_are_taken() {
        let line = |options: &str, kind: &str| {
            format!("27 1 254:16 / /mnt/qlc {options} shared:1 - {kind} /dev/vdb rw,discard")
        };
        let expected = Mount { device: DeviceNumber { major: 254, minor: 16 }, point: "/mnt/qlc".into() };
        assert_eq!(fit_mount(&line("rw,relatime", "ext4")), Some(expected));
        assert_eq!(fit_mount(&line("ro,relatime", "ext4")), None);
        assert_eq!(fit_mount(&line("rw", "tmpfs")), None);
        assert_eq!(fit_mount("nonsense"), None);
    }

    #[test]
    fn another_disk_is_a_candidate_once_and_the_one_that_is_taken_is_not() {
        let tree = tempfile::tempdir().unwrap();
        let root = tree.path();
        let make = |path: &str, text: &str| {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), text).unwrap();
        };
        fs::create_dir_all(root.join("dev/block")).unwrap();
        let DeviceNumber { major, minor } = device_below(root).unwrap();
        for (number, disk) in
            [(format!("{major}:{minor}"), "sda"), ("8:16".into(), "sdb"), ("8:32".into(), "sdc")]
        {
            make(&format!("devices/{disk}/size"), "2048\n");
            std::os::unix::fs::symlink(root.join("devices").join(disk), root.join("dev/block").join(number))
                .unwrap();
        }
        let here = env!("CARGO_MANIFEST_DIR");
        let mount = |number: &str, point: &str| format!("27 1 {number} / {point} rw - ext4 /dev/x rw\n");
        let own = format!("{major}:{minor}");
        make(
            "self/mountinfo",
            &[mount(&own, here), mount("8:16", here), mount("8:16", here), mount("8:32", "/nowhere/there")]
                .concat(),
        );
        let found: Vec<_> = candidates(root, root, root);
        let free = area::free_for_swap(Path::new(here)).unwrap();
        let expected = usize::from(free >= LEAST_FREE_BYTES);
        assert_eq!(found.iter().filter(|one| one.disks[0].name == "sdb").count(), expected, "{found:?}");
        assert!(found.iter().all(|one| one.disks[0].name != "sda"), "{found:?}");
    }
}
