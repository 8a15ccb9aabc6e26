//! What is known of a file without asking the server that it is on.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// As the kernel has it in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileFacts {
    pub device: u64,
    pub inode: u64,
    pub bytes: u64,
    pub is_regular: bool,
}

/// The facts of the file that `path` leads to. Those of a file that another process has open, reached by way of
/// `/proc/PID/fd`, come from memory: `AT_STATX_DONT_SYNC` keeps NFS and FUSE from asking their server, which `stat`
/// does (`nfs_getattr` in fs/nfs/inode.c and `fuse_update_get_attr` in fs/fuse/dir.c, Linux 6.1 to 6.18).
///
/// # Errors
/// As the kernel gives them: `ENOENT`, `EACCES`.
pub fn known_facts(path: &Path) -> io::Result<FileFacts> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    let wanted = libc::STATX_TYPE | libc::STATX_INO | libc::STATX_SIZE;
    // SAFETY: `path` ends with a zero, and the kernel writes one statx to `found`; both outlive the call.
    let result = unsafe {
        libc::statx(libc::AT_FDCWD, path.as_ptr(), libc::AT_STATX_DONT_SYNC, wanted, found.as_mut_ptr())
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zero is a valid statx, and what the kernel wrote is one.
    let found = unsafe { found.assume_init() };
    Ok(FileFacts {
        device: libc::makedev(found.stx_dev_major, found.stx_dev_minor),
        inode: found.stx_ino,
        bytes: found.stx_size,
        is_regular: u32::from(found.stx_mode) & libc::S_IFMT == libc::S_IFREG,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn the_facts_are_those_of_stat() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(12_345).unwrap();
        let told = file.as_file().metadata().unwrap();
        let facts = known_facts(file.path()).unwrap();
        assert_eq!((facts.device, facts.inode, facts.bytes), (told.dev(), told.ino(), 12_345));
        assert!(facts.is_regular && !known_facts(Path::new("/dev/null")).unwrap().is_regular);
        assert!(known_facts(Path::new("/nowhere")).is_err());
    }
}
