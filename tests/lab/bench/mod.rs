//! The parts of `cargo xtask bench` that need a whole virtual host: KVM guests in memory control groups, two swap
//! disks.
//!
//! Each part is an ignored test that `cargo xtask bench` runs and `cargo xtask test` does not. It fails where it cannot
//! measure, or where a guest's memory was harmed; a bad figure fails nothing. The lab is emulated as a rule: counts and
//! ratios within one run mean something, times do not.

mod hot;
mod huge;
mod priority;
mod rise;
mod skew;
mod slowdown;
mod window;
mod working_set;

/// Whether fewer and shorter measurements will do.
fn quick() -> bool {
    std::env::var_os("TIERING_BENCH_QUICK").is_some()
}
