//! Advice to, and touches of, the memory of another process.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::FileExt as _;

use super::{PAGE_BYTES, Pidfd};

/// Ranges that one `process_madvise` takes at most (`UIO_MAXIOV`).
pub const MAX_RANGES_PER_CALL: usize = 1024;

/// Pages of one write touch: `process_vm_writev` pins this many before it notices that there is nothing to copy
/// (two pages of `struct page *`, mm/process_vm_access.c, Linux 6.1 to 6.18).
const PAGES_PER_WRITE_TOUCH: u64 = 1024;

/// A range of host-virtual addresses of another process, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub start: u64,
    pub bytes: u64,
}

/// What `process_madvise` is asked for (include/uapi/asm-generic/mman-common.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Write to swap and free now.
    PageOut,
    /// Read from swap ahead of need.
    WillNeed,
    /// Make whole blocks of 2 MiB huge pages, bringing up what is in swap.
    Collapse,
}

/// Gives `advice` for up to [`MAX_RANGES_PER_CALL`] spans. Returns the bytes the kernel went through, which
/// says nothing about whether a page moved: read that back with [`super::Pagemap`].
///
/// # Errors
/// As the kernel gives them: `ESRCH` (the process is gone), `EINVAL` (locked or huge-page memory), `ENOMEM`
/// (nothing mapped there).
pub fn advise(process: &Pidfd, spans: &[Span], advice: Advice) -> io::Result<u64> {
    let iov = iovecs(spans);
    let advice = match advice {
        Advice::PageOut => libc::MADV_PAGEOUT,
        Advice::WillNeed => libc::MADV_WILLNEED,
        Advice::Collapse => libc::MADV_COLLAPSE,
    };
    // SAFETY: `iov` is a valid array of that length; the kernel only reads it, and the addresses in it are
    // those of the other process, never ours.
    let done = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            process.as_fd().as_raw_fd(),
            iov.as_ptr(),
            iov.len(),
            advice,
            0,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done.unsigned_abs()) }
}

/// Reads one byte at the start of every span, so that its page is mapped in the process. Returns how many could be
/// read, from the front.
///
/// Not by `process_vm_readv`, which takes a number that may be another process's by now. Of pages that are in memory,
/// in random order, that read 0.34 us a page and this 0.49; of pages that had to be mapped first both took 0.6 to 0.9
/// (6.18, 32,768 pages).
///
/// # Errors
/// `ESRCH` where the process has ended; those of opening its memory.
pub fn touch_read(process: &Pidfd, spans: &[Span]) -> io::Result<usize> {
    let mut byte = [0];
    count(spans.iter().map(|span| read_remote(process, span.start, &mut byte)))
}

/// Copies the pages at these addresses into `pages`, one after another. Returns how many could be copied, from the
/// front.
///
/// # Errors
/// As [`touch_read`].
pub fn read_pages(
    process: &Pidfd,
    addresses: &[u64],
    pages: &mut [[u8; PAGE_BYTES as usize]],
) -> io::Result<usize> {
    count(addresses.iter().zip(pages).map(|(hva, page)| read_remote(process, *hva, page)))
}

/// Fills `buffer` from an address of the process. Returns whether all of it could be read.
fn read_remote(process: &Pidfd, hva: u64, buffer: &mut [u8]) -> io::Result<bool> {
    match process.memory()?.read_at(buffer, hva) {
        // Of an address space that is gone nothing is read (`mem_rw` in fs/proc/base.c, Linux 6.1 to 6.18).
        Ok(0) => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        Ok(bytes) => Ok(bytes == buffer.len()),
        Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(false),
        Err(error) => Err(error),
    }
}

/// How many are true, up to the first that is not.
fn count(mut read: impl Iterator<Item = io::Result<bool>>) -> io::Result<usize> {
    let mut done = 0;
    while let Some(read) = read.next().transpose()?
        && read
    {
        done += 1;
    }
    Ok(done)
}

/// Makes every page of `span` present and written to, without changing a byte of it, so that it gives back the
/// swap slot it has: the next page-out then takes a slot where the kernel hands them out now, not the old one.
///
/// `process_vm_writev` pins the target pages for writing before it looks at the source; the source here cannot
/// be read, so the copy ends before its first byte. Measured on 6.18: 16,384 of 16,384 swapped pages present
/// afterwards, their slots freed, their content as before.
///
/// What is not mapped in `span` stays so: read back with [`super::Pagemap`].
///
/// # Errors
/// `ESRCH`, `EPERM`.
pub fn touch_write(process: &Pidfd, span: Span) -> io::Result<()> {
    let step = PAGES_PER_WRITE_TOUCH * PAGE_BYTES;
    let mut start = span.start;
    let end = span.start + span.bytes;
    while start < end {
        let bytes = step.min(end - start);
        touch_write_step(process, Span { start, bytes })?;
        start += bytes;
    }
    Ok(())
}

fn touch_write_step(process: &Pidfd, span: Span) -> io::Result<()> {
    let remote = libc::iovec {
        iov_base: address(span.start),
        iov_len: usize::try_from(span.bytes).map_err(io::Error::other)?,
    };
    // One byte at address 0, where nothing is ever mapped (vm.mmap_min_addr).
    let unreadable = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 1 };
    process.by_number(|pid| {
        // SAFETY: the kernel only tries to read `unreadable`, and fails; `remote` lies in the other process.
        let copied =
            unsafe { libc::process_vm_writev(pid, &raw const unreadable, 1, &raw const remote, 1, 0) };
        match copied {
            -1 => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::EFAULT) => Ok(()),
                error => Err(error),
            },
            _ => Err(io::Error::other("process_vm_writev copied from an address that cannot be read")),
        }
    })
}

fn iovecs(spans: &[Span]) -> Vec<libc::iovec> {
    spans
        .iter()
        .map(|span| libc::iovec {
            iov_base: address(span.start),
            // Spans are parts of a mapping, so they fit an address.
            iov_len: usize::try_from(span.bytes).unwrap_or(0),
        })
        .collect()
}

/// An address of another process in the form that `iovec` wants; never dereferenced here.
fn address(hva: u64) -> *mut libc::c_void {
    std::ptr::without_provenance_mut(usize::try_from(hva).unwrap_or(0))
}
