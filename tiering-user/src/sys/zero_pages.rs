//! Zero-filled pages of the agent itself: what the cover of a swap tier is made of.

use std::io;

use super::PAGE_BYTES;
use super::mapping::Mapping;

/// A mapping of our own whose pages can be made present (all zero), paged out and freed, part by part.
#[derive(Debug)]
pub struct ZeroPages {
    mapping: Mapping,
    pages: usize,
}

impl ZeroPages {
    /// Maps `pages` pages, none of them present, without huge pages and never locked.
    ///
    /// # Errors
    /// `ENOMEM`, `EINVAL` (no page).
    pub fn map(pages: usize) -> io::Result<Self> {
        let mapping = Mapping::new(pages)?;
        // Best effort: where nothing is locked there is nothing to undo.
        // SAFETY: the range is the mapping just made.
        unsafe { libc::munlock(mapping.start().cast(), mapping.bytes()) };
        Ok(Self { mapping, pages })
    }

    /// How many pages are mapped.
    pub fn len(&self) -> usize {
        self.pages
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.pages == 0
    }

    /// Makes `count` pages from page `first` present and pages them out. A page that the kernel would not take
    /// stays present; see [`super::Pagemap::of_zero_pages`].
    ///
    /// # Errors
    /// As `madvise(MADV_PAGEOUT)`.
    pub fn page_out(&mut self, first: usize, count: usize) -> io::Result<()> {
        assert!(first + count <= self.pages, "pages {first}+{count} of {}", self.pages);
        (first..first + count).for_each(|page| self.write_touch(page));
        self.advise(first, count, libc::MADV_PAGEOUT)
    }

    /// Makes a page present.
    pub(super) fn write_touch(&mut self, page: usize) {
        assert!(page < self.pages, "page {page} of {}", self.pages);
        let byte = self.page(page).cast::<u8>();
        // SAFETY: inside the mapping, which is writable and ours alone. Volatile, or the store of the value
        // that is there anyway would be dropped.
        unsafe { byte.write_volatile(0) };
    }

    /// Reads the first page, which maps the kernel's page of zeroes there.
    pub(super) fn read_touch(&self) {
        // SAFETY: inside the mapping, which is readable. Volatile, or the unused load would be dropped.
        unsafe { self.mapping.start().read_volatile() };
    }

    /// Frees `count` pages from page `first`, with the swap slots they hold.
    ///
    /// # Errors
    /// As `madvise(MADV_DONTNEED)`.
    pub fn free(&mut self, first: usize, count: usize) -> io::Result<()> {
        self.advise(first, count, libc::MADV_DONTNEED)
    }

    /// Address of the first page.
    pub fn start(&self) -> *const libc::c_void {
        self.mapping.start().cast()
    }

    fn page(&self, page: usize) -> *mut libc::c_void {
        assert!(page <= self.pages, "page {page} of {}", self.pages);
        self.mapping.start().wrapping_byte_add(page * PAGE_BYTES as usize).cast()
    }

    fn advise(&self, first: usize, count: usize, advice: i32) -> io::Result<()> {
        assert!(first + count <= self.pages, "pages {first}+{count} of {}", self.pages);
        // SAFETY: the range lies in the mapping; none of these advices invalidates a Rust reference, as none to
        // its content is ever made.
        let result = unsafe { libc::madvise(self.page(first), count * PAGE_BYTES as usize, advice) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
