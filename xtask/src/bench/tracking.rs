//! `cargo xtask bench tracking`: its parts. What they measure is told in docs/benchmarks.md.

use super::part::{Part, Place};

pub const PARTS: [Part; 4] = [
    Part { name: "fault", about: "the cost of a page fault that is seen", place: Place::Here },
    Part {
        name: "events",
        about: "how many faults can be seen, the CPU time of that, and what a VM that floods costs the others",
        place: Place::Here,
    },
    Part {
        name: "hot",
        about: "how well the hottest pages of KVM guests are known, also after a jump",
        place: Place::Lab { test: "bench::hot::bench_hot_pages" },
    },
    Part {
        name: "slowdown",
        about: "what it costs KVM guests to be watched, for eight patterns",
        place: Place::Lab { test: "bench::slowdown::bench_slowdown" },
    },
];
