//! For tests. A fake `/proc` and cgroup tree for those of this module: in, a [`Guest`] by the properties a test is
//! about; out, the files of a process in a temporary folder, in the kernel's formats (6.18). For those of others a
//! [`vm`] as it would be found.

use std::fmt::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{Hva, ProcessKey, Scanner, Trust, Vm};

pub(super) const MIB: u64 = 1 << 20;

/// The emulated VM `web-1` with one range of RAM, at guest-physical address 0.
pub(crate) fn vm(key: ProcessKey, start: Hva, bytes: u64) -> Vm {
    Vm::plain(key, "web-1", start, bytes)
}

/// A host with processes.
pub(crate) struct FakeHost {
    root: tempfile::TempDir,
    proc_root: PathBuf,
    cgroup_root: PathBuf,
}

impl FakeHost {
    pub(crate) fn new() -> FakeHost {
        let root = tempfile::tempdir().unwrap();
        let (proc_root, cgroup_root) = (root.path().join("proc"), root.path().join("cgroup"));
        std::fs::create_dir_all(proc_root.join("sys")).unwrap();
        std::fs::create_dir_all(&cgroup_root).unwrap();
        FakeHost { root, proc_root, cgroup_root }
    }

    pub(crate) fn proc_root(&self) -> &Path {
        &self.proc_root
    }

    pub(super) fn cgroup_root(&self) -> &Path {
        &self.cgroup_root
    }

    pub(crate) fn scanner(&self) -> Scanner {
        Scanner::new(&self.proc_root, &self.cgroup_root, Trust::of(&[107]))
    }

    pub(crate) fn start(&self, pid: i32, guest: &Guest) {
        guest.write(&self.root.path().join("proc").join(pid.to_string()), pid);
    }

    pub(super) fn end(&self, pid: i32) {
        std::fs::remove_dir_all(self.proc_root.join(pid.to_string())).unwrap();
    }

    pub(super) fn write(&self, pid: i32, file: &str, bytes: &[u8]) {
        std::fs::write(self.proc_root.join(pid.to_string()).join(file), bytes).unwrap();
    }

    pub(super) fn append(&self, pid: i32, file: &str, bytes: &[u8]) {
        let old = std::fs::read(self.proc_root.join(pid.to_string()).join(file)).unwrap();
        self.write(pid, file, &[&old, bytes].concat());
    }

    /// A file that the process sees at `path`.
    pub(super) fn put_file(&self, pid: i32, path: &str, text: &str) {
        let file = self.proc_root.join(pid.to_string()).join("root").join(path.trim_start_matches('/'));
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }

    /// The process `pid` becomes another one, without a new start.
    pub(super) fn becomes(&self, pid: i32, guest: &Guest) {
        self.end(pid);
        self.start(pid, guest);
    }

    /// The process has this owner now.
    pub(super) fn owned_by(&self, pid: i32, uid: u32) {
        let path = self.proc_root.join(pid.to_string()).join("status");
        let text = std::fs::read_to_string(&path).unwrap();
        let ids = |line: &str| {
            if line.starts_with("Uid:") {
                format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n")
            } else {
                format!("{line}\n")
            }
        };
        std::fs::write(path, text.lines().map(ids).collect::<String>()).unwrap();
    }

    pub(super) fn forbid_swap(&self, group: &str) {
        let group = self.cgroup_root.join(group);
        std::fs::create_dir_all(&group).unwrap();
        std::fs::write(group.join("memory.swap.max"), "0\n").unwrap();
    }
}

/// A QEMU process: by default one that may be moved.
#[derive(Clone)]
pub(crate) struct Guest {
    exe: String,
    arguments: Vec<String>,
    files: Vec<String>,
    /// Name, scheduling policy, CPU ticks.
    threads: Vec<(String, u32, u64)>,
    ram: String,
    other_mappings: String,
    start_time_ticks: u64,
    state: char,
    locked_kib: u64,
    resident_kib: u64,
}

impl Guest {
    pub(crate) fn kvm(name: &str, ram_mib: u64) -> Guest {
        let size = ram_mib.to_string();
        let guest_name = format!("guest={name},debug-threads=on");
        let arguments =
            ["qemu-system-x86_64", "-name", &guest_name, "-machine", "q35,accel=kvm", "-m", &size];
        Guest {
            exe: "/usr/bin/qemu-system-x86_64".to_owned(),
            arguments: arguments.map(str::to_owned).to_vec(),
            files: ["/dev/null", "anon_inode:[eventfd]", "socket:[4711]", "/dev/kvm", "anon_inode:kvm-vm"]
                .map(str::to_owned)
                .to_vec(),
            threads: vec![("qemu-system-x86".to_owned(), 0, 40), ("CPU 0/KVM".to_owned(), 0, 900)],
            ram: mapping("7f8000000000", ram_mib << 10, "rw-p", "00:00", 0, "", "rd wr mr mw me dc ac hg mg"),
            // The heap, a code mapping, and video memory: none of them RAM.
            other_mappings: mapping("55d000000000", 4096, "rw-p", "00:00", 0, "[heap]", "rd wr mr mw me ac")
                + &mapping(
                    "55c000000000",
                    8192,
                    "r-xp",
                    "fe:01",
                    99,
                    "/usr/bin/qemu-system-x86_64",
                    "rd ex mr mw me",
                )
                + &mapping("7fa000000000", 16384, "rw-p", "00:00", 0, "", "rd wr mr mw me dc ac hg mg"),
            start_time_ticks: 5000,
            state: 'S',
            locked_kib: 0,
            resident_kib: 40 << 10,
        }
    }

    pub(super) fn memfd(name: &str, ram_mib: u64) -> Guest {
        let object = format!("memory-backend-memfd,id=ram,size={ram_mib}M,share=on");
        let guest =
            Guest::kvm(name, ram_mib).more_arguments(&["-object", &object, "-numa", "node,memdev=ram"]);
        guest.without_ram().file_mapping(
            "7f8000000000",
            ram_mib,
            "00:01",
            "/memfd:memory-backend-memfd (deleted)",
            "rd wr sh mr mw me ms dc hg",
        )
    }

    pub(super) fn exe(mut self, path: &str) -> Guest {
        self.exe = path.to_owned();
        self
    }

    pub(super) fn arguments(mut self, arguments: &[&str]) -> Guest {
        self.arguments = arguments.iter().map(|&a| a.to_owned()).collect();
        self
    }

    pub(super) fn more_arguments(mut self, arguments: &[&str]) -> Guest {
        self.arguments.extend(arguments.iter().map(|&a| a.to_owned()));
        self
    }

    pub(super) fn without_kvm(mut self) -> Guest {
        self.files.retain(|file| !file.contains("kvm"));
        self
    }

    pub(super) fn file(mut self, target: &str) -> Guest {
        self.files.push(target.to_owned());
        self
    }

    pub(super) fn thread(mut self, name: &str, policy: u32, ticks: u64) -> Guest {
        self.threads.retain(|thread| thread.0 != name);
        self.threads.push((name.to_owned(), policy, ticks));
        self
    }

    pub(super) fn without_ram(mut self) -> Guest {
        self.ram.clear();
        self
    }

    pub(super) fn mapping(mut self, start: &str, mib: u64, perms: &str, path: &str, flags: &str) -> Guest {
        self.ram += &mapping(start, mib << 10, perms, "00:00", 0, path, flags);
        self
    }

    pub(super) fn file_mapping(
        mut self,
        start: &str,
        mib: u64,
        device: &str,
        path: &str,
        flags: &str,
    ) -> Guest {
        self.ram += &mapping(start, mib << 10, "rw-s", device, 1234, path, flags);
        self
    }

    pub(super) fn started(mut self, ticks: u64) -> Guest {
        self.start_time_ticks = ticks;
        self
    }

    pub(super) fn state(mut self, state: char) -> Guest {
        self.state = state;
        self
    }

    pub(super) fn locked_kib(mut self, kib: u64) -> Guest {
        self.locked_kib = kib;
        self
    }

    pub(super) fn resident_kib(mut self, kib: u64) -> Guest {
        self.resident_kib = kib;
        self
    }

    fn write(&self, dir: &Path, pid: i32) {
        let put = |file: &str, text: &str| std::fs::write(dir.join(file), text).unwrap();
        std::fs::create_dir_all(dir.join("fd")).unwrap();
        symlink(&self.exe, dir.join("exe")).unwrap();
        for (fd, target) in self.files.iter().enumerate() {
            symlink(target, dir.join("fd").join(fd.to_string())).unwrap();
        }
        for (tid, (name, policy, ticks)) in (pid..).zip(&self.threads) {
            let task = dir.join("task").join(tid.to_string());
            std::fs::create_dir_all(&task).unwrap();
            std::fs::write(task.join("stat"), self.stat(tid, name, *policy, *ticks)).unwrap();
        }
        put("stat", &self.stat(pid, "qemu-system-x86", 0, 940));
        put("cmdline", &(self.arguments.join("\0") + "\0"));
        let maps = self.other_mappings.clone() + &self.ram;
        put("smaps", &maps);
        let mapped_kib: u64 = maps
            .lines()
            .filter_map(|line| line.strip_prefix("Size:")?.trim().split(' ').next()?.parse::<u64>().ok())
            .sum();
        put("statm", &format!("{} 10000 2000 1800 0 9000 0\n", mapped_kib / 4));
        let headers = maps.lines().filter(|line| !line.starts_with(|c: char| c.is_ascii_uppercase()));
        put("maps", &headers.fold(String::new(), |text, line| text + line + "\n"));
        put("oom_score_adj", "0\n");
        put("cgroup", "0::/machine.slice/vm.scope\n");
        put(
            "mountinfo",
            "24 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n\
             31 24 0:27 / /dev/shm rw,nosuid shared:5 - tmpfs tmpfs rw,size=8192k\n",
        );
        put(
            "status",
            &format!(
                "Name:\tqemu-system-x86\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t{pid}\nNgid:\t0\nPid:\t{pid}\n\
                 PPid:\t1\nTracerPid:\t0\nUid:\t107\t107\t107\t107\nGid:\t107\t107\t107\t107\nFDSize:\t64\n\
                 Groups:\t107 \nVmLck:\t{} kB\nVmPin:\t0 kB\nVmRSS:\t{} kB\nThreads:\t{}\nSigQ:\t0/95\n\
                 SigPnd:\t0\nShdPnd:\t0\nSigBlk:\t0\nSigIgn:\t0\nSigCgt:\t0\n\
                 CapInh:\t0\nCapPrm:\t0\nCapEff:\t0\n",
                self.locked_kib,
                self.resident_kib,
                self.threads.len()
            ),
        );
    }

    fn stat(&self, pid: i32, comm: &str, policy: u32, ticks: u64) -> String {
        format!(
            "{pid} ({comm}) {} 1 1 1 0 -1 4194560 100 0 0 0 {ticks} 0 0 0 20 0 3 0 {} 900000000 20000 \
             18446744073709551615 1 1 0 0 0 0 0 4096 17663 0 0 0 17 0 0 {policy} 0 0 0 0 0 0 0 0 0 0\n",
            self.state, self.start_time_ticks
        )
    }
}

/// One entry of smaps, and of a mapping that children do not inherit (`dc`: guest memory) the guard page behind it.
fn mapping(start: &str, kib: u64, perms: &str, device: &str, inode: u64, path: &str, flags: &str) -> String {
    let end = u64::from_str_radix(start, 16).unwrap() + (kib << 10);
    let page_kib = if flags.contains("ht") { 2048 } else { 4 };
    let mut text = format!("{start}-{end:x} {perms} 00000000 {device} {inode} ");
    text += &format!("                   {path}\n");
    write!(
        text,
        "Size:           {kib} kB\nKernelPageSize:        {page_kib} kB\nMMUPageSize:           {page_kib} kB\n\
         Rss:                 128 kB\nPss:                 128 kB\nSwap:                  0 kB\n\
         THPeligible:           1\nVmFlags: {flags} \n"
    )
    .unwrap();
    if flags.contains("dc") {
        writeln!(text, "{end:x}-{:x} ---p 00000000 00:00 0 \nSize: 4 kB\nVmFlags: mr mw me", end + 4096)
            .unwrap();
    }
    text
}
