//! A file that QEMU was told to read its configuration from (`-readconfig`; Incus and LXD put memory, objects and NUMA
//! nodes there). In: the process and the path as its command line has it. Out: the text, and from the text the options.
//!
//! The path is the process's: it is followed in the process's own root, and no link leads out of it. Where the process
//! has changed its root since (`-chroot`), and shares the agent's mounts, the agent's root is the one that QEMU read it
//! in. Only regular files of at most [`MOST_BYTES`] are read, and none that the kernel makes up (`/proc`, `/sys`): what
//! a path leads to is looked at, and then that very file is opened, whatever the path leads to by then. A read that
//! takes longer than [`DEADLINE`] is given up.
//!
//! Limits: the file may have been changed since QEMU read it. A relative path is followed from where the process is
//! now. What sizes it announces is only believed where there is a mapping of that size (`ram`).

use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::statfs::{self, FsType, fstatfs};

use super::options::{Given, Options};
use super::process::Proc;

/// Of all files of a process together. Those of Incus have some 10 KiB.
pub(super) const MOST_BYTES: usize = 1 << 20;
/// How long one file may take, and how long after the first one another may be begun.
pub(super) const DEADLINE: Duration = Duration::from_secs(1);
/// To read a file there may do something, or wait for ever.
const MADE_UP: [FsType; 8] = [
    statfs::PROC_SUPER_MAGIC,
    statfs::SYSFS_MAGIC,
    statfs::DEBUGFS_MAGIC,
    statfs::TRACEFS_MAGIC,
    statfs::SECURITYFS_MAGIC,
    statfs::BPF_FS_MAGIC,
    statfs::CGROUP_SUPER_MAGIC,
    statfs::CGROUP2_SUPER_MAGIC,
];

/// The text of the file that process `process` calls `path`, or why it cannot be had.
pub(super) fn text(process: &Proc, path: &str) -> Result<String, String> {
    let (from, path) = (process.file(""), path.to_owned());
    let (answer, answered) = mpsc::channel();
    // A thread of its own: an open on a network file system may hang.
    let read = move || answer.send(read(&from, &path)).ok();
    thread::Builder::new().name("tiering-config".into()).spawn(read).map_err(|error| error.to_string())?;
    answered.recv_timeout(DEADLINE).unwrap_or_else(|_| Err(format!("no answer within {DEADLINE:?}")))
}

fn read(process: &Path, path: &str) -> Result<String, String> {
    let file = match open(process, path) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) && shares_our_mounts(process) => {
            open_in(Path::new("/"), path).map_err(|_| error)
        }
        result => result,
    };
    let file = file.map_err(|error| error.to_string())?;
    let mut text = Vec::new();
    file.take(MOST_BYTES as u64 + 1).read_to_end(&mut text).map_err(|error| error.to_string())?;
    if text.len() > MOST_BYTES {
        return Err(format!("larger than {MOST_BYTES} bytes"));
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn open(process: &Path, path: &str) -> std::io::Result<File> {
    let descriptor = path.strip_prefix("/dev/fd/").or_else(|| path.strip_prefix("/proc/self/fd/"));
    if let Some(number) = descriptor.and_then(|number| number.parse::<u32>().ok()) {
        let link = process.join("fd").join(number.to_string());
        return open_seen(&File::options().read(true).custom_flags(libc::O_PATH).open(link)?);
    }
    match Path::new(path).is_absolute() {
        true => open_in(&process.join("root"), path),
        false => open_in(&process.join("cwd"), path),
    }
}

fn open_in(root: &Path, path: &str) -> std::io::Result<File> {
    let root = File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(root)?;
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let look = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(resolve);
    open_seen(&File::from(openat2(&root, path, look)?))
}

/// Opens what was found (`O_PATH`), if it is a regular file. No name is followed again, and nothing else is opened: a
/// device does something when it is.
fn open_seen(seen: &File) -> std::io::Result<File> {
    if !seen.metadata()?.is_file() {
        return Err(std::io::Error::other("no regular file"));
    }
    if MADE_UP.contains(&fstatfs(seen)?.filesystem_type()) {
        return Err(std::io::Error::other("a file that the kernel makes up"));
    }
    let path = format!("/proc/self/fd/{}", seen.as_raw_fd());
    File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

fn shares_our_mounts(process: &Path) -> bool {
    let mounts = |path: PathBuf| std::fs::read_link(path).ok();
    let theirs = mounts(process.join("ns/mnt"));
    theirs.is_some() && theirs == mounts(PathBuf::from("/proc/self/ns/mnt"))
}

/// The options in the text: sections `[group]` or `[group "id"]` of lines `key = "value"`
/// (`qemu_config_foreach`, util/qemu-config.c, QEMU 7.2). `take_one` is asked before each is kept.
pub(super) fn parse(
    text: &str,
    take_one: &mut dyn FnMut() -> Result<(), String>,
) -> Result<Vec<Given>, String> {
    let mut sections: Vec<(String, Vec<(String, String)>)> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        take_one()?;
        let new = line.strip_prefix('[').map(section);
        match (new, sections.last_mut(), pair(line)) {
            (Some(Some(section)), _, _) => sections.push(section),
            (None, Some((_, pairs)), Some(pair)) => pairs.push(pair),
            _ => return Err(format!("line {number} is not understood")),
        }
    }
    Ok(sections.into_iter().map(|(group, pairs)| Given { group, options: Options::of(pairs) }).collect())
}

fn section(text: &str) -> Option<(String, Vec<(String, String)>)> {
    let inside = text.split_once(']')?.0;
    match inside.split_once('"') {
        Some((group, id)) => {
            let id = id.split_once('"')?.0;
            Some((group.trim().to_owned(), vec![("id".to_owned(), id.to_owned())]))
        }
        None => Some((inside.trim().to_owned(), Vec::new())),
    }
}

fn pair(line: &str) -> Option<(String, String)> {
    let (key, value) = line.split_once('=')?;
    let value = value.trim().strip_prefix('"')?.split_once('"')?.0;
    Some((key.trim().to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn sections_become_options() {
        let text = "# Machine\n[machine]\ngraphics = \"off\"\ntype = \"q35\"\n\n[object \"mem0\"]\r\n  size = \"1024M\"\nempty = \"\"\n";
        let given = parse(text, &mut || Ok(())).unwrap();
        let groups: Vec<&str> = given.iter().map(|given| given.group.as_str()).collect();
        assert_eq!(groups, ["machine", "object"]);
        assert_eq!(given[0].options.get("type"), Some("q35"));
        assert_eq!((given[1].options.get("id"), given[1].options.get("size")), (Some("mem0"), Some("1024M")));
    }

    #[test]
    fn what_is_no_configuration_is_told_by_its_line() {
        for text in [
            "\n\nnonsense\n",
            "# a\n\nkey = \"before any section\"",
            "[a]\n\n[unended\n",
            "[a]\n\nkey = bare\n",
        ] {
            let error = parse(text, &mut || Ok(())).unwrap_err();
            assert_eq!(error, "line 3 is not understood", "{text}");
        }
    }

    /// A process whose root is a folder, in which `name` is `put`.
    fn read_from_root(name: &str, put: impl Fn(&Path, &Path)) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        let (process, root) = (folder.path().join("1"), folder.path().join("root"));
        std::fs::create_dir_all(&process).unwrap();
        std::fs::create_dir_all(root.join("etc")).unwrap();
        symlink(&root, process.join("root")).unwrap();
        std::fs::write(folder.path().join("outside"), "secret").unwrap();
        put(&root.join("etc/vm.conf"), folder.path());
        read(&process, name)
    }

    #[test]
    fn a_file_is_read_in_the_root_of_its_process_and_no_link_leads_out() {
        let read = |put: &dyn Fn(&Path, &Path)| read_from_root("/etc/vm.conf", put);
        assert_eq!(read(&|file, _| std::fs::write(file, "x").unwrap()), Ok("x".to_owned()));
        assert!(read(&|file, _| symlink("../../outside", file).unwrap()).is_err());
        assert!(read(&|file, folder| symlink(folder.join("outside"), file).unwrap()).is_err());
    }

    #[test]
    fn by_a_descriptor_too_only_files_of_file_systems_are_read() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("fd")).unwrap();
        std::fs::write(folder.path().join("file"), "x").unwrap();
        let file = folder.path().join("file").display().to_string();
        for (number, target) in
            [file.as_str(), "/proc/version", "/sys/kernel/uevent_seqnum", "/dev/null"].iter().enumerate()
        {
            symlink(target, folder.path().join(format!("fd/{number}"))).unwrap();
        }
        assert_eq!(read(folder.path(), "/dev/fd/0"), Ok("x".to_owned()));
        for number in [1, 2] {
            let error = read(folder.path(), &format!("/proc/self/fd/{number}")).unwrap_err();
            assert_eq!(error, "a file that the kernel makes up");
        }
        assert_eq!(read(folder.path(), "/dev/fd/3").unwrap_err(), "no regular file");
    }

    #[test]
    fn what_would_block_or_fill_memory_is_not_read() {
        let read = |put: &dyn Fn(&Path, &Path)| read_from_root("/etc/vm.conf", put).unwrap_err();
        let fifo = |file: &Path, _: &Path| nix::unistd::mkfifo(file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(read(&fifo), "no regular file");
        assert_eq!(read(&|file, _| std::fs::create_dir(file).unwrap()), "no regular file");
        let huge = |file: &Path, _: &Path| File::create(file).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(read(&huge), "larger than 1048576 bytes");
        assert!(read(&|_, _| ()).contains("No such file"));
    }
}
