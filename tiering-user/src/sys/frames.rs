//! `/proc/kpageflags` and `/proc/kpagecount`: what the kernel says of a frame of memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// What is known of one frame (Documentation/admin-guide/mm/pagemap.rst).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameFacts {
    /// Merged by KSM (KPF_KSM, bit 21).
    pub ksm: bool,
    /// On the list of what is never reclaimed: locked (KPF_UNEVICTABLE, bit 18).
    pub unevictable: bool,
    /// Times it is mapped.
    pub mapped: u64,
}

/// Both files, open. They take CAP_SYS_ADMIN.
#[derive(Debug)]
pub struct Frames {
    flags: File,
    counts: File,
}

impl Frames {
    /// Opens them below `proc_root`.
    ///
    /// # Errors
    /// `ENOENT` (a kernel without them), `EPERM`.
    pub fn open(proc_root: &Path) -> io::Result<Self> {
        Ok(Self {
            flags: File::open(proc_root.join("kpageflags"))?,
            counts: File::open(proc_root.join("kpagecount"))?,
        })
    }

    /// Reads what is known of frame `pfn`.
    ///
    /// # Errors
    /// `EPERM`, or end of file where there is no such frame.
    pub fn read(&self, pfn: u64) -> io::Result<FrameFacts> {
        let flags = entry(&self.flags, pfn)?;
        let bit = |number: u32| flags >> number & 1 == 1;
        Ok(FrameFacts { ksm: bit(21), unevictable: bit(18), mapped: entry(&self.counts, pfn)? })
    }
}

fn entry(file: &File, pfn: u64) -> io::Result<u64> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, pfn * 8)?;
    Ok(u64::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_found_by_its_number() {
        let root = tempfile::tempdir().unwrap();
        let write = |file: &str, entries: [u64; 3]| {
            std::fs::write(root.path().join(file), entries.map(u64::to_ne_bytes).concat()).unwrap();
        };
        write("kpageflags", [0, 1 << 21 | 1 << 5, 1 << 18]);
        write("kpagecount", [1, 7, 2]);
        let frames = Frames::open(root.path()).unwrap();
        assert_eq!(frames.read(1).unwrap(), FrameFacts { ksm: true, unevictable: false, mapped: 7 });
        assert_eq!(frames.read(2).unwrap(), FrameFacts { ksm: false, unevictable: true, mapped: 2 });
        assert!(frames.read(3).is_err());
    }
}
