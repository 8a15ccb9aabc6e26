//! `swapon(2)` and `swapoff(2)`.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Highest priority a swap area can have (include/linux/swap.h, `SWAP_FLAG_PRIO_MASK`).
pub const SWAP_PRIORITY_MAX: i32 = 0x7fff;
const SWAP_FLAG_PREFER: i32 = 0x8000;

/// Switches on the swap area in `path`. Areas of a higher priority (0 to [`SWAP_PRIORITY_MAX`]) fill first.
///
/// # Errors
/// `EPERM` (no right, or no free area number left), `EINVAL` (no swap header, holes, or a file system that
/// cannot hold swap), `EBUSY` (on already).
pub fn swap_on(path: &Path, priority: i32) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let flags = SWAP_FLAG_PREFER | priority.clamp(0, SWAP_PRIORITY_MAX);
    // SAFETY: `path` is a C string that outlives the call.
    match unsafe { libc::swapon(path.as_ptr(), flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Switches the swap area in `path` off: all that is in it comes back to RAM first, which takes as long as
/// reading it does.
///
/// # Errors
/// `ENOMEM` (does not fit into RAM), `EINTR`, `EINVAL` (not on), `EPERM`.
pub fn swap_off(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `path` is a C string that outlives the call.
    match unsafe { libc::swapoff(path.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
