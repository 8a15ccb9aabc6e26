//! Looks at the page tables of a VM: what can be asked for, and what came of it.

use std::io;
use std::time::Duration;

use tiering_common::Frame;

use crate::sys::Monotonic;
use crate::tiermap::{PageRun, Sweep};
use crate::track::VmId;
use crate::vm::Hva;

/// What the sweeper can do with a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    Sweep(PageRun),
    Rearm,
    Compare(Vec<(Frame, Hva)>),
}

impl Look {
    pub fn what(&self, vm: &str) -> String {
        match self {
            Self::Sweep(_) | Self::Compare(_) => format!("reading the page tables of {vm}"),
            Self::Rearm => format!("arming the pages of {vm} anew"),
        }
    }
}

/// What came of it.
#[derive(Debug)]
pub enum Looked {
    Swept(Swept),
    Rearmed(Rearmed),
    Compared(Compared),
}

#[derive(Debug)]
pub struct Swept {
    pub vm: VmId,
    pub began: Monotonic,
    pub sweep: io::Result<Sweep>,
}

/// A VM's pages were armed anew.
#[derive(Debug)]
pub struct Rearmed {
    pub vm: VmId,
    pub began: Monotonic,
    /// How long it took.
    pub took: io::Result<Duration>,
    /// What was written since it was armed before.
    pub written: io::Result<Vec<PageRun>>,
}

/// Frames that KVM mapped, each with its address, and the frame that the page tables have there.
#[derive(Debug)]
pub struct Compared {
    pub vm: VmId,
    pub found: Vec<(Frame, Hva, Option<u64>)>,
}
