//! From host-virtual addresses to page numbers and back.
//!
//! The pages of a VM are numbered from 0 through its regions, in order of address.

use crate::sys::PAGE_BYTES;
use crate::vm::{Backing, Hva, RamRegion};

/// Number of a page in one VM.
pub type PageIndex = u32;

/// Pages of a block, the unit in which the table is allocated: 2 MiB.
pub const BLOCK_PAGES: u32 = 512;
/// Pages that are numbered: 16 TiB but for two blocks, so that the number behind any block is a page number, too.
const MOST_PAGES: u32 = u32::MAX - (2 * BLOCK_PAGES - 1);

/// Pages in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    pub first: PageIndex,
    pub count: u32,
}

impl PageRun {
    /// The pages of the run.
    pub fn pages(self) -> std::ops::Range<PageIndex> {
        self.first..self.first.saturating_add(self.count)
    }

    /// The run cut where blocks of the table end.
    pub(super) fn by_block(self) -> impl Iterator<Item = Self> {
        let std::ops::Range { mut start, end } = self.pages();
        std::iter::from_fn(move || {
            let block_end = (start / BLOCK_PAGES + 1).saturating_mul(BLOCK_PAGES).min(end);
            let part = Self { first: start, count: block_end.checked_sub(start)? };
            start = block_end;
            (part.count > 0).then_some(part)
        })
    }
}

/// The runs in an ascending list of pages, none longer than `most`.
pub fn into_runs(pages: &[PageIndex], most: u32) -> Vec<PageRun> {
    let mut runs: Vec<PageRun> = Vec::new();
    for &page in pages {
        match runs.last_mut() {
            Some(run) if run.first + run.count == page && run.count < most => run.count += 1,
            _ => runs.push(PageRun { first: page, count: 1 }),
        }
    }
    runs
}

/// Whole pages between two addresses or offsets, bytes.
pub(super) fn pages_between(start: u64, end: u64) -> u32 {
    u32::try_from(end.saturating_sub(start) / PAGE_BYTES).unwrap_or(u32::MAX)
}

#[derive(Clone, Copy, Debug)]
struct Part {
    start: u64,
    first: PageIndex,
    pages: u32,
    shared: bool,
    hugetlb: bool,
}

/// Where the pages of one VM lie.
#[derive(Clone, Debug)]
pub struct Layout {
    parts: Vec<Part>,
    pages: u32,
}

impl Layout {
    /// The layout of these regions. What lies beyond the first 16 TiB less 4 MiB is left out: its accesses do not
    /// count, and it is not moved.
    pub fn new(regions: &[RamRegion]) -> Self {
        let mut regions: Vec<_> = regions.to_vec();
        regions.sort_by_key(|region| region.start.0);
        let mut first = 0u32;
        let mut parts = Vec::with_capacity(regions.len());
        for region in &regions {
            let room = u64::from(MOST_PAGES - first);
            let pages = u32::try_from((region.bytes / PAGE_BYTES).min(room)).unwrap_or(u32::MAX);
            parts.push(Part {
                start: region.start.0,
                first,
                pages,
                shared: matches!(region.backing, Backing::Shared { .. }),
                hugetlb: region.backing == Backing::Hugetlb,
            });
            first += pages;
        }
        Self { parts, pages: first }
    }

    /// How many pages there are.
    pub fn pages(&self) -> u32 {
        self.pages
    }

    /// The page at this address.
    pub fn page(&self, hva: Hva) -> Option<PageIndex> {
        let after = self.parts.partition_point(|part| part.start <= hva.0);
        let part = self.parts.get(after.checked_sub(1)?)?;
        let offset = u32::try_from((hva.0 - part.start) / PAGE_BYTES).ok()?;
        (offset < part.pages).then(|| part.first + offset)
    }

    /// Whether this page comes from the hugetlb pool.
    pub fn is_hugetlb(&self, page: PageIndex) -> bool {
        let after = self.parts.partition_point(|part| part.first <= page);
        after.checked_sub(1).and_then(|at| self.parts.get(at)).is_some_and(|part| part.hugetlb)
    }

    /// The address of this page, and whether its region is shared memory.
    pub fn locate(&self, page: PageIndex) -> Option<(Hva, bool)> {
        let after = self.parts.partition_point(|part| part.first <= page);
        let part = self.parts.get(after.checked_sub(1)?)?;
        let offset = page - part.first;
        (offset < part.pages).then(|| (Hva(part.start + u64::from(offset) * PAGE_BYTES), part.shared))
    }

    /// The regions as runs of pages, each with its first address and whether it is shared memory.
    pub fn regions(&self) -> impl Iterator<Item = (PageRun, Hva, bool)> + '_ {
        self.parts
            .iter()
            .map(|part| (PageRun { first: part.first, count: part.pages }, Hva(part.start), part.shared))
    }

    /// `run` cut where regions end, each part with its first address and whether it is shared memory.
    pub fn cut(&self, run: PageRun) -> impl Iterator<Item = (PageRun, Hva, bool)> + '_ {
        self.regions().filter_map(move |(region, start, shared)| {
            let first = run.first.max(region.first);
            let end = (run.first + run.count).min(region.first + region.count);
            let count = end.checked_sub(first).filter(|count| *count > 0)?;
            let hva = Hva(start.0 + u64::from(first - region.first) * PAGE_BYTES);
            Some((PageRun { first, count }, hva, shared))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        let region = |start, pages| RamRegion {
            start: Hva(start),
            bytes: pages * PAGE_BYTES,
            backing: Backing::Anonymous,
        };
        Layout::new(&[region(0x20_0000, 16), region(0x10_0000, 8)])
    }

    #[test]
    fn pages_are_numbered_in_order_of_address() {
        let layout = layout();
        assert_eq!(layout.pages(), 24);
        assert_eq!(layout.page(Hva(0x10_0000)), Some(0));
        assert_eq!(layout.page(Hva(0x10_7fff)), Some(7));
        assert_eq!(layout.page(Hva(0x10_8000)), None);
        assert_eq!(layout.page(Hva(0x20_0000)), Some(8));
        assert_eq!(layout.page(Hva(0xf_ffff)), None);
        for page in 0..24 {
            let (hva, _) = layout.locate(page).unwrap();
            assert_eq!(layout.page(hva), Some(page));
        }
        assert_eq!(layout.locate(24), None);
    }

    #[test]
    fn a_run_is_cut_where_a_region_ends() {
        let parts: Vec<_> = layout().cut(PageRun { first: 6, count: 4 }).collect();
        assert_eq!(
            parts,
            [
                (PageRun { first: 6, count: 2 }, Hva(0x10_6000), false),
                (PageRun { first: 8, count: 2 }, Hva(0x20_0000), false)
            ]
        );
    }

    #[test]
    fn numbers_do_not_overflow_in_an_address_space_of_any_size() {
        let region = |start, bytes| RamRegion { start: Hva(start), bytes, backing: Backing::Anonymous };
        let layout = Layout::new(&[region(0x10_0000, 100 << 40), region(0x7000_0000_0000, u64::MAX / 2)]);
        assert_eq!(layout.pages(), MOST_PAGES);
        let last = MOST_PAGES - 1;
        assert_eq!(layout.locate(last).and_then(|(hva, _)| layout.page(hva)), Some(last));
        assert_eq!(layout.page(Hva(0x10_0000 + (99 << 40))), None);
        assert!((last / BLOCK_PAGES + 2).checked_mul(BLOCK_PAGES).is_some());
        assert_eq!(PageRun { first: last, count: u32::MAX }.pages().len(), 1024);
    }

    #[test]
    fn a_run_is_cut_where_a_block_ends() {
        let parts: Vec<_> = PageRun { first: 500, count: 600 }.by_block().map(PageRun::pages).collect();
        assert_eq!(parts, [500..512, 512..1024, 1024..1100]);
        assert_eq!(PageRun { first: 512, count: 0 }.by_block().count(), 0);
    }

    #[test]
    fn runs_hold_every_page_once() {
        let pages = [1, 2, 3, 7, 8, 20];
        let runs = into_runs(&pages, 2);
        assert!(runs.iter().all(|run| run.count <= 2));
        let back: Vec<_> = runs.iter().flat_map(|run| run.pages()).collect();
        assert_eq!(back, pages);
    }
}
