//! `cargo xtask bench prefetch`: its parts. What they measure is told in docs/benchmarks.md.

use super::part::{Part, Place};

pub const PARTS: [Part; 3] = [
    Part {
        name: "pair",
        about: "what a follower saves when a leader has walked the same pages",
        place: Place::Here,
    },
    Part {
        name: "restart",
        about: "what a guest saves that is started anew when its earlier self walked the same pages",
        place: Place::Here,
    },
    Part {
        name: "similar",
        about: "how fast, and how surely, machines that are alike find each other",
        place: Place::Here,
    },
];
