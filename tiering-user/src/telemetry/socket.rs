//! The control socket as a file: made so that only its owner can ever connect.
//!
//! In: a path. Out: a listening socket, mode 0600, in a folder that exists. A socket that a dead agent left is
//! replaced; one that somebody answers on, and anything that is no socket, is not. Not here: what is served.
//!
//! Limits: two agents that start in the same instant can both find nobody; the later one gets the path.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixSocket};

const FOLDER_MODE: u32 = 0o755;
const SOCKET_MODE: u32 = 0o600;
const BACKLOG: u32 = 64;

/// The control socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("another agent answers on {}: stop it first, or set `socket` in [agent]", path.display())]
    InUse { path: PathBuf },
    #[error("{} exists and is no socket: move it away, or set `socket` in [agent]", path.display())]
    NotASocket { path: PathBuf },
    #[error("{}: {what} failed ({source}): check the permissions of its folder", path.display())]
    Io { path: PathBuf, what: &'static str, source: io::Error },
}

/// Opens the control socket at `path`. Needs a tokio runtime.
///
/// # Errors
/// [`SocketError`], when the path is taken or cannot be made.
pub fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    let failed =
        |what: &'static str| move |source: io::Error| SocketError::Io { path: path.to_owned(), what, source };
    if let Some(folder) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(FOLDER_MODE)
            .create(folder)
            .map_err(failed("making its folder"))?;
    }
    remove_stale(path)?;
    // Nobody can connect before listen(), so the mode is right before it matters.
    let socket = UnixSocket::new_stream().map_err(failed("opening the socket"))?;
    socket.bind(path).map_err(failed("binding the socket"))?;
    fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))
        .map_err(failed("setting its permissions"))?;
    socket.listen(BACKLOG).map_err(failed("listening"))
}

fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed =
        |what: &'static str| move |source: io::Error| SocketError::Io { path: path.to_owned(), what, source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("looking at it")(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("removing the socket of a dead agent"))
        }
        Err(error) => Err(failed("asking who answers there")(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn the_socket_is_its_owners_alone_and_its_folder_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/tiering/tiering.sock");
        let _listener = listen(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        // A umask can only make the folder stricter.
        assert_eq!(mode(path.parent().unwrap()) & !0o755, 0);
    }

    #[tokio::test]
    async fn a_dead_agents_socket_is_replaced_but_a_living_ones_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiering.sock");
        let first = listen(&path).unwrap();
        let refused = listen(&path).expect_err("the first one answers");
        assert!(matches!(refused, SocketError::InUse { .. }), "{refused}");
        drop(first);
        assert!(path.exists(), "a dead agent leaves its socket behind");
        listen(&path).unwrap();
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiering.sock");
        fs::write(&path, "precious").unwrap();
        let refused = listen(&path).expect_err("a file is in the way");
        assert!(matches!(refused, SocketError::NotASocket { .. }), "{refused}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
