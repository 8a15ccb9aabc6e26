//! One part of a benchmark, and how it is run: on this machine by an executable without test harness, or in the lab as
//! an ignored test of `tests/lab`, which carries itself there. Both keep their table where `Results::of_this_run` finds
//! it.

use crate::build::Built;
use crate::command;
use anyhow::Result;
use std::process::Command;

#[derive(Debug)]
pub struct Part {
    pub name: &'static str,
    /// What it measures, in a few words.
    pub about: &'static str,
    pub place: Place,
}

/// Where a part runs.
#[derive(Debug, Clone, Copy)]
pub enum Place {
    /// On this machine: the `[[bench]]` of the tests' package, which is given the part's name.
    Here,
    /// In the lab: a test of `tests/lab`, by its full name.
    Lab { test: &'static str },
}

impl Part {
    pub fn needs_lab(self: &&Self) -> bool {
        matches!(self.place, Place::Lab { .. })
    }

    pub fn run(&self, built: &Built, quick: bool) -> Result<()> {
        let mut cargo = match self.place {
            Place::Here => here(self.name, quick),
            Place::Lab { test } => lab(test, quick),
        };
        cargo.env("TIERING_BIN", &built.tiering).env("TIERING_GUEST_INIT", &built.guest_init);
        // What is missing is an error, not a skip.
        cargo.env("TIERING_STRICT", "1");
        command::run_to_the_end(&mut cargo)
    }
}

/// The benchmarks that run on this machine, one of them.
pub fn here(part: &str, quick: bool) -> Command {
    let mut cargo = command::cargo();
    cargo.args(["bench", "--quiet", "--package", "tiering-tests", "--bench", "here", "--", part]);
    if quick {
        cargo.arg("--quick");
    }
    cargo
}

fn lab(test: &str, quick: bool) -> Command {
    let mut cargo = command::cargo();
    cargo.args(["test", "--quiet", "--package", "tiering-tests", "--test", "lab", "--", test]);
    cargo.args(["--exact", "--ignored", "--nocapture"]);
    if quick {
        cargo.env("TIERING_BENCH_QUICK", "1");
    }
    cargo
}
