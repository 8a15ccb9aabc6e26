//! `cargo xtask bench scale`: its parts. What they measure is told in docs/benchmarks.md.

use super::part::{Part, Place};

pub const PARTS: [Part; 1] = [Part {
    name: "hosts",
    about: "what deciding costs on large hosts: up to 1,000 simulated VMs of 1 GiB, and 10,000 small ones",
    place: Place::Here,
}];
