//! Re-arming: after it the next access to each page of a process shows, as far as KVM or a write brings it about.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::Path;

use super::Pidfd;

/// Whether this kernel can.
pub fn can_rearm() -> bool {
    Path::new("/proc/self/clear_refs").exists()
}

/// Clears the soft-dirty bits of all pages of the process, for which KVM lets go of all that it has mapped of them into
/// the guest: its next access to each page comes to KVM first (`clear_refs` with 4: fs/proc/task_mmu.c, Linux 6.1 to
/// 6.18). The process's page faults wait meanwhile.
///
/// # Errors
/// `ESRCH` where the process has ended, `EACCES` without CAP_SYS_PTRACE.
pub fn rearm(process: &Pidfd) -> io::Result<()> {
    process.open_file("clear_refs", OpenOptions::new().write(true))?.write_all(b"4")
}
