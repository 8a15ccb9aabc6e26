//! What the agent's decisions ask for, as data.
//!
//! The engine tells commands in the order in which it decides them, and `agent::perform` carries them out in that
//! order. Tests read them instead.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use tiering_common::{ImageKey, VmBlock, VmMoves};

use super::images::Ahead;
use super::looks::Look;
use crate::actuate::VmInfo;
use crate::bpf::Setup;
use crate::policy::Step;
use crate::telemetry::explain::Explanation;
use crate::telemetry::request::{Reply, VmMap};
use crate::tiers::TierId;
use crate::track::VmId;
use crate::vm::FileId;

#[derive(Debug)]
pub enum Command {
    // For the lanes of `actuate`.
    Step(VmInfo, Step),
    /// A swap tier is to be emptied, of these VMs.
    Drain(TierId, Vec<VmInfo>),
    /// The kernel is to reclaim so many bytes of the VM's control group.
    Reclaim(VmInfo, u64),
    /// The kernel is to reclaim so many bytes of the host, on which there are these VMs.
    ReclaimNodes(Vec<VmInfo>, u64),
    /// Whether an order for memory of the host may be carried out, or go on.
    AllowNodeReclaim(bool),

    /// For the sweeper.
    Look(VmInfo, Look),

    // For the kernel side.
    /// Frames that KVM maps into the VM are wanted, or not any more.
    WantFrames(VmInfo),
    EnoughFrames(VmId),
    /// Of 2 to this power accesses of the VM one is looked at.
    SampleOneIn(VmInfo, u32),
    /// What was done for the VM, for `bpftool`.
    ShowMoves(VmId, VmMoves),
    /// Where the pages of a block are; none where it has none.
    ShowBlock(VmId, u32, Option<VmBlock>),
    WatchImage(ImageKey, u32),
    UnwatchImage(ImageKey),
    /// DAMON is to watch these VMs.
    WatchRegions(Vec<VmId>, Setup),
    KernelDemotion(Demote),

    // What may hang.
    /// The image behind this descriptor of the VM is to be opened.
    OpenImage {
        vm: VmInfo,
        id: FileId,
        fd: i32,
    },
    CloseImage {
        name: String,
        id: FileId,
        file: Arc<File>,
    },
    ReadAhead(Ahead),
    ReadLabels(VmInfo),
    /// Page ages of these control groups.
    ReadPageAges(BTreeSet<String>),

    // Answers that need a look at page tables.
    FindFrame {
        vm: VmInfo,
        pfn: u64,
        reply: Reply<Range<u64>>,
    },
    TellMap {
        vm: VmInfo,
        map: VmMap,
        reply: Reply<VmMap>,
    },
    TellExplanation {
        vm: VmInfo,
        explanation: Box<Explanation>,
        reply: Reply<Explanation>,
    },

    /// The agent's own memory that is free goes back to the kernel.
    GiveBackFreed,
}

/// What to do with the kernel's demotion between memory nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Demote {
    /// It is left as it is, and why, if the configuration wants something else.
    Leave(Option<&'static str>),
    /// It is on unless something speaks against it.
    Keep(Option<String>),
}
