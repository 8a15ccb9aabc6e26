//! The QEMU command line of a test guest.
//!
//! In: what a guest should be. Out: a process that dies with its parent. It does not know what the guest says.

use crate::pattern::Pattern;
use crate::program::Program;
use anyhow::{Context, Result, ensure};
use nix::sys::prctl;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, PoisonError};

/// The emulator.
pub const QEMU: &str = "qemu-system-x86_64";

/// Who executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// QEMU itself, by emulation: works everywhere, about ten times slower.
    Tcg,
    /// The processor.
    Kvm,
}

/// What the guest's RAM is on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// Private anonymous memory, QEMU's default; in huge pages where the host has them so.
    Anonymous,
    /// The same, never in huge pages.
    AnonymousSmall,
    /// A shared memfd, as virtiofs and vhost-user need it.
    Memfd,
    /// A shared memfd of huge pages, which must have been set aside before.
    Hugetlb,
    /// Anonymous and locked: nothing of it can be moved.
    Locked,
}

/// What the guest does.
#[derive(Debug, Clone)]
pub(crate) enum Load {
    Pattern(Pattern),
    Program(Program),
}

/// The guest's first virtio disk: a raw image, opened for reading only and through the host's page cache.
#[derive(Debug, Clone)]
pub(crate) enum Disk {
    /// The guest can only read it.
    ReadOnly(PathBuf),
    /// The guest can write to it. What it writes goes to a file without a name and is gone with QEMU.
    Discarding(PathBuf),
}

/// A guest to be.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub name: String,
    pub memory_mib: u32,
    pub load: Load,
    pub backend: Backend,
    pub accel: Accel,
    pub disk: Option<Disk>,
    /// Where QEMU listens for commands (QMP), if it does.
    pub monitor: Option<PathBuf>,
    /// The state that it begins with, instead of a boot.
    pub state: Option<PathBuf>,
}

impl Machine {
    /// The command. QEMU gets its own process group, so that a Ctrl-C is its owner's to handle.
    ///
    /// `setpriv` becomes QEMU by exec, so the child's pid is QEMU's. The kernel kills it when the thread that started
    /// it ends (prctl(2), PR_SET_PDEATHSIG), so start guests from a thread that stays.
    pub(crate) fn command(&self, kernel: &Path, initramfs: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", QEMU]).process_group(0);
        // Threads have names, as libvirt and Proxmox have it.
        command.args(["-name", &format!("guest={},debug-threads=on", self.name)]);
        let memory = format!("{}M", self.memory_mib);
        match self.backend {
            Backend::Anonymous | Backend::AnonymousSmall => command.args(["-machine", "q35"]),
            Backend::Memfd => command
                .args(["-machine", "q35,memory-backend=ram", "-object"])
                .arg(format!("memory-backend-memfd,id=ram,size={memory},share=on")),
            Backend::Hugetlb => command
                .args(["-machine", "q35,memory-backend=ram", "-object"])
                .arg(format!("memory-backend-memfd,id=ram,size={memory},share=on,hugetlb=on")),
            Backend::Locked => command.args(["-machine", "q35", "-overcommit", "mem-lock=on"]),
        };
        let (accel, cpu) = match self.accel {
            Accel::Tcg => ("tcg", "max"),
            // What boots in the lab. With `kvm64` none of 4 guests did there, in a lab of two processors, in which
            // guests with `host` hang at times too. Where nested KVM refuses a register that it shows (MSR 0x10a), QEMU
            // 7.2 aborts with `host`; there `kvm64` ends with an internal error of KVM.
            Accel::Kvm => ("kvm", "host"),
        };
        command.args(["-accel", accel, "-cpu", cpu, "-smp", "1", "-m", &memory]);
        command.args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]);
        if let Some(disk) = &self.disk {
            let (mode, image) = match disk {
                Disk::ReadOnly(image) => ("readonly=on", image),
                Disk::Discarding(image) => ("snapshot=on", image),
            };
            let disk = format!("id=disk,if=none,format=raw,{mode},file={}", image.display());
            command.args(["-drive", &disk, "-device", "virtio-blk-pci,drive=disk"]);
        }
        command.arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs);
        // panic=-1 with -no-reboot: a guest kernel that panics ends QEMU.
        if let Some(monitor) = &self.monitor {
            command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", monitor.display()));
        }
        if let Some(state) = &self.state {
            command.arg("-incoming").arg(format!("exec:cat {}", state.display()));
        }
        let load = match &self.load {
            Load::Pattern(pattern) => pattern.to_cmdline(),
            Load::Program(program) => program.to_cmdline(),
        };
        command.args(["-append", &format!("console=ttyS0 quiet panic=-1 {load}")]);
        command
    }
}

/// Starts a command whose memory comes in huge pages only if `huge_pages`, like that of all that it becomes by exec.
pub(crate) fn spawn(command: &mut Command, huge_pages: bool) -> Result<Child> {
    // The setting is one of the whole process, and inherited: nobody else may start something meanwhile.
    static SPAWNING: Mutex<()> = Mutex::new(());
    let _alone = SPAWNING.lock().unwrap_or_else(PoisonError::into_inner);
    let before = prctl::get_thp_disable().context("asking for the huge pages of this process")?;
    prctl::set_thp_disable(before || !huge_pages).context("switching huge pages off")?;
    let child = command.spawn().with_context(|| format!("cannot run {command:?}"));
    prctl::set_thp_disable(before).context("switching huge pages on again")?;
    child
}

/// Whether there are enough huge pages for a guest; QEMU would be killed where they run out.
pub(crate) fn check_huge_pages(meminfo: &str, memory_mib: u32) -> Result<()> {
    let field = |name: &str| {
        let value = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let number = value.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
        number.with_context(|| format!("no {name} in /proc/meminfo: the kernel has no huge pages"))
    };
    let page_kib = field("Hugepagesize")?;
    let needed = (u64::from(memory_mib) << 10).div_ceil(page_kib);
    let free = field("HugePages_Free")?.saturating_sub(field("HugePages_Rsvd")?);
    ensure!(
        free >= needed,
        "{memory_mib} MiB of RAM need {needed} free huge pages of {page_kib} KiB and there are {free}: \
         write {} to /proc/sys/vm/nr_hugepages",
        field("HugePages_Total")? + needed - free
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Kind;

    #[test]
    fn a_memfd_guest_shares_its_ram_and_carries_its_pattern() {
        let pattern = Pattern { seed: 42, ..Pattern::default() };
        let (backend, accel) = (Backend::Memfd, Accel::Kvm);
        let machine = Machine {
            name: "db-1".into(),
            memory_mib: 128,
            load: Load::Pattern(pattern),
            backend,
            accel,
            disk: Some(Disk::ReadOnly("/d".into())),
            monitor: None,
            state: None,
        };
        let command = machine.command(Path::new("/k"), Path::new("/i"));
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        let after = |option: &str| words.iter().skip_while(|word| *word != option).nth(1).unwrap().clone();
        assert_eq!(after("-name"), "guest=db-1,debug-threads=on");
        assert_eq!(after("-accel"), "kvm");
        assert_eq!(after("-object"), "memory-backend-memfd,id=ram,size=128M,share=on");
        assert!(after("-machine").contains("memory-backend=ram"));
        assert!(after("-append").contains("tg.seed=42"));
        assert!(after("-drive").ends_with("readonly=on,file=/d"));
    }

    #[test]
    fn a_guest_with_a_program_writes_to_a_disk_that_is_thrown_away() {
        let program = Program { rate: 9, ..Program::new(Kind::Redis) };
        let machine = Machine {
            name: "redis-1".into(),
            memory_mib: 128,
            load: Load::Program(program),
            backend: Backend::Anonymous,
            accel: Accel::Tcg,
            disk: Some(Disk::Discarding("/image".into())),
            monitor: None,
            state: None,
        };
        let command = machine.command(Path::new("/k"), Path::new("/i"));
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        assert!(words.iter().any(|word| word.ends_with("snapshot=on,file=/image")), "{words:?}");
        assert!(words.iter().any(|word| word.contains("tg.program=redis") && word.ends_with("tg.rate=9")));
    }

    #[test]
    fn missing_huge_pages_are_told_with_the_file_that_makes_them() {
        let meminfo = |free, reserved| {
            format!(
                "HugePages_Total:      10\nHugePages_Free:       {free}\nHugePages_Rsvd:        {reserved}\n\
                 Hugepagesize:       2048 kB\n"
            )
        };
        check_huge_pages(&meminfo(64, 0), 128).unwrap();
        let error = check_huge_pages(&meminfo(64, 4), 128).unwrap_err().to_string();
        assert_eq!(
            error,
            "128 MiB of RAM need 64 free huge pages of 2048 KiB and there are 60: \
             write 14 to /proc/sys/vm/nr_hugepages"
        );
    }
}
