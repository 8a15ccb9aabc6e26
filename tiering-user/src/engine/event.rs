//! What happens to the agent, in one type: all that its decisions learn of the world, but for what they are told once a
//! second ([`Facts`]).

use tiering_common::{FileRead, Frame, Region, Sample};

use super::brakes::Gauge;
use super::facts::Facts;
use super::images::Opened;
use super::looks::Looked;
use crate::actuate::Done;
use crate::bpf::{Counters, Watching};
use crate::class::Labels;
use crate::telemetry::request::Request;
use crate::track::VmId;
use crate::vm::{FileId, NoAges, PageAges, ProcessKey, Vm, libvirt};

pub enum Event<'a> {
    /// Accesses, out of the ring; also none, so that what waits to be staged goes on.
    Samples(&'a [Sample]),
    /// Frames that KVM has mapped into a VM.
    Frames(VmId, Vec<Frame>),
    /// Counters of the VMs that are tracked; asked for by [`super::Engine::wants_counters`].
    Counters(&'a [(VmId, Counters)]),
    /// What VMs read from images.
    Reads(Vec<FileRead>),
    /// What DAMON found; as many are taken as there is time for.
    Regions(&'a mut dyn Iterator<Item = Region>),
    Watching(Watching),

    /// VMs were looked for.
    Scanned(Scanned),
    /// A VM is tracked from now on.
    Appeared(VmId, Vm),
    /// It is not any more, for this reason; its last counters.
    Gone(VmId, &'static str, Counters),
    /// Looks like a VM and is left alone.
    Bystander(Vm),
    BystanderGone(ProcessKey),
    Gauges(Vec<Gauge>),

    Looked(Looked),
    Done(Done),
    Image(VmId, FileId, Opened),
    Labels(VmId, Result<Labels, libvirt::LabelError>),
    /// So many bytes of a device were read ahead.
    ReadAhead {
        device: u64,
        bytes: u64,
    },
    PageAges(Result<PageAges, NoAges>),

    Request(Request),
    /// A second has passed.
    Second(Facts),
}

/// What a scan says beside the VMs that came or went.
#[derive(Debug, Default)]
pub struct Scanned {
    /// Why processes could not be looked at.
    pub troubles: Vec<String>,
    /// All VMs were looked for, and none is still starting.
    pub all: bool,
    /// Bystanders that are not listed, where that can be told.
    pub unlisted: Option<usize>,
}
