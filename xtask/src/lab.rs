//! `cargo xtask lab`: a command, or a shell, in a virtual host with a stock kernel, memory tiers, NVMe disks and KVM.
//!
//! In: what the host is made of, and a command. Out: the command's output and exit code, and what it left in
//! `$LAB_OUT`. The lab itself is `tiering_testkit::lab`, since tests use it too; docs/lab.md is its page.

use crate::setup;
use anyhow::{Result, ensure};
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tiering_testkit::kernel::{self, Kernel};
use tiering_testkit::lab::{Disk, Job, Lab, Nodes};
use tiering_testkit::paths::target_dir;
use tiering_testkit::stop;

const COMMAND_LIMIT: Duration = Duration::from_secs(600);
const INTERRUPTED: u8 = 130;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Debian's cloud kernel of this line (6.12 or 6.1), or the path of a bzImage
    #[arg(long, default_value = kernel::LINES[0], value_name = "6.12|6.1|PATH")]
    kernel: String,
    /// Memory nodes, fastest first; the first has the processors
    #[arg(long, default_value = "dram:1G,cxl:2G", value_name = "KIND:SIZE,...")]
    nodes: Nodes,
    /// Size of the disk /dev/disk/by-id/tiering-nvme; 0 for none
    #[arg(long, default_value = "2G", value_name = "SIZE[@iops=N][,bps=SIZE]")]
    nvme: Disk,
    /// Size and limits of the disk /dev/disk/by-id/tiering-qlc; 0 for none
    #[arg(long, default_value = "4G@iops=2000", value_name = "SIZE[@iops=N][,bps=SIZE]")]
    qlc: Disk,
    /// Processors (under emulation 1, else as many as this machine has, at most 4)
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: Option<u32>,
    /// When to give up (a command: after 10min unless told; a shell: never)
    #[arg(long, value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// Where to put what the command writes to $LAB_OUT (target/lab-out unless told)
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// What to run, in the project's folder; a shell at this terminal without it
    #[arg(trailing_var_arg = true)]
    command: Vec<OsString>,
}

pub fn run(options: &Options) -> Result<ExitCode> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the lab shares this host's root with a virtual host: run it as root"
    );
    let shell = options.command.is_empty();
    ensure!(
        !shell || (std::io::stdin().is_terminal() && std::io::stdout().is_terminal()),
        "a shell in the lab needs a terminal: name a command, as in `cargo xtask lab -- uname -r`"
    );
    let lab = Lab {
        kernel: kernel_named(&options.kernel)?,
        nodes: options.nodes.clone(),
        nvme: options.nvme,
        qlc: options.qlc,
        cpus: options.cpus,
        job: if shell { Job::Shell } else { Job::Command(options.command.clone()) },
        limit: options.timeout.or((!shell).then_some(COMMAND_LIMIT)),
        // virtiofsd changes its own folder.
        out: std::path::absolute(options.out.clone().unwrap_or_else(|| target_dir().join("lab-out")))?,
    };
    stop::on_signals()?;
    let ran = lab.run(&mut std::io::stdout(), &mut std::io::stderr(), &stop::asked);
    if stop::asked() {
        eprintln!("interrupted: the lab is gone");
        return Ok(ExitCode::from(INTERRUPTED));
    }
    ran.map(ExitCode::from)
}

/// The kernel, fetched where it is of a line and not there yet.
fn kernel_named(name: &str) -> Result<Kernel> {
    if let Some(line) = kernel::LINES.into_iter().find(|line| *line == name) {
        setup::ensure(setup::Purpose::Lab(Some(line)))?;
        return kernel::of_line(line);
    }
    let lines = kernel::LINES.join(", ");
    let image = Path::new(name);
    ensure!(image.is_file(), "`{name}` is neither one of {lines} nor a file: name a line or a bzImage");
    setup::ensure(setup::Purpose::Lab(None))?;
    kernel::at(image)
}
