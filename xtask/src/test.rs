//! `cargo xtask test`: format, lints, then all tests.
//!
//! In: the sources, a filter. Out: the first thing that fails. Tests that the machine cannot run are skipped with a reason,
//! unless `CI=true`: then nothing may be skipped.

use crate::{build, command, setup};
use anyhow::Result;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Also the tests that are marked as long
    #[arg(long)]
    all: bool,
    /// Only tests with this in their name
    filter: Option<String>,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    setup::ensure(setup::Purpose::Test)?;
    let built = build::build(false)?;
    command::run(command::cargo().args(["fmt", "--all", "--check"]))?;
    command::run(command::cargo().args(["clippy", "--all-targets", "--", "-D", "warnings"]))?;

    let mut nextest = command::cargo();
    nextest.args(["nextest", "run"]);
    if options.all {
        nextest.args(["--run-ignored", "all"]);
    }
    nextest.args(&options.filter);
    nextest.env("TIERING_BIN", &built.tiering).env("TIERING_GUEST_INIT", &built.guest_init);
    if std::env::var_os("CI").is_some_and(|ci| ci == "true") {
        nextest.env("TIERING_STRICT", "1");
    }
    command::run(&mut nextest)?;
    Ok(ExitCode::SUCCESS)
}
