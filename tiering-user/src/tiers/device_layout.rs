//! What lies where on a device of ours. Pure.
//!
//! | bytes | |
//! |---|---|
//! | 0 to 1 MiB | the header's page, then zeroes |
//! | to 9 MiB before the end | pages of VMs |
//! | 8 MiB | random bytes, read to learn how fast the device is |
//! | the last MiB | zeroes |

use crate::sys::PAGE_BYTES;

/// What is kept free at the end.
pub const END_BYTES: u64 = 1 << 20;
/// No page of a VM before this one; the header has room for 637 bad pages.
pub const FIRST_PAGE: u32 = 256;
/// What a measurement reads.
pub const PROBE_BYTES: u64 = 8 << 20;
/// Smaller devices are not worth it.
const LEAST_BYTES: u64 = 32 << 20;

/// Of a device of a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Of the swap area, those that are left out and the header's included.
    pub pages: u32,
    end_at: u64,
}

impl Layout {
    /// None for a device that is too small. What is beyond 16 TiB is not used.
    pub fn of(device_bytes: u64) -> Option<Self> {
        let end_at = (device_bytes / PAGE_BYTES * PAGE_BYTES).checked_sub(END_BYTES)?;
        let pages = end_at.checked_sub(PROBE_BYTES)? / PAGE_BYTES;
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        (device_bytes >= LEAST_BYTES).then_some(Self { pages, end_at })
    }

    /// Where the last MiB begins.
    pub fn end_at(&self) -> u64 {
        self.end_at
    }

    pub fn probe_at(&self) -> u64 {
        u64::from(self.pages) * PAGE_BYTES
    }

    /// What the area can hold, and a page, as for a file, whose header is counted.
    pub fn area_bytes(&self) -> u64 {
        u64::from(self.pages - FIRST_PAGE + 1) * PAGE_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_area_the_pages_to_be_read_and_the_end_fill_the_device() {
        let layout = Layout::of(100 * MIB + 777).unwrap();
        assert_eq!((layout.probe_at(), layout.end_at()), (91 * MIB, 99 * MIB));
        assert_eq!(layout.area_bytes(), 90 * MIB + PAGE_BYTES);
        assert_eq!([0, 5 * MIB, 31 * MIB].map(Layout::of), [None; 3]);
        assert!(Layout::of(1 << 60).unwrap().probe_at() <= 1 << 44);
    }
}
