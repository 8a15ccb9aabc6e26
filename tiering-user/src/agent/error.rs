//! Why the agent cannot run.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::bpf::{BpfError, PinError};
use crate::telemetry::socket::SocketError;
use crate::telemetry::tcp::ListenError;
use crate::tiers::{NodeError, SwapError};
use crate::vm::VmError;

/// Exit codes of sysexits(3).
const EX_UNAVAILABLE: u8 = 69;
const EX_SOFTWARE: u8 = 70;
const EX_NOPERM: u8 = 77;
const EX_CONFIG: u8 = 78;

/// The agent cannot run, or not go on.
#[derive(Debug, Error)]
pub enum Error {
    #[error("the agent needs root: run it with sudo")]
    NotRoot,
    #[error("another agent runs here ({}): stop it first", lock.display())]
    Running { lock: PathBuf },
    #[error("{}: {source}", path.display())]
    Lock { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Nodes(#[from] NodeError),
    #[error(transparent)]
    Swap(#[from] SwapError),
    #[error(transparent)]
    Bpf(#[from] BpfError),
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Discover(#[from] VmError),
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("the thread {thread} failed, so the agent has ended: {message}; please report it")]
    Panicked { thread: String, message: String },
    #[error("cannot start: {0}")]
    Start(io::Error),
    #[error("{}: cannot write the report: {source}", path.display())]
    Report { path: PathBuf, source: io::Error },
}

impl Error {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotRoot | Self::Bpf(BpfError::NotPermitted(_)) => EX_NOPERM,
            Self::Pin(error) if error.is_permission() => EX_NOPERM,
            Self::Panicked { .. } => EX_SOFTWARE,
            Self::Nodes(_) | Self::Listen(ListenError::NotLocal(_)) => EX_CONFIG,
            _ => EX_UNAVAILABLE,
        }
    }
}
