//! Running other programs: a command that fails is an error that shows the command.

use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::{Command, Output};
use tiering_tests::paths::workspace_root;

/// Runs a command whose output is for the user.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

/// The standard output of a command that succeeds; none where it fails or does not exist.
pub fn ask(command: &mut Command) -> Option<String> {
    let Output { status, stdout, .. } = command.output().ok()?;
    status.success().then(|| String::from_utf8_lossy(&stdout).trim().to_owned())
}

/// The cargo that runs us, at the root of the workspace.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Set for aya-build (.cargo/config.toml); a person wants to see what is built.
    command.current_dir(workspace_root()).env_remove("CARGO_TERM_QUIET");
    command
}

/// Where a program is: in PATH, or where Debian keeps administrators' programs.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}
