//! File descriptors: as many as the agent may have, and some kept free.
//!
//! Each VM takes three, and one for each image. Without any left nothing can be read, and nobody answered, so
//! VMs are not taken in while fewer than [`KEPT_FREE`] are free.

use std::io;
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::sys::Pidfd;
use crate::vm::{self, ProcessKey, VmError};

/// For looking at VMs, moving their pages, and answering.
const KEPT_FREE: u64 = 12;

/// A process cannot be taken hold of.
#[derive(Debug, thiserror::Error)]
pub(super) enum HoldError {
    #[error("it has ended")]
    Ended,
    #[error(
        "{used} of the agent's {limit} file descriptors are in use, and {KEPT_FREE} are kept free: raise the limit (LimitNOFILE, ulimit -n)"
    )]
    Few { used: u64, limit: u64 },
    #[error(
        "no file descriptor is left ({0}): raise the limit of the agent (LimitNOFILE, ulimit -n) or of the host (fs.file-max)"
    )]
    None(io::Error),
    #[error("its process cannot be opened: {0}")]
    Other(io::Error),
}

/// Lets the agent have as many as it is allowed to.
pub(super) fn raise_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) }
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of file descriptors stays as it is");
    }
}

/// Opens a process with all that is read of it time and again.
pub(super) fn take_hold(key: ProcessKey) -> Result<Pidfd, HoldError> {
    check_room()?;
    let process = Pidfd::open(key.pid).map_err(told)?;
    // The number may be another one's by now.
    vm::check_key(Path::new("/proc"), key).map_err(|error| match error {
        VmError::Gone { .. } => HoldError::Ended,
        error => HoldError::Other(io::Error::other(error)),
    })?;
    match process.pagemap().map_err(told) {
        // What may not be read is told by what needs it.
        Ok(_) | Err(HoldError::Other(_)) => Ok(process),
        Err(error) => Err(error),
    }
}

/// Whether there are enough left for another VM.
pub(super) fn check_room() -> Result<(), HoldError> {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|error| HoldError::Other(error.into()))?;
    let used = std::fs::read_dir("/proc/self/fd").map_err(told)?.count() as u64;
    enough(used, limit)
}

fn enough(used: u64, limit: u64) -> Result<(), HoldError> {
    if used.saturating_add(KEPT_FREE) <= limit { Ok(()) } else { Err(HoldError::Few { used, limit }) }
}

fn told(error: io::Error) -> HoldError {
    match error.raw_os_error() {
        Some(libc::ESRCH | libc::ENOENT) => HoldError::Ended,
        Some(libc::EMFILE | libc::ENFILE) => HoldError::None(error),
        _ => HoldError::Other(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_descriptors_are_no_end_of_a_process() {
        assert!(matches!(told(io::Error::from_raw_os_error(libc::ESRCH)), HoldError::Ended));
        for limit in [libc::EMFILE, libc::ENFILE] {
            assert!(matches!(told(io::Error::from_raw_os_error(limit)), HoldError::None(_)));
        }
        assert!(enough(52, 64).is_ok());
        let few = enough(53, 64).unwrap_err().to_string();
        assert!(few.starts_with("53 of the agent's 64 file descriptors are in use"), "{few}");
    }

    #[test]
    fn a_process_that_got_the_number_of_another_one_is_not_taken_hold_of() {
        let stat = procfs::process::Process::myself().and_then(|process| process.stat()).unwrap();
        let key = ProcessKey { pid: stat.pid, start_time_ticks: stat.starttime };
        take_hold(key).unwrap();
        for other in [ProcessKey { start_time_ticks: 1, ..key }, ProcessKey { pid: i32::MAX, ..key }] {
            assert!(matches!(take_hold(other), Err(HoldError::Ended)));
        }
    }

    #[test]
    fn the_limit_is_raised_as_far_as_it_may_be() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 64, hard).unwrap();
        raise_limit();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    }
}
