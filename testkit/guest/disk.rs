//! The guest's disk, read page by page past the guest's own page cache, so that the host sees each read.
//!
//! In: page numbers. Out: the page that was read last. What cannot be read is told on the console and is no page.

use anyhow::{Context, Result, ensure};
use nix::kmod::{ModuleInitFlags, finit_module};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use tiering_testkit::content::{Page, WORDS};
use tiering_testkit::pattern::PAGE_BYTES;

/// Where a read goes: what is read past the page cache has to lie so.
#[repr(align(4096))]
struct Buffer([u8; PAGE_BYTES]);

pub struct Disk {
    file: File,
    buffer: Box<Buffer>,
    /// What is in the buffer.
    holds: Option<usize>,
}

impl Disk {
    /// Opens a disk of so many pages.
    pub fn open(path: &Path, pages: usize) -> Result<Self> {
        let name = path.display();
        let mut options = OpenOptions::new();
        let file = options.read(true).custom_flags(libc::O_DIRECT).open(path);
        let mut file =
            file.with_context(|| format!("opening the disk {name}: has the kernel virtio_blk?"))?;
        let bytes = file.seek(SeekFrom::End(0)).with_context(|| format!("the length of the disk {name}"))?;
        ensure!(bytes == (pages * PAGE_BYTES) as u64, "the disk {name} has {bytes} bytes, not {pages} pages");
        Ok(Self { file, buffer: Box::new(Buffer([0; PAGE_BYTES])), holds: None })
    }

    /// Reads this page.
    pub fn read(&mut self, number: usize) {
        self.holds = None;
        match self.file.read_exact_at(&mut self.buffer.0, (number * PAGE_BYTES) as u64) {
            Ok(()) => self.holds = Some(number),
            Err(error) => println!("tg: reading page {number}: {error}"),
        }
    }

    /// This page, as it was read last if that was just now.
    pub fn page(&mut self, number: usize) -> Option<Page> {
        if self.holds != Some(number) {
            self.read(number);
        }
        self.holds?;
        let mut page = [0; WORDS];
        for (word, bytes) in page.iter_mut().zip(self.buffer.0.as_chunks().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        Some(page)
    }
}

/// Loads all modules of a folder, in the order of their names. Where there is no such folder there are none.
pub fn load_modules(folder: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for path in files {
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        finit_module(file, c"", ModuleInitFlags::empty())
            .with_context(|| format!("loading {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tiering_testkit::content;

    #[test]
    fn pages_are_read_as_they_were_written() {
        // Not on tmpfs, which older kernels do not read past their page cache.
        let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        content::write_pages(&mut file, 5, 3).unwrap();
        let mut disk = Disk::open(file.path(), 3).unwrap();
        for number in [2, 0, 1, 1] {
            assert!(content::holds(&disk.page(number).unwrap(), 5, number, 0));
        }
        assert!(disk.page(3).is_none());
        let error = format!("{:#}", Disk::open(file.path(), 4).err().unwrap());
        assert!(error.ends_with("has 12288 bytes, not 4 pages"), "{error}");
    }
}
