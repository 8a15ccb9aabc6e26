//! `cargo xtask setup`: what build, demo, tests and lab need and the machine lacks.
//!
//! In: the machine, as [`facts`]. Out: a [`plan`] that is printed, then carried out by [`apply`]. It changes nothing
//! that is there already, and with `--check` nothing at all.

mod apply;
mod facts;
mod plan;

use anyhow::{Result, ensure};
use facts::Facts;
use plan::{Action, Step};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// What only a few tests need; without it, all that the others need
    extra: Option<Extra>,
    /// Only say what is missing; the exit code is 1 if anything is
    #[arg(long)]
    check: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Extra {
    /// A disk with PostgreSQL, nginx, Redis and other programs for guests
    Programs,
}

/// What the machine is to be ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Build, and run the demo.
    Build,
    /// Everything.
    Test,
    /// Boot the lab, with a kernel of this line if any.
    Lab(Option<&'static str>),
    /// Run programs in guests.
    Programs,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    let purpose = match options.extra {
        None => Purpose::Test,
        Some(Extra::Programs) => Purpose::Programs,
    };
    if options.check {
        let steps = plan::steps(&Facts::probe(), purpose);
        show(&steps);
        return Ok(if steps.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    ensure(purpose)?;
    println!("everything needed is there");
    Ok(ExitCode::SUCCESS)
}

/// Installs what is missing; silent where nothing is.
pub fn ensure(purpose: Purpose) -> Result<()> {
    let mut facts = Facts::probe();
    let mut steps = plan::steps(&facts, purpose);
    if facts.apt && steps.iter().any(Step::asks_apt) {
        // What apt offers is only known with fresh lists, and a package may have been replaced on the server.
        println!("reading the package lists, to see what can be installed");
        apply::apt_update()?;
        facts = Facts::probe();
        steps = plan::steps(&facts, purpose);
    }
    show(&steps);
    let by_hand = steps.iter().filter(|step| matches!(step.action, Action::ByHand(_))).count();
    ensure!(
        by_hand == 0,
        "{by_hand} of these must be installed by hand: do so, then run `cargo xtask setup` again"
    );
    apply::apply(&steps)?;
    let left = plan::steps(&Facts::probe(), purpose);
    ensure!(left.is_empty(), "still missing after the installation: {}", names(&left));
    Ok(())
}

fn show(steps: &[Step]) {
    for Step { what, why, action } in steps {
        println!("missing: {what}\n    needed {why}\n    {action}");
    }
}

fn names(steps: &[Step]) -> String {
    steps.iter().map(|step| step.what.as_str()).collect::<Vec<_>>().join(", ")
}
