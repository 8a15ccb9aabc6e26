//! `cargo xtask bench profile`: its parts. What they measure is told in docs/benchmarks.md.

use super::part::{Part, Place};

pub const PARTS: [Part; 6] = [
    Part {
        name: "cost",
        about: "what a VM's profile costs: time for an access and an epoch, and memory",
        place: Place::Here,
    },
    Part {
        name: "working-set",
        about: "what the profile says of the working sets of KVM guests, against what they did",
        place: Place::Lab { test: "bench::working_set::bench_working_set" },
    },
    Part {
        name: "forecast",
        about: "how right forecasts are of made-up loads, and how often their bounds hold",
        place: Place::Here,
    },
    Part {
        name: "replay",
        about: "what the policy sends down against LRU and the best there is, and how fast traces are replayed",
        place: Place::Here,
    },
    Part {
        name: "quotas",
        about: "the gain of dividing memory among VMs by their miss-ratio curves",
        place: Place::Here,
    },
    Part {
        name: "rise",
        about: "what a KVM guest waits for whose load comes again, with and without the forecast",
        place: Place::Lab { test: "bench::rise::bench_rise" },
    },
];
