//! What somebody's device is, for the message that refuses it. Pure; nothing is decided by it.
//!
//! In: the first MiB or more, and the last MiB. Out: the name of what libblkid knows best, or where the first byte is
//! that is not zero.

use super::super::header::Header;

/// Name, byte from the begin, mark (util-linux, libblkid/src/superblocks and partitions).
const MARKS: [(&str, usize, &[u8]); 26] = [
    ("a LUKS volume", 0, b"LUKS\xba\xbe"),
    ("an XFS file system", 0, b"XFSB"),
    ("an ext2, ext3 or ext4 file system", 1080, b"\x53\xef"),
    ("a Btrfs file system", 0x1_0040, b"_BHRfS_M"),
    ("an F2FS file system", 1024, b"\x10\x20\xf5\xf2"),
    ("a bcache or bcachefs device", 4120, b"\xc6\x85\x73\xf6"),
    ("a Ceph OSD", 0, b"bluestore block device"),
    ("an LVM physical volume", 0, b"LABELONE"),
    ("an LVM physical volume", 512, b"LABELONE"),
    ("an LVM physical volume", 1024, b"LABELONE"),
    ("an LVM physical volume", 1536, b"LABELONE"),
    ("a member of a RAID array (md)", 0, b"\xfc\x4e\x2b\xa9"),
    ("a member of a RAID array (md)", 4096, b"\xfc\x4e\x2b\xa9"),
    ("an NTFS file system", 3, b"NTFS    "),
    ("an exFAT file system", 3, b"EXFAT   "),
    ("a FAT file system", 54, b"FAT1"),
    ("a FAT file system", 82, b"FAT32"),
    ("an ISO 9660 file system", 0x8001, b"CD001"),
    ("a SquashFS file system", 0, b"hsqs"),
    ("an EROFS file system", 1024, b"\xe2\xe1\xf5\xe0"),
    ("a QCOW image", 0, b"QFI\xfb"),
    ("an Oracle ASM disk", 32, b"ORCLDISK"),
    ("a partition table (GPT)", 512, b"EFI PART"),
    ("a partition table (GPT)", 4096, b"EFI PART"),
    ("a partition table (MBR) or a boot sector", 510, b"\x55\xaa"),
    ("a file system of Minix or older ext", 1040, b"\x8f\x13"),
];
/// ZFS keeps uberblocks in a ring of each label.
const UBERBLOCKS: std::ops::Range<usize> = 128 << 10..256 << 10;
const UBERBLOCK: [u8; 8] = 0x00ba_b10c_u64.to_le_bytes();
const SECTOR: usize = 512;
const RAID: &[u8] = b"\xfc\x4e\x2b\xa9";
const GPT: &[u8] = b"EFI PART";

/// What is there, as the end of "it has".
pub(super) fn name(start: &[u8], end: &[u8]) -> String {
    let has = |at: usize, mark: &[u8]| start.get(at..).is_some_and(|rest| rest.starts_with(mark));
    if let Some(header) = Header::decode(start) {
        let label = label(start);
        return match label.filter(|_| header != Header::default() || has(4086, b"SWAPSPACE2")) {
            Some(label) if !label.is_empty() => format!("a swap area (`{label}`)"),
            _ => "a swap area or an image of a suspended system".to_owned(),
        };
    }
    if let Some((name, ..)) = MARKS.iter().find(|(_, at, mark)| has(*at, mark)) {
        return (*name).to_owned();
    }
    if UBERBLOCKS.step_by(1 << 10).any(|at| has(at, &UBERBLOCK)) {
        return "a member of a ZFS pool".to_owned();
    }
    let in_end = |mark: &[u8]| end.chunks(SECTOR).any(|sector| sector.starts_with(mark));
    if in_end(RAID) {
        return "a member of a RAID array (md)".to_owned();
    }
    if in_end(GPT) {
        return "the backup of a partition table (GPT)".to_owned();
    }
    match start.iter().position(|byte| *byte != 0) {
        Some(at) => format!("data at byte {at}"),
        None => "data in its last MiB".to_owned(),
    }
}

/// The label of a swap area.
fn label(start: &[u8]) -> Option<String> {
    let label = start.get(1052..1068)?.split(|byte| *byte == 0).next()?;
    let text = std::str::from_utf8(label).ok()?;
    text.chars().all(|c| c.is_ascii_graphic() || c == ' ').then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A byte, and what is there.
    type Mark<'a> = (usize, &'a [u8]);

    /// Zeroes with these bytes in them.
    fn with(marks: &[Mark<'_>]) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        for (at, mark) in marks {
            bytes[*at..at + mark.len()].copy_from_slice(mark);
        }
        bytes
    }

    #[test]
    fn what_is_known_has_its_name() {
        let none = with(&[]);
        let cases: [(&[Mark<'_>], &str); 6] = [
            (&[(1080, b"\x53\xef")], "ext4"),
            (&[(510, b"\x55\xaa"), (512, b"EFI PART")], "GPT"),
            (&[(510, b"\x55\xaa")], "MBR"),
            (&[(512, b"LABELONE")], "LVM"),
            (&[(129 << 10, &UBERBLOCK)], "ZFS"),
            (&[(4086, b"SWAPSPACE2"), (1052, b"debian")], "a swap area (`debian`)"),
        ];
        for (marks, expected) in cases {
            let name = name(&with(marks), &none);
            assert!(name.contains(expected), "{name}");
        }
        assert!(name(&none, &with(&[(3 << 12, RAID)])).contains("RAID"));
        assert!(name(&none, &with(&[((1 << 20) - 512, GPT)])).contains("backup"));
    }

    #[test]
    fn what_is_not_known_has_a_place() {
        let none = with(&[]);
        assert_eq!(name(&with(&[(77, b"x")]), &none), "data at byte 77");
        assert_eq!(name(&none, &with(&[(77, b"x")])), "data in its last MiB");
    }
}
