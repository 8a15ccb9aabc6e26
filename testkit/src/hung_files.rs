//! A file system whose server stops answering, as an NFS server does that is down: FUSE, answered by a thread of ours.
//!
//! In: a folder to mount it on. Out: one large file in it, which is read as zeroes until [`HungFiles::hang`]. From then
//! on whoever asks the server for anything waits, in a way that no signal ends, until this is dropped: then all get an
//! error.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// The one file.
pub const NAME: &str = "base.img";
const BYTES: u64 = 16 << 20;

const ROOT: u64 = 1;
const FILE: u64 = 2;
/// More than a request or an answer of the kernel's.
const BUFFER: usize = 256 << 10;
const HEADER: usize = 40;
const ENOENT: i32 = 2;
const ENOSYS: i32 = 38;

/// The mounted file system.
#[derive(Debug)]
pub struct HungFiles {
    folder: PathBuf,
    hangs: Arc<AtomicBool>,
}

impl HungFiles {
    /// Mounts it on this folder, which is made.
    ///
    /// # Errors
    /// Where there is no `/dev/fuse`, or it may not be mounted.
    pub fn mount(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").context("/dev/fuse")?;
        let options = format!("fd={},rootmode=40755,user_id=0,group_id=0", device.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tiering-test"), folder, Some("fuse"), flags, Some(options.as_str()))
            .context("mounting FUSE")?;
        let hangs = Arc::new(AtomicBool::new(false));
        let silent = Arc::clone(&hangs);
        std::thread::spawn(move || serve(device, &silent));
        Ok(Self { folder: folder.to_owned(), hangs })
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.join(NAME)
    }

    /// From now on nothing is answered.
    pub fn hang(&self) {
        self.hangs.store(true, Ordering::Relaxed);
    }
}

impl Drop for HungFiles {
    fn drop(&mut self) {
        // By force: what waits gets an error.
        if let Err(error) = umount2(&self.folder, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH) {
            eprintln!("{}: {error}", self.folder.display());
        }
    }
}

/// Answers until the file system is unmounted.
fn serve(mut device: File, silent: &AtomicBool) {
    let mut request = vec![0; BUFFER];
    while let Ok(bytes) = device.read(&mut request) {
        if silent.load(Ordering::Relaxed) {
            continue;
        }
        if let Some(answer) = answer(&request[..bytes]) {
            // The one who asked may have gone.
            device.write_all(&answer).ok();
        }
    }
}

/// The answer to a request, if it wants one (include/uapi/linux/fuse.h, version 7.31).
fn answer(request: &[u8]) -> Option<Vec<u8>> {
    let number = |at: usize| u32::from_ne_bytes(std::array::from_fn(|byte| request[at + byte]));
    let long = |at: usize| u64::from_ne_bytes(std::array::from_fn(|byte| request[at + byte]));
    let (opcode, unique, node) = (number(4), &request[8..16], long(16));
    let result = match opcode {
        // FORGET, INTERRUPT, BATCH_FORGET
        2 | 36 | 42 => return None,
        // LOOKUP
        1 if request[HEADER..].starts_with(NAME.as_bytes()) => {
            Ok([longs(&[FILE, 0, 0, 0, 0]), attributes(FILE)].concat())
        }
        1 => Err(ENOENT),
        // GETATTR: not to be kept
        3 => Ok([longs(&[0, 0]), attributes(node)].concat()),
        // OPEN, OPENDIR
        14 | 27 => Ok(longs(&[0, 0])),
        // READ
        15 => {
            let (offset, wanted) = (long(HEADER + 8), u64::from(number(HEADER + 16)));
            Ok(vec![0; BYTES.saturating_sub(offset).min(wanted) as usize])
        }
        // FLUSH, RELEASE, RELEASEDIR, DESTROY
        25 | 18 | 29 | 38 => Ok(Vec::new()),
        // INIT
        26 => {
            let mut init = [7, 31, 128 << 10, 0, 0, 128 << 10, 1].map(u32::to_ne_bytes).concat();
            init.resize(64, 0);
            Ok(init)
        }
        _ => Err(ENOSYS),
    };
    let (error, body) = result.map_or_else(|error| (-error, Vec::new()), |body| (0, body));
    let bytes = u32::try_from(16 + body.len()).ok()?;
    Some([&bytes.to_ne_bytes()[..], &error.to_ne_bytes()[..], unique, &body].concat())
}

/// `struct fuse_attr`
fn attributes(node: u64) -> Vec<u8> {
    let (bytes, mode) = if node == ROOT { (0, 0o040_755) } else { (BYTES, 0o100_644) };
    let times = [0; 3];
    let rest: [u32; 10] = [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0];
    [longs(&[node, bytes, bytes / 512]), longs(&times), rest.map(u32::to_ne_bytes).concat()].concat()
}

fn longs(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}
