//! Opens images that VMs read.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use crate::engine::{ImageFacts, Opened};
use crate::vm::FileId;

/// Opens the image behind this descriptor of a VM, if it is still the one that was found. The server that it is on
/// may be down: then this does not come back.
pub(crate) fn open(path: &Path, id: FileId) -> Option<Opened> {
    // Not to wait for anybody, should it be a pipe by now.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
    let metadata =
        file.metadata().ok().filter(|metadata| metadata.is_file() && FileId::of(metadata) == id)?;
    let name = fs::read_link(path).ok()?;
    let facts = ImageFacts {
        name: name.file_name()?.to_string_lossy().into_owned(),
        inode: id.inode,
        bytes: metadata.len(),
        changed_unix_s: metadata.mtime(),
    };
    // In units of 512 bytes, whatever the file system's blocks are (stat(2)).
    Some(Opened { facts, file: Arc::new(file), allocated_bytes: metadata.blocks().saturating_mul(512) })
}
