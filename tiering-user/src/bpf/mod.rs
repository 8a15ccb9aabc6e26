//! The kernel side: programs loaded and attached, maps written and read, the ring drained.
//!
//! In: which processes to track, and where their RAM is. Out: batches of samples, counters. The programs and maps
//! are pinned for `bpftool`; links are not, so that the programs of an agent that died detach by themselves.

mod attach_kind;
mod blocks;
mod damon;
mod error;
mod faults;
mod kernel_moves;
mod kvm;
mod maps;
mod pins;
mod reads;
mod rearming;
mod source;

pub use attach_kind::{AttachKind, PROBE_ATTACH_KINDS};
pub use damon::{Admin, Availability, Setup, Watched, Watching, Worker, host_admin, host_mark};
pub use error::BpfError;
pub use faults::{Counters, Faults, OBJECT};
pub use kernel_moves::KernelMoveSource;
pub use kvm::{KVM_ATTACH_KINDS, KvmSource};
pub use pins::{PIN_DIR, PinError, Pins};
pub use reads::Reads;
pub use rearming::Rearming;
pub use source::{Delivery, Source};
