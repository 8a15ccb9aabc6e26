//! The QEMU command line of a test guest.
//!
//! In: what a guest should be. Out: a command that starts it and dies with its parent. It starts nothing itself.

use crate::pattern::Pattern;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

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
    /// Private anonymous memory, QEMU's default.
    Anonymous,
    /// A shared memfd, as virtiofs and vhost-user need it.
    Memfd,
    /// A shared memfd of 2 MiB pages from the hugetlb pool, which cannot be swapped.
    Hugetlb,
    /// Anonymous and locked: nothing of it can be moved.
    Locked,
}

/// A guest to be.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub name: String,
    pub memory_mib: u32,
    pub pattern: Pattern,
    pub backend: Backend,
    pub accel: Accel,
}

impl Machine {
    /// The command. QEMU gets its own process group, so that a Ctrl-C is its owner's to handle.
    ///
    /// `setpriv` becomes QEMU by exec, so the child's pid is QEMU's. The kernel kills it when the thread that started
    /// it ends (prctl(2), PR_SET_PDEATHSIG), so start guests from a thread that stays.
    pub(crate) fn command(&self, kernel: &Path, initramfs: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", QEMU]).process_group(0);
        command.args(["-name", &format!("guest={}", self.name)]);
        let memory = format!("{}M", self.memory_mib);
        match self.backend {
            Backend::Anonymous => command.args(["-machine", "q35"]),
            Backend::Memfd => command
                .args(["-machine", "q35,memory-backend=ram", "-object"])
                .arg(format!("memory-backend-memfd,id=ram,size={memory},share=on")),
            Backend::Hugetlb => command
                .args(["-machine", "q35,memory-backend=ram", "-object"])
                .arg(format!("memory-backend-memfd,id=ram,size={memory},share=on,hugetlb=on,hugetlbsize=2M")),
            Backend::Locked => command.args(["-machine", "q35", "-overcommit", "mem-lock=on"]),
        };
        let (accel, cpu) = match self.accel {
            Accel::Tcg => ("tcg", "max"),
            // With kvm64 a guest in the emulated lab did not boot in two minutes.
            Accel::Kvm => ("kvm", "host"),
        };
        command.args(["-accel", accel, "-cpu", cpu, "-smp", "1", "-m", &memory]);
        command.args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]);
        command.arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs);
        // panic=-1 with -no-reboot: a guest kernel that panics ends QEMU.
        command.args(["-append", &format!("console=ttyS0 quiet panic=-1 {}", self.pattern.to_cmdline())]);
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memfd_guest_shares_its_ram_and_carries_its_pattern() {
        let pattern = Pattern { seed: 42, ..Pattern::default() };
        let (backend, accel) = (Backend::Memfd, Accel::Kvm);
        let machine = Machine { name: "db-1".into(), memory_mib: 128, pattern, backend, accel };
        let command = machine.command(Path::new("/k"), Path::new("/i"));
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        let after = |option: &str| words.iter().skip_while(|word| *word != option).nth(1).unwrap().clone();
        assert_eq!(after("-name"), "guest=db-1");
        assert_eq!(after("-accel"), "kvm");
        assert_eq!(after("-object"), "memory-backend-memfd,id=ram,size=128M,share=on");
        assert!(after("-machine").contains("memory-backend=ram"));
        assert!(after("-append").contains("tg.seed=42"));
    }
}
