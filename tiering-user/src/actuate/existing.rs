//! Which pages of a VM exist, so that no page is brought into existence by moving it.
//!
//! In: pages, and what the page tables said of them. Out: those that were never touched or that the guest has given
//! back; of a step they are left out, and touching passes over them.

use std::io;

use super::page_states::PageStates;
use super::target::{Outcome, Skip, Target};
use crate::sys::{self, MAX_RANGES_PER_CALL, PAGE_BYTES, PageState, Span};
use crate::tiermap::{PageIndex, PageRun, SharedFile, into_runs};

impl Outcome {
    /// Leaves out pages of shared memory that do not exist: the table must not take them for swapped any longer. Advice
    /// passes over those of private memory, and what moves them reads the page tables anyway.
    pub(super) fn leave_out_given_back(&mut self, target: &Target) -> Vec<PageIndex> {
        if !target.is_shared(&self.asked) {
            return Vec::new();
        }
        // A VM that cannot be read any more is told of by what comes next.
        let look = PageStates::at(target, &self.asked).unwrap_or_default();
        self.leave_out_given_back_by(target, &look)
    }

    /// The same by what the page tables said of all pages.
    pub(super) fn leave_out_given_back_by(&mut self, target: &Target, look: &PageStates) -> Vec<PageIndex> {
        if !target.is_shared(&self.asked) {
            return Vec::new();
        }
        let given_back = target.given_back_by(look).unwrap_or_default();
        if !given_back.is_empty() {
            self.asked.retain(|page| given_back.binary_search(page).is_err());
            self.left_out.extend(&given_back);
            self.skip(Skip::Absent, given_back.len() as u64);
        }
        given_back
    }
}

impl Target {
    /// Those of these ascending pages that do not exist, neither in memory nor in swap: never touched, or given back by
    /// the guest's balloon. To touch one brings it into existence, for nothing: shared memory is allocated, private
    /// memory gets at least a page table.
    pub(super) fn given_back(&self, pages: &[PageIndex]) -> io::Result<Vec<PageIndex>> {
        self.given_back_by(&PageStates::at(self, pages)?)
    }

    fn given_back_by(&self, look: &PageStates) -> io::Result<Vec<PageIndex>> {
        let absent = look.all().filter(|(_, state)| *state == PageState::Absent);
        let mut absent: Vec<PageIndex> = absent.map(|(page, _)| page).collect();
        // Pagemap does not tell shared memory in swap from a hole.
        for (region, start, _) in self.info.layout.regions().filter(|(.., shared)| *shared) {
            let here = absent.partition_point(|page| *page < region.first)
                ..absent.partition_point(|page| *page < region.first + region.count);
            if here.is_empty() {
                continue;
            }
            let file = SharedFile::behind(&self.process, start)?;
            let mut there = Vec::new();
            for run in into_runs(&absent[here.clone()], u32::MAX) {
                let parts = file.pages(PageRun { first: run.first - region.first, count: run.count })?;
                there.extend(parts.into_iter().flatten().map(|page| region.first + page));
            }
            let holes = absent[here.clone()].iter().copied();
            let holes: Vec<_> = holes.filter(|page| there.binary_search(page).is_err()).collect();
            absent.splice(here, holes);
        }
        Ok(absent)
    }

    /// Maps these ascending pages by reading a byte of each, as far as they exist. To read one of private memory that
    /// was given back a moment ago costs its page table at most: that is not looked at again.
    pub(super) fn touch_read(&self, pages: &[PageIndex]) -> io::Result<()> {
        for chunk in pages.chunks(MAX_RANGES_PER_CALL) {
            let existing = if self.has_shared() { self.existing(chunk)? } else { chunk.into() };
            let existing = existing.iter().filter_map(|page| self.info.layout.locate(*page));
            let spans: Vec<_> = existing.map(|(hva, _)| Span { start: hva.0, bytes: PAGE_BYTES }).collect();
            let mut rest = spans.as_slice();
            while !rest.is_empty() {
                let touched = sys::touch_read(&self.process, rest)?;
                // The page after the last one touched cannot be: go on behind it.
                rest = rest.get(touched + 1..).unwrap_or_default();
            }
        }
        Ok(())
    }

    /// Makes these ascending pages give back their swap slots, as far as they exist.
    pub(super) fn touch_write(&self, pages: &[PageIndex]) -> io::Result<()> {
        pages.chunks(MAX_RANGES_PER_CALL).try_for_each(|chunk| {
            let spans = self.spans(&self.existing(chunk)?);
            spans.into_iter().try_for_each(|span| sys::touch_write(&self.process, span))
        })
    }

    /// Those that exist, looked at just before they are touched: what was given back meanwhile stays so.
    fn existing(&self, pages: &[PageIndex]) -> io::Result<Vec<PageIndex>> {
        let given_back = self.given_back(pages)?;
        Ok(pages.iter().copied().filter(|page| given_back.binary_search(page).is_err()).collect())
    }

    fn has_shared(&self) -> bool {
        self.info.layout.regions().any(|(.., shared)| shared)
    }
}
