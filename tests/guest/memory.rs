//! The guest's pages and what each should hold.
//!
//! In: page numbers. Out: whether a page is right, and how long its first load took. The versions are kept apart
//! from the pages, four bytes each.

use crate::sys;
use anyhow::Result;
use std::time::Instant;
use tiering_tests::content::{self, Page};
use tiering_tests::pattern::PAGE_BYTES;

pub struct Memory {
    seed: u64,
    pages: &'static mut [Page],
    versions: Vec<u32>,
}

impl Memory {
    /// Maps and fills all pages, version 0.
    pub fn new(seed: u64, mib: usize) -> Result<Self> {
        let pages = sys::map_pages((mib << 20) / PAGE_BYTES)?;
        for (number, page) in pages.iter_mut().enumerate() {
            content::fill(page, seed, number, 0);
        }
        Ok(Self { seed, versions: vec![0; pages.len()], pages })
    }

    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Loads the first word of a page, where it will fault if it is not there; the time in nanoseconds.
    pub fn load_ns(&self, number: usize) -> u64 {
        let before = Instant::now();
        sys::load(&self.pages[number][0]);
        u64::try_from(before.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Whether the whole page is what it should be. A wrong one is told.
    pub fn verify(&self, number: usize) -> bool {
        let right = content::holds(&self.pages[number], self.seed, number, self.versions[number]);
        if !right {
            println!("tg: bad page {number}");
        }
        right
    }

    /// Writes the next version of a page.
    pub fn write(&mut self, number: usize) {
        self.versions[number] = self.versions[number].wrapping_add(1);
        content::fill(&mut self.pages[number], self.seed, number, self.versions[number]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_page_is_noticed_until_it_is_written_again() {
        let mut memory = Memory::new(7, 1).unwrap();
        assert_eq!(memory.len(), 256);
        memory.write(3);
        assert!((0..memory.len()).all(|number| memory.verify(number)));
        memory.pages[3][100] += 1;
        assert!(!memory.verify(3));
        memory.write(3);
        assert!(memory.verify(3));
    }
}
