//! `cargo xtask run`: builds, then becomes the agent; with `--demo` the agent at work on small guests of its own.

use crate::{build, demo, setup};
use anyhow::{Context, Result, ensure};
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Start three small QEMU guests and file-backed tiers, run the agent on them, print the outcome, remove everything
    #[arg(long)]
    demo: bool,
    /// How long the agent runs (the demo: 60s unless told)
    #[arg(long, value_parser = humantime::parse_duration)]
    duration: Option<Duration>,
    /// Write a JSON report here at the end
    #[arg(long, value_name = "F")]
    report: Option<PathBuf>,
    /// More arguments for `tiering run`
    #[arg(last = true)]
    args: Vec<OsString>,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    if options.demo {
        // Before minutes of building.
        ensure!(
            nix::unistd::geteuid().is_root(),
            "the demo loads eBPF programs and switches swap files on: run it as root"
        );
    }
    setup::ensure(setup::Purpose::Build)?;
    // The demo is looked at once: what counts is how soon it starts.
    let built = build::build(!options.demo)?;
    if options.demo {
        let duration = options.duration.unwrap_or(Duration::from_secs(60));
        return demo::run(&built, duration, options.report.as_deref(), &options.args);
    }
    let mut agent = Command::new(&built.tiering);
    agent.arg("run");
    if let Some(duration) = options.duration {
        agent.args(["--duration", &humantime::format_duration(duration).to_string()]);
    }
    if let Some(report) = &options.report {
        agent.arg("--report").arg(report);
    }
    agent.args(&options.args);
    Err(agent.exec()).with_context(|| format!("cannot run {agent:?}"))
}
