//! `cargo xtask test`: format, lints, spelling, links of the code's documentation, dependencies, then all tests.
//!
//! In: the sources, a filter. Out: the first thing that fails, and the tables of the lab's scenarios. Tests that the
//! machine cannot run are skipped with a reason, unless `CI=true`: then nothing may be skipped.

use crate::{build, command, setup};
use anyhow::Result;
use std::process::{Command, ExitCode};
use tiering_testkit::kernel;
use tiering_testkit::paths::workspace_root;
use tiering_testkit::results::Results;

/// Licences and advisories of dependencies, where cargo-deny is installed: to build it takes longer than all tests.
fn dependencies() -> Result<()> {
    if command::ask(command::cargo().args(["deny", "--version"])).is_none() {
        println!("cargo-deny is not installed: licences and advisories of dependencies are not checked");
        return Ok(());
    }
    command::run(command::cargo().args(["deny", "check"]))
}

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Also the tests that are marked as long
    #[arg(long)]
    all: bool,
    /// Only tests with this in their name; `lab` and `kernel`: all tests of that kind
    filter: Option<String>,
}

/// Test binaries that can be named in place of a test (tests/Cargo.toml).
const KINDS: [&str; 2] = ["kernel", "lab"];

pub fn run(options: &Options) -> Result<ExitCode> {
    setup::ensure(setup::Purpose::Test)?;
    if options.all {
        for line in kernel::LINES {
            setup::ensure(setup::Purpose::Lab(Some(line)))?;
        }
        setup::ensure(setup::Purpose::Programs)?;
    }
    let built = build::build(false)?;
    command::run(command::cargo().args(["fmt", "--all", "--check"]))?;
    command::run(command::cargo().args(["clippy", "--all-targets", "--", "-D", "warnings"]))?;
    // What it passes over is in .codespellrc.
    command::run(Command::new("codespell").current_dir(workspace_root()))?;
    let mut doc = command::cargo();
    doc.args(["doc", "--package", "tiering-user", "--no-deps", "--document-private-items"]);
    command::run(doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    dependencies()?;

    let mut nextest = command::cargo();
    nextest.args(["nextest", "run"]);
    if options.all {
        nextest.args(["--run-ignored", "all"]);
    }
    // Measurements are tests that `cargo xtask bench` runs.
    let no_benches = "not test(bench_)";
    match &options.filter {
        Some(kind) if KINDS.contains(&kind.as_str()) => {
            nextest.args(["--filterset", &format!("binary(={kind}) and {no_benches}")]);
        }
        filter => {
            nextest.args(["--filterset", no_benches]).args(filter);
        }
    }
    nextest.env("TIERING_BIN", &built.tiering).env("TIERING_GUEST_INIT", &built.guest_init);
    if std::env::var_os("CI").is_some_and(|ci| ci == "true") {
        nextest.env("TIERING_STRICT", "1");
    }
    Results::begin_run();
    let ran = command::run(&mut nextest);
    for results in Results::of_this_run() {
        println!("\n{results}");
    }
    ran.map(|()| ExitCode::SUCCESS)
}
