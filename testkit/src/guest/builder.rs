//! What a guest is made of, and its start.
//!
//! In: machine and load, set one by one. Out: QEMU as a child process, with an initramfs of its own.
//! What cannot work is refused before anything runs.

use super::{Accel, Backend, Guest, snapshot};
use crate::pattern::{IMAGE_PATH, MODULES_PATH, PAGE_BYTES, Pattern};
use crate::program::{self, Program};
use crate::qemu::{self, Disk, Load, Machine};
use crate::{content, initramfs, kernel, paths};
use anyhow::{Context, Result, ensure};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::NamedTempFile;

/// Of what a disk needs, whatever the guest's kernel has not built in.
const DISK_MODULES: [&str; 2] = ["virtio_pci", "virtio_blk"];
/// Of what the file system on it needs.
const FILE_SYSTEM_MODULES: [&str; 2] = ["crc32c_generic", "ext4"];

/// A guest to be.
#[derive(Debug, Clone)]
pub struct Builder(pub(super) Machine);

impl Builder {
    /// RAM of the guest, all in all.
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.0.memory_mib = mib;
        self
    }

    /// What it does with its memory.
    #[must_use]
    pub fn pattern(mut self, pattern: Pattern) -> Self {
        self.0.load = Load::Pattern(pattern);
        self
    }

    /// It runs this instead, from the disk with all programs.
    #[must_use]
    pub fn program(mut self, program: Program) -> Self {
        self.0.load = Load::Program(program);
        self
    }

    /// What its RAM is on the host.
    #[must_use]
    pub fn backend(mut self, backend: Backend) -> Self {
        self.0.backend = backend;
        self
    }

    /// Who executes its instructions.
    #[must_use]
    pub fn accel(mut self, accel: Accel) -> Self {
        self.0.accel = accel;
        self
    }

    /// Gives it a raw image as a disk that it can only read; for a pattern that is [`Pattern::on_disk`].
    #[must_use]
    pub fn disk(mut self, image: &Path) -> Self {
        self.0.disk = Some(Disk::ReadOnly(image.to_owned()));
        self
    }

    /// It can be [saved](Guest::save).
    #[must_use]
    pub fn savable(mut self) -> Self {
        self.0.monitor = Some(snapshot::monitor_of(&self.0.name));
        self
    }

    /// Starts it, from a thread that must live as long as the guest; it is not booted yet when this returns.
    ///
    /// # Errors
    /// Where kernel, init or QEMU are missing.
    pub fn start(mut self) -> Result<Guest> {
        let kernel = kernel::find()?;
        let init = paths::guest_init()?;
        let init = std::fs::read(&init).with_context(|| format!("reading {}", init.display()))?;
        let name = self.0.name.clone();
        let modules = self.prepare(&kernel).with_context(|| format!("guest {name}"))?;
        let machine = &self.0;
        if machine.backend == Backend::Hugetlb {
            let meminfo = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
            qemu::check_huge_pages(&meminfo, machine.memory_mib).with_context(|| format!("guest {name}"))?;
        }
        let pattern = match &machine.load {
            Load::Pattern(pattern) => Some(pattern),
            Load::Program(_) => None,
        };
        let image = initramfs(&init, pattern, &modules).context("writing the guest's initramfs")?;
        Guest::launch(self.0, &kernel, Arc::new(image))
    }

    /// Checks the load and gives it the disk that it needs; the modules for that.
    fn prepare(&mut self, kernel: &Path) -> Result<Vec<Vec<u8>>> {
        let machine = &mut self.0;
        match &machine.load {
            Load::Pattern(pattern) => {
                pattern.check().context("its pattern")?;
                ensure!(
                    pattern.on_disk == machine.disk.is_some(),
                    "a disk goes with a pattern that reads it"
                );
                if pattern.on_disk { modules(kernel, &DISK_MODULES) } else { Ok(Vec::new()) }
            }
            Load::Program(program) => {
                program.check().context("its program")?;
                let needs = program.needs_mib();
                let has = machine.memory_mib;
                ensure!(has >= needs, "{} needs {needs} MiB of RAM, not {has}", program.kind.name());
                ensure!(machine.monitor.is_none(), "what a program has written to its disk cannot be saved");
                machine.disk = Some(Disk::Discarding(program::image::find()?));
                modules(kernel, &[DISK_MODULES, FILE_SYSTEM_MODULES].concat())
            }
        }
    }
}

/// Modules, in the order in which they are to be loaded.
fn modules(kernel: &Path, names: &[&str]) -> Result<Vec<Vec<u8>>> {
    let files = kernel::at(kernel)?.modules_for(names)?;
    let read = |file: PathBuf| std::fs::read(&file).with_context(|| format!("reading {}", file.display()));
    files.into_iter().map(read).collect()
}

/// Init, modules, and the image if the pattern has one in RAM. The image comes first, right behind the folders: so its
/// pages do not begin at page boundaries in the archive, and the guest's copy of the archive is not taken for them by
/// who looks from outside.
fn initramfs(init: &[u8], pattern: Option<&Pattern>, modules: &[Vec<u8>]) -> Result<NamedTempFile> {
    let in_ram = pattern.filter(|pattern| !pattern.on_disk);
    let image = in_ram.and_then(|pattern| Some((pattern.image_seed?, pattern.pages())));
    let write_image =
        |out: &mut dyn Write| image.map_or(Ok(()), |(seed, pages)| content::write_pages(out, seed, pages));
    let image = image.map(|(_, pages)| initramfs::File {
        name: IMAGE_PATH,
        bytes: (pages * PAGE_BYTES) as u64,
        write: &write_image,
    });
    let write_init = |out: &mut dyn Write| out.write_all(init);
    let init = initramfs::File { name: "init", bytes: init.len() as u64, write: &write_init };
    let mut files: Vec<_> = image.into_iter().chain([init]).collect();
    let names: Vec<_> = (0..modules.len()).map(|number| format!("{MODULES_PATH}/{number:02}.ko")).collect();
    let writers: Vec<_> =
        modules.iter().map(|module| move |out: &mut dyn Write| out.write_all(module)).collect();
    for ((name, module), write) in names.iter().zip(modules).zip(&writers) {
        files.push(initramfs::File { name, bytes: module.len() as u64, write });
    }

    let archive = NamedTempFile::with_prefix("tiering-guest-")?;
    let mut out = BufWriter::new(archive.as_file());
    initramfs::write(&mut out, &files)?;
    out.flush()?;
    drop(out);
    Ok(archive)
}
