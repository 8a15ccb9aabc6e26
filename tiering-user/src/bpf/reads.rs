//! What VMs have read from watched images into the page cache.
//!
//! In: the loaded object; the images to watch. Out: reads; or why they cannot be seen. The program is attached when the
//! first image is to be watched: it runs for every page that comes into the host's page cache.
//!
//! # Limits
//! Only a classic tracepoint says which file it is about without knowledge of the kernel's structures.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use aya::Ebpf;
use aya::maps::{HashMap, MapData, PerCpuArray, RingBuf};
use tiering_common::{FileRead, ImageEntry, ImageKey, Reading};
use zerocopy::FromBytes as _;

use super::attach_kind::{self, AttachKind};
use super::error::BpfError;
use super::maps::{map_error, typed};
use super::source::{Delivery, Source};

pub(super) const PROGRAM: &str = "file_read_tp";
const CATEGORY: &str = "filemap";
/// The event that tells of reads.
const READ_EVENT: &str = "mm_filemap_add_to_page_cache";
/// Where the program finds what it needs in a record.
const FIELDS: [&str; 3] = [
    "unsigned long i_ino;\toffset:16;\tsize:8;",
    "unsigned long index;\toffset:24;\tsize:8;",
    "dev_t s_dev;\toffset:32;\tsize:4;",
];
const ORDER: &str = "unsigned char order;\toffset:36;\tsize:1;";

/// Whether reads of images are seen.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ReadSource {
    /// No VM has an image.
    Idle,
    Active,
    /// Why not.
    Unavailable(String),
}

/// The maps, and the program once it is attached.
pub struct Reads {
    images: HashMap<MapData, ImageKey, ImageEntry>,
    reading: PerCpuArray<MapData, Reading>,
    ring: RingBuf<MapData>,
    source: ReadSource,
    has_order: bool,
}

impl Reads {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, BpfError> {
        Ok(Self {
            images: typed(ebpf, "tier_images")?,
            reading: typed(ebpf, "tier_reading")?,
            ring: typed(ebpf, "tier_reads")?,
            source: ReadSource::Idle,
            has_order: false,
        })
    }

    /// Attaches the program if that was not tried yet. Returns whether it was attached just now.
    pub(super) fn attach(&mut self, ebpf: &mut Ebpf) -> bool {
        if self.source != ReadSource::Idle {
            return false;
        }
        self.source = match attach(ebpf) {
            Ok(has_order) => {
                self.has_order = has_order;
                ReadSource::Active
            }
            Err(reason) => ReadSource::Unavailable(reason),
        };
        self.source == ReadSource::Active
    }

    /// Begins to watch an image under this number.
    ///
    /// # Errors
    /// [`BpfError::Map`] where the map is full.
    pub(super) fn watch(&mut self, key: ImageKey, image: u32) -> Result<(), BpfError> {
        let entry = ImageEntry { image, has_order: self.has_order.into() };
        self.images.insert(key, entry, 0).map_err(map_error("tier_images"))
    }

    /// Ends watching an image.
    pub fn unwatch(&mut self, key: ImageKey) {
        // It is not there where watching it failed.
        self.images.remove(&key).ok();
    }

    /// Takes what is in the ring, at most `most` records.
    pub fn drain(&mut self, most: usize) -> Vec<FileRead> {
        let mut reads = Vec::new();
        while reads.len() < most
            && let Some(record) = self.ring.next()
        {
            // Nothing else is ever put into this ring.
            reads.extend(FileRead::read_from_bytes(&record));
        }
        reads
    }

    /// Reads that were lost since the ring was full.
    pub fn dropped(&self) -> u64 {
        self.reading.get(&0, 0).map_or(0, |values| values.iter().map(|reading| reading.dropped).sum())
    }

    /// A descriptor that becomes readable when there are reads.
    ///
    /// # Errors
    /// Where this process may not open another descriptor.
    pub fn ring_fd(&self) -> io::Result<OwnedFd> {
        self.ring.as_fd().try_clone_to_owned()
    }
}

impl Source for Reads {
    fn name(&self) -> &'static str {
        READ_EVENT
    }

    fn delivery(&self) -> Delivery {
        match &self.source {
            ReadSource::Idle => Delivery::Idle("no VM has a base image open".to_owned()),
            ReadSource::Active => match self.dropped() {
                0 => Delivery::Active(AttachKind::Classic.name().to_owned()),
                lost => Delivery::Active(format!("{}; {lost} reads lost", AttachKind::Classic.name())),
            },
            ReadSource::Unavailable(why) => Delivery::Unavailable(why.clone()),
        }
    }

    fn lost_without(&self) -> &'static str {
        "what VMs read from base images is not predicted"
    }
}

/// Returns whether records say how large a folio is.
fn attach(ebpf: &mut Ebpf) -> Result<bool, String> {
    let described = attach_kind::format(CATEGORY, READ_EVENT)?;
    if let Some(field) = FIELDS.iter().find(|field| !described.contains(**field)) {
        return Err(format!("{READ_EVENT} has no `{}`", field.replace('\t', " ")));
    }
    AttachKind::Classic.attach(ebpf, PROGRAM, CATEGORY, READ_EVENT)?;
    Ok(described.contains(ORDER))
}
