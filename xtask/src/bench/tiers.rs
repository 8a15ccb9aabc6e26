//! `cargo xtask bench tiers`: its parts. What they measure is told in docs/benchmarks.md.

use super::part::{Part, Place};

pub const PARTS: [Part; 5] = [
    Part { name: "throughput", about: "the agent's moves against the bare system calls", place: Place::Here },
    Part { name: "placement", about: "pages found in the tier they were sent to", place: Place::Here },
    Part {
        name: "skew",
        about: "four guests of different skew: what is off tier 0, and what that costs them",
        place: Place::Lab { test: "bench::skew::bench_skew" },
    },
    Part {
        name: "priority",
        about: "a guest of high priority beside one that thrashes",
        place: Place::Lab { test: "bench::priority::bench_priority" },
    },
    Part {
        name: "huge",
        about: "huge pages after a way down and up",
        place: Place::Lab { test: "bench::huge::bench_huge" },
    },
];
