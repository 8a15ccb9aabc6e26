//! A whole block device as the swap of a tier: found, looked at, made into swap.
//!
//! In: the path in the configuration. Out: the device, or why it is not touched ([`DeviceError`]). Nothing is written
//! but by [`Device::make`], and only to a device that reads as empty or that an agent made into swap.
//!
//! 1. The path is resolved once. From there on a device is its number: what is opened is compared with it.
//! 2. [`facts`] tells what sysfs, the mounts and the processes say of it, [`judge`] what is against it.
//! 3. It is opened exclusively (`O_EXCL`): the kernel refuses that for what is mounted, on as swap, or part of an array
//!    or a volume. Its first and last bytes are read past the page cache, and [`content`] says what is there.
//! 4. To make it into swap all of that is done again by the descriptor that then writes: first the pages that are read
//!    to learn how fast the device is, and the header last.
//!
//! # Limits
//! Between the end of that and swapon(2), which opens the device exclusively by itself, nobody holds it. An empty disk
//! of a VM that does not run looks as any empty device does.

mod content;
mod facts;
mod judge;
mod signatures;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use self::content::{Content, START_BYTES, probe_page};
use self::facts::Facts;
use self::judge::Danger;
use super::area::{Own, random};
use super::claim::Claim;
use super::error::DeviceError;
use super::files::{FileId, OnArea};
use super::header::{DeviceHeader, Header};
use crate::sys::{Buffer, PAGE_BYTES};
use crate::tiers::device_layout::{END_BYTES, Layout, PROBE_BYTES};
use crate::tiers::disk_facts::{DeviceNumber, device_itself, real_folder, text};

/// A block device that can be the swap of a tier, as far as can be told without looking at its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    /// Its node, without links.
    pub(super) path: PathBuf,
    pub(super) id: FileId,
    allow_unsafe: bool,
}

/// The device, opened exclusively, and what is on it.
struct Opened {
    file: File,
    layout: Layout,
    content: Content,
}

impl Device {
    /// The device that `path` leads to now.
    ///
    /// # Errors
    /// [`DeviceError::NotThere`], [`DeviceError::NotADevice`].
    pub(super) fn find(path: &Path, allow_unsafe: bool) -> Result<Self, DeviceError> {
        let not_there = |source| DeviceError::NotThere { path: path.to_owned(), source };
        let real = fs::canonicalize(path).map_err(not_there)?;
        let found = fs::symlink_metadata(&real).map_err(not_there)?;
        if !found.file_type().is_block_device() {
            return Err(DeviceError::NotADevice { path: path.to_owned() });
        }
        Ok(Self { path: real, id: FileId::of(&found), allow_unsafe })
    }

    /// What of the device is the agent's. Writes nothing.
    ///
    /// # Errors
    /// Any [`DeviceError`].
    pub(super) fn claim(&self, on: &[OnArea]) -> Result<Claim, DeviceError> {
        let number = self.number();
        let facts = Facts::gather(Path::new("/sys"), number);
        self.refuse_unsafe(&facts)?;
        let mut claim = Claim::default();
        match on.iter().find(|area| area.device == Some(self.id)) {
            Some(OnArea { line, made_for: Some(_), .. }) => {
                let own = Own { path: self.path.clone(), id: self.id, bytes: line.size_bytes + PAGE_BYTES };
                claim.on.push((own, line.clone()));
            }
            Some(OnArea { line, .. }) => {
                let by = format!("a swap area of somebody else's, on with priority {}", line.priority);
                return Err(DeviceError::InUse { path: self.path.clone(), by });
            }
            None => drop(self.open(&facts, false)?),
        }
        Ok(claim)
    }

    /// Makes the device into swap for `tier`, unless it is already. It is not on afterwards.
    ///
    /// # Errors
    /// Any [`DeviceError`]; nothing was written unless it is [`DeviceError::Io`].
    pub(super) fn make(&self, tier: &str) -> Result<Own, DeviceError> {
        let facts = Facts::gather(Path::new("/sys"), self.number());
        self.refuse_unsafe(&facts)?;
        let Opened { file, layout, content } = self.open(&facts, true)?;
        let wanted = DeviceHeader::new(layout.pages, random(), tier);
        let is_made =
            |found: &DeviceHeader| (&found.made_for, found.pages) == (&wanted.made_for, wanted.pages);
        if !matches!(&content, Content::Ours(found) if is_made(found)) {
            self.write(&file, &layout, &wanted).map_err(|source| DeviceError::Io {
                path: self.path.clone(),
                action: "write to it",
                source,
            })?;
            tracing::info!(path = %self.path.display(), mib = layout.area_bytes() >> 20, "device made into swap");
        }
        Ok(Own { path: self.path.clone(), id: self.id, bytes: layout.area_bytes() })
    }

    fn write(&self, file: &File, layout: &Layout, header: &DeviceHeader) -> io::Result<()> {
        let mut buffer = Buffer::map(1)?;
        for page in 0..PROBE_BYTES / PAGE_BYTES {
            buffer.bytes_mut().copy_from_slice(&probe_page(&header.uuid, page));
            file.write_all_at(buffer.bytes(), layout.probe_at() + page * PAGE_BYTES)?;
        }
        file.sync_all()?;
        buffer.bytes_mut().copy_from_slice(&content::header_page(header));
        file.write_all_at(buffer.bytes(), 0)?;
        file.sync_all()
    }

    fn number(&self) -> DeviceNumber {
        DeviceNumber::of(self.id.device)
    }

    fn refuse_unsafe(&self, facts: &Facts) -> Result<(), DeviceError> {
        let allowed = |danger: &Danger| self.allow_unsafe && danger.may_be_allowed();
        match judge::danger(facts).filter(|danger| !allowed(danger)) {
            None => Ok(()),
            Some(danger) => Err(DeviceError::Unsafe {
                path: self.path.clone(),
                what: danger.to_string(),
                advice: danger.advice(),
            }),
        }
    }

    /// Opens it exclusively, and looks at what is on it: nothing, or what an agent made.
    fn open(&self, facts: &Facts, write: bool) -> Result<Opened, DeviceError> {
        let in_use = |by| DeviceError::InUse { path: self.path.clone(), by };
        let failed = |action| move |source| DeviceError::Io { path: self.path.clone(), action, source };
        if let Some(by) = judge::use_of(facts) {
            return Err(in_use(by));
        }
        let flags = libc::O_EXCL | libc::O_NOFOLLOW | libc::O_DIRECT | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let mut file = match OpenOptions::new().read(true).write(write).custom_flags(flags).open(&self.path) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                return Err(in_use("the kernel does not give it out exclusively".to_owned()));
            }
            opened => opened.map_err(failed("open it"))?,
        };
        let found = file.metadata().map_err(failed("look at it"))?;
        if FileId::of(&found) != self.id {
            return Err(DeviceError::Replaced { path: self.path.clone() });
        }
        let bytes = file.seek(SeekFrom::End(0)).map_err(failed("find its size"))?;
        let layout = Layout::of(bytes)
            .ok_or_else(|| DeviceError::TooSmall { path: self.path.clone(), mib: bytes >> 20 })?;
        let read = |at, bytes| read(&file, at, bytes).map_err(failed("read it"));
        let (start, end) = (read(0, START_BYTES)?, read(layout.end_at(), END_BYTES)?);
        match content::content(start.bytes(), end.bytes()) {
            Content::Other(found) => {
                Err(DeviceError::NotEmpty { path: self.path.clone(), found, end_at: layout.end_at() })
            }
            content => Ok(Opened { file, layout, content }),
        }
    }
}

fn read(file: &File, at: u64, bytes: u64) -> io::Result<Buffer> {
    let mut buffer = Buffer::map((bytes / PAGE_BYTES) as usize)?;
    file.read_exact_at(buffer.bytes_mut(), at)?;
    Ok(buffer)
}

/// The pages of a device of ours that are read to learn how fast it is: they have content, and no page is sent there.
/// The device is opened for reading only, past the page cache.
///
/// # Errors
/// Where it is no device of ours, or cannot be read.
pub(in crate::tiers) fn open_probe(path: &Path) -> io::Result<(File, Range<u64>)> {
    let (file, header) = open_ours(path)?;
    let start = content::probe_at(&header);
    Ok((file, start..start + PROBE_BYTES))
}

/// Reads one of those pages, and compares it with what was written there.
///
/// # Errors
/// Those of the disk; where it has been switched to read-only; where what it gives back is something else.
pub(super) fn read_back(path: &Path, seed: u64) -> io::Result<()> {
    let (file, header) = open_ours(path)?;
    let page = seed % (PROBE_BYTES / PAGE_BYTES);
    let found = read(&file, content::probe_at(&header) + page * PAGE_BYTES, PAGE_BYTES)?;
    if found.bytes() != probe_page(&header.uuid, page) {
        return Err(io::Error::other("it gives back what was not written"));
    }
    let folder = real_folder(Path::new("/sys"), DeviceNumber::of(FileId::of(&file.metadata()?).device));
    if folder.and_then(|folder| text(&folder.join("ro"))).as_deref() == Some("1") {
        return Err(io::Error::other("it takes no writes any more (read-only)"));
    }
    Ok(())
}

fn open_ours(path: &Path) -> io::Result<(File, DeviceHeader)> {
    device_itself(path)?;
    let flags = libc::O_DIRECT | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let page = read(&file, 0, PAGE_BYTES)?;
    let header = Header::decode(page.bytes()).and_then(|header| header.on_device);
    let header = header.filter(|header| content::header_page(header) == page.bytes());
    let header = header.ok_or_else(|| io::Error::other("the agent has not made it into swap yet"))?;
    Ok((file, header))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_device_is_told_with_what_to_do() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let told = |path: &Path| Device::find(path, false).unwrap_err().to_string();
        assert!(told(file.path()).contains("say `path` in place of `device`"));
        assert!(told(Path::new("/dev/null")).contains("is no block device"));
        assert!(told(Path::new("/dev/disk/by-id/none")).contains("cannot be found"));
        open_probe(file.path()).unwrap_err();
    }
}
