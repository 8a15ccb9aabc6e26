//! What the machine has, as data. Nothing is decided or changed here.

use crate::command::{ask, find};
use std::path::Path;
use std::process::Command;
use tiering_testkit::program::image::{self, MKFS, MMDEBSTRAP};
use tiering_testkit::{kernel, lab};

/// Debian's compiler of which the archive also has a prebuilt `core` for BPF.
pub const DEBIAN_COMPILER: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];
/// The rustup name under which that compiler is linked.
pub const LINKED: &str = "bpf";

/// Programs, the Debian package of each, and what they are needed for.
pub const PROGRAMS: [(&str, &str, &str); 4] = [
    ("qemu-system-x86_64", "qemu-system-x86", "to run the guests of demo and tests"),
    ("bpftool", "bpftool", "to compare what the agent says with what the kernel holds"),
    ("setpriv", "util-linux", "to end guests with the program that started them"),
    ("swapoff", "mount", "to clean up swap files of an agent that died"),
];

#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub rustup: bool,
    pub apt: bool,
    /// Major version of LLVM in the rustup nightly, if that has the source of `core`.
    pub nightly_llvm: Option<u32>,
    /// The same for the toolchain linked as [`LINKED`], if it has a `core` for BPF.
    pub linked_llvm: Option<u32>,
    /// Major versions of LLVM whose `-dev` package apt offers.
    pub llvm_offered: Vec<u32>,
    /// The packages of [`DEBIAN_COMPILER`] are installed.
    pub debian_compiler: bool,
    /// apt offers them.
    pub debian_compiler_offered: bool,
    /// bpf-linker is there, and new enough.
    pub bpf_linker: bool,
    pub binstall: bool,
    pub cxx: bool,
    /// Indices into [`PROGRAMS`].
    pub missing_programs: Vec<usize>,
    pub guest_kernel: bool,
    /// The package of the guest kernel that apt offers.
    pub guest_kernel_offered: Option<String>,
    /// Lines of [`kernel::LINES`] that were not fetched with their modules.
    pub missing_lab_kernels: Vec<&'static str>,
    pub virtiofsd: bool,
    /// It has a package of its own.
    pub virtiofsd_offered: bool,
    /// A busybox that needs no libraries.
    pub busybox: bool,
    pub numactl: bool,
    pub nextest: bool,
    pub codespell: bool,
    pub mmdebstrap: bool,
    pub mkfs: bool,
    /// The disk of today's guest programs.
    pub programs: bool,
    /// `cargo fmt` and `cargo clippy`.
    pub fmt_and_clippy: bool,
}

impl Facts {
    /// Looks at the machine. What apt offers is asked only for what is missing: each question takes a third of a
    /// second.
    pub fn probe() -> Self {
        let apt = find("apt-get").is_some() && find("dpkg").is_some();
        let offered = |package: &str| apt && ask(Command::new("apt-cache").args(["show", package])).is_some();
        let answers = |command: &str, args: &[&str]| ask(Command::new(command).args(args)).is_some();
        let mut facts = Self {
            rustup: find("rustup").is_some(),
            apt,
            nightly_llvm: llvm_where("nightly", "lib/rustlib/src/rust/library/core"),
            linked_llvm: llvm_where(LINKED, "lib/rustlib/bpfel-unknown-none"),
            debian_compiler: Path::new("/usr/bin/rustc").exists()
                && Path::new("/usr/lib/rustlib/bpfel-unknown-none").exists(),
            bpf_linker: ask(Command::new("bpf-linker").arg("--version"))
                .is_some_and(|version| new_enough(&version)),
            binstall: find("cargo-binstall").is_some(),
            cxx: find("c++").is_some(),
            missing_programs: (0..PROGRAMS.len())
                .filter(|program| find(PROGRAMS[*program].0).is_none())
                .collect(),
            guest_kernel: kernel::find().is_ok(),
            missing_lab_kernels: kernel::LINES
                .into_iter()
                .filter(|line| kernel::of_line(line).is_err())
                .collect(),
            virtiofsd: lab::virtiofsd().is_ok(),
            busybox: lab::busybox().is_ok(),
            numactl: find("numactl").is_some(),
            codespell: find("codespell").is_some(),
            mmdebstrap: find(MMDEBSTRAP).is_some(),
            mkfs: find(MKFS).is_some(),
            programs: image::find().is_ok(),
            nextest: answers("cargo", &["nextest", "--version"]),
            fmt_and_clippy: answers("cargo", &["fmt", "--version"])
                && answers("cargo", &["clippy", "--version"]),
            ..Self::default()
        };
        if facts.nightly_llvm.is_none() && facts.linked_llvm.is_none() {
            facts.debian_compiler_offered = DEBIAN_COMPILER.iter().all(|package| offered(package));
        }
        if !facts.bpf_linker {
            facts.llvm_offered = (21..=23).filter(|major| offered(&format!("llvm-{major}-dev"))).collect();
        }
        if !facts.guest_kernel {
            facts.guest_kernel_offered = kernel::package(None).ok();
        }
        if !facts.virtiofsd {
            facts.virtiofsd_offered = offered("virtiofsd");
        }
        facts
    }
}

/// The LLVM of a rustup toolchain whose system root holds `path`: tiering-user/build.rs asks the same.
fn llvm_where(toolchain: &str, path: &str) -> Option<u32> {
    let rustc = |arg: &[&str]| ask(Command::new("rustup").args(["run", toolchain, "rustc"]).args(arg));
    let root = rustc(&["--print", "sysroot"])?;
    if !Path::new(&root).join(path).exists() {
        return None;
    }
    llvm_major(&rustc(&["-vV"])?)
}

fn llvm_major(version: &str) -> Option<u32> {
    let llvm = version.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    llvm.split('.').next()?.parse().ok()
}

/// `bpf-linker 0.13.0` and later take what today's compilers write.
fn new_enough(version: &str) -> bool {
    let numbers = version.rsplit(' ').next().unwrap_or_default().split('.');
    let numbers: Vec<u32> = numbers.map_while(|number| number.parse().ok()).collect();
    numbers.as_slice() >= &[0, 13][..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_of_a_compiler_is_read_from_its_version() {
        assert_eq!(
            llvm_major("rustc 1.97.0-nightly\nrelease: 1.97.0-nightly\nLLVM version: 22.1.4"),
            Some(22)
        );
        assert_eq!(llvm_major("rustc 1.97.0"), None);
    }

    #[test]
    fn an_old_linker_is_replaced() {
        assert!(new_enough("bpf-linker 0.13.0") && new_enough("bpf-linker 1.0.0"));
        assert!(!new_enough("bpf-linker 0.9.15") && !new_enough("bpf-linker"));
    }
}
