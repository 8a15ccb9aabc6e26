//! Why the kernel side cannot be had, or one of its maps not be used.

use aya::EbpfError;
use aya::maps::MapError;
use thiserror::Error;
use tiering_common::MAX_RANGES;

use super::pins::PinError;

/// The kernel side cannot be had.
#[derive(Debug, Error)]
pub enum BpfError {
    #[error("the kernel refuses BPF: run as root, or with CAP_BPF and CAP_PERFMON ({0})")]
    NotPermitted(String),
    #[error("cannot load the eBPF object: {0}")]
    Load(#[from] EbpfError),
    #[error("no way to see page faults works here: {0}")]
    NoAttachKind(String),
    #[error("the eBPF object has no `{0}`")]
    Missing(&'static str),
    #[error("map `{map}`: {source}")]
    Map { map: &'static str, source: MapError },
    #[error("{0} has more RAM ranges than the {MAX_RANGES} that can be tracked")]
    TooManyRanges(String),
    #[error(transparent)]
    Pin(#[from] PinError),
}
