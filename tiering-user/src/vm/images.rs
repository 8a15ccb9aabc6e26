//! Files that a VM's process reads and does not write: base images, that several VMs share.
//!
//! In: `/proc/PID/fd`. Out: identities of the regular files that are open for reading only, each with a descriptor by
//! which the process has it open. What cannot be read is left out.
//!
//! # Limits
//! An image on a block device is not found, nor one that is opened later than the VM was. Of a process with more than
//! [`MOST_DESCRIPTORS`] descriptors, or more than [`MOST_IMAGES`] images, the rest is left out.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;

use procfs::process::FDPermissions;

use super::process::Proc;
use crate::sys::known_facts;

/// A smaller file is no image of anything.
const LEAST_BYTES: u64 = 1 << 20;
/// Descriptors that are looked at, and images that are taken: a process may have a million files open.
const MOST_DESCRIPTORS: usize = 4096;
const MOST_IMAGES: usize = 64;

/// A file on this host, as long as it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileId {
    pub device: u64,
    pub inode: u64,
}

impl FileId {
    pub fn of(metadata: &fs::Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

pub(super) fn images(process: &Proc) -> BTreeMap<FileId, i32> {
    let files = process.read("fd", |p| {
        let read_only = p
            .fd()?
            .take(MOST_DESCRIPTORS)
            .flatten()
            .filter(|file| !file.mode().contains(FDPermissions::WRITE));
        Ok(read_only.map(|file| file.fd).collect::<Vec<_>>())
    });
    let identity = |file: i32| {
        // Through the link: the path may mean something else to the process. A server that is down must not hold up the
        // look.
        let facts = known_facts(&process.file(&format!("fd/{file}"))).ok()?;
        let image = facts.is_regular && facts.bytes >= LEAST_BYTES;
        image.then_some((FileId { device: facts.device, inode: facts.inode }, file))
    };
    let mut images = BTreeMap::new();
    for (id, file) in files.unwrap_or_default().into_iter().filter_map(identity) {
        if images.len() >= MOST_IMAGES {
            break;
        }
        images.insert(id, file);
    }
    images
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::os::fd::AsRawFd as _;
    use std::path::Path;

    use super::*;

    #[test]
    fn a_base_image_is_a_large_file_that_is_open_for_reading_only() {
        let folder = tempfile::tempdir().unwrap();
        let open = |name: &str, bytes: u64, write: bool| {
            let path = folder.path().join(name);
            File::create(&path).unwrap().set_len(bytes).unwrap();
            let file = OpenOptions::new().read(true).write(write).open(&path).unwrap();
            (FileId::of(&file.metadata().unwrap()), file)
        };
        let (image, image_file) = open("base", LEAST_BYTES, false);
        let (small, _small) = open("key", LEAST_BYTES - 1, false);
        let (disk, _disk) = open("disk", 8 * LEAST_BYTES, true);
        let own = Proc::open(Path::new("/proc"), std::process::id().cast_signed()).unwrap();
        let found = images(&own);
        assert!(!found.contains_key(&small) && !found.contains_key(&disk), "{found:?}");
        assert_eq!(found.get(&image), Some(&image_file.as_raw_fd()));
    }
}
