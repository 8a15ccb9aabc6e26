//! `cargo xtask build`: the agent, with the eBPF object in it, and the init of the test guests.
//!
//! In: the sources. Out: executables below the target folder, and where they are. What is missing for that is installed
//! first.

use crate::{command, setup};
use anyhow::{Context as _, Result, ensure};
use std::path::PathBuf;
use std::process::Command;
use tiering_testkit::paths::{GUEST_TARGET, guest_target_dir, target_dir};

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Optimise the agent
    #[arg(long)]
    release: bool,
}

/// What was built.
#[derive(Debug)]
pub struct Built {
    pub tiering: PathBuf,
    pub guest_init: PathBuf,
}

pub fn run(options: &Options) -> Result<Built> {
    setup::ensure(setup::Purpose::Build)?;
    let built = build(options.release)?;
    println!("agent:        {}", built.tiering.display());
    println!("guest's init: {}", built.guest_init.display());
    Ok(built)
}

/// Builds without looking at what is installed.
pub fn build(release: bool) -> Result<Built> {
    // Both at once: each of them alone leaves cores idle for part of its time.
    let mut guest_cargo = guest_cargo();
    let guest = guest_cargo.spawn().with_context(|| format!("cannot run {guest_cargo:?}"))?;
    let mut cargo = command::cargo();
    cargo.args(["build", "--package", "tiering-user"]);
    if release {
        cargo.arg("--release");
    }
    let built = command::run(&mut cargo);
    let guest = guest.wait_with_output()?;
    built?;
    ensure!(guest.status.success(), "{guest_cargo:?} failed: {}", guest.status);

    let profile = if release { "release" } else { "debug" };
    Ok(Built {
        tiering: target_dir().join(profile).join("tiering"),
        guest_init: guest_target_dir().join(GUEST_TARGET).join("release/tiering-guest"),
    })
}

/// The build of the guest's init. Linked statically, since the guest has no libraries. A target folder of its own,
/// because other flags would make cargo rebuild everything each time; a named target, because build scripts and macros
/// must not get these flags.
fn guest_cargo() -> Command {
    let mut cargo = command::cargo();
    cargo.args(["build", "--quiet", "--release", "--package", "tiering-testkit", "--bin", "tiering-guest"]);
    cargo.args(["--target", GUEST_TARGET, "--target-dir"]).arg(guest_target_dir());
    cargo
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    cargo
}
