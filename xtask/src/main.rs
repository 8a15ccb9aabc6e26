//! The project's own commands: `cargo xtask COMMAND`. Only wires; a command is a module.

mod bench;
mod build;
mod command;
mod demo;
mod lab;
mod run;
mod setup;
mod test;
mod train;

use clap::Parser;
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about)]
enum Xtask {
    /// Install what build and tests need; says first what it will do
    Setup(setup::Options),
    /// Build the agent and the init of the test guests
    Build(build::Options),
    /// Build and run the agent, or show it at work with `--demo`
    Run(run::Options),
    /// Format check, lints and all tests
    Test(test::Options),
    /// Run a command, or a shell, in a virtual host with memory tiers, NVMe disks and KVM
    Lab(lab::Options),
    /// Measure, and print a table and a line with the headline figures
    Bench(bench::Options),
    /// Learn the classes of machines from recorded profiles
    Train(train::Options),
}

fn main() -> ExitCode {
    let done = match Xtask::parse() {
        Xtask::Setup(options) => setup::run(&options),
        Xtask::Build(options) => build::run(&options).map(|_| ExitCode::SUCCESS),
        Xtask::Run(options) => run::run(&options),
        Xtask::Test(options) => test::run(&options),
        Xtask::Lab(options) => lab::run(&options),
        Xtask::Bench(options) => bench::run(&options),
        Xtask::Train(options) => train::run(&options),
    };
    done.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
