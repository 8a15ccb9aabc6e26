//! Running other programs: a command that fails is an error that shows the command.

use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use tiering_testkit::paths::workspace_root;

/// Runs a command whose output is for the user.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

/// The same, and waits for what the command has started too: Ctrl-C ends cargo at once, and what it runs only when that
/// has cleaned up.
pub fn run_to_the_end(command: &mut Command) -> Result<()> {
    let (mut output, end) = std::io::pipe().context("making a pipe")?;
    let mut child = command.stdout(end).spawn().with_context(|| format!("cannot run {command:?}"))?;
    // Our copy of the writing end: the pipe ends with the last process that has one.
    command.stdout(Stdio::null());
    std::io::copy(&mut output, &mut std::io::stdout()).context("passing the output on")?;
    let status = child.wait()?;
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
