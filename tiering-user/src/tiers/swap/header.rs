//! The header of a swap file, as mkswap(8) writes it: the first page of the area.
//!
//! Layout: `union swap_header` in include/linux/swap.h (Linux 6.1 to 6.18).

use crate::sys::PAGE_BYTES;

const PAGE: usize = PAGE_BYTES as usize;
const SIGNATURE: &[u8; 10] = b"SWAPSPACE2";
const VERSION_AT: usize = 1024;
const LAST_PAGE_AT: usize = 1028;
const UUID_AT: usize = 1036;
const LABEL_AT: usize = 1052;
/// Longest label, bytes; what is longer is cut.
const LABEL_BYTES: usize = 16;

/// The first page of a swap area of `pages` pages (this one included).
pub fn encode(pages: u32, uuid: [u8; 16], label: &str) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    page[VERSION_AT..][..4].copy_from_slice(&1u32.to_ne_bytes());
    page[LAST_PAGE_AT..][..4].copy_from_slice(&pages.saturating_sub(1).to_ne_bytes());
    page[UUID_AT..][..16].copy_from_slice(&uuid);
    let label = &label.as_bytes()[..label.len().min(LABEL_BYTES)];
    page[LABEL_AT..][..label.len()].copy_from_slice(label);
    page[PAGE - SIGNATURE.len()..].copy_from_slice(SIGNATURE);
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn swaplabel_accepts_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let uuid = [0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0x4d, 0xef, 0x81, 2, 3, 4, 5, 6, 7, 8];
        let mut area = encode(256, uuid, "tiering-nvme").to_vec();
        area.resize(256 * PAGE, 0);
        std::fs::write(file.path(), area).unwrap();
        let shown = Command::new("/usr/sbin/swaplabel").arg(file.path()).output().unwrap();
        let text = String::from_utf8(shown.stdout).unwrap();
        assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
        assert!(text.contains("LABEL: tiering-nvme"), "{text}");
        assert!(text.contains("UUID:  12345678-9abc-4def-8102-030405060708"), "{text}");
    }
}
