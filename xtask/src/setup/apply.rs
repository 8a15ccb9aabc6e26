//! Carries a plan out, step by step, each step's command shown before it runs.

use super::plan::{Action, Step};
use crate::command;
use anyhow::{Context, Result, bail};
use std::process::Command;
use std::time::Instant;
use tiering_testkit::program::image;

pub fn apt_update() -> Result<()> {
    command::run(apt_get().args(["-q", "update"]))
}

pub fn apply(steps: &[Step]) -> Result<()> {
    for Step { what, action, .. } in steps {
        println!("installing {what}: {action}");
        match action {
            Action::Apt(packages) => {
                command::run(
                    apt_get().args(["-q", "-y", "--no-install-recommends", "install"]).args(packages),
                )?;
            }
            Action::Run { line, env } => {
                let (program, args) = line.split_first().context("an empty command")?;
                let env = env.iter().map(|(name, value)| (name, value));
                // Set for our own eBPF crate by .cargo/config.toml; others' crates build as everywhere.
                command::run(Command::new(program).args(args).envs(env).env_remove("RUSTC_BOOTSTRAP"))?;
            }
            Action::FetchKernel { line, .. } => {
                println!("{what}: {}", tiering_testkit::kernel::fetch(*line)?.display());
            }
            Action::BuildPrograms => {
                let began = Instant::now();
                let image = image::build()?;
                println!("{what}: {} after {} s", image.display(), began.elapsed().as_secs());
            }
            Action::ByHand(hint) => bail!("{what}: {hint}"),
        }
    }
    Ok(())
}

fn apt_get() -> Command {
    let mut command = if nix::unistd::geteuid().is_root() {
        Command::new("apt-get")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.args(["--preserve-env=DEBIAN_FRONTEND", "apt-get"]);
        sudo
    };
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}
