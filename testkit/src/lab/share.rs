//! A folder of this machine that the lab mounts by virtiofs.
//!
//! In: the folder. Out: a running virtiofsd with its socket; it ends when the lab closes the socket, at the latest when
//! the share is dropped. The options are those of QEMU's virtiofsd in C (Debian 12); the one in Rust that followed it
//! still takes them (its src/main.rs, `parse_compat`, 1.14: read, not run).

use crate::lines::Lines;
use anyhow::{Context, Result};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Where Debian's packages put it: virtiofsd, and before that qemu-system-common.
const PLACES: [&str; 2] = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"];

/// The program.
///
/// # Errors
/// Where it is not installed.
pub fn virtiofsd() -> Result<PathBuf> {
    let found = PLACES.iter().map(PathBuf::from).find(|place| place.is_file());
    found.with_context(|| format!("virtiofsd is in none of {PLACES:?}: run `cargo xtask setup`"))
}

#[derive(Debug)]
pub struct Share {
    daemon: Child,
}

impl Share {
    /// Starts serving `folder` at `socket`; what the daemon says goes to `log`.
    pub fn start(folder: &Path, socket: &Path, log: &Lines) -> Result<Self> {
        let listener = UnixListener::bind(socket).with_context(|| format!("binding {}", socket.display()))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(virtiofsd()?);
        // The listening socket is its standard input, so that QEMU can connect as soon as it likes.
        // Chroot, because the other sandbox, pivot_root(2), refuses to share the root itself.
        command
            .args(["--fd=0", "-o", "cache=auto,sandbox=chroot", "-o"])
            .arg(format!("source={}", folder.display()));
        command.stdin(OwnedFd::from(listener)).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        let mut daemon = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        log.read(daemon.stderr.take().context("the child has no standard error")?);
        Ok(Self { daemon })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // An error means that it has ended and was waited for: what we want.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
