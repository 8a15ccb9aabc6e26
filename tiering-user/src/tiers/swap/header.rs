//! The header of a swap file: the first page of the area, as mkswap(8) writes it, and the agent's mark in it.
//!
//! Layout: `union swap_header` in include/linux/swap.h (Linux 6.1 to 6.18). The mark is the label `tiering-TIER`
//! together with a UUID that begins with [`MARK`]; files of versions before the mark have a random UUID of version 4
//! there. On a device it is [`DEVICE_MARK`]: an image of a swap file on a device, or of a device in a file, is not
//! ours.

use crate::sys::PAGE_BYTES;

const PAGE: usize = PAGE_BYTES as usize;
/// Largest page a kernel may have made an area with; the signature ends the first page.
const LARGEST_PAGE: usize = 64 << 10;
const SIGNATURE: &[u8; 10] = b"SWAPSPACE2";
/// What else may stand in its place: the first version, and images of a suspended system (libblkid,
/// src/superblocks/swap.c).
const OTHER_SIGNATURES: [&[u8; 9]; 5] =
    [b"SWAP-SPAC", b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB000"];
const VERSION_AT: usize = 1024;
const LAST_PAGE_AT: usize = 1028;
const UUID_AT: usize = 1036;
const LABEL_AT: usize = 1052;
/// Longest label, bytes; what is longer is cut.
const LABEL_BYTES: usize = 16;
const LABEL_PREFIX: &str = "tiering-";
/// How the UUID of an area of ours begins; its version is 8, "custom" (RFC 9562, section 5.8).
const MARK: [u8; 6] = [0x74, 0x69, 0x65, 0x72, 0x8a, 0x3d];
/// The same on a device.
const DEVICE_MARK: [u8; 6] = [0x74, 0x69, 0x65, 0x72, 0x8a, 0x3e];
const BAD_PAGES_COUNT_AT: usize = 1032;
const BAD_PAGES_AT: usize = 1536;
/// What has to be read of a file to know its header.
pub(super) const HEADER_BYTES: usize = LARGEST_PAGE;

/// A swap header that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    /// The tier it was made for, cut to eight characters, where an agent made it in a file.
    pub(super) made_for: Option<String>,
    /// The same where an agent made it on a device.
    pub(super) on_device: Option<DeviceHeader>,
}

/// A header that an agent made on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DeviceHeader {
    /// The tier it was made for, cut to eight characters.
    pub(super) made_for: String,
    pub(super) uuid: [u8; 16],
    /// Pages of the area, this one included.
    pub(super) pages: u32,
}

impl Header {
    /// The header in the first bytes of a file or device, if they are those of a swap area.
    pub(super) fn decode(start: &[u8]) -> Option<Self> {
        let mut page = PAGE;
        while page <= LARGEST_PAGE.min(start.len()) {
            let signature = &start[page - SIGNATURE.len()..page];
            if signature == SIGNATURE {
                return Some(if page == PAGE { Self::of_page(start) } else { Self::default() });
            }
            if OTHER_SIGNATURES.iter().any(|other| signature.starts_with(&other[..])) {
                return Some(Self::default());
            }
            page *= 2;
        }
        None
    }

    fn of_page(page: &[u8]) -> Self {
        let Some(tier) = tier_in_label(page) else { return Self::default() };
        let uuid: [u8; 16] = std::array::from_fn(|at| page[UUID_AT + at]);
        let version = uuid[6] >> 4;
        if version == 8 && uuid.starts_with(&DEVICE_MARK) {
            let last = u32::from_ne_bytes(std::array::from_fn(|at| page[LAST_PAGE_AT + at]));
            let header = DeviceHeader { made_for: tier, uuid, pages: last.saturating_add(1) };
            return Self { made_for: None, on_device: Some(header) };
        }
        let ours = version == 8 && uuid.starts_with(&MARK) || version == 4;
        Self { made_for: ours.then_some(tier), on_device: None }
    }
}

impl DeviceHeader {
    /// For an area of so many pages, this one included. `random` makes its UUID differ from others.
    pub(super) fn new(pages: u32, random: [u8; 16], tier: &str) -> Self {
        let end = tier.len().min(LABEL_BYTES - LABEL_PREFIX.len());
        Self { made_for: tier[..end].to_owned(), uuid: marked(random, DEVICE_MARK), pages }
    }

    /// The first page of the device. The pages from the second one to the one before `first_page` hold no swap: they
    /// are told to the kernel as bad.
    pub(super) fn encode(&self, first_page: u32) -> [u8; PAGE] {
        let mut page = encode_with(self.pages, self.uuid, &self.made_for);
        let bad = 1..first_page;
        page[BAD_PAGES_COUNT_AT..][..4].copy_from_slice(&first_page.saturating_sub(1).to_ne_bytes());
        for (at, number) in bad.enumerate() {
            page[BAD_PAGES_AT + 4 * at..][..4].copy_from_slice(&number.to_ne_bytes());
        }
        page
    }
}

/// The tier in the label.
fn tier_in_label(page: &[u8]) -> Option<String> {
    let label = &page[LABEL_AT..][..LABEL_BYTES];
    let end = label.iter().position(|byte| *byte == 0).unwrap_or(LABEL_BYTES);
    let tier = std::str::from_utf8(&label[..end]).ok()?.strip_prefix(LABEL_PREFIX)?;
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (!tier.is_empty() && tier.bytes().all(plain)).then(|| tier.to_owned())
}

/// A UUID of version 8 that begins with the mark.
fn marked(mut uuid: [u8; 16], mark: [u8; 6]) -> [u8; 16] {
    uuid[..mark.len()].copy_from_slice(&mark);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// The first page of a swap area of `pages` pages (this one included) for `tier`. `random` makes its UUID differ from
/// others.
pub(super) fn encode(pages: u32, random: [u8; 16], tier: &str) -> [u8; PAGE] {
    encode_with(pages, marked(random, MARK), tier)
}

fn encode_with(pages: u32, uuid: [u8; 16], tier: &str) -> [u8; PAGE] {
    let label = format!("{LABEL_PREFIX}{tier}");
    let label = &label.as_bytes()[..label.len().min(LABEL_BYTES)];
    let mut page = [0; PAGE];
    page[VERSION_AT..][..4].copy_from_slice(&1u32.to_ne_bytes());
    page[LAST_PAGE_AT..][..4].copy_from_slice(&pages.saturating_sub(1).to_ne_bytes());
    page[UUID_AT..][..16].copy_from_slice(&uuid);
    page[LABEL_AT..][..label.len()].copy_from_slice(label);
    page[PAGE - SIGNATURE.len()..].copy_from_slice(SIGNATURE);
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::process::Command;

    const RANDOM: [u8; 16] = [0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0x4d, 0xef, 0x81, 2, 3, 4, 5, 6, 7, 8];

    #[test]
    fn swaplabel_accepts_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut area = encode(256, RANDOM, "nvme").to_vec();
        area.resize(256 * PAGE, 0);
        std::fs::write(file.path(), area).unwrap();
        let shown = Command::new("/usr/sbin/swaplabel").arg(file.path()).output().unwrap();
        let text = String::from_utf8(shown.stdout).unwrap();
        assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
        assert!(text.contains("LABEL: tiering-nvme"), "{text}");
        assert!(text.contains("UUID:  74696572-8a3d-8def-8102-030405060708"), "{text}");
    }

    fn mkswap(args: &[&str]) -> Option<Header> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let made = Command::new("/usr/sbin/mkswap").args(args).arg(file.path()).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        decode_file(file.path())
    }

    fn decode_file(path: &Path) -> Option<Header> {
        Header::decode(&std::fs::read(path).unwrap()[..HEADER_BYTES])
    }

    fn ours(tier: &str) -> Option<Header> {
        Some(Header { made_for: Some(tier.to_owned()), on_device: None })
    }

    #[test]
    fn the_agents_own_files_are_told_from_those_of_others() {
        assert_eq!(Header::decode(&encode(256, RANDOM, "nvme")), ours("nvme"));
        assert_eq!(
            Header::decode(&encode(256, RANDOM, "archive-slow")),
            ours("archive-"),
            "labels are short"
        );
        let foreign = Some(Header::default());
        assert_eq!(mkswap(&[]), foreign);
        assert_eq!(mkswap(&["-L", "swap"]), foreign);
        assert_eq!(mkswap(&["-L", "tiering-"]), foreign);
        assert_eq!(mkswap(&["-L", "tiering-My swap"]), foreign);
        assert_eq!(
            mkswap(&["-p", "16384", "-L", "tiering-nvme"]),
            foreign,
            "not of this machine's page size"
        );
        let time_based = ["-L", "tiering-nvme", "-U", "b7a8a9f0-8d3c-11ee-b9d1-0242ac120002"];
        assert_eq!(mkswap(&time_based), foreign, "no version of the agent made that UUID");
        assert_eq!(mkswap(&["-L", "tiering-nvme"]), ours("nvme"), "as earlier versions made it");
    }

    #[test]
    fn what_is_no_swap_has_no_header_and_an_image_of_a_suspended_system_has_one() {
        assert_eq!(Header::decode(b"text"), None);
        assert_eq!(Header::decode(&[0; 2 * PAGE]), None);
        let mut suspended = encode(256, RANDOM, "nvme");
        suspended[PAGE - 10..].copy_from_slice(b"S1SUSPEND\0");
        assert_eq!(Header::decode(&suspended), Some(Header::default()));
    }

    #[test]
    fn a_header_on_a_device_is_no_header_of_a_file_and_leaves_its_first_pages_out() {
        let header = DeviceHeader::new(4096, RANDOM, "archive-slow");
        let page = header.encode(256);
        let found = Header::decode(&page).unwrap();
        assert_eq!(found, Header { made_for: None, on_device: Some(header.clone()) });
        assert_eq!(header.made_for, "archive-");
        let word = |at: usize| u32::from_ne_bytes(page[at..at + 4].try_into().unwrap());
        assert_eq!([word(LAST_PAGE_AT), word(BAD_PAGES_COUNT_AT)], [4095, 255]);
        assert_eq!(
            [word(BAD_PAGES_AT), word(BAD_PAGES_AT + 4 * 254), word(BAD_PAGES_AT + 4 * 255)],
            [1, 255, 0]
        );
        // mkswap gives such a UUID only where it is told to.
        assert_eq!(mkswap(&["-L", "tiering-nvme"]).unwrap().on_device, None);
    }
}
