//! What to do about what is missing. Pure: facts in, steps out, in the order in which they must be done.
//!
//! eBPF needs a compiler with a `core` for BPF, and bpf-linker with an LLVM that is not older than the compiler's. Two
//! ways lead there, and a machine that has one keeps it: a rustup nightly with rust-src, or Debian's rustc-web with
//! its prebuilt `core`, linked into rustup. A nightly without rust-src is neither.

use super::Purpose;
use super::facts::{DEBIAN_COMPILER, Facts, LINKED, PROGRAMS};
use std::fmt;
use tiering_testkit::kernel;
use tiering_testkit::program::image::{MKFS, MMDEBSTRAP};

const LINKER_VERSION: &str = "0.13.0";
/// The LLVM of Debian's rustc-web 1.96.
const DEBIAN_LLVM: u32 = 22;

/// One missing thing.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    pub what: String,
    /// Continues "needed".
    pub why: &'static str,
    pub action: Action,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Install Debian packages.
    Apt(Vec<String>),
    /// Run a program, with more in its environment.
    Run { line: Vec<String>, env: Vec<(String, String)> },
    /// Fetch the kernel of a line, or of any, into the target folder.
    FetchKernel { line: Option<&'static str>, package: String },
    /// Build the disk of guest programs.
    BuildPrograms,
    /// Only a person can: what to do.
    ByHand(String),
}

impl Step {
    fn new(what: impl Into<String>, why: &'static str, action: Action) -> Self {
        Self { what: what.into(), why, action }
    }

    /// What to do depends on what apt offers.
    pub fn asks_apt(&self) -> bool {
        !matches!(self.action, Action::Run { .. } | Action::BuildPrograms)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Apt(packages) => write!(f, "apt-get install {}", packages.join(" ")),
            Self::Run { line, env } => {
                for (name, value) in env {
                    write!(f, "{name}={value} ")?;
                }
                f.write_str(&line.join(" "))
            }
            Self::FetchKernel { package, .. } => {
                write!(f, "download {package} and unpack it below the target folder; /boot stays as it is")
            }
            Self::BuildPrograms => f.write_str(
                "build a Debian of 600 MiB with them below the target folder, of packages that are downloaded for it",
            ),
            Self::ByHand(hint) => write!(f, "by hand: {hint}"),
        }
    }
}

pub fn steps(facts: &Facts, purpose: Purpose) -> Vec<Step> {
    let mut steps = Vec::new();
    for (program, package, why) in facts.missing_programs.iter().map(|program| PROGRAMS[*program]) {
        steps.push(Step::new(program, why, package_of(facts, package)));
    }
    match purpose {
        Purpose::Build => {
            build(facts, &mut steps);
            guest_kernel(facts, &mut steps);
        }
        Purpose::Test => {
            build(facts, &mut steps);
            // Debian's kernel serves both; the tests of the lab are skipped, with a reason, where it cannot be had.
            if facts.apt {
                lab(facts, Some(kernel::LINES[0]), &mut steps);
            } else {
                guest_kernel(facts, &mut steps);
            }
            test(facts, &mut steps);
        }
        Purpose::Lab(line) => lab(facts, line, &mut steps),
        Purpose::Programs => programs(facts, &mut steps),
    }
    steps
}

fn build(facts: &Facts, steps: &mut Vec<Step>) {
    let llvm = compiler(facts, steps);
    linker(facts, llvm, steps);
}

fn guest_kernel(facts: &Facts, steps: &mut Vec<Step>) {
    if facts.guest_kernel {
        return;
    }
    let action = match &facts.guest_kernel_offered {
        Some(package) => Action::FetchKernel { line: None, package: package.clone() },
        None => Action::ByHand("name an x86-64 bzImage with serial console in TIERING_GUEST_KERNEL".into()),
    };
    steps.push(Step::new("guest kernel", "to boot the guests of demo and tests", action));
}

fn test(facts: &Facts, steps: &mut Vec<Step>) {
    if !facts.fmt_and_clippy {
        let action = run(&["rustup", "component", "add", "rustfmt", "clippy"], &[]);
        steps.push(Step::new("rustfmt and clippy", "for `cargo xtask test`", action));
    }
    if !facts.nextest {
        let action = run(&["cargo", "install", "cargo-nextest", "--locked"], &[]);
        steps.push(Step::new("cargo-nextest", "for `cargo xtask test`", action));
    }
    if !facts.codespell {
        let action = package_of(facts, "codespell");
        steps.push(Step::new("codespell", "for `cargo xtask test`", action));
    }
}

fn lab(facts: &Facts, line: Option<&'static str>, steps: &mut Vec<Step>) {
    if !facts.virtiofsd {
        let package = if facts.virtiofsd_offered { "virtiofsd" } else { "qemu-system-common" };
        steps.push(Step::new("virtiofsd", "to share files with the lab", package_of(facts, package)));
    }
    if !facts.busybox {
        let action = package_of(facts, "busybox-static");
        steps.push(Step::new("busybox without libraries", "to boot the lab", action));
    }
    if !facts.numactl {
        steps.push(Step::new("numactl", "to look at the lab's memory nodes", package_of(facts, "numactl")));
    }
    if let Some(line) = line.filter(|line| facts.missing_lab_kernels.contains(line)) {
        let action = if facts.apt {
            Action::FetchKernel { line: Some(line), package: format!("Debian's newest cloud kernel {line}") }
        } else {
            Action::ByHand(
                "name a bzImage that has its modules beside it: `cargo xtask lab --kernel PATH`".into(),
            )
        };
        steps.push(Step::new(format!("kernel {line} with modules"), "to boot the lab", action));
    }
}

fn programs(facts: &Facts, steps: &mut Vec<Step>) {
    const WHY: &str = "to build the disk of guest programs";
    if facts.programs {
        return;
    }
    if !facts.mmdebstrap {
        steps.push(Step::new(MMDEBSTRAP, WHY, package_of(facts, MMDEBSTRAP)));
    }
    if !facts.mkfs {
        steps.push(Step::new(MKFS, WHY, package_of(facts, "e2fsprogs")));
    }
    let why = "to run PostgreSQL, nginx, Redis and others in guests";
    steps.push(Step::new("disk of guest programs", why, Action::BuildPrograms));
}

fn package_of(facts: &Facts, package: &str) -> Action {
    if facts.apt {
        apt(&[package])
    } else {
        Action::ByHand(format!("install the package that has it (Debian's is {package})"))
    }
}

/// Plans a compiler for eBPF; the major version of its LLVM, where that is known.
fn compiler(facts: &Facts, steps: &mut Vec<Step>) -> Option<u32> {
    const WHY: &str = "to compile the eBPF programs";
    let what = "Rust compiler for eBPF";
    if let Some(llvm) = facts.nightly_llvm.or(facts.linked_llvm) {
        return Some(llvm);
    }
    if !facts.rustup {
        let hint = "install rustup (https://rustup.rs): the eBPF programs need a second toolchain beside the stable one";
        steps.push(Step::new(what, WHY, Action::ByHand(hint.into())));
        return None;
    }
    if facts.debian_compiler || facts.debian_compiler_offered {
        if !facts.debian_compiler {
            steps.push(Step::new(what, WHY, apt(&DEBIAN_COMPILER)));
        }
        let why = "so that cargo finds that compiler";
        steps.push(Step::new(
            "its rustup name",
            why,
            run(&["rustup", "toolchain", "link", LINKED, "/usr"], &[]),
        ));
        return Some(DEBIAN_LLVM);
    }
    let line =
        ["rustup", "toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"];
    steps.push(Step::new(what, WHY, run(&line, &[])));
    None
}

/// Plans bpf-linker for a compiler with this LLVM.
fn linker(facts: &Facts, llvm: Option<u32>, steps: &mut Vec<Step>) {
    const WHY: &str = "to link the eBPF programs";
    if facts.bpf_linker {
        return;
    }
    let what = format!("bpf-linker {LINKER_VERSION}");
    let action = match llvm.filter(|llvm| facts.llvm_offered.contains(llvm)) {
        Some(llvm) => {
            let dev = format!("llvm-{llvm}-dev");
            let packages = if facts.cxx { apt(&[&dev]) } else { apt(&[&dev, "g++"]) };
            steps.push(Step::new(format!("LLVM {llvm}"), "to build bpf-linker", packages));
            let feature = format!("llvm-{llvm}");
            let line = ["cargo", "install", "bpf-linker", "--version", LINKER_VERSION, "--locked"];
            let line = [&line[..], &["--no-default-features", "--features", &feature]].concat();
            run(&line, &[("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}"))])
        }
        None if facts.binstall => {
            run(&["cargo", "binstall", "--no-confirm", &format!("bpf-linker@{LINKER_VERSION}")], &[])
        }
        None => Action::ByHand(format!(
            "put the bpf-linker of https://github.com/aya-rs/bpf-linker/releases (v{LINKER_VERSION}) into PATH"
        )),
    };
    steps.push(Step::new(what, WHY, action));
}

fn apt(packages: &[&str]) -> Action {
    Action::Apt(packages.iter().map(ToString::to_string).collect())
}

fn run(line: &[&str], env: &[(&str, String)]) -> Action {
    Action::Run {
        line: line.iter().map(ToString::to_string).collect(),
        env: env.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete() -> Facts {
        Facts {
            rustup: true,
            apt: true,
            linked_llvm: Some(22),
            llvm_offered: vec![22],
            debian_compiler: true,
            debian_compiler_offered: true,
            bpf_linker: true,
            cxx: true,
            guest_kernel: true,
            virtiofsd: true,
            busybox: true,
            numactl: true,
            codespell: true,
            nextest: true,
            mmdebstrap: true,
            mkfs: true,
            programs: true,
            fmt_and_clippy: true,
            ..Facts::default()
        }
    }

    fn shown(facts: &Facts) -> Vec<String> {
        steps(facts, Purpose::Test).iter().map(|step| step.action.to_string()).collect()
    }

    #[test]
    fn a_complete_machine_needs_nothing() {
        assert_eq!(shown(&complete()), [""; 0]);
        let nightly =
            Facts { linked_llvm: None, debian_compiler: false, nightly_llvm: Some(22), ..complete() };
        assert_eq!(shown(&nightly), [""; 0]);
    }

    #[test]
    fn a_nightly_without_rust_src_is_no_road_so_debians_compiler_is_installed_and_linked() {
        let facts =
            Facts { linked_llvm: None, debian_compiler: false, bpf_linker: false, cxx: false, ..complete() };
        assert_eq!(
            shown(&facts),
            [
                "apt-get install rustc-web libstd-rust-web-dev-bpf",
                "rustup toolchain link bpf /usr",
                "apt-get install llvm-22-dev g++",
                "LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version 0.13.0 --locked --no-default-features --features llvm-22",
            ]
        );
    }

    #[test]
    fn an_installed_compiler_only_has_to_be_linked() {
        assert_eq!(shown(&Facts { linked_llvm: None, ..complete() }), ["rustup toolchain link bpf /usr"]);
    }

    #[test]
    fn a_machine_without_apt_gets_a_nightly_and_a_list() {
        let facts = Facts { rustup: true, missing_programs: vec![0], ..Facts::default() };
        let steps = steps(&facts, Purpose::Build);
        let by_hand = |step: &&Step| matches!(step.action, Action::ByHand(_));
        let listed: Vec<_> = steps.iter().filter(by_hand).map(|step| step.what.as_str()).collect();
        assert_eq!(listed, ["qemu-system-x86_64", "bpf-linker 0.13.0", "guest kernel"]);
        assert!(shown(&facts).iter().any(|line| line.starts_with("rustup toolchain install nightly")));
    }

    #[test]
    fn the_lab_asks_for_what_it_needs_and_no_compiler() {
        let facts = Facts { apt: true, missing_lab_kernels: vec!["6.12", "6.1"], ..Facts::default() };
        let lab: Vec<_> = steps(&facts, Purpose::Lab(Some("6.1")))
            .into_iter()
            .map(|step| (step.what, step.action.to_string()))
            .collect();
        let expected = [
            ("virtiofsd", "apt-get install qemu-system-common"),
            ("busybox without libraries", "apt-get install busybox-static"),
            ("numactl", "apt-get install numactl"),
            (
                "kernel 6.1 with modules",
                "download Debian's newest cloud kernel 6.1 and unpack it below the target folder; /boot stays as it is",
            ),
        ];
        assert_eq!(lab, expected.map(|(what, action)| (what.to_owned(), action.to_owned())));
    }

    #[test]
    fn a_build_does_not_ask_for_the_lab_and_tests_fetch_one_kernel() {
        let facts = Facts {
            guest_kernel: false,
            guest_kernel_offered: Some("linux-image-6.12.1-cloud-amd64".into()),
            missing_lab_kernels: vec!["6.12", "6.1"],
            busybox: false,
            ..complete()
        };
        let what = |purpose| steps(&facts, purpose).into_iter().map(|step| step.what).collect::<Vec<_>>();
        assert_eq!(what(Purpose::Build), ["guest kernel"]);
        assert_eq!(what(Purpose::Test), ["busybox without libraries", "kernel 6.12 with modules"]);
    }
    #[test]
    fn programs_are_built_with_what_that_needs_and_for_nothing_else() {
        let facts = Facts { programs: false, mmdebstrap: false, ..complete() };
        let what: Vec<_> = steps(&facts, Purpose::Programs).into_iter().map(|step| step.what).collect();
        assert_eq!(what, ["mmdebstrap", "disk of guest programs"]);
        assert_eq!(shown(&facts), [""; 0]);
        assert_eq!(steps(&Facts { mmdebstrap: false, ..complete() }, Purpose::Programs), []);
    }
}
