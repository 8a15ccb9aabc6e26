//! What the host tells of a block device: what it is made of, and who has it.
//!
//! In: the root of sysfs and of `/proc`, the device's number. Out: [`Facts`]. Judges nothing, opens no device.

use std::fs;
use std::path::Path;

use crate::tiers::disk_facts::{DeviceNumber, real_folder, stack, text};

/// What is known of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// Sysfs has it.
    pub(super) is_known: bool,
    /// It, and all that is below it: the disk of a partition, the parts of a volume or an array.
    pub(super) made_of: Vec<Part>,
    /// Names of devices that are made of it.
    pub(super) holders: Vec<String>,
    /// Names of its partitions.
    pub(super) partitions: Vec<String>,
    /// Where it is mounted.
    pub(super) mounted_on: Option<String>,
    pub(super) read_only: bool,
    /// The host keeps its memory there when it hibernates.
    pub(super) resume: bool,
    /// Another process has it open for writing, as QEMU has the disk of a VM.
    pub(super) opened_by: Option<String>,
}

/// A device of those that another one is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Part {
    /// `sda`, `dm-3`, `zd0`.
    pub(super) name: String,
    /// Behind an iSCSI session.
    pub(super) iscsi: bool,
    /// How NVMe is reached: `pcie`, `tcp`, `rdma`.
    pub(super) transports: Vec<String>,
    /// A volume of the device mapper that may promise more than there is: a thin pool, or VDO.
    pub(super) thin_pool: bool,
}

impl Facts {
    /// Looks at the device. `sys_root` is `/sys`.
    pub(super) fn gather(sys_root: &Path, device: DeviceNumber) -> Self {
        let mut numbers: Vec<_> =
            stack(sys_root, device).iter().filter_map(|folder| number_of(folder)).collect();
        numbers.push(device);
        Self {
            opened_by: opened_by(Path::new("/proc"), &numbers),
            ..Self::of(sys_root, Path::new("/proc"), device)
        }
    }

    /// The same, but for who has it open.
    fn of(sys_root: &Path, proc_root: &Path, device: DeviceNumber) -> Self {
        let Some(folder) = real_folder(sys_root, device) else { return Self::default() };
        let entries = |folder: &Path| {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            let mut names: Vec<_> =
                entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names
        };
        let is_partition = |name: &String| folder.join(name).join("partition").exists();
        let resume = text(&sys_root.join("power/resume"));
        Self {
            is_known: true,
            made_of: stack(sys_root, device).iter().map(|folder| Part::of(folder)).collect(),
            holders: entries(&folder.join("holders")),
            partitions: entries(&folder).into_iter().filter(is_partition).collect(),
            mounted_on: mount_of(proc_root, device),
            read_only: text(&folder.join("ro")).as_deref() == Some("1"),
            resume: resume == Some(device.to_string()),
            opened_by: None,
        }
    }
}

impl Part {
    fn of(folder: &Path) -> Self {
        let is_session = |part: &str| {
            let number = part.strip_prefix("session");
            number
                .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
        };
        // A namespace with several ways to it names the subsystem, which has the controllers.
        let device = folder.join("device");
        let below = fs::read_dir(&device).into_iter().flatten().flatten();
        let controllers = below
            .map(|entry| entry.path())
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("nvme")));
        let mut transports: Vec<_> = std::iter::once(device.clone())
            .chain(controllers)
            .filter_map(|controller| text(&controller.join("transport")))
            .collect();
        transports.sort();
        transports.dedup();
        Self {
            name: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            iscsi: folder.components().any(|part| part.as_os_str().to_str().is_some_and(is_session)),
            transports,
            thin_pool: text(&folder.join("dm/uuid")).is_some_and(|uuid| is_overcommitted(&uuid)),
        }
    }
}

/// As LVM, `vdo` and Stratis name them.
fn is_overcommitted(dm_uuid: &str) -> bool {
    dm_uuid.ends_with("-tpool")
        || dm_uuid.ends_with("-vpool")
        || ["VDO-", "stratis-"].iter().any(|start| dm_uuid.starts_with(start))
}

/// Where the device is mounted, as far as this mount namespace shows.
fn mount_of(proc_root: &Path, device: DeviceNumber) -> Option<String> {
    let mounts = fs::read_to_string(proc_root.join("self/mountinfo")).ok()?;
    let number = device.to_string();
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(2);
        (fields.next()? == number).then_some(())?;
        fields.nth(1).map(ToOwned::to_owned)
    })
}

/// The number of a device of sysfs.
fn number_of(folder: &Path) -> Option<DeviceNumber> {
    let number = text(&folder.join("dev"))?;
    let (major, minor) = number.split_once(':')?;
    Some(DeviceNumber { major: major.parse().ok()?, minor: minor.parse().ok()? })
}

/// Another process that has one of these devices open for writing: a VM that has all of a disk has its partitions too,
/// which the host sees as well. udev reads devices now and then: who only reads does not count.
fn opened_by(proc_root: &Path, devices: &[DeviceNumber]) -> Option<String> {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    let own = std::process::id().to_string();
    let is_it = |path: &Path| {
        // Only what lies below a folder `dev` is looked at, in a jail too: what is on a server that is down would not
        // answer.
        let in_dev = |link: &Path| link.components().any(|part| part.as_os_str() == "dev");
        fs::read_link(path).is_ok_and(|link| in_dev(&link))
            && fs::metadata(path).is_ok_and(|found| {
                found.file_type().is_block_device() && devices.contains(&DeviceNumber::of(found.rdev()))
            })
    };
    for process in fs::read_dir(proc_root).ok()?.flatten() {
        let (pid, folder) = (process.file_name().to_string_lossy().into_owned(), process.path());
        if pid == own || !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let files = fs::read_dir(folder.join("fd")).into_iter().flatten().flatten();
        let mut writing = files.filter(|file| writes(&folder.join("fdinfo").join(file.file_name())));
        if writing.any(|file| is_it(&file.path())) {
            let name = text(&folder.join("comm")).unwrap_or_default();
            return Some(format!("{name}, process {pid}"));
        }
    }
    None
}

/// Whether a descriptor may write, by its `fdinfo`.
fn writes(info: &Path) -> bool {
    const ACCESS: u32 = 3;
    let info = fs::read_to_string(info).unwrap_or_default();
    let flags =
        info.lines().find_map(|line| u32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
    flags.is_some_and(|flags| flags & ACCESS != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A host in a temporary folder.
    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn link(&self, from: &str, to: &str) {
            let from = self.0.path().join(from);
            fs::create_dir_all(from.parent().unwrap()).unwrap();
            symlink(self.0.path().join(to), from).unwrap();
        }

        fn device(&self, number: &str, at: &str) {
            self.write(&format!("devices/{at}/ro"), "0\n");
            self.link(&format!("dev/block/{number}"), &format!("devices/{at}"));
        }

        fn facts(&self, major: u32, minor: u32) -> Facts {
            Facts::of(self.0.path(), self.0.path(), DeviceNumber { major, minor })
        }
    }

    #[test]
    fn who_has_a_device_is_told() {
        let tree = Tree::new();
        tree.device("8:0", "pci/sda");
        tree.write("devices/pci/sda/sda1/partition", "1\n");
        tree.write("devices/pci/sda/holders/dm-0/x", "");
        tree.write("devices/pci/sda/ro", "1\n");
        tree.write("power/resume", "8:0\n");
        tree.write("self/mountinfo", "20 1 8:1 / /boot rw\n21 1 8:0 / /srv rw,relatime - ext4 /dev/sda rw\n");
        let facts = tree.facts(8, 0);
        assert_eq!((facts.holders, facts.partitions), (vec!["dm-0".to_owned()], vec!["sda1".to_owned()]));
        assert_eq!(facts.mounted_on.as_deref(), Some("/srv"));
        assert!(facts.is_known && facts.read_only && facts.resume);
        assert_eq!(tree.facts(8, 16), Facts::default());
    }

    #[test]
    fn what_it_is_made_of_is_told_down_to_the_disks() {
        let tree = Tree::new();
        tree.device("8:16", "platform/host3/session1/target3:0:0/block/sdb");
        tree.device("8:17", "platform/host3/session1/target3:0:0/block/sdb/sdb1");
        tree.write("devices/platform/host3/session1/target3:0:0/block/sdb/sdb1/partition", "1\n");
        tree.device("259:0", "virtual/nvme-subsystem/nvme-subsys1/nvme1n1");
        tree.link("devices/virtual/nvme-subsystem/nvme-subsys1/nvme1n1/device", "devices/subsys1");
        tree.write("devices/subsys1/nvme1/transport", "tcp\n");
        tree.device("252:0", "virtual/dm-0");
        tree.write("devices/virtual/dm-0/dm/uuid", "LVM-abc-tpool\n");
        tree.link(
            "devices/virtual/dm-0/slaves/sdb1",
            "devices/platform/host3/session1/target3:0:0/block/sdb/sdb1",
        );
        tree.link(
            "devices/virtual/dm-0/slaves/nvme1n1",
            "devices/virtual/nvme-subsystem/nvme-subsys1/nvme1n1",
        );
        let mut parts = tree.facts(252, 0).made_of;
        parts.sort_by(|a, b| a.name.cmp(&b.name));
        let part = |name: &str, iscsi| Part { name: name.into(), iscsi, ..Part::default() };
        let expected = [
            Part { thin_pool: true, ..part("dm-0", false) },
            Part { transports: vec!["tcp".into()], ..part("nvme1n1", false) },
            part("sdb", true),
            part("sdb1", true),
        ];
        assert_eq!(parts, expected);
    }

    #[test]
    fn volumes_that_may_promise_too_much_and_numbers_are_known() {
        let known = ["LVM-abc-tpool", "LVM-abc-vpool", "VDO-1", "stratis-1-private-x-thin-pool"];
        assert!(known.into_iter().all(is_overcommitted));
        assert!(!is_overcommitted("LVM-abc") && !is_overcommitted("CRYPT-LUKS2-x"));
        let tree = Tree::new();
        tree.write("devices/sda/dev", "8:16\n");
        let number = |at: &str| number_of(&tree.0.path().join(at));
        assert_eq!(number("devices/sda"), Some(DeviceNumber { major: 8, minor: 16 }));
        assert_eq!(number("devices"), None);
    }

    #[test]
    fn a_descriptor_that_reads_is_told_from_one_that_writes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let told = |text: &str| {
            fs::write(file.path(), text).unwrap();
            writes(file.path())
        };
        assert!(told("pos:\t0\nflags:\t0140002\n") && told("flags:\t01\n"));
        assert!(!told("pos:\t0\nflags:\t0140000\n") && !told(""));
    }
}
