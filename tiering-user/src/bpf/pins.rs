//! `/sys/fs/bpf/tiering`: what others may look at while the agent runs.
//!
//! Pins of an agent that died are removed, never opened again: what they held is worth nothing without the agent
//! that wrote it, and nothing checks that a pinned map still has the layout this agent expects. The caller holds
//! the lock that makes this agent the only one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount, umount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use thiserror::Error;

/// Where everything is pinned.
pub const PIN_DIR: &str = "/sys/fs/bpf/tiering";
const BPFFS: &str = "/sys/fs/bpf";
/// What a kernel with CONFIG_BPF_PRELOAD puts into every bpffs.
const PRELOADED: [&str; 2] = ["maps.debug", "progs.debug"];

/// The pins cannot be had.
#[derive(Debug, Error)]
#[error("{path}: cannot {action}: {source}")]
pub struct PinError {
    path: PathBuf,
    action: &'static str,
    source: io::Error,
}

impl PinError {
    pub(super) fn new(path: &Path, action: &'static str, source: impl Into<io::Error>) -> Self {
        Self { path: path.to_owned(), action, source: source.into() }
    }

    /// Whether a right is missing: CAP_SYS_ADMIN to mount, CAP_BPF to pin.
    pub fn is_permission(&self) -> bool {
        self.source.kind() == io::ErrorKind::PermissionDenied
    }
}

/// An empty folder for pins; removed, with all pins, when dropped.
#[derive(Debug)]
pub struct Pins {
    folder: PathBuf,
    /// Nobody had mounted bpffs before us.
    mounted: bool,
}

impl Pins {
    /// Mounts bpffs where it is missing, and empties the folder.
    ///
    /// # Errors
    /// [`PinError`] where bpffs cannot be mounted or the folder not be made.
    pub fn create() -> Result<Self, PinError> {
        let root = Path::new(BPFFS);
        let is_bpffs = statfs(root).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC);
        if !is_bpffs {
            mount(Some("bpf"), root, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
                .map_err(|error| PinError::new(root, "mount bpffs", error))?;
            tracing::info!("{BPFFS} was not mounted: mounted it until the agent stops");
        }
        let pins = Self { folder: PIN_DIR.into(), mounted: !is_bpffs };
        pins.clear();
        fs::create_dir_all(&pins.folder).map_err(|error| PinError::new(&pins.folder, "create it", error))?;
        Ok(pins)
    }

    /// Where `name` is pinned.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn clear(&self) {
        let stale = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        for pin in stale {
            if let Err(error) = fs::remove_file(pin.path()) {
                tracing::warn!(pin = %pin.path().display(), %error, "cannot unpin");
            }
        }
        fs::remove_dir(&self.folder).ok();
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        self.clear();
        let of_kernel = |entry: fs::DirEntry| PRELOADED.iter().any(|name| entry.file_name() == *name);
        let empty = fs::read_dir(BPFFS).is_ok_and(|entries| entries.flatten().all(of_kernel));
        if self.mounted && empty {
            // Busy means that somebody else uses it by now.
            umount(BPFFS).ok();
        }
    }
}
