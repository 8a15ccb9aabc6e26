//! What the files are that a tier's folder holds and that swap areas are made of: facts, by content, device and inode.
//!
//! In: a folder, the lines of `/proc/swaps`. Out: [`Found`] and [`OnArea`]. Nothing is changed, and nothing is decided.
//!
//! The path of a line need not be the path of the folder: it may lead through a link or a bind mount, or to another
//! file that was put there since. So a file is known by its device and inode, and whether it is on by the kernel: no
//! byte can be written to a swap file that is on, not even none (`generic_write_checks` in fs/read_write.c, Linux 6.1
//! to 6.18; `blkdev_write_iter` in block/fops.c for devices).

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::header::{HEADER_BYTES, Header};
use super::order::segment_number;
use super::proc_swaps::SwapLine;
use crate::sys::PAGE_BYTES;

/// No file has it.
const NO_INODE: u64 = 0;

/// Which file or block device it is, by whatever path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FileId {
    pub(super) device: u64,
    pub(super) inode: u64,
}

impl FileId {
    /// Of a block device it is the device's number, whichever node leads to it.
    pub(super) fn of(metadata: &Metadata) -> Self {
        if metadata.file_type().is_block_device() {
            return Self { device: metadata.rdev(), inode: NO_INODE };
        }
        Self { device: metadata.dev(), inode: metadata.ino() }
    }

    /// Whether it is a block device.
    pub(super) fn is_device(self) -> bool {
        self.inode == NO_INODE
    }
}

/// A file, or a link to one, in a tier's folder.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    /// Of the file that a link leads to.
    pub(super) id: FileId,
    pub(super) bytes: u64,
    pub(super) header: Option<Header>,
    /// The tier that an agent made it for: by its name, its header, its owner, and since nothing else leads there.
    pub(super) made_for: Option<String>,
    /// The kernel treats it as a swap file that is on. Told only of what has a header.
    pub(super) is_on: bool,
}

/// An area that is on.
#[derive(Clone, Debug)]
pub(super) struct OnArea {
    pub(super) line: SwapLine,
    /// The file it is, or that is behind its loop device; none of a disk, or where it cannot be told.
    pub(super) file: Option<FileId>,
    /// The block device it is; none of a file.
    pub(super) device: Option<FileId>,
    /// The tier that an agent made it for.
    pub(super) made_for: Option<String>,
}

/// The files in a folder, without those further down. A folder that is not there has none.
pub(super) fn look(folder: &Path) -> io::Result<Vec<Found>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        // A file that goes meanwhile, and a link that leads nowhere, is no swap file.
        found.extend(look_at(&entry?.path()));
    }
    Ok(found)
}

fn look_at(path: &Path) -> Option<Found> {
    let is_link = fs::symlink_metadata(path).ok()?.is_symlink();
    // Before it is opened: what is no file of a disk may block, or do something. No swap area is smaller than its
    // header.
    if !fs::metadata(path).is_ok_and(|target| target.is_file() && target.len() >= PAGE_BYTES) {
        return None;
    }
    let mut file = open(path, false).ok()?;
    let metadata = file.metadata().ok().filter(Metadata::is_file)?;
    let header = read_header(&mut file);
    let made_for = header.as_ref().and_then(|header| header.made_for.clone());
    Some(Found {
        path: path.to_owned(),
        id: FileId::of(&metadata),
        bytes: metadata.len(),
        made_for: made_for.filter(|_| !is_link && looks_ours(path, &metadata)),
        is_on: header.is_some() && is_swap_file(path) == Some(true),
        header,
    })
}

impl OnArea {
    /// What is on, with what can be told of it.
    pub(super) fn all(on: Vec<SwapLine>) -> Vec<Self> {
        on.into_iter().map(Self::of).collect()
    }

    fn of(line: SwapLine) -> Self {
        let path = if line.is_file { Some(line.path.clone()) } else { behind_loop(&line.path) };
        let facts = path.and_then(|path| {
            let mut file = open(&path, true).ok()?;
            let metadata = file.metadata().ok().filter(Metadata::is_file)?;
            // Another file may have been put in its place.
            let is_it = !line.is_file || is_swap_file(&path) != Some(false);
            let made_for = read_header(&mut file).and_then(|header| header.made_for);
            let made_for = made_for.filter(|_| line.is_file && looks_ours(&path, &metadata));
            is_it.then(|| (FileId::of(&metadata), made_for))
        });
        let (file, made_for) = facts.map_or((None, None), |(file, made_for)| (Some(file), made_for));
        let on_device = if line.is_file { None } else { device_area(&line.path) };
        let (device, for_device) = on_device.unzip();
        Self { line, file, device, made_for: made_for.or(for_device.flatten()) }
    }

    /// Which file or device it is itself.
    pub(super) fn id(&self) -> Option<FileId> {
        if self.line.is_file { self.file } else { self.device }
    }
}

/// The device of an area, and the tier that an agent made it for.
fn device_area(path: &Path) -> Option<(FileId, Option<String>)> {
    // Before it is opened: opening what is none may do something.
    let is_device = |metadata: &Metadata| metadata.file_type().is_block_device();
    if !fs::metadata(path).is_ok_and(|target| is_device(&target)) {
        return None;
    }
    let mut file = open(path, true).ok()?;
    let metadata = file.metadata().ok().filter(is_device)?;
    let header = read_header(&mut file).and_then(|header| header.on_device);
    Some((FileId::of(&metadata), header.map(|header| header.made_for)))
}

/// Whether the open file at this path, of which nothing was read yet, is one that an agent made.
pub(super) fn is_ours(path: &Path, file: &mut File) -> bool {
    let marked = read_header(file).is_some_and(|header| header.made_for.is_some());
    marked && file.metadata().is_ok_and(|metadata| looks_ours(path, &metadata))
}

/// A file of root with our name that has no other one.
fn looks_ours(path: &Path, metadata: &Metadata) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| segment_number(name).is_some()) && metadata.uid() == 0 && metadata.nlink() == 1
}

/// The file behind a loop device.
fn behind_loop(device: &Path) -> Option<PathBuf> {
    let name = device.file_name()?;
    let path = fs::read_to_string(Path::new("/sys/block").join(name).join("loop/backing_file")).ok()?;
    Some(path.trim_end_matches('\n').into())
}

fn open(path: &Path, no_link: bool) -> io::Result<File> {
    let flags = libc::O_NONBLOCK | libc::O_CLOEXEC | if no_link { libc::O_NOFOLLOW } else { 0 };
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

fn read_header(file: &mut File) -> Option<Header> {
    let mut start = Vec::new();
    file.take(HEADER_BYTES as u64).read_to_end(&mut start).ok()?;
    Header::decode(&start)
}

/// Whether the kernel has the file as a swap area; none where it may not be written anyway.
pub(super) fn is_swap_file(path: &Path) -> Option<bool> {
    let file = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path);
    match file.ok()?.write_at(&[], 0) {
        Ok(_) => Some(false),
        Err(error) => (error.raw_os_error() == Some(libc::ETXTBSY)).then_some(true),
    }
}

#[cfg(test)]
mod tests {
    use super::super::header;
    use super::*;
    use std::os::unix::fs::symlink;

    const OURS: &str = "segment-3.swap";

    fn names(found: &[Found]) -> Vec<(String, Option<String>, bool)> {
        let mut names: Vec<_> = found
            .iter()
            .map(|file| {
                let name = file.path.file_name().unwrap().to_string_lossy().into_owned();
                (name, file.made_for.clone(), file.header.is_some())
            })
            .collect();
        names.sort();
        names
    }

    #[test]
    fn files_are_known_by_what_is_in_them_and_not_by_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let ours = header::encode(16, [7; 16], "nvme");
        fs::write(path(OURS), ours).unwrap();
        fs::write(path("other.swap"), ours).unwrap();
        fs::write(path("segment-4.swap"), "a user's file".repeat(1000)).unwrap();
        fs::write(path("segment-5.swap"), "").unwrap();
        symlink(path(OURS), path("segment-6.swap")).unwrap();
        symlink("/nowhere", path("segment-7.swap")).unwrap();
        symlink("/proc/kmsg", path("segment-8.swap")).unwrap();
        fs::create_dir(path("segment-9.swap")).unwrap();
        nix::unistd::mkfifo(&path("segment-10.swap"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        let root = fs::metadata(path(OURS)).unwrap().uid() == 0;
        let found = look(folder.path()).unwrap();
        let expected =
            |name: &str, ours: bool, swap| (name.to_owned(), (ours && root).then(|| "nvme".to_owned()), swap);
        let expected = [
            expected("other.swap", false, true),
            expected(OURS, true, true),
            expected("segment-4.swap", false, false),
            expected("segment-6.swap", false, true),
        ];
        assert_eq!(names(&found), expected);
        assert!(found.iter().all(|file| !file.is_on), "{found:?}");
    }

    #[test]
    fn a_file_with_two_names_is_not_ours() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join(OURS), folder.path().join("segment-4.swap"));
        fs::write(&one, header::encode(16, [7; 16], "nvme")).unwrap();
        fs::hard_link(&one, two).unwrap();
        assert!(names(&look(folder.path()).unwrap()).iter().all(|(_, ours, _)| ours.is_none()));
    }

    #[test]
    fn what_is_not_there_holds_nothing() {
        assert!(look(Path::new("/nowhere/at/all")).unwrap().is_empty());
    }
}
