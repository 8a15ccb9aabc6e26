//! What this process itself takes of the host's memory.

use std::io;
use std::ops::Range;

use super::PAGE_BYTES;

/// Resident memory of this process, bytes: its own and what it has mapped of files, among these its program and the
/// rings.
///
/// # Errors
/// Where `/proc/self/statm` cannot be read.
pub fn own_memory() -> io::Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let resident = statm.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    Ok(resident.ok_or(io::ErrorKind::InvalidData)? * PAGE_BYTES)
}

/// Gives the kernel back what was freed and is still with the allocator; what is left of the heap is locked again, page
/// by page as it is used.
///
/// The agent's memory is locked, and of locked memory the allocator cannot give back what lies between pieces in use
/// (madvise(2): `MADV_DONTNEED` fails with `EINVAL`): of 70 MiB with 34 MiB freed, 70 stayed with the heap locked, and
/// 36 without (Linux 6.18, glibc 2.36).
pub fn give_back_freed() {
    if let Some(heap) = heap() {
        // SAFETY: a mapping of this process; whether its pages are locked does not change what they hold.
        unsafe { libc::munlock(heap.start as *const libc::c_void, heap.len()) };
    }
    // SAFETY: it may be called at any time, by any thread (malloc_trim(3)).
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
    // It may end elsewhere now.
    if let Some(heap) = heap() {
        // SAFETY: as above.
        unsafe { libc::mlock2(heap.start as *const libc::c_void, heap.len(), libc::MLOCK_ONFAULT) };
    }
}

/// Where the heap lies; `None` where there is none.
fn heap() -> Option<Range<usize>> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with("[heap]"))?;
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    Some(address(start)?..address(end)?)
}
