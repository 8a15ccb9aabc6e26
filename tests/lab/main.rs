//! Tests in the lab, a whole virtual host: that the lab itself does what docs/lab.md says (`boots`), and scenarios, one
//! module each, of what the agent does there (docs/testing.md).
//!
//! A boot takes seconds, on a busy machine more: few tests, each with much in it.
#![expect(clippy::unwrap_used, reason = "a test panics with the error")]

mod agent_dies;
mod asking;
mod bench;
mod boots;
mod damon;
mod failing;
mod harm;
mod host;
mod kernel_6_1;
mod kinds_of_ram;
mod kvm_guests;
mod ladder;
mod leader_follower;
mod limits;
mod map;
mod memory_tiers;
mod node_demotion;
mod page_ages;
mod programs;
mod rearming;
mod samples;
mod scenario;
mod spread;
mod still;
