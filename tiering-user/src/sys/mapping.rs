//! A private mapping of zeroes in small pages, none of it present before it is touched: what [`super::ZeroPages`] and
//! [`super::Buffer`] are made of.

use std::io;

use super::PAGE_BYTES;

/// Gone when dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the mapping belongs to this value alone.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `pages` pages, never huge ones.
    ///
    /// # Errors
    /// `ENOMEM`, `EINVAL` (no page).
    pub(super) fn new(pages: usize) -> io::Result<Self> {
        let bytes = pages * PAGE_BYTES as usize;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // Best effort: a kernel without huge pages has nothing to switch off.
        // SAFETY: the range is the mapping just made, and the advice does not change its content.
        unsafe { libc::madvise(start, bytes, libc::MADV_NOHUGEPAGE) };
        Ok(Self { start: start.cast(), bytes })
    }

    /// Its first byte; valid for `bytes` bytes as long as this lives.
    pub(super) fn start(&self) -> *mut u8 {
        self.start
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; whoever has an address of it borrows from this value.
        unsafe { libc::munmap(self.start.cast(), self.bytes) };
    }
}
