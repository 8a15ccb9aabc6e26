//! `cargo xtask bench savings`: its parts. What they measure is told in docs/benchmarks.md.

use super::part::{Part, Place};

pub const PARTS: [Part; 4] = [
    Part {
        name: "ages",
        about: "what of a guest's memory leaves DRAM, by the agent as it comes and by the kernel's LRU",
        place: Place::Here,
    },
    Part {
        name: "redis",
        about: "the same with Redis, of whose keys one in ten is in use; needs the disk of guest programs",
        place: Place::Here,
    },
    Part {
        name: "programs",
        about: "the same with PostgreSQL, nginx, Redis and gcc in four guests at once",
        place: Place::Here,
    },
    Part {
        name: "wake",
        about: "guests whose memory the agent has freed touch all of it at once",
        place: Place::Here,
    },
];
