//! Memory tiering for VMs: the host agent, as a library.
//!
//! Data flows one way, and each module imports only what stands before it:
//!
//! `sys` → `store` → `vm` → `config` → `tiers` → `track` → `bpf` → `tiermap` → `trace` → `profile` → `class` →
//! `similarity` → `predict` → `policy` → `reclaim` → `actuate` → `telemetry` → `host` → `engine` → `replay` →
//! `agent` → `cli`
//!
//! Nor do files of one folder, `mod.rs` apart, import each other in a circle. (`floors` holds both to be true.)
//!
//! `track`, `tiermap` (but for its sweep), `trace`, `profile`, `class`, `similarity`, `predict`, `policy`, `reclaim`,
//! `replay` and `engine` are pure: time is an argument, and nothing is touched (but that `engine` reads what the last
//! agent wrote down, and that CPU time can be measured in `replay`). Unsafe code lives in `sys` alone.

pub mod actuate;
pub mod agent;
pub mod bpf;
pub mod class;
pub mod cli;
pub mod config;
pub mod engine;
pub mod host;
pub mod policy;
pub mod predict;
pub mod profile;
pub mod reclaim;
pub mod replay;
pub mod similarity;
pub mod store;
pub mod sys;
pub mod telemetry;
pub mod tiermap;
pub mod tiers;
pub mod trace;
pub mod track;
pub mod vm;

#[cfg(test)]
mod floors;
