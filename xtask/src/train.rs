//! `cargo xtask train`: learns the classes of machines from recorded profiles and writes the model; with `--evaluate`
//! says how right that is.
//!
//! What is learned, and how, is in `tests/bench/classes.rs`.

use crate::bench::here;
use crate::{command, setup};
use anyhow::Result;
use std::process::ExitCode;
use tiering_testkit::results::Results;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Say what is right of runs and sizes that it did not learn from, and draw the confusion matrix; writes no model
    #[arg(long)]
    evaluate: bool,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    setup::ensure(setup::Purpose::Build)?;
    Results::begin_run();
    command::run(&mut here(if options.evaluate { "evaluate" } else { "train" }, false))?;
    for results in Results::of_this_run() {
        println!("\n{results}");
    }
    Ok(ExitCode::SUCCESS)
}
