//! Tests that need a real kernel: guests in QEMU, swap, BPF. One executable, a module a feature.
//!
//! They share what a machine has only once, so `.config/nextest.toml` runs them one after another; a lab may run beside
//! them, which is a QEMU process as well. What the machine lacks is a skip with its reason.
#![expect(clippy::unwrap_used, reason = "a test panics with the error")]

mod bad_input;
mod bpftool;
mod crash;
mod doctor;
mod ebpf;
mod explain;
mod guest_boots;
mod harm;
mod host;
mod images;
mod map;
mod metrics;
mod moves;
mod policy;
mod probation;
mod profile;
mod programs;
mod reclaim;
mod recording;
mod refusals;
mod savings;
mod state;
mod tapes;
mod tenants;
