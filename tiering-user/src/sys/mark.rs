//! A mark on a folder that stays with it: an extended attribute that only root can set.

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

const NAME: &CStr = c"trusted.tiering";
const VALUE: &[u8] = b"made by tiering";

/// Marks the folder as made by the agent.
///
/// # Errors
/// `ENOTSUP` (a file system without extended attributes), `EPERM`.
pub fn mark_folder(folder: &Path) -> io::Result<()> {
    let path = CString::new(folder.as_os_str().as_bytes())?;
    // SAFETY: `path` and `NAME` are C strings, and `VALUE` is as long as said; all outlive the call.
    let result =
        unsafe { libc::lsetxattr(path.as_ptr(), NAME.as_ptr(), VALUE.as_ptr().cast(), VALUE.len(), 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the folder has that mark. Where it cannot be read, it has none.
pub fn folder_is_marked(folder: &Path) -> bool {
    let Ok(path) = CString::new(folder.as_os_str().as_bytes()) else { return false };
    let mut found = [0; VALUE.len()];
    // SAFETY: both names are C strings, and `found` is as long as said; all outlive the call.
    let bytes =
        unsafe { libc::lgetxattr(path.as_ptr(), NAME.as_ptr(), found.as_mut_ptr().cast(), found.len()) };
    usize::try_from(bytes) == Ok(VALUE.len()) && found == VALUE
}
