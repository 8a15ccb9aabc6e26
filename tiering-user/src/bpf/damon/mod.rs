//! What DAMON, the kernel's own monitor of accesses, finds out about VMs.
//!
//! In: the loaded object, the VMs to watch. Out: regions with how often they were accessed; or why there are none.
//! DAMON is used where nobody else uses it, by one kdamond of ours for all VMs, and given back.
//!
//! # Limits
//! A region is looked at by one page of it at a time: of one page nothing is certain.

mod admin;
mod worker;

use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::maps::{Array, MapData, RingBuf};
use tiering_common::{Damon as Shared, Region};
use zerocopy::FromBytes as _;

pub use admin::{Admin, Availability, Setup, Watched};
pub use worker::{Watching, Worker};

use super::attach_kind::{self, AttachKind};
use super::error::BpfError;
use super::maps::{map_error, typed};
use super::source::{Delivery, Source};

pub(super) const PROGRAM: &str = "damon_region";
const CATEGORY: &str = "damon";
const EVENT: &str = "damon_aggregated";
/// Where the program finds what it needs in a record.
const FIELDS: [&str; 4] = [
    "unsigned long target_id;\toffset:8;\tsize:8;",
    "unsigned long start;\toffset:24;\tsize:8;",
    "unsigned long end;\toffset:32;\tsize:8;",
    "unsigned int nr_accesses;\toffset:40;\tsize:4;",
];

/// The maps, and the program once it is attached.
pub struct Regions {
    shared: Array<MapData, Shared>,
    ring: RingBuf<MapData>,
    attached: Option<Result<(), String>>,
    state: Delivery,
}

impl Regions {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, BpfError> {
        Ok(Self {
            shared: typed(ebpf, "tier_damon")?,
            ring: typed(ebpf, "tier_regions")?,
            attached: None,
            state: Delivery::Idle("no VM needs it".to_owned()),
        })
    }

    /// Attaches the program if that was not tried yet. Returns whether it was attached just now.
    pub(super) fn attach(&mut self, ebpf: &mut Ebpf) -> bool {
        if self.attached.is_some() {
            return false;
        }
        let attached = attach(ebpf);
        if let Err(why) = &attached {
            self.state = Delivery::Unavailable(why.clone());
        }
        let is_attached = attached.is_ok();
        self.attached = Some(attached);
        is_attached
    }

    /// Whether what DAMON finds can be seen.
    pub fn is_attached(&self) -> bool {
        matches!(self.attached, Some(Ok(())))
    }

    /// Looks whether DAMON may be used now. `mark` is the file that says that a kdamond is an agent's.
    pub(super) fn probe(&mut self, admin: &Admin, mark: &Path) {
        self.state = match admin.availability() {
            Availability::Free => Delivery::Idle("free".to_owned()),
            Availability::Taken if worker::is_an_agents(admin, mark) => {
                Delivery::Idle("used by the agent".to_owned())
            }
            unavailable => Watching::not_available(&unavailable).delivery(),
        };
    }

    /// Takes over what has become of the worker's last task: from now on what that kdamond finds is told of.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn follow(&mut self, watching: &Watching) -> Result<(), BpfError> {
        let kdamond = watching.kdamond().unwrap_or(0);
        self.state = watching.delivery();
        let shared = self.shared();
        self.shared.set(0, Shared { kdamond, ..shared }, 0).map_err(map_error("tier_damon"))
    }

    /// Takes what is in the ring, at most `most` records.
    pub fn drain(&mut self, most: usize) -> Vec<Region> {
        let mut regions = Vec::new();
        while regions.len() < most
            && let Some(record) = self.ring.next()
        {
            // Nothing else is ever put into this ring.
            regions.extend(Region::read_from_bytes(&record));
        }
        regions
    }

    fn shared(&self) -> Shared {
        self.shared.get(&0, 0).unwrap_or_default()
    }
}

impl Source for Regions {
    fn name(&self) -> &'static str {
        "damon"
    }

    fn delivery(&self) -> Delivery {
        match (&self.state, self.shared().dropped) {
            (Delivery::Active(how), lost @ 1..) => Delivery::Active(format!("{how}; {lost} regions lost")),
            (state, _) => state.clone(),
        }
    }

    fn lost_without(&self) -> &'static str {
        "of VMs that cannot be re-armed a page that stays mapped shows no accesses: a few of each block are demoted to find out"
    }
}

fn attach(ebpf: &mut Ebpf) -> Result<(), String> {
    let described = attach_kind::format(CATEGORY, EVENT)?;
    if let Some(field) = FIELDS.iter().find(|field| !described.contains(**field)) {
        return Err(format!("{EVENT} has no `{}`", field.replace('\t', " ")));
    }
    AttachKind::Classic.attach(ebpf, PROGRAM, CATEGORY, EVENT)
}

/// Where the host's DAMON is set up.
pub fn host_admin() -> Admin {
    Admin::new(PathBuf::from(admin::ROOT))
}

/// The file that says that the host's kdamond is the agent's.
pub fn host_mark() -> PathBuf {
    PathBuf::from("/run/tiering/damon")
}
