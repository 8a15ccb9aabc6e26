//! Where the things that `cargo xtask build` makes are.
//!
//! In: environment variables. Out: paths, or an error that says how to make what is missing.

use anyhow::{Result, bail};
use std::path::{Path, PathBuf};

/// The only machine the test guests are built for.
pub const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";

/// The root of the workspace.
#[must_use]
pub fn workspace_root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_path_buf()
}

/// Cargo's target folder: `CARGO_TARGET_DIR`, else `target` in the workspace.
#[must_use]
pub fn target_dir() -> PathBuf {
    // Joining an absolute path replaces the root, so both kinds of CARGO_TARGET_DIR work.
    workspace_root().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// Folder for the guest's init: a target folder of its own, since it is built with flags of its own.
#[must_use]
pub fn guest_target_dir() -> PathBuf {
    target_dir().join("guest-init")
}

/// The guest's init: `TIERING_GUEST_INIT`, else where `cargo xtask build` puts it.
///
/// # Errors
/// Where the file does not exist.
pub fn guest_init() -> Result<PathBuf> {
    let built = guest_target_dir().join(GUEST_TARGET).join("release/tiering-guest");
    named_or("TIERING_GUEST_INIT", built, "the guest's init")
}

/// The `tiering` binary: `TIERING_BIN`, else the one of the same profile as the running executable.
///
/// # Errors
/// Where the file does not exist.
pub fn tiering_bin() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    // Tests are in target/<profile>/deps, other executables directly in target/<profile>.
    let beside = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("tiering"))
        .find(|file| file.is_file())
        .unwrap_or_else(|| target_dir().join("debug/tiering"));
    named_or("TIERING_BIN", beside, "the agent")
}

fn named_or(variable: &str, default: PathBuf, what: &str) -> Result<PathBuf> {
    let path = std::env::var_os(variable).map_or(default, PathBuf::from);
    if !path.is_file() {
        bail!("{what} is not at {}: run `cargo xtask build`, or name it in {variable}", path.display());
    }
    Ok(path)
}
