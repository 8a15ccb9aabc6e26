//! `cargo xtask bench tracking`: its parts. What they measure is told in docs/benchmarks.md.

use super::part::{Part, Place};

pub const PARTS: [Part; 1] = [Part {
    name: "events",
    about: "what it costs to see a fault, how many can be seen, and what a machine that floods costs the others",
    place: Place::Here,
}];
