//! Tests that need a real kernel: guests in QEMU, swap, BPF. One executable, a module a feature.
//!
//! They share what a machine has only once, so `.config/nextest.toml` runs them one after another. What the machine
//! lacks is a skip with its reason.

mod guest_boots;
