//! One agent a host.

use std::fs::{self, File};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::Error;

/// Held as long as the agent runs; the kernel lets go of it when the agent ends, however that happens.
pub(super) struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Takes the lock in `folder`, which is made if it is missing.
    pub(super) fn take(folder: &Path) -> Result<Self, Error> {
        let path = folder.join("agent.lock");
        let io = |source| Error::Lock { path: path.clone(), source };
        fs::create_dir_all(folder).map_err(io)?;
        let file = File::create(&path).map_err(io)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Self { _file: file }),
            Err((_, Errno::EWOULDBLOCK)) => Err(Error::Running { lock: path }),
            Err((_, error)) => Err(io(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_told_so() {
        let folder = tempfile::tempdir().unwrap();
        let first = Lock::take(folder.path()).unwrap();
        let error = Lock::take(folder.path()).err().unwrap();
        assert!(error.to_string().starts_with("another agent runs here"), "{error}");
        assert_eq!(error.exit_code(), 69);
        drop(first);
        Lock::take(folder.path()).unwrap();
    }
}
