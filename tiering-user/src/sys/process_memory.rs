//! Advice to, and touches of, the memory of another process.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

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

/// Reads one byte at the start of every span, so that its page is mapped in the process. `spans` are at most
/// [`MAX_RANGES_PER_CALL`]. Returns how many could be read, from the front.
///
/// By `process_vm_readv`, not by `/proc/PID/mem`: that allocates and copies a page for each read, which halved the rate
/// at which pages came up (6.18).
///
/// # Errors
/// `ESRCH`, `EPERM`.
pub fn touch_read(process: &Pidfd, spans: &[Span]) -> io::Result<usize> {
    let mut bytes = [0u8; MAX_RANGES_PER_CALL];
    let spans = &spans[..spans.len().min(MAX_RANGES_PER_CALL)];
    let remote: Vec<_> =
        spans.iter().map(|span| libc::iovec { iov_base: address(span.start), iov_len: 1 }).collect();
    read_remote(process, &mut bytes[..remote.len()], &remote)
}

/// Copies the pages at these addresses into `pages`, one after another. `addresses` are at most
/// [`MAX_RANGES_PER_CALL`], and as many as there are `pages`. Returns how many could be copied, from the front.
///
/// # Errors
/// `ESRCH`, `EPERM`.
pub fn read_pages(
    process: &Pidfd,
    addresses: &[u64],
    pages: &mut [[u8; PAGE_BYTES as usize]],
) -> io::Result<usize> {
    let count = addresses.len().min(pages.len()).min(MAX_RANGES_PER_CALL);
    let remote: Vec<_> = addresses[..count]
        .iter()
        .map(|hva| libc::iovec { iov_base: address(*hva), iov_len: PAGE_BYTES as usize })
        .collect();
    let bytes = read_remote(process, pages[..count].as_flattened_mut(), &remote)?;
    Ok(bytes / PAGE_BYTES as usize)
}

/// Copies what is at `remote` in the process into `buffer`. Returns how many bytes, from the front.
fn read_remote(process: &Pidfd, buffer: &mut [u8], remote: &[libc::iovec]) -> io::Result<usize> {
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let count = remote.len() as libc::c_ulong;
    process.by_number(|pid| {
        // SAFETY: `local` is `buffer`, which the kernel may fill; `remote` are addresses of the other process.
        let read = unsafe { libc::process_vm_readv(pid, &raw const local, 1, remote.as_ptr(), count, 0) };
        match usize::try_from(read) {
            Ok(bytes) => Ok(bytes),
            Err(_) => match io::Error::last_os_error() {
                // Not even the first.
                error if error.raw_os_error() == Some(libc::EFAULT) => Ok(0),
                error => Err(error),
            },
        }
    })
}

/// Makes every page of `span` present and written to, without changing a byte of it, so that it gives back the
/// swap slot it has: the next page-out then takes a slot where the kernel hands them out now, not the old one.
///
/// `process_vm_writev` pins the target pages for writing before it looks at the source; the source here cannot
/// be read, so the copy ends before its first byte. Measured on 6.18: 16,384 of 16,384 swapped pages present
/// afterwards, their slots freed, their content as before.
///
/// A page of private memory that was never touched is allocated: leave it out. Read back with [`super::Pagemap`] what
/// came of it.
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
