//! A test that cannot run here says what is missing instead of passing silently.
//!
//! In: what the machine offers. Out: [`Skip`], a reason; with `TIERING_STRICT=1` a skip fails the test.

use crate::{kernel, lab, paths, program, qemu};
use std::fmt;

/// Why a test cannot run on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip(pub String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The value, or `None` after telling why the test is skipped.
///
/// # Panics
/// On a skip when `TIERING_STRICT=1`: where everything must run, a skip is a failure.
#[must_use]
pub fn skip_or_fail<T>(need: Result<T, Skip>) -> Option<T> {
    let reason = match need {
        Ok(value) => return Some(value),
        Err(reason) => reason,
    };
    assert!(std::env::var_os("TIERING_STRICT").is_none_or(|v| v != "1"), "skipped in strict mode: {reason}");
    eprintln!("skipped: {reason}");
    None
}

/// Guests can be booted: QEMU, a kernel and the init are there.
///
/// # Errors
/// The first thing that is missing.
pub fn need_guests() -> Result<(), Skip> {
    for tool in [qemu::QEMU, "setpriv"] {
        need_program(tool)?;
    }
    kernel::find().map_err(|e| Skip(e.to_string()))?;
    paths::guest_init().map_err(|e| Skip(e.to_string()))?;
    Ok(())
}

/// Guests can run programs: the disk with them is built.
///
/// # Errors
/// The first thing that is missing.
pub fn need_programs() -> Result<(), Skip> {
    need_guests()?;
    program::image::find().map(|_| ()).map_err(|e| Skip(e.to_string()))
}

/// The lab can be booted, with the kernel of its default line.
///
/// # Errors
/// The first thing that is missing.
pub fn need_lab() -> Result<(), Skip> {
    need_root()?;
    for tool in [qemu::QEMU, "setpriv"] {
        need_program(tool)?;
    }
    lab::virtiofsd().map_err(|e| Skip(e.to_string()))?;
    lab::busybox().map_err(|e| Skip(e.to_string()))?;
    kernel::of_line(kernel::LINES[0]).map_err(|e| Skip(e.to_string()))?;
    Ok(())
}

/// Root, as loading BPF and switching swap on need it.
///
/// # Errors
/// Where the process runs as somebody else.
pub fn need_root() -> Result<(), Skip> {
    if nix::unistd::geteuid().is_root() {
        Ok(())
    } else {
        Err(Skip("not root: run the tests as root".into()))
    }
}

fn need_program(name: &str) -> Result<(), Skip> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|dir| dir.join(name).is_file()) {
        Ok(())
    } else {
        Err(Skip(format!("{name} is not installed: run `cargo xtask setup`")))
    }
}
