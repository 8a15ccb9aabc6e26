//! Reads the files of one process below a `/proc` root. In: root and pid. Out: parsed contents, or a [`VmError`] that
//! tells a process that ended (nothing to report) from one we may not read (the operator must act).
//!
//! All files are opened relative to the process's own directory, so a pid that is reused in the middle cannot mix two
//! processes: reads of the old one fail.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};

use procfs::FromRead;
use procfs::process::{MemoryMaps, Process, Stat};
use procfs::{ProcError, ProcResult};

use super::ProcessKey;

/// The kernel limits arguments to a quarter of the stack limit; a process may rewrite its own to anything.
const CMDLINE_LIMIT_BYTES: u64 = 4 << 20;
/// The kernel allows 65,530 mappings (vm.max_map_count); a line has some 100 bytes, unless somebody makes its path
/// long.
const TEXT_LIMIT_BYTES: u64 = 32 << 20;

/// Enough for the fields of a line of `maps` before the path.
const MAPS_FIELDS_BYTES: u64 = 128;

/// Device (major, minor) and inode of a file.
pub(super) type FileId = ((i32, i32), u64);

/// Why VMs, or one of them, could not be read.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The process list itself.
    #[error("cannot list the processes in {}: {source}; check that /proc is mounted there, and the limit of open files", root.display())]
    ProcRoot { root: PathBuf, source: ProcError },
    /// The process exists, its file is not for us.
    #[error(
        "no permission to read {file} of process {pid}: run the agent as root with CAP_SYS_PTRACE and CAP_DAC_OVERRIDE"
    )]
    Permission { pid: i32, file: String },
    /// The process exists and its file makes no sense to us.
    #[error("cannot read {file} of process {pid}: {source}; please report it with the kernel's version")]
    Read { pid: i32, file: String, source: ProcError },
    /// Neither the agent nor the host has a descriptor left to read it with.
    #[error(
        "no file descriptor is left to read {file} of process {pid}: raise the agent's limit (LimitNOFILE, ulimit -n) or fs.file-max"
    )]
    Descriptors { pid: i32, file: String },
    /// The process ended, or the pid now belongs to another one.
    #[error("process {pid} has ended; list the VMs again")]
    Gone { pid: i32 },
}

/// One process, held by its directory.
pub(super) struct Proc {
    process: Process,
    directory: PathBuf,
    pub(super) pid: i32,
}

impl Proc {
    pub(super) fn open(proc_root: &Path, pid: i32) -> Result<Proc, VmError> {
        let directory = proc_root.join(pid.to_string());
        let process = Process::new_with_root(directory.clone());
        Ok(Proc { process: process.map_err(|error| explain(pid, "its directory", error))?, directory, pid })
    }

    /// The path of one of its files.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The process behind `key`, or [`VmError::Gone`].
    pub(super) fn open_key(proc_root: &Path, key: ProcessKey) -> Result<Proc, VmError> {
        let process = Proc::open(proc_root, key.pid)?;
        if process.key()? == key { Ok(process) } else { Err(VmError::Gone { pid: key.pid }) }
    }

    /// Identity; a zombie counts as ended, its memory is gone.
    pub(super) fn key(&self) -> Result<ProcessKey, VmError> {
        let stat = self.stat()?;
        match stat.state {
            'Z' | 'X' | 'x' => Err(VmError::Gone { pid: self.pid }),
            _ => Ok(ProcessKey { pid: self.pid, start_time_ticks: stat.starttime }),
        }
    }

    pub(super) fn stat(&self) -> Result<Stat, VmError> {
        self.read("stat", Process::stat)
    }

    /// File name of the executable, without the kernel's mark for one that an upgrade has replaced.
    pub(super) fn executable(&self) -> Result<String, VmError> {
        let path = self.read("exe", Process::exe)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(name.strip_suffix(" (deleted)").map_or(name.clone(), str::to_owned))
    }

    /// Arguments, with bytes that are not UTF-8 replaced.
    pub(super) fn arguments(&self) -> Result<Vec<String>, VmError> {
        self.arguments_within(CMDLINE_LIMIT_BYTES)
    }

    /// Those that are in so many bytes.
    pub(super) fn arguments_within(&self, limit_bytes: u64) -> Result<Vec<String>, VmError> {
        let bytes = self.read("cmdline", |process| {
            let mut bytes = Vec::new();
            process.open_relative("cmdline")?.take(limit_bytes).read_to_end(&mut bytes)?;
            Ok(bytes)
        })?;
        let mut arguments: Vec<String> =
            bytes.split(|&byte| byte == 0).map(|text| String::from_utf8_lossy(text).into_owned()).collect();
        arguments.pop_if(|last| last.is_empty());
        Ok(arguments)
    }

    /// Its mappings, from `maps`: no page table is walked for it.
    pub(super) fn mappings(&self) -> Result<MemoryMaps, VmError> {
        // Paths are other people's: procfs 0.18 rejects bytes that are not UTF-8, and panics on a file named
        // /SYSV with fewer than eight digits behind it.
        let text = self.text("maps")?.replace("/SYSV", "/sysv");
        self.read("maps", |_| MemoryMaps::from_read(text.as_bytes()))
    }

    /// A file as text, with bytes that are not UTF-8 replaced.
    pub(super) fn text(&self, file: &str) -> Result<String, VmError> {
        self.read(file, |process| {
            let mut bytes = Vec::new();
            process.open_relative(file)?.take(TEXT_LIMIT_BYTES).read_to_end(&mut bytes)?;
            if bytes.len() as u64 == TEXT_LIMIT_BYTES {
                return Err(ProcError::Other(format!("more than {} MiB", TEXT_LIMIT_BYTES >> 20)));
            }
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        })
    }

    /// Calls `see` with the device and inode of each file that it maps shared, as often as it does. Keeps nothing: the
    /// process may be anybody's, with any number of mappings of any names.
    pub(super) fn shared_files(&self, mut see: impl FnMut(FileId)) -> Result<(), VmError> {
        self.read("maps", |process| {
            let mut maps = BufReader::new(process.open_relative("maps")?);
            let mut line = Vec::new();
            loop {
                line.clear();
                // What comes before the path is shorter.
                (&mut maps).take(MAPS_FIELDS_BYTES).read_until(b'\n', &mut line)?;
                if line.is_empty() {
                    return Ok(());
                }
                if !line.ends_with(b"\n") {
                    maps.skip_until(b'\n')?;
                }
                if let Some(file) = shared_file(&line) {
                    see(file);
                }
            }
        })
    }

    /// Size of its address space, in pages: it changes when something is mapped or unmapped.
    pub(super) fn mapped_pages(&self) -> Result<u64, VmError> {
        Ok(self.read("statm", Process::statm)?.size)
    }

    /// Types of the file systems that the process sees mounted, by device number (major, minor).
    pub(super) fn file_systems(&self) -> Result<HashMap<(i32, i32), String>, VmError> {
        let mounts = self.read("mountinfo", Process::mountinfo)?;
        Ok(mounts
            .into_iter()
            .filter_map(|mount| {
                let (major, minor) = mount.majmin.split_once(':')?;
                Some(((major.parse().ok()?, minor.parse().ok()?), mount.fs_type))
            })
            .collect())
    }

    /// Runs `read` on the process; `file` names what was read in errors.
    pub(super) fn read<T>(
        &self,
        file: &str,
        read: impl FnOnce(&Process) -> ProcResult<T>,
    ) -> Result<T, VmError> {
        read(&self.process).map_err(|error| explain(self.pid, file, error))
    }
}

/// Device and inode of the file of a line of `maps`, where it is mapped shared (proc_pid_maps(5)).
fn shared_file(line: &[u8]) -> Option<FileId> {
    let mut fields = line.split(u8::is_ascii_whitespace).map(std::str::from_utf8);
    let mut next = || fields.next()?.ok();
    let (_addresses, permissions, _offset, device, inode) = (next()?, next()?, next()?, next()?, next()?);
    let (major, minor) = device.split_once(':')?;
    let number = |text| i32::from_str_radix(text, 16).ok();
    let file = ((number(major)?, number(minor)?), inode.parse().ok()?);
    (permissions.ends_with('s') && file.1 != 0).then_some(file)
}

fn explain(pid: i32, file: &str, error: ProcError) -> VmError {
    match error {
        ProcError::PermissionDenied(_) => VmError::Permission { pid, file: file.to_owned() },
        ProcError::NotFound(_) => VmError::Gone { pid },
        ProcError::Io(error, _) if is_out_of_descriptors(&error) => {
            VmError::Descriptors { pid, file: file.to_owned() }
        }
        source => VmError::Read { pid, file: file.to_owned(), source },
    }
}

/// The process's own limit (EMFILE), or that of the host (ENFILE).
fn is_out_of_descriptors(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// All process ids below `proc_root`.
pub(super) fn pids(proc_root: &Path) -> Result<Vec<i32>, VmError> {
    let failed =
        |error: std::io::Error| VmError::ProcRoot { root: proc_root.to_owned(), source: error.into() };
    let mut pids = Vec::new();
    for entry in std::fs::read_dir(proc_root).map_err(failed)? {
        if let Some(pid) = entry.map_err(failed)?.file_name().to_str().and_then(|name| name.parse().ok()) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

#[cfg(test)]
mod tests {
    use procfs::process::{MMPermissions, MemoryMap};

    use super::*;

    #[test]
    fn a_file_that_is_mapped_shared_is_read_from_the_fields_before_its_path() {
        let line =
            |permissions| format!("7f12a000-7f12b000 {permissions} 00000000 fd:1f 4711   /dev/shm/a b\n");
        assert_eq!(shared_file(line("rw-s").as_bytes()), Some(((0xfd, 0x1f), 4711)));
        assert_eq!(shared_file(line("rw-p").as_bytes()), None);
        assert_eq!(shared_file(b"7f12a000-7f12b000 rw-s 00000000 00:00 0 \n"), None);
        assert_eq!(shared_file(b"nonsense"), None);
        let mut seen = 0;
        let process = Proc::open(Path::new("/proc"), std::process::id().cast_signed()).unwrap();
        process.shared_files(|_| seen += 1).unwrap();
        let maps = process.mappings().unwrap();
        let shared = |map: &&MemoryMap| map.perms.contains(MMPermissions::SHARED) && map.inode != 0;
        assert_eq!(seen, maps.iter().filter(shared).count());
    }

    #[test]
    fn a_forbidden_file_is_told_with_its_process_and_an_ended_process_is_told_apart() {
        let forbidden = explain(42, "smaps", ProcError::PermissionDenied(None)).to_string();
        assert!(forbidden.starts_with("no permission to read smaps of process 42: run the agent as root"));
        assert!(matches!(explain(42, "smaps", ProcError::NotFound(None)), VmError::Gone { pid: 42 }));
    }

    #[test]
    fn a_process_that_no_descriptor_is_left_for_is_not_taken_for_gone() {
        for limit in [libc::EMFILE, libc::ENFILE] {
            let error = std::io::Error::from_raw_os_error(limit);
            let told = explain(42, "smaps", ProcError::Io(error, None)).to_string();
            assert!(
                told.starts_with("no file descriptor is left to read smaps of process 42: raise"),
                "{told}"
            );
        }
    }
}
