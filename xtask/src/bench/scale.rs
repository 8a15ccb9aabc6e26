//! `cargo xtask bench scale`: its parts. What they measure is told in docs/benchmarks.md.

use super::part::{Part, Place};

pub const PARTS: [Part; 2] = [
    Part {
        name: "hosts",
        about: "what deciding costs on large hosts: up to 1,000 simulated VMs of 1 GiB, and 10,000 small ones",
        place: Place::Here,
    },
    Part {
        name: "idle",
        about: "what the agent costs without a VM, and beside guests of 8 and 16 GiB that stand still",
        place: Place::Here,
    },
];
