//! What tests, benchmarks, the demo and xtask share: small guests in QEMU, the lab, folders that can hold swap files,
//! the agent as a process.
//!
//! In: the guest kernel, the guest's init and the `tiering` binary that `cargo xtask build` leaves below the target
//! folder (each can be named by an environment variable instead). Out: processes and files that are gone when their
//! owner is dropped. Nothing here asserts: tests do.

pub mod agent;
pub mod content;
pub mod disk_image;
pub mod faulter;
pub mod filled;
pub mod guest;
pub mod hung_files;
pub mod initramfs;
pub mod kernel;
pub mod lab;
pub mod lines;
pub mod locate;
pub mod observe;
pub mod paths;
pub mod pattern;
pub mod paused;
pub mod program;
pub mod qemu;
pub mod qmp;
pub mod random;
pub mod readahead;
pub mod repeats;
pub mod results;
pub mod scratch;
pub mod skip;
pub mod stand_in;
pub mod stop;
mod words;
