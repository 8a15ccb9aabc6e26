//! Whether a device is one of ours. Pure.
//!
//! No page of a VM lies where file systems, partition tables, volume managers and RAID have their marks (libblkid,
//! src/superblocks; VMFS alone has them further in). So a device is ours if both ends are, byte for byte, as the agent
//! wrote them: no guest can put something there that looks like a file system, and nothing else that was written over a
//! device of ours passes for ours.
//!
//! A device is empty if its first 4 MiB and its last MiB read as zeroes: a list of known marks would not know them all.
//!
//! # Limits
//! A device whose data lies in the middle only passes for empty.

use super::super::header::{DeviceHeader, Header};
use super::signatures;
use crate::sys::PAGE_BYTES;
use crate::tiers::device_layout::FIRST_PAGE;

const PAGE: usize = PAGE_BYTES as usize;
/// What has to be read of the begin.
pub(super) const START_BYTES: u64 = 4 << 20;

/// Where the pages to be read begin on a device with this header.
pub(super) fn probe_at(header: &DeviceHeader) -> u64 {
    u64::from(header.pages) * PAGE_BYTES
}

/// The first page of the device.
pub(super) fn header_page(header: &DeviceHeader) -> [u8; PAGE] {
    header.encode(FIRST_PAGE)
}

/// What is on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Empty,
    Ours(DeviceHeader),
    /// For people.
    Other(String),
}

/// Judges the first [`START_BYTES`] and the last `END_BYTES` of a device.
pub(super) fn content(start: &[u8], end: &[u8]) -> Content {
    let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    if is_zero(start) && is_zero(end) {
        return Content::Empty;
    }
    let ours = Header::decode(&start[..PAGE]).and_then(|header| header.on_device);
    let guard = FIRST_PAGE as usize * PAGE;
    match ours {
        Some(header)
            if header_page(&header) == start[..PAGE] && is_zero(&start[PAGE..guard]) && is_zero(end) =>
        {
            Content::Ours(header)
        }
        _ => Content::Other(signatures::name(start, end)),
    }
}

/// The content of a page to be read: random, so that no disk compresses it, and the same for whoever knows the UUID.
pub(super) fn probe_page(uuid: &[u8; 16], page: u64) -> [u8; PAGE] {
    let half = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| uuid[at + byte]));
    // splitmix64 (Steele and others, OOPSLA 2014).
    let mut state =
        half(0).wrapping_mul(0xE703_7ED1_A0B4_28DB) ^ half(8) ^ page.wrapping_mul(0xA076_1D64_78BD_642F);
    let mut bytes = [0; PAGE];
    for word in bytes.chunks_exact_mut(8) {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiers::device_layout::END_BYTES;

    const MIB: u64 = 1 << 20;

    fn ends() -> (Vec<u8>, Vec<u8>) {
        (vec![0; START_BYTES as usize], vec![0; END_BYTES as usize])
    }

    fn ours(pages: u32) -> DeviceHeader {
        DeviceHeader::new(pages, [7; 16], "qlc")
    }

    #[test]
    fn zeroes_at_both_ends_are_an_empty_device_and_one_byte_is_none() {
        let (start, end) = ends();
        assert_eq!(content(&start, &end), Content::Empty);
        for at in [0, 300_000, start.len() - 1] {
            let mut start = start.clone();
            start[at] = 1;
            assert_eq!(content(&start, &end), Content::Other(format!("data at byte {at}")));
        }
        let mut end = end;
        end[5] = 1;
        assert_eq!(content(&start, &end), Content::Other("data in its last MiB".to_owned()));
    }

    #[test]
    fn a_device_is_ours_if_its_ends_are_as_the_agent_wrote_them_whatever_guests_wrote_between() {
        let (mut start, end) = ends();
        let header = ours(5000);
        start[..PAGE].copy_from_slice(&header_page(&header));
        let guest = MIB as usize;
        start[guest..guest + 4].copy_from_slice(b"XFSB");
        assert_eq!(content(&start, &end), Content::Ours(header));
        // A boot sector, a RAID superblock behind the header, a backup of a partition table.
        for at in [3, 510, 4096, guest - 1] {
            let mut other = start.clone();
            other[at] = 1;
            assert!(matches!(content(&other, &end), Content::Other(_)), "byte {at}");
        }
        let mut last = end.clone();
        *last.last_mut().unwrap() = 1;
        assert!(matches!(content(&start, &last), Content::Other(_)));
        // A swap file of ours, as an image.
        start[..PAGE].copy_from_slice(&super::super::super::header::encode(5000, [7; 16], "qlc"));
        assert_eq!(content(&start, &end), Content::Other("a swap area (`tiering-qlc`)".to_owned()));
    }

    #[test]
    fn pages_to_be_read_are_dense_differ_and_come_again() {
        let (one, two) = (probe_page(&[1; 16], 0), probe_page(&[1; 16], 1));
        assert!(one != two && one == probe_page(&[1; 16], 0) && one != probe_page(&[2; 16], 0));
        assert!(one.iter().filter(|byte| **byte == 0).count() < PAGE / 16);
    }
}
