//! The files of one lab: by which host and lab talk, and its disks.
//!
//! In: the lab to be. Out: two temporary folders with everything that a boot needs, and reading what the lab left
//! there. The folders are gone when this is dropped.

use super::room::Free;
use super::spec::Disk;
use super::{Job, Lab, job};
use crate::kernel::{BUSYBOX, Kernel};
use crate::{initramfs, observe, paths};
use anyhow::{Context, Result, ensure};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the root file system needs, of which each kernel has another part built in, and KVM.
const MODULES: [&str; 5] = ["virtio_pci", "virtiofs", "overlay", "kvm-amd", "kvm-intel"];

pub struct Files {
    /// In the temporary folder of the machine: the path of a socket may have no more than 107 bytes.
    run: tempfile::TempDir,
    disks: tempfile::TempDir,
}

impl Files {
    pub fn new(lab: &Lab) -> Result<Self> {
        let disks = paths::target_dir().join("lab-disks");
        for folder in [&disks, &lab.out] {
            std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        let run = tempfile::TempDir::with_prefix("tiering-lab-")?;
        let files = Self { run, disks: tempfile::TempDir::with_prefix_in("run-", disks)? };
        std::fs::write(files.initramfs(), image(&lab.kernel)?)?;

        std::fs::create_dir(files.control())?;
        let script = job::script(&lab.job, &paths::workspace_root(), std::env::vars_os());
        std::fs::write(files.control().join("job"), script)?;
        if lab.job == Job::Shell {
            std::fs::write(files.control().join("at-terminal"), "")?;
        }
        let init = files.control().join("init");
        std::fs::write(&init, include_str!("second.sh"))?;
        std::fs::set_permissions(&init, PermissionsExt::from_mode(0o755))?;
        Ok(files)
    }

    pub fn initramfs(&self) -> PathBuf {
        self.run.path().join("initramfs")
    }

    pub fn console(&self) -> PathBuf {
        self.run.path().join("console")
    }

    pub fn socket(&self, tag: &str) -> PathBuf {
        self.run.path().join(format!("{tag}.socket"))
    }

    /// The folder that the lab sees at /run/lab/control.
    pub fn control(&self) -> PathBuf {
        self.run.path().join("control")
    }

    /// Where the disks are.
    pub fn disks(&self) -> &Path {
        self.disks.path()
    }

    /// What this machine has for the lab.
    pub fn free(&self) -> Result<Free> {
        let space = nix::sys::statvfs::statvfs(self.disks.path())?;
        let disk_bytes = space.blocks_available() * space.fragment_size();
        Ok(Free { memory_bytes: observe::meminfo("MemAvailable")?, disk_bytes })
    }

    /// Makes a disk, a sparse file.
    pub fn make_disk(&self, serial: &str, disk: Disk) -> Result<PathBuf> {
        let path = self.disks.path().join(serial);
        let made = std::fs::File::create(&path).and_then(|file| file.set_len(disk.bytes));
        made.with_context(|| format!("making {}", path.display()))?;
        Ok(path)
    }

    /// What the console has shown so far.
    pub fn console_text(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&read_if_there(&self.console())?.unwrap_or_default()).into_owned())
    }

    /// How long ago the lab gave its last sign of life; none before the first.
    pub fn lifeless(&self) -> Result<Option<Duration>> {
        match std::fs::metadata(self.control().join("alive")) {
            // A clock that was set back makes it look alive.
            Ok(file) => Ok(Some(file.modified()?.elapsed().unwrap_or_default())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The job's exit code, once it is done.
    pub fn exit_code(&self) -> Result<Option<u8>> {
        let Some(text) = read_if_there(&self.control().join("exit-code"))? else { return Ok(None) };
        let text = String::from_utf8_lossy(&text);
        // Made, but not written yet.
        let Some(text) = text.strip_suffix('\n') else { return Ok(None) };
        text.parse().map(Some).with_context(|| format!("the lab's exit code is {text:?}"))
    }
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

/// Busybox, as bytes.
///
/// # Errors
/// Where it is missing or needs libraries, which the initramfs does not have.
pub fn busybox() -> Result<Vec<u8>> {
    let hint = || format!("the lab needs {BUSYBOX} of busybox-static: run `cargo xtask setup`");
    let bytes = std::fs::read(BUSYBOX).with_context(hint)?;
    // A program that needs libraries names, near its start, the one that loads them.
    let start = &bytes[..bytes.len().min(4096)];
    ensure!(!start.windows(8).any(|text| text == b"ld-linux"), hint());
    Ok(bytes)
}

/// Busybox, the first init and the modules it loads, in an archive.
fn image(kernel: &Kernel) -> Result<Vec<u8>> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("reading {}", path.display()));
    let modules = kernel.modules_for(&MODULES)?;
    let names = modules.iter().map(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        format!("modules/{name}")
    });
    let names: Vec<_> = names.collect();
    let order: String = names.iter().map(|name| format!("/{name}\n")).collect();
    // Where the lab finds them, too, since it has this machine's root.
    let folder = kernel.modules.iter().map(|folder| format!("{}\n", folder.display())).collect::<String>();
    let busybox = busybox()?;
    let contents = modules.iter().map(|path| read(path)).collect::<Result<Vec<_>>>()?;

    let mut files: Vec<(&str, &[u8])> = vec![
        ("init", include_bytes!("first.sh")),
        ("bin/busybox", &busybox),
        ("modules/order", order.as_bytes()),
        ("modules/folder", folder.as_bytes()),
    ];
    files.extend(names.iter().map(String::as_str).zip(contents.iter().map(Vec::as_slice)));
    Ok(initramfs::build(&files))
}
