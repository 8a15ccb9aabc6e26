//! Which pages of a memfd or tmpfs file exist, in memory or in swap.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd as _, AsRawFd as _};

use nix::unistd::{Whence, lseek};

use super::PAGE_BYTES;

/// Calls `found` for every range of bytes between `start` and `end` that has pages, in order. Both are multiples of a
/// page.
///
/// Counts pages by halves of halves (`cachestat(2)`, Linux 6.5 and later), which takes no lock. Before that, asks for
/// the next data page by page: `SEEK_HOLE` would go through all pages up to the next hole in one call, and hold the
/// lock of the file that the balloon waits for (`shmem_file_llseek` in mm/shmem.c, Linux 6.1 to 6.18).
///
/// # Errors
/// `ENXIO` and `EOPNOTSUPP`: no file of this kind.
pub fn pages_of_file(file: &File, range: Range<u64>, found: &mut impl FnMut(Range<u64>)) -> io::Result<()> {
    match count_pages(file, &range) {
        Ok(0) => Ok(()),
        Ok(pages) if pages * PAGE_BYTES >= range.end - range.start => {
            found(range);
            Ok(())
        }
        Ok(_) => {
            let half = (range.end - range.start) / 2 / PAGE_BYTES * PAGE_BYTES;
            let middle = range.start + half.max(PAGE_BYTES);
            pages_of_file(file, range.start..middle, found)?;
            pages_of_file(file, middle..range.end, found)
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => seek_pages(file, range, found),
        Err(error) => Err(error),
    }
}

/// Pages of these bytes that are in memory or in swap.
fn count_pages(file: &File, range: &Range<u64>) -> io::Result<u64> {
    let asked = CacheRange { offset: range.start, bytes: range.end - range.start };
    let mut told = CacheStat::default();
    // SAFETY: the kernel reads `asked` and writes `told`, which have its layout and outlive the call.
    let result =
        unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const asked, &raw mut told, 0) };
    if result == 0 { Ok(told.cached + told.evicted) } else { Err(io::Error::last_os_error()) }
}

fn seek_pages(file: &File, range: Range<u64>, found: &mut impl FnMut(Range<u64>)) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        match lseek(file.as_fd(), i64::try_from(at).unwrap_or(i64::MAX), Whence::SeekData) {
            Ok(data) => at = data.unsigned_abs().max(at),
            // No data up to the end of the file.
            Err(nix::errno::Errno::ENXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        if at < range.end {
            found(at..at + PAGE_BYTES);
        }
        at += PAGE_BYTES;
    }
    Ok(())
}

/// arch/x86/entry/syscalls/syscall_64.tbl.
const SYS_CACHESTAT: libc::c_long = 451;

// include/uapi/linux/mman.h, Linux 6.5 and later.
#[repr(C)]
struct CacheRange {
    offset: u64,
    bytes: u64,
}

#[repr(C)]
#[derive(Default)]
struct CacheStat {
    cached: u64,
    dirty: u64,
    writeback: u64,
    /// Of a memfd: in swap.
    evicted: u64,
    recently_evicted: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt as _;

    #[test]
    fn both_ways_find_the_pages_that_were_written_and_no_others() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(64 * PAGE_BYTES).unwrap();
        for page in [0, 1, 2, 17, 40, 41, 63] {
            file.write_all_at(&[1], page * PAGE_BYTES).unwrap();
        }
        let (mut counted, mut sought) = (Vec::new(), Vec::new());
        let push = |pages: &mut Vec<u64>, range: Range<u64>| {
            pages.extend(range.step_by(PAGE_BYTES as usize).map(|at| at / PAGE_BYTES));
        };
        let range = PAGE_BYTES..64 * PAGE_BYTES;
        pages_of_file(&file, range.clone(), &mut |found| push(&mut counted, found)).unwrap();
        seek_pages(&file, range, &mut |found| push(&mut sought, found)).unwrap();
        assert_eq!(counted, [1, 2, 17, 40, 41, 63]);
        assert_eq!(sought, counted);
        pages_of_file(&file, 3 * PAGE_BYTES..17 * PAGE_BYTES, &mut |found| panic!("{found:?}")).unwrap();
    }
}
