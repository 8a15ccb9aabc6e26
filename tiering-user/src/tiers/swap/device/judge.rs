//! What is against a device as swap. Pure.
//!
//! In: [`Facts`]. Out: the first [`Danger`] of what it is made of, and who uses it.

use std::fmt;

use super::facts::{Facts, Part};

/// Why swap on a device can hang the host, or is no swap at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Danger {
    Unknown,
    Memory { part: String },
    Zvol { part: String },
    Network { part: String, how: String },
    UserSpace { part: String },
    Loop { part: String },
    ThinPool { part: String },
}

impl Danger {
    /// Whether the operator may decide to use it all the same.
    pub(super) fn may_be_allowed(&self) -> bool {
        !matches!(self, Self::Memory { .. } | Self::Unknown)
    }

    /// Why, and what to do.
    pub(super) fn advice(&self) -> &'static str {
        match self {
            Self::Unknown => "name a device that /sys shows",
            Self::Memory { .. } => "what goes there stays in memory: name a disk",
            Self::Zvol { .. } => {
                "ZFS takes memory to write, so swap on it can hang the host when memory is short: name a partition or \
                 a disk outside of the pool; to use it all the same say `allow_unsafe_device = true`"
            }
            Self::Network { .. } => {
                "the network takes memory to write, so swap over it can hang the host when memory is short, and so \
                 does a server that is down: name a local disk; to use it all the same say `allow_unsafe_device = true`"
            }
            Self::UserSpace { .. } => {
                "the process behind it takes memory to write, so swap on it can hang the host when memory is short: \
                 name a local disk; to use it all the same say `allow_unsafe_device = true`"
            }
            Self::Loop { .. } => {
                "it writes through the page cache, which takes memory when memory is short: give the tier a folder for \
                 swap files (`path`) in its place; to use it all the same say `allow_unsafe_device = true`"
            }
            Self::ThinPool { .. } => {
                "when the pool is full, pages that are sent there are lost: name a volume that is not thin; to use it \
                 all the same say `allow_unsafe_device = true`"
            }
        }
    }
}

impl fmt::Display for Danger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => write!(f, "a device that /sys does not show"),
            Self::Memory { part } => write!(f, "memory ({part})"),
            Self::Zvol { part } => write!(f, "on a ZFS volume ({part})"),
            Self::Network { part, how } => write!(f, "on a disk behind the network ({part}, {how})"),
            Self::UserSpace { part } => write!(f, "on a disk that a process provides ({part})"),
            Self::Loop { part } => write!(f, "on a loop device ({part})"),
            Self::ThinPool { part } => write!(f, "on a thin pool ({part})"),
        }
    }
}

/// Drivers by the names of their devices, each followed by a number.
const NETWORK: [&str; 4] = ["nbd", "rbd", "drbd", "rnbd"];
const MEMORY: [&str; 2] = ["zram", "ram"];
/// NVMe that is not on a bus of the host; Fibre Channel needs no network stack.
const FABRICS: [&str; 3] = ["tcp", "rdma", "loop"];

/// The worst of what the device is made of.
pub(super) fn danger(facts: &Facts) -> Option<Danger> {
    if !facts.is_known {
        return Some(Danger::Unknown);
    }
    let dangers: Vec<_> = facts.made_of.iter().filter_map(of_part).collect();
    // One that nobody can allow counts first; then a network below a loop device, not the loop device.
    let rank = |danger: &&Danger| match danger {
        Danger::Unknown | Danger::Memory { .. } => 0,
        Danger::Loop { .. } => 2,
        _ => 1,
    };
    dangers.iter().min_by_key(rank).cloned()
}

fn of_part(part: &Part) -> Option<Danger> {
    let name = || part.name.clone();
    let driver = part.name.trim_end_matches(|c: char| c.is_ascii_digit());
    // A partition of such a disk has its own name; the disk is among the parts, too.
    if MEMORY.contains(&driver) {
        return Some(Danger::Memory { part: name() });
    }
    if driver == "zd" {
        return Some(Danger::Zvol { part: name() });
    }
    if NETWORK.contains(&driver) || part.name.starts_with("etherd!") {
        return Some(Danger::Network { part: name(), how: driver.to_owned() });
    }
    if part.iscsi {
        return Some(Danger::Network { part: name(), how: "iSCSI".to_owned() });
    }
    if let Some(how) = part.transports.iter().find(|how| FABRICS.contains(&how.as_str())) {
        return Some(Danger::Network { part: name(), how: format!("NVMe over {how}") });
    }
    match driver {
        "ublkb" => Some(Danger::UserSpace { part: name() }),
        "loop" => Some(Danger::Loop { part: name() }),
        _ => part.thin_pool.then(|| Danger::ThinPool { part: name() }),
    }
}

/// Who uses the device, for people; none where nobody does.
pub(super) fn use_of(facts: &Facts) -> Option<String> {
    if let Some(at) = &facts.mounted_on {
        return Some(format!("mounted on {at}"));
    }
    if !facts.partitions.is_empty() {
        return Some(format!("it has partitions: {}", facts.partitions.join(", ")));
    }
    if !facts.holders.is_empty() {
        return Some(format!("a part of {}", facts.holders.join(", ")));
    }
    if facts.resume {
        return Some("the host hibernates to it".to_owned());
    }
    if let Some(by) = &facts.opened_by {
        return Some(format!("open for writing by {by}"));
    }
    facts.read_only.then(|| "read-only".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made_of(parts: &[Part]) -> Facts {
        Facts { is_known: true, made_of: parts.to_vec(), ..Facts::default() }
    }

    fn part(name: &str) -> Part {
        Part { name: name.into(), ..Part::default() }
    }

    fn told(parts: &[Part]) -> Option<String> {
        danger(&made_of(parts)).map(|danger| danger.to_string())
    }

    #[test]
    fn local_disks_partitions_volumes_and_arrays_are_fine() {
        for names in
            [&["sda"][..], &["nvme0n1p3", "nvme0n1"], &["dm-0", "md127", "sda1", "sda"], &["vdb", "pmem0"]]
        {
            let parts: Vec<_> = names.iter().map(|name| part(name)).collect();
            assert_eq!(told(&parts), None);
        }
        assert_eq!(told(&[Part { transports: vec!["pcie".into()], ..part("nvme0n1") }]), None);
    }

    #[test]
    fn what_can_hang_the_host_is_refused_with_the_reason() {
        let iscsi = Part { iscsi: true, ..part("sdb") };
        let fabric = Part { transports: vec!["pcie".into(), "tcp".into()], ..part("nvme1n1") };
        let thin = Part { thin_pool: true, ..part("dm-2") };
        for (parts, expected) in [
            (vec![part("zd16p1"), part("zd16")], "on a ZFS volume (zd16)"),
            (vec![part("nbd0")], "on a disk behind the network (nbd0, nbd)"),
            (vec![part("dm-0"), part("rbd1")], "on a disk behind the network (rbd1, rbd)"),
            (vec![part("drbd0"), part("sda")], "on a disk behind the network (drbd0, drbd)"),
            (vec![part("dm-0"), iscsi], "on a disk behind the network (sdb, iSCSI)"),
            (vec![fabric], "on a disk behind the network (nvme1n1, NVMe over tcp)"),
            (vec![part("dm-5"), thin, part("sda")], "on a thin pool (dm-2)"),
            (vec![part("ublkb0")], "on a disk that a process provides (ublkb0)"),
            (vec![part("loop0"), part("sda")], "on a loop device (loop0)"),
            (vec![part("loop0"), part("nbd0")], "on a disk behind the network (nbd0, nbd)"),
            (vec![part("dm-0"), part("loop0"), part("zram0")], "memory (zram0)"),
        ] {
            assert_eq!(told(&parts).as_deref(), Some(expected));
        }
    }

    #[test]
    fn memory_and_what_is_not_known_cannot_be_allowed_and_the_rest_names_the_key() {
        for (parts, allowed) in
            [(vec![part("zram0")], false), (vec![part("zd0")], true), (vec![part("loop0")], true)]
        {
            let danger = danger(&made_of(&parts)).unwrap();
            assert_eq!(danger.may_be_allowed(), allowed);
            assert_eq!(danger.advice().contains("allow_unsafe_device"), allowed);
        }
        assert!(!danger(&Facts::default()).unwrap().may_be_allowed());
    }

    #[test]
    fn whoever_uses_a_device_is_named() {
        assert_eq!(use_of(&made_of(&[part("sda")])), None);
        let cases = [
            (Facts { mounted_on: Some("/srv".into()), ..Facts::default() }, "mounted on /srv"),
            (Facts { partitions: vec!["sda1".into()], ..Facts::default() }, "it has partitions: sda1"),
            (Facts { holders: vec!["md0".into()], ..Facts::default() }, "a part of md0"),
            (Facts { resume: true, ..Facts::default() }, "the host hibernates to it"),
            (Facts { read_only: true, ..Facts::default() }, "read-only"),
            (
                Facts { opened_by: Some("qemu, process 7".into()), ..Facts::default() },
                "open for writing by qemu, process 7",
            ),
        ];
        for (facts, expected) in cases {
            assert_eq!(use_of(&facts).as_deref(), Some(expected));
        }
    }
}
