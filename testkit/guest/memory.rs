//! The guest's pages, in memory or on its disk, and what each should hold.
//!
//! In: page numbers. Out: whether a page is right, and how long the first access to it took. The versions are kept
//! apart from the pages, four bytes each.

use crate::disk::Disk;
use crate::sys;
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::path::Path;
use std::time::Instant;
use tiering_testkit::content::{self, Page};
use tiering_testkit::pattern::{DISK_PATH, IMAGE_PATH, PAGE_BYTES, Pattern};

pub struct Memory {
    pattern: Pattern,
    pages: Pages,
    versions: Vec<u32>,
}

enum Pages {
    /// Written and read.
    Own(&'static mut [Page]),
    /// A file of the image.
    Image(&'static [Page]),
    /// Not memory at all.
    Disk(Disk),
}

impl Memory {
    /// Maps all pages; memory of its own is filled, version 0.
    pub fn new(pattern: &Pattern) -> Result<Self> {
        let pages = if pattern.on_disk {
            Pages::Disk(Disk::open(Path::new(DISK_PATH), pattern.pages())?)
        } else if pattern.image_seed.is_some() {
            Pages::Image(map_image(&Path::new("/").join(IMAGE_PATH), pattern.pages())?)
        } else {
            let pages = sys::map_pages(pattern.pages())?;
            for (number, page) in pages.iter_mut().enumerate() {
                content::fill(page, pattern.content_seed(number), number, 0);
            }
            Pages::Own(pages)
        };
        Ok(Self { versions: vec![0; pattern.pages()], pattern: pattern.clone(), pages })
    }

    pub fn len(&self) -> usize {
        self.versions.len()
    }

    /// Reads a page of the disk. Else loads the first word of a page, or stores there what should be there, where it
    /// will fault if it is not there; the time in nanoseconds. After a store, what that word held before is not known
    /// any more; the others can still be verified.
    pub fn access_ns(&mut self, number: usize, write: bool) -> u64 {
        let first = content::first_word(self.pattern.content_seed(number), number, self.versions[number]);
        let before = Instant::now();
        match &mut self.pages {
            Pages::Own(pages) if write => sys::store(&mut pages[number][0], first),
            Pages::Own(pages) => sys::load(&pages[number][0]),
            Pages::Image(pages) => sys::load(&pages[number][0]),
            Pages::Disk(disk) => disk.read(number),
        }
        u64::try_from(before.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Whether the whole page is what it should be. A wrong one is told.
    pub fn verify(&mut self, number: usize) -> bool {
        let seed = self.pattern.content_seed(number);
        let holds = |page: &Page| content::holds(page, seed, number, self.versions[number]);
        let right = match &mut self.pages {
            Pages::Own(pages) => holds(&pages[number]),
            Pages::Image(pages) => holds(&pages[number]),
            Pages::Disk(disk) => disk.page(number).is_some_and(|page| holds(&page)),
        };
        if !right {
            println!("tg: bad page {number}");
        }
        right
    }

    /// Writes the next version of a page. A pattern on an image has no writes.
    pub fn write(&mut self, number: usize) {
        if let Pages::Own(pages) = &mut self.pages {
            self.versions[number] = self.versions[number].wrapping_add(1);
            let seed = self.pattern.content_seed(number);
            content::fill(&mut pages[number], seed, number, self.versions[number]);
        }
    }
}

fn map_image(path: &Path, pages: usize) -> Result<&'static [Page]> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("opening the image {name}"))?;
    let bytes = file.metadata()?.len();
    ensure!(bytes == (pages * PAGE_BYTES) as u64, "the image {name} has {bytes} bytes, not {pages} pages");
    sys::map_file(&file, pages).with_context(|| format!("mapping the image {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use tiering_testkit::pattern::Access;

    #[test]
    fn a_changed_page_is_noticed_until_it_is_written_again() {
        let pattern = Pattern { mem_mib: 1, access: Access::Idle, ..Pattern::default() };
        let mut memory = Memory::new(&pattern).unwrap();
        assert_eq!(memory.len(), 256);
        memory.write(3);
        assert!((0..memory.len()).all(|number| memory.verify(number)));
        let Pages::Own(pages) = &mut memory.pages else { panic!("not its own") };
        pages[3][100] += 1;
        assert!(!memory.verify(3));
        memory.write(3);
        assert!(memory.verify(3));
    }

    #[test]
    fn an_image_holds_what_its_seed_says() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        content::write_pages(&mut file, 5, 3).unwrap();
        let pages = map_image(file.path(), 3).unwrap();
        assert!((0..3).all(|number| content::holds(&pages[number], 5, number, 0)));
        file.write_all(b"more").unwrap();
        let error = format!("{:#}", map_image(file.path(), 3).unwrap_err());
        assert!(error.ends_with("has 12292 bytes, not 3 pages"), "{error}");
    }
}
