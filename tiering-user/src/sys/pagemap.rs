//! `/proc/PID/pagemap`: where each page of a process is, and `PAGEMAP_SCAN`, which tells it by ranges.
//!
//! Both read page tables under the process's `mmap_lock`: whoever maps or unmaps memory there waits, and whoever faults
//! behind that (fs/proc/task_mmu.c, Linux 6.1 to 6.18). So one call covers at most [`WALK_BYTES`], and when calls for
//! one process have taken [`HELD_MOST`] in all, the next one waits until [`PAUSE`] has passed since the last. Calls in
//! quick succession are like one long call: a reader may take the lock again before a waiting writer wakes up. All that
//! read through one [`super::Pidfd`] count together.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::{PAGE_BYTES, ZeroPages};

/// Where a page is (Documentation/admin-guide/mm/pagemap.rst).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// No page: never touched, or shared memory that is not mapped now.
    Absent,
    /// In RAM. The frame number is 0 without CAP_SYS_ADMIN.
    Present { pfn: u64 },
    /// Mapped to the kernel's one page of zeroes: takes no memory. So are pages of zeroes when a huge page is split
    /// (mm/huge_memory.c, Linux 6.12 and later).
    Zero,
    /// In the swap area with this kernel number, at this slot.
    Swapped { area: u8, slot: u64 },
}

impl PageState {
    fn decode(entry: u64, zero_pfn: Option<u64>) -> Self {
        if entry >> 63 & 1 == 1 {
            let pfn = entry & ((1 << 55) - 1);
            if Some(pfn) == zero_pfn { Self::Zero } else { Self::Present { pfn } }
        } else if entry >> 62 & 1 == 1 {
            let (area, slot) = ((entry & 0x1f) as u8, entry >> 5 & ((1 << 50) - 1));
            match area {
                PTE_MARKER => Self::Absent,
                // A page that is being moved to another frame shows as swapped; the slot is the frame it leaves.
                FIRST_SPECIAL.. => Self::Present { pfn: slot },
                _ => Self::Swapped { area, slot },
            }
        } else {
            Self::Absent
        }
    }
}

/// Numbers of swap areas from which on the kernel may mean something else: migration, device memory, poison
/// (include/linux/swap.h, Linux 6.1 to 6.18: 23 with device-private memory, 27 or 28 without).
pub const FIRST_SPECIAL: u8 = 23;
/// The last of them: no page, but something to remember about it.
const PTE_MARKER: u8 = 31;

/// Pages in a row that are all present, huge or not, or all swapped; whatever lies between two ranges takes no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanRange {
    /// Host-virtual address of the first page.
    pub start: u64,
    /// Host-virtual address behind the last.
    pub end: u64,
    pub swapped: bool,
    /// Mapped as huge pages.
    pub huge: bool,
}

/// An open pagemap. Reading much of another process's takes longer than the kernel needs for it: see above.
#[derive(Debug)]
pub struct Pagemap {
    file: Arc<File>,
    /// Not for our own, which nobody else waits for.
    held: Option<Arc<Held>>,
}

/// How long calls that hold the `mmap_lock` of one process took since the last pause, and when the last one ended.
#[derive(Debug, Default)]
pub(super) struct Held(Mutex<(Duration, Option<Instant>)>);

impl Held {
    /// How long the next call must wait: whoever calls, until nobody has called for so long.
    fn pause(&self, now: Instant) -> Duration {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (held, last) = *state;
        let since = last.map_or(PAUSE, |last| now.saturating_duration_since(last));
        if since >= PAUSE {
            state.0 = Duration::ZERO;
        }
        if held >= HELD_MOST { PAUSE.saturating_sub(since) } else { Duration::ZERO }
    }

    fn note(&self, began: Instant, ended: Instant) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = (state.0 + ended.saturating_duration_since(began), Some(ended));
    }
}

impl Pagemap {
    /// The one that is open in `file`: that of another process comes from [`super::Pidfd::pagemap`].
    pub(super) fn of(file: Arc<File>, held: Arc<Held>) -> Self {
        Self { file, held: Some(held) }
    }

    /// Opens our own.
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE`.
    pub fn of_self() -> io::Result<Self> {
        Ok(Self { file: Arc::new(File::open("/proc/self/pagemap")?), held: None })
    }

    /// Where `count` pages of the agent's own, from page `first`, are now. For [`Self::of_self`].
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn of_zero_pages(&self, pages: &ZeroPages, first: usize, count: usize) -> io::Result<Vec<PageState>> {
        self.read(pages.start() as u64 + first as u64 * PAGE_BYTES, count)
    }

    /// Reads `count` pages from address `hva`.
    ///
    /// # Errors
    /// `ESRCH`, or end of file where the process has ended.
    pub fn read(&self, hva: u64, count: usize) -> io::Result<Vec<PageState>> {
        let zero_pfn = zero_pfn();
        Ok(self.entries(hva, count)?.map(|entry| PageState::decode(entry, zero_pfn)).collect())
    }

    fn entries(&self, hva: u64, count: usize) -> io::Result<impl Iterator<Item = u64> + use<>> {
        let mut bytes = vec![0u8; count * 8];
        let chunk_bytes = (WALK_BYTES / PAGE_BYTES * 8) as usize;
        for (chunk, offset) in
            bytes.chunks_mut(chunk_bytes).zip((hva / PAGE_BYTES * 8..).step_by(chunk_bytes))
        {
            self.briefly(|| self.file.read_exact_at(chunk, offset))?;
        }
        Ok((0..count).map(move |entry| {
            let at = entry * 8;
            u64::from_ne_bytes(std::array::from_fn(|byte| bytes[at + byte]))
        }))
    }

    /// Calls `found` for every range of present or swapped pages between `start` and `end`, in order.
    ///
    /// # Errors
    /// `ENOTTY` on kernels before 6.7, which lack `PAGEMAP_SCAN`.
    pub fn scan(&self, start: u64, end: u64, mut found: impl FnMut(ScanRange)) -> io::Result<()> {
        let request = ScanRequest {
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_PFNZERO | PAGE_IS_HUGE,
            ..ScanRequest::default()
        };
        self.walk(start..end, request, |region| {
            if region.categories & PAGE_IS_PFNZERO == 0 {
                found(ScanRange {
                    start: region.start,
                    end: region.end,
                    swapped: region.categories & PAGE_IS_PRESENT == 0,
                    huge: region.categories & PAGE_IS_HUGE != 0,
                });
            }
        })
    }

    /// Calls `found` for every range of pages between `start` and `end` that are mapped as huge ones, in order; those
    /// of the kernel's page of zeroes are left out.
    ///
    /// # Errors
    /// As [`Pagemap::scan`].
    pub fn huge(&self, start: u64, end: u64, mut found: impl FnMut(Range<u64>)) -> io::Result<()> {
        let request = ScanRequest {
            category_inverted: PAGE_IS_PFNZERO,
            category_mask: PAGE_IS_HUGE | PAGE_IS_PFNZERO,
            return_mask: PAGE_IS_HUGE,
            ..ScanRequest::default()
        };
        self.walk(start..end, request, |region| found(region.start..region.end))
    }

    /// Calls `found` for every range of small pages between `start` and `end` that were written since their soft-dirty
    /// bits were cleared, in order (Documentation/admin-guide/mm/soft-dirty.rst). Huge pages are left out: to make one
    /// of small pages counts as a write.
    ///
    /// # Errors
    /// `ESRCH`, or end of file where the process has ended.
    pub fn written(&self, start: u64, end: u64, mut found: impl FnMut(Range<u64>)) -> io::Result<()> {
        let request = ScanRequest {
            category_inverted: PAGE_IS_HUGE,
            category_mask: PAGE_IS_SOFT_DIRTY | PAGE_IS_HUGE,
            ..ScanRequest::default()
        };
        match self.walk(start..end, request, |region| found(region.start..region.end)) {
            // Before 6.7 there is no such call. Then huge pages cannot be told from others.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
                self.written_by_entries(start, end, found)
            }
            result => result,
        }
    }

    fn written_by_entries(&self, start: u64, end: u64, mut found: impl FnMut(Range<u64>)) -> io::Result<()> {
        for chunk in (start..end).step_by((CHUNK_PAGES * PAGE_BYTES) as usize) {
            let pages = (end - chunk).div_ceil(PAGE_BYTES).min(CHUNK_PAGES);
            let hvas = (chunk..).step_by(PAGE_BYTES as usize);
            for (hva, entry) in hvas.zip(self.entries(chunk, pages as usize)?) {
                if entry & SOFT_DIRTY != 0 && entry >> 62 != 0 {
                    found(hva..hva + PAGE_BYTES);
                }
            }
        }
        Ok(())
    }

    /// Makes one call that holds the process's `mmap_lock`, after a pause where those before it took long.
    fn briefly<T>(&self, call: impl FnOnce() -> T) -> T {
        let Some(held) = &self.held else { return call() };
        loop {
            let pause = held.pause(Instant::now());
            if pause.is_zero() {
                break;
            }
            thread::sleep(pause);
        }
        let began = Instant::now();
        let result = call();
        held.note(began, Instant::now());
        result
    }

    /// `PAGEMAP_SCAN` with `request`, as often as it takes.
    fn walk(
        &self,
        range: Range<u64>,
        request: ScanRequest,
        mut found: impl FnMut(&PageRegion),
    ) -> io::Result<()> {
        let mut regions = [PageRegion::default(); 512];
        let mut next = range.start;
        while next < range.end {
            // A call ends between huge pages: each is told of as a whole.
            let most = (next + WALK_BYTES) & !(WALK_BYTES - 1);
            let mut request = ScanRequest {
                size: size_of::<ScanRequest>() as u64,
                start: next,
                end: range.end.min(most),
                vec: regions.as_mut_ptr() as u64,
                vec_len: regions.len() as u64,
                ..request
            };
            let count = self.briefly(|| {
                // SAFETY: `request` has the size it says, and `vec` points to `vec_len` regions that outlive the call.
                let count = unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut request) };
                usize::try_from(count).map_err(|_| io::Error::last_os_error())
            })?;
            regions.iter().take(count).for_each(&mut found);
            if request.walk_end <= next {
                return Err(io::Error::other("PAGEMAP_SCAN made no progress"));
            }
            next = request.walk_end;
        }
        Ok(())
    }
}

/// Whether pagemap shows frame numbers, for which the process needs CAP_SYS_ADMIN.
pub fn frames_are_shown() -> bool {
    zero_pfn().is_some()
}

/// Whether this kernel remembers which pages were written (`CONFIG_MEM_SOFT_DIRTY`).
///
/// # Errors
/// `ENOMEM`, and what opening the file of a process gives.
pub fn keeps_soft_dirty() -> io::Result<bool> {
    let mut page = ZeroPages::map(1)?;
    page.write_touch(0);
    let entry = Pagemap::of_self()?.entries(page.start() as u64, 1)?.next();
    Ok(entry.is_some_and(|entry| entry & SOFT_DIRTY != 0))
}

/// Frame number of the kernel's page of zeroes, as far as it can be told: what a page of our own shows that was read
/// and never written.
fn zero_pfn() -> Option<u64> {
    static ZERO: OnceLock<Option<u64>> = OnceLock::new();
    *ZERO.get_or_init(|| {
        let page = ZeroPages::map(1).ok()?;
        page.read_touch();
        let mut entry = [0; 8];
        File::open("/proc/self/pagemap")
            .ok()?
            .read_exact_at(&mut entry, page.start() as u64 / PAGE_BYTES * 8)
            .ok()?;
        match PageState::decode(u64::from_ne_bytes(entry), None) {
            PageState::Present { pfn: 0 } => None,
            PageState::Present { pfn } => Some(pfn),
            _ => None,
        }
    })
}

// include/uapi/linux/fs.h, Linux 6.7 and later.
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
const PAGE_IS_HUGE: u64 = 1 << 6;
const PAGE_IS_SOFT_DIRTY: u64 = 1 << 7;
/// The same in an entry of pagemap.
const SOFT_DIRTY: u64 = 1 << 55;
/// Entries of pagemap that are read at a time.
const CHUNK_PAGES: u64 = 16_384;
/// Address space of one call: 0.1 to 0.2 ms of `PAGEMAP_SCAN`, 0.45 ms of reading entries (Linux 6.18).
const WALK_BYTES: u64 = 64 << 20;
/// After so much time in calls a pause is due before the next one.
const HELD_MOST: Duration = Duration::from_micros(500);
/// Long enough for a writer that waits to wake up and take the lock.
const PAUSE: Duration = Duration::from_millis(1);
/// `_IOWR('f', 16, struct pm_scan_arg)`
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ScanRequest {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const _: () = assert!(size_of::<ScanRequest>() == 0x60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_decoded() {
        let decode = |entry| PageState::decode(entry, Some(0x99));
        assert_eq!(decode(0), PageState::Absent);
        assert_eq!(decode(1 << 63 | 1 << 56 | 0x1234), PageState::Present { pfn: 0x1234 });
        assert_eq!(decode(1 << 63 | 0x99), PageState::Zero);
        assert_eq!(decode(1 << 62 | 7 << 5 | 3), PageState::Swapped { area: 3, slot: 7 });
        assert_eq!(decode(1 << 62 | 7 << 5 | 30), PageState::Present { pfn: 7 }, "on its way elsewhere");
        assert_eq!(decode(1 << 62 | 7 << 5 | 31), PageState::Absent);
    }

    #[test]
    fn the_next_call_waits_where_those_before_it_took_long() {
        let held = Held::default();
        let begin = Instant::now();
        let at = |us| begin + Duration::from_micros(us);
        assert_eq!(held.pause(at(0)), Duration::ZERO);
        held.note(at(0), at(300));
        assert_eq!(held.pause(at(400)), Duration::ZERO);
        held.note(at(400), at(600));
        assert_eq!(held.pause(at(700)), Duration::from_micros(900), "500 us of calls");
        assert_eq!(held.pause(at(800)), Duration::from_micros(800), "another reader waits too");
        held.note(at(500), at(900));
        assert_eq!(held.pause(at(1600)), Duration::from_micros(300), "a call that was under way ended late");
        assert_eq!(held.pause(at(1900)), Duration::ZERO);
        held.note(at(1900), at(2000));
        assert_eq!(held.pause(at(2100)), Duration::ZERO, "counted from the pause on");
        held.note(at(2100), at(2300));
        assert_eq!(held.pause(at(3300)), Duration::ZERO, "nobody read for so long");
        held.note(at(3300), at(3700));
        assert_eq!(held.pause(at(3800)), Duration::ZERO);
    }

    #[test]
    fn a_scan_agrees_with_reading_each_page() {
        let pages = 64usize;
        let mut memory = ZeroPages::map(pages).unwrap();
        for page in [3usize, 4, 5, 40] {
            memory.page_out(page, 1).unwrap();
        }
        let own = Pagemap::of_self().unwrap();
        let states = own.read(memory.start() as u64, pages).unwrap();
        let start = memory.start() as u64;
        let mut scanned = vec![false; pages];
        match own.scan(start, start + pages as u64 * PAGE_BYTES, |range| {
            for page in (range.start..range.end).step_by(PAGE_BYTES as usize) {
                scanned[((page - start) / PAGE_BYTES) as usize] = true;
            }
        }) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => return,
            result => result.unwrap(),
        }
        let read: Vec<bool> = states.iter().map(|state| *state != PageState::Absent).collect();
        assert_eq!(scanned, read);
        assert_eq!(scanned.iter().filter(|there| **there).count(), 4);
    }

    #[test]
    fn what_takes_several_calls_is_read_like_what_takes_one() {
        let pages = (2 * WALK_BYTES / PAGE_BYTES + 7) as usize;
        let mut memory = ZeroPages::map(pages).unwrap();
        let there = [0, 16_383, 16_384, 20_000, 32_768, pages - 1];
        there.into_iter().for_each(|page| memory.write_touch(page));
        let start = memory.start() as u64;
        let other = crate::sys::Pidfd::open(std::process::id().cast_signed()).unwrap().pagemap().unwrap();
        let states = other.read(start, pages).unwrap();
        let read: Vec<usize> =
            (0..pages).filter(|page| matches!(states[*page], PageState::Present { .. })).collect();
        assert_eq!(read, there);
        let mut scanned = Vec::new();
        match other.scan(start, start + pages as u64 * PAGE_BYTES, |range| {
            let pages = (range.start..range.end).step_by(PAGE_BYTES as usize);
            scanned.extend(pages.map(|hva| ((hva - start) / PAGE_BYTES) as usize));
        }) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => return,
            result => result.unwrap(),
        }
        assert_eq!(scanned, there);
    }

    #[test]
    fn what_was_written_since_it_was_armed_is_told_by_both_ways() {
        let pages = 64usize;
        let mut memory = ZeroPages::map(pages).unwrap();
        (0..pages).for_each(|page| memory.write_touch(page));
        let start = memory.start() as u64;
        let end = start + pages as u64 * PAGE_BYTES;
        std::fs::write("/proc/self/clear_refs", "4").unwrap();
        [3, 4, 40].into_iter().for_each(|page| memory.write_touch(page));
        let own = Pagemap::of_self().unwrap();
        let (mut asked, mut read) = (Vec::new(), Vec::new());
        let push = |pages: &mut Vec<u64>, range: Range<u64>| {
            pages.extend(range.step_by(PAGE_BYTES as usize).map(|hva| (hva - start) / PAGE_BYTES));
        };
        own.written(start, end, |range| push(&mut asked, range)).unwrap();
        own.written_by_entries(start, end, |range| push(&mut read, range)).unwrap();
        let known = if keeps_soft_dirty().unwrap() { vec![3, 4, 40] } else { Vec::new() };
        assert_eq!((&asked, &read), (&known, &known));
    }
}
