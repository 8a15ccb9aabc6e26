//! `cargo xtask bench savings`: its parts. What they measure is told in docs/benchmarks.md.

use super::part::{Part, Place};

pub const PARTS: [Part; 1] = [Part {
    name: "ages",
    about: "what of a guest's memory leaves DRAM, by the agent as it comes and by the kernel's LRU",
    place: Place::Here,
}];
