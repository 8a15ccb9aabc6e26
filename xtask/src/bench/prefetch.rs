//! `cargo xtask bench prefetch`: its parts. What they measure is told in docs/benchmarks.md.

use super::part::{Part, Place};

pub const PARTS: [Part; 9] = [
    Part {
        name: "pair",
        about: "what a follower saves when a leader has walked the same pages",
        place: Place::Here,
    },
    Part {
        name: "clones",
        about: "what a follower saves that is a clone of the same snapshot as its leader",
        place: Place::Here,
    },
    Part {
        name: "restart",
        about: "what a guest saves that is started anew when its earlier self walked the same pages",
        place: Place::Here,
    },
    Part {
        name: "boots",
        about: "what a guest saves that does the same real work as one of the same image before it",
        place: Place::Here,
    },
    Part { name: "storm", about: "guests of one image that wake one after the other", place: Place::Here },
    Part {
        name: "mix",
        about: "what it costs guests that it cannot help, and whether it is as sure as it should be",
        place: Place::Here,
    },
    Part { name: "ablation", about: "what each part of it is worth", place: Place::Here },
    Part {
        name: "similar",
        about: "how fast and how reliably similar VMs find each other",
        place: Place::Here,
    },
    Part {
        name: "files",
        about: "what a guest saves when another one has read the same base image before",
        place: Place::Here,
    },
];
