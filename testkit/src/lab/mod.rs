//! The lab: a whole virtual host with a stock Debian kernel, several memory tiers, NVMe disks and a KVM of its own,
//! booted for one command and gone after it.
//!
//! 1. Folders: one in the temporary folder for sockets, console, and the files by which host and lab talk; one below
//!    the target folder for the disks, if there is room.
//! 2. An initramfs of busybox, a few modules and `first.sh`; a script of what is to be done.
//! 3. KVM, if a trial boot with it works, else emulation.
//! 4. One virtiofsd a share: this machine's root, the control files, the folder for results. Then QEMU.
//! 5. The command's output is passed on as it grows, until there is an exit code, a panic, a signal or the time is up.
//!
//! In: a [`Lab`]. Out: the exit code; what went wrong in the lab itself is an error with the end of its console.
//! Processes, disks and folders are gone when it returns.
//!
//! Limits: this machine's root is read-only by the lab's own mount; root in the lab could mount it otherwise. Only
//! what is on the disks goes over QEMU's throttling, and no node is slower than another.

mod files;
mod follow;
mod job;
mod machine;
mod qemu;
mod room;
mod share;
mod spec;
mod verdict;

pub use files::busybox;
pub use job::Job;
pub use share::virtiofsd;
pub use spec::{Disk, Node, NodeKind, Nodes};

use crate::kernel::Kernel;
use crate::lines::{self, Lines};
use anyhow::{Result, bail};
use files::Files;
use follow::Follow;
use machine::{Accel, Console, Machine};
use qemu::Qemu;
use share::Share;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use verdict::{Seen, Verdict, Wrong, verdict};

const TRIAL_WORKS: &str = "lab: the trial boot works";
/// Enough for QEMU to start and a kernel to boot where KVM is real.
const TRIAL_LIMIT: Duration = Duration::from_secs(10);
/// For the lab to switch itself off.
const POWEROFF_LIMIT: Duration = Duration::from_secs(5);
/// Lines of the console in an error: a panic with its trace.
const CONSOLE_TAIL: usize = 60;
/// How often the lab is looked at.
const POLL: Duration = Duration::from_millis(20);

/// A virtual host to be.
#[derive(Debug, Clone)]
pub struct Lab {
    pub kernel: Kernel,
    pub nodes: Nodes,
    pub nvme: Disk,
    pub qlc: Disk,
    /// Processors, at least one; none: one under emulation, else as many as this machine has, at most four.
    pub cpus: Option<u32>,
    pub job: Job,
    /// How long all of it may take.
    pub limit: Option<Duration>,
    /// The folder that the job sees as `$LAB_OUT`. Made if need be; what is there stays.
    pub out: PathBuf,
}

impl Lab {
    /// Boots it, does the job, and returns its exit code. The job's output goes to `stdout` and `stderr` as it
    /// comes; where `stopped` becomes true the lab ends at once. Must be called from a thread that outlives the lab.
    ///
    /// # Errors
    /// Where the lab cannot be started, its kernel panics, it ends without an exit code, the time is up, or it is
    /// stopped.
    pub fn run(
        &self,
        stdout: &mut dyn Write,
        stderr: &mut dyn Write,
        stopped: &dyn Fn() -> bool,
    ) -> Result<u8> {
        let started = Instant::now();
        let files = Files::new(self)?;
        room::check(&self.nodes, &[self.nvme, self.qlc], files.free()?, files.disks())?;
        let mut machine = self.machine(&files);
        machine.accel = trial(&machine, &files)?;
        machine.cpus = self.cpus.unwrap_or_else(|| default_cpus(machine.accel));

        if self.job == Job::Shell {
            machine.console = Console::Terminal(files.console());
        }
        for (serial, disk) in [("tiering-nvme", self.nvme), ("tiering-qlc", self.qlc)] {
            if disk.bytes > 0 {
                machine.disks.push((serial, files.make_disk(serial, disk)?, disk));
            }
        }
        let log = Lines::default();
        let mut shares = Vec::new();
        for (tag, folder) in [("root", Path::new("/")), ("control", &files.control()), ("out", &self.out)] {
            machine.shares.push((tag, files.socket(tag)));
            shares.push(Share::start(folder, &files.socket(tag), &log)?);
        }
        // Declared after what it uses, so dropped before it.
        let mut qemu = Qemu::start(&machine, &log)?;

        let mut output = Follow::new(files.control().join("stdout"));
        let mut errors = Follow::new(files.control().join("stderr"));
        let mut console = String::new();
        let mut console_changed = started;
        loop {
            // In this order: what ended has written all it will, and an exit code comes after all output.
            let ended = qemu.ended()?;
            let code = files.exit_code()?;
            output.pass_on(stdout)?;
            errors.pass_on(stderr)?;
            let text = files.console_text()?;
            if text.len() != console.len() {
                console_changed = Instant::now();
                console = text;
            }
            let seen = Seen {
                code,
                ended,
                console: &console,
                quiet: console_changed.elapsed(),
                lifeless: files.lifeless()?,
                stopped: stopped(),
                elapsed: started.elapsed(),
                limit: self.limit,
            };
            match verdict(seen) {
                Verdict::GoesOn => std::thread::sleep(POLL),
                Verdict::Done(code) => {
                    qemu.wait(POWEROFF_LIMIT)?;
                    return Ok(code);
                }
                Verdict::Wrong(Wrong::Interrupted) => bail!("{}", Wrong::Interrupted),
                Verdict::Wrong(Wrong::Ended) => bail!(
                    "{}; what QEMU and virtiofsd say:\n{}\nthe end of the lab's console:\n{}",
                    Wrong::Ended,
                    lines::tail(&log.text(), CONSOLE_TAIL),
                    lines::tail(&console, CONSOLE_TAIL)
                ),
                Verdict::Wrong(why) => {
                    let tail = lines::tail(&console, CONSOLE_TAIL);
                    let what = format!("{why}; the end of the lab's console:\n{tail}");
                    return Err(anyhow::Error::new(why).context(what));
                }
            }
        }
    }

    /// The bare machine, emulated: no disks, no shares.
    fn machine(&self, files: &Files) -> Machine<'_> {
        Machine {
            accel: Accel::Tcg,
            cpus: 1,
            nodes: &self.nodes,
            disks: Vec::new(),
            shares: Vec::new(),
            kernel: &self.kernel.image,
            initramfs: files.initramfs(),
            console: Console::File(files.console()),
            append: "",
        }
    }
}

/// The lab stood still: nothing that its job did. Under emulation another try may go well.
#[must_use]
pub fn stood_still(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Wrong::Frozen(_)))
}

/// Emulation has one thread for all processors: a second one would only take turns, and KVM guests in the lab do not
/// boot with it (see `machine`).
fn default_cpus(accel: Accel) -> u32 {
    let here = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    match accel {
        Accel::Tcg => 1,
        Accel::Kvm => u32::try_from(here.min(4)).unwrap_or(4),
    }
}

/// KVM, if this very machine boots with it. A trial of its own beside the one for guests: the lab asks for all that the
/// processor can do, which nested KVM may refuse where it takes a plain one.
fn trial(machine: &Machine<'_>, files: &Files) -> Result<Accel> {
    if !Path::new("/dev/kvm").exists() {
        return Ok(Accel::Tcg);
    }
    let machine = Machine { accel: Accel::Kvm, append: "lab.trial", ..machine.clone() };
    let mut qemu = Qemu::start(&machine, &Lines::default())?;
    qemu.wait(TRIAL_LIMIT)?;
    drop(qemu);
    let works = files.console_text()?.contains(TRIAL_WORKS);
    // Nothing of it is to be taken for the lab's.
    std::fs::write(files.console(), "")?;
    Ok(if works { Accel::Kvm } else { Accel::Tcg })
}
