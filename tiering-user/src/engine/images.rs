//! The images that VMs read through the host's page cache, and what of them is read ahead.
//!
//! In: images that VMs have open for reading only; what they had read from the disk. Out: parts of these files to
//! be read into the page cache; records of the order in which they were read, for the next agent. Reads nothing itself
//! ([`super::reading_ahead`] has it done).
//!
//! Each owner, that is a tenant, or a VM that has none, has a tape of its own of an image. An image is known again
//! by its inode number, name, length and time of change: the number of its file system's device differs from boot to
//! boot.
//!
//! # Limits
//! Images that are read around the page cache (`cache=none`) are not seen, nor those on file systems that give files
//! another device number than their own (btrfs, overlayfs). At most [`MOST_IN_FLIGHT`] of a file system are being read
//! at a time: what comes next beyond that is left to its reader. The page cache belongs to all: what is read ahead for
//! one tenant is there for the others too, as what it reads itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use nix::sys::stat::{major, minor};
use serde::{Deserialize, Serialize};
use tiering_common::{EXTENT_PAGES, FileRead, ImageKey, MAX_IMAGES};

use super::remembered::{ImageName, Remembered, What};
use crate::predict::{Extent, ImageTape, MOST_TOUCHES, decode, encode};
use crate::store::{Kept, Record};
use crate::sys::{Monotonic, PAGE_BYTES};
use crate::track::VmId;
use crate::vm::FileId;

const EXTENT_BYTES: u64 = EXTENT_PAGES * PAGE_BYTES;
const MOST_IN_FLIGHT: u64 = 64 << 20;
/// Tapes of images that are kept on disk, and how long they are together.
const MOST_KEPT: usize = 64;
const MOST_KEPT_BYTES: usize = 16 << 20;
const IMAGES: &str = "image/";
/// While an image is in use its tape is written when so much of it, at least of this length, is new: a quarter.
const WORTH_IT: u64 = 256;
const NEW_PART: u64 = 4;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Header {
    saved_unix_s: u64,
    image: ImageName,
}

/// An image of one owner that VMs have open.
#[derive(Debug)]
pub(super) struct Image {
    identity: ImageName,
    pub id: FileId,
    pub file: Arc<File>,
    pub tape: ImageTape,
    pub readers: BTreeSet<VmId>,
    /// Extents that are allocated, as far as is known.
    allocated: Extent,
    /// Read ahead so far.
    pub asked_bytes: u64,
    /// When it was read last.
    used: Monotonic,
}

impl Image {
    pub(super) fn name(&self) -> &str {
        &self.identity.name
    }

    pub(super) fn bytes(&self) -> u64 {
        self.identity.bytes
    }
}

#[derive(Debug, Default)]
pub(super) struct Images {
    /// By owner.
    open: BTreeMap<(String, FileId), Image>,
    owners: BTreeMap<VmId, String>,
    /// Numbers by which the kernel side tells of files.
    numbers: BTreeMap<FileId, u32>,
    next_number: u32,
    kept: BTreeMap<ImageName, Kept<Header>>,
    due: BTreeMap<String, Option<Vec<u8>>>,
    /// By device.
    in_flight_bytes: BTreeMap<u64, u64>,
}

impl Images {
    /// What an earlier agent kept.
    pub(super) fn load(names: &[String], read: impl Fn(&str) -> Option<Vec<u8>>) -> Self {
        let mut images = Self::default();
        for name in names.iter().filter(|name| name.starts_with(IMAGES)) {
            match read(name).as_deref().and_then(Kept::<Header>::parse) {
                Some(kept) if record_name(&kept.header.image) == *name => {
                    images.kept.insert(kept.header.image.clone(), kept);
                    images.trim();
                }
                _ => drop(images.due.insert(name.clone(), None)),
            }
        }
        images
    }

    /// All images that are open, each with whose they are.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&FileId, &Image)> {
        self.open.iter().map(|((_, id), image)| (id, image))
    }

    /// A VM of this owner has come.
    pub(super) fn enter(&mut self, owner: String, vm: VmId) {
        self.owners.insert(vm, owner);
    }

    /// Whether a VM has come and not gone.
    pub(super) fn is_here(&self, vm: VmId) -> bool {
        self.owners.contains_key(&vm)
    }

    /// Whether an image is open already for the owner of this VM.
    pub(super) fn is_open(&self, vm: VmId, id: FileId) -> bool {
        self.owners.get(&vm).is_some_and(|owner| self.open.contains_key(&(owner.clone(), id)))
    }

    /// A VM has this image open, which was opened for its owner if it was not before. Returns it with its number
    /// if it is to be watched from now on.
    pub(super) fn join(&mut self, vm: VmId, id: FileId, opened: Option<Opened>) -> Option<(ImageKey, u32)> {
        let owner = self.owners.get(&vm)?.clone();
        let place = (owner.clone(), id);
        if !self.open.contains_key(&place) {
            let Opened { facts, file, allocated_bytes } = opened?;
            if self.open.len() >= MAX_IMAGES {
                tracing::debug!(vm = vm.0, "an image of it is left out: {MAX_IMAGES} are open");
                return None;
            }
            let identity = facts.of_owner(owner);
            let before = self.kept.get(&identity).and_then(|kept| decode(&kept.bytes)).unwrap_or_default();
            let before = before.into_iter().map(|(extent, _)| extent);
            let extents = |bytes: u64| Extent::try_from(bytes.div_ceil(EXTENT_BYTES)).unwrap_or(Extent::MAX);
            let allocated = extents(allocated_bytes);
            let tape = ImageTape::new(extents(identity.bytes), allocated, before);
            let image = Image {
                identity,
                id,
                file,
                tape,
                allocated,
                readers: BTreeSet::new(),
                asked_bytes: 0,
                used: Monotonic::default(),
            };
            self.open.insert(place.clone(), image);
        }
        self.open.get_mut(&place)?.readers.insert(vm);
        if self.numbers.contains_key(&id) {
            return None;
        }
        self.numbers.insert(id, self.next_number);
        self.next_number += 1;
        Some((key(id), self.next_number - 1))
    }

    /// A VM has gone. Returns the images that are not to be watched any more, and those to be closed.
    pub(super) fn leave(&mut self, vm: VmId, unix_s: u64) -> (Vec<ImageKey>, Vec<Image>) {
        self.owners.remove(&vm);
        for image in self.open.values_mut() {
            image.readers.remove(&vm);
            image.tape.forget(vm);
        }
        let mut closed: Vec<Image> =
            self.open.extract_if(.., |_, image| image.readers.is_empty()).map(|(_, image)| image).collect();
        let mut gone = Vec::new();
        for image in &mut closed {
            self.keep(image, unix_s, true);
            if self.open.keys().all(|(_, id)| *id != image.id) && self.numbers.remove(&image.id).is_some() {
                gone.push(key(image.id));
            }
        }
        (gone, closed)
    }

    /// A VM had this read from the disk. Returns what is to be read ahead, at most `room` bytes in all.
    pub(super) fn read(&mut self, read: FileRead, threshold: f64, room: u64) -> Option<Ahead> {
        let vm = VmId(read.vm);
        let owner = self.owners.get(&vm)?.clone();
        let id = self.numbers.iter().find(|(_, number)| **number == read.image)?.0;
        let image = self.open.get_mut(&(owner, *id))?;
        image.used = Monotonic(read.time_ns);
        let mut ahead = Vec::new();
        for extent in read.extent..read.extent.saturating_add(read.count) {
            ahead.extend(image.tape.read(vm, extent, threshold, Monotonic(read.time_ns)));
        }
        let in_flight = self.in_flight_bytes.entry(id.device).or_default();
        let room = room.min(MOST_IN_FLIGHT.saturating_sub(*in_flight));
        ahead.truncate((room / EXTENT_BYTES) as usize);
        let bytes = ahead.len() as u64 * EXTENT_BYTES;
        *in_flight += bytes;
        image.asked_bytes += bytes;
        (!ahead.is_empty()).then(|| Ahead {
            device: id.device,
            name: image.name().to_owned(),
            file: Arc::clone(&image.file),
            parts: parts(&ahead),
        })
    }

    /// So much of this device is not being read any more.
    pub(super) fn done(&mut self, device: u64, bytes: u64) {
        if let Some(in_flight) = self.in_flight_bytes.get_mut(&device) {
            *in_flight = in_flight.saturating_sub(bytes);
        }
    }

    /// All that must be written down now; tapes that are little changed only if it is the `last` time.
    pub(super) fn records(&mut self, unix_s: u64, last: bool) -> Vec<Record> {
        let mut open = std::mem::take(&mut self.open);
        open.values_mut().for_each(|image| self.keep(image, unix_s, last));
        self.open = open;
        std::mem::take(&mut self.due).into_iter().collect()
    }

    fn keep(&mut self, image: &mut Image, unix_s: u64, last: bool) {
        let tape = image.tape.tape();
        let new = tape.end().since(image.tape.kept);
        if new == 0 || !last && new < (tape.len() as u64).max(WORTH_IT) / NEW_PART {
            return;
        }
        let header = Header { saved_unix_s: unix_s, image: image.identity.clone() };
        let kept = Kept { header, bytes: encode(tape.latest(MOST_TOUCHES)) };
        image.tape.kept = tape.end();
        self.due.insert(record_name(&image.identity), Some(kept.record()));
        self.kept.insert(image.identity.clone(), kept);
        self.trim();
    }

    /// Drops what was kept longest ago until the rest is few and small enough.
    fn trim(&mut self) {
        let mut bytes: usize = self.kept.values().map(|kept| kept.bytes.len()).sum();
        while (self.kept.len() > MOST_KEPT || bytes > MOST_KEPT_BYTES)
            && let Some((oldest, _)) = self.kept.iter().min_by_key(|(_, kept)| kept.header.saved_unix_s)
        {
            let oldest = oldest.clone();
            bytes -= self.forget_kept(&oldest);
        }
    }

    /// The orders that are on record, and those of images that are open.
    pub(super) fn remembered(&self) -> impl Iterator<Item = Remembered> {
        let kept = self.kept.iter().map(|(image, kept)| Remembered {
            what: What::ImageOnRecord(image.clone()),
            used: kept.header.saved_unix_s,
            bytes: kept.bytes.len() as u64,
        });
        let open = self.open.values().map(|image| Remembered {
            what: What::OpenImage(image.identity.clone()),
            used: image.used.0,
            bytes: image.tape.tape().bytes(),
        });
        kept.chain(open)
    }

    pub(super) fn forget_record(&mut self, image: &ImageName) {
        self.forget_kept(image);
    }

    /// Begins the order of an image that is open anew.
    pub(super) fn forget_order(&mut self, name: &ImageName) {
        for image in self.open.values_mut().filter(|image| image.identity == *name) {
            let extents = Extent::try_from(name.bytes.div_ceil(EXTENT_BYTES)).unwrap_or(Extent::MAX);
            image.tape = ImageTape::new(extents, image.allocated, []);
        }
    }

    /// Removes the tape of an image from what is kept. Returns how long it was.
    fn forget_kept(&mut self, image: &ImageName) -> usize {
        let Some(kept) = self.kept.remove(image) else { return 0 };
        self.due.insert(record_name(image), None);
        kept.bytes.len()
    }
}

/// The name of an image's record: what it is known by is in the record itself.
fn record_name(image: &ImageName) -> String {
    let ImageName { owner, name, inode, bytes, changed_unix_s } = image;
    format!("{IMAGES}{inode}/{bytes}/{changed_unix_s}/{}/{owner}/{name}", owner.len())
}

/// As the kernel encodes it.
fn key(id: FileId) -> ImageKey {
    let (major, minor) = (major(id.device), minor(id.device));
    // Both are numbers of 12 and 20 bits.
    ImageKey { inode: id.inode, device: u32::try_from(major << 20 | minor).unwrap_or(0), _pad: 0 }
}

/// An image that was opened.
#[derive(Debug)]
pub struct Opened {
    pub facts: ImageFacts,
    pub file: Arc<File>,
    pub allocated_bytes: u64,
}

/// What an image is known by, but for its owner.
#[derive(Debug)]
pub struct ImageFacts {
    pub name: String,
    pub inode: u64,
    pub bytes: u64,
    pub changed_unix_s: i64,
}

impl Opened {
    pub(super) fn name(&self) -> &str {
        &self.facts.name
    }
}

impl ImageFacts {
    fn of_owner(self, owner: String) -> ImageName {
        let Self { name, inode, bytes, changed_unix_s } = self;
        ImageName { owner, name, inode, bytes, changed_unix_s }
    }
}

/// Parts of an image to be read into the page cache, bytes.
#[derive(Debug)]
pub struct Ahead {
    pub device: u64,
    pub name: String,
    pub file: Arc<File>,
    pub parts: Vec<Range<u64>>,
}

impl Ahead {
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.end - part.start).sum()
    }
}

/// Extents as parts of a file, bytes; in their order, neighbours together.
fn parts(extents: &[Extent]) -> Vec<Range<u64>> {
    let together = extents.chunk_by(|a, b| a.checked_add(1) == Some(*b));
    let part = |run: &[Extent]| {
        let first = u64::from(run[0]) * EXTENT_BYTES;
        first..first + run.len() as u64 * EXTENT_BYTES
    };
    together.map(part).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;
    use std::path::PathBuf;

    use super::*;
    use crate::agent::image_files::open;
    use crate::vm::{Hva, ProcessKey, Vm, testing};

    const VM: VmId = VmId(1);
    const OTHER: VmId = VmId(2);

    /// An image of 200 extents, and a VM that has it open: this process.
    fn image() -> (tempfile::NamedTempFile, Vm) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[1]).unwrap();
        file.as_file().set_len(200 * EXTENT_BYTES).unwrap();
        let key = ProcessKey { pid: std::process::id().cast_signed(), start_time_ticks: 1 };
        let mut vm = testing::vm(key, Hva(0x10_0000), 4096);
        vm.images = [(FileId::of(&file.as_file().metadata().unwrap()), file.as_file().as_raw_fd())].into();
        (file, vm)
    }

    fn join(images: &mut Images, owner: &str, vm_id: VmId, vm: &Vm) -> Option<(ImageKey, u32)> {
        images.enter(owner.to_owned(), vm_id);
        let (id, fd) = vm.images.iter().next().unwrap();
        let path = PathBuf::from(format!("/proc/{}/fd/{fd}", vm.key.pid));
        images.join(vm_id, *id, open(&path, *id))
    }

    /// Of the one image that there is.
    fn device(images: &Images) -> u64 {
        images.numbers.keys().next().unwrap().device
    }

    /// Has all of it read, by the VM or ahead for it. Returns how many extents were read ahead.
    fn walk(images: &mut Images, vm: VmId) -> usize {
        let mut cached = BTreeSet::new();
        for number in 0..200u32 {
            let extent = number * 7 % 200;
            if !cached.contains(&extent) {
                let read = FileRead { time_ns: 1, extent, count: 1, vm: vm.0, image: 0 };
                for part in images.read(read, 0.5, u64::MAX).into_iter().flat_map(|ahead| ahead.parts) {
                    cached.extend((part.start / EXTENT_BYTES..part.end / EXTENT_BYTES).map(|e| e as u32));
                    images.done(device(images), part.end - part.start);
                }
            }
        }
        cached.len()
    }

    #[test]
    fn what_one_vm_read_is_read_ahead_for_those_of_its_owner_alone() {
        let (_file, vm) = image();
        let mut images = Images::default();
        assert!(join(&mut images, "tenant/a", VM, &vm).is_some());
        assert_eq!(join(&mut images, "tenant/b", OTHER, &vm), None, "it is watched already");
        assert_eq!(walk(&mut images, VM), 0);
        assert_eq!(walk(&mut images, OTHER), 0, "another tenant");
        assert!(images.leave(VM, 1).0.is_empty(), "the other one has it open");
        join(&mut images, "tenant/a", VmId(3), &vm);
        assert!(walk(&mut images, VmId(3)) > 100);
        assert!(images.leave(VmId(3), 1).0.is_empty());
        let (unwatched, closed) = images.leave(OTHER, 1);
        assert_eq!((unwatched.len(), closed.len()), (1, 1));
    }

    #[test]
    fn the_order_outlives_the_agent_and_not_a_change_of_the_image() {
        let (file, vm) = image();
        let mut images = Images::default();
        join(&mut images, "name/web-1", VM, &vm);
        walk(&mut images, VM);
        let records = images.records(5, true);
        assert!(images.records(6, true).is_empty(), "nothing is new");
        let load = |records: &[Record]| {
            let names: Vec<_> = records.iter().map(|(name, _)| name.clone()).collect();
            Images::load(&names, |wanted| records.iter().find(|(name, _)| name == wanted)?.1.clone())
        };
        let mut later = load(&records);
        join(&mut later, "name/web-1", VM, &vm);
        assert!(walk(&mut later, VM) > 100);

        let mut damaged = records.clone();
        damaged[0].1 = Some(b"{}\n".to_vec());
        assert_eq!(load(&damaged).records(7, true), [(records[0].0.clone(), None)]);

        file.as_file().set_len(199 * EXTENT_BYTES).unwrap();
        let mut later = load(&records);
        join(&mut later, "name/web-1", VM, &vm);
        assert_eq!(walk(&mut later, VM), 0, "another image");
    }

    #[test]
    fn no_more_is_read_at_a_time_than_there_is_room_for() {
        let (_file, vm) = image();
        let mut images = Images::default();
        join(&mut images, "tenant/a", VM, &vm);
        walk(&mut images, VM);
        images.in_flight_bytes = [(device(&images), MOST_IN_FLIGHT - 3 * EXTENT_BYTES)].into();
        let mut asked = 0;
        for number in 0..200u32 {
            let read = FileRead { time_ns: 1, extent: number * 7 % 200, count: 1, vm: VM.0, image: 0 };
            let parts = images.read(read, 0.5, u64::MAX).into_iter().flat_map(|ahead| ahead.parts);
            asked += parts.map(|part| part.end - part.start).sum::<u64>();
        }
        assert_eq!(asked, 3 * EXTENT_BYTES);
    }

    #[test]
    fn neighbours_are_read_together() {
        let e = EXTENT_BYTES;
        assert_eq!(parts(&[4, 5, 6, 2, 9, 10]), [4 * e..7 * e, 2 * e..3 * e, 9 * e..11 * e]);
    }

    #[test]
    fn a_device_is_named_as_the_kernel_names_it() {
        let id = FileId { device: nix::sys::stat::makedev(254, 300), inode: 7 };
        assert_eq!(key(id), ImageKey { inode: 7, device: 254 << 20 | 300, _pad: 0 });
    }
}
