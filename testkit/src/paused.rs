//! A virtual machine of any command line that never runs: for tests of what the host sees of it.
//!
//! In: QEMU's options. Out: a process with the machine's memory mapped and its processors stopped. What is in its
//! memory is written and read from the outside, at guest-physical addresses that QEMU itself translates.

use crate::observe::PAGE;
use crate::qemu::QEMU;
use crate::qmp::Qmp;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::{NamedTempFile, TempDir};

const START_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// The machine; killed when dropped.
#[derive(Debug)]
pub struct Paused {
    child: Child,
    qmp: Qmp,
    _folder: TempDir,
}

impl Paused {
    /// Starts QEMU with these options, paused and with a monitor, from a thread that must live as long as it.
    ///
    /// # Errors
    /// With what QEMU says, where it does not start.
    pub fn start(options: &[impl AsRef<str>]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("tiering-paused-").tempdir()?;
        let (monitor, errors) = (folder.path().join("qmp"), NamedTempFile::new_in(folder.path())?);
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", QEMU, "-S", "-nodefaults", "-display", "none"]);
        command.args(options.iter().map(AsRef::as_ref));
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", monitor.display()));
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors.reopen()?);
        let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        let began = Instant::now();
        loop {
            if let Ok(qmp) = Qmp::connect(&monitor) {
                return Ok(Self { child, qmp, _folder: folder });
            }
            if child.try_wait()?.is_some() || began.elapsed() > START_LIMIT {
                child.kill().ok();
                child.wait().ok();
                bail!("{command:?}: {}", std::fs::read_to_string(errors.path())?);
            }
            std::thread::sleep(POLL);
        }
    }

    /// QEMU's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Runs a command of the monitor.
    ///
    /// # Errors
    /// Where QEMU refuses it.
    pub fn run(&mut self, execute: &str, arguments: &Value) -> Result<Value> {
        self.qmp.run(&json!({"execute": execute, "arguments": arguments}))
    }

    /// The address in the process of a guest-physical one, by QEMU.
    ///
    /// # Errors
    /// Where the guest has no RAM there.
    pub fn hva(&mut self, gpa: u64) -> Result<u64> {
        let line = format!("gpa2hva {gpa:#x}");
        let answer = self.run("human-monitor-command", &json!({"command-line": line}))?;
        let text = answer.as_str().unwrap_or_default().trim();
        let hva = text.rsplit_once("0x").filter(|_| text.starts_with("Host virtual address"));
        let (_, hva) = hva.with_context(|| format!("{line}: {text}"))?;
        Ok(u64::from_str_radix(hva, 16)?)
    }

    /// Fills pages from a guest-physical address on; no two are equal.
    ///
    /// # Errors
    /// Where the process cannot be written to.
    pub fn fill(&mut self, gpa: u64, pages: u64) -> Result<()> {
        let (memory, hva) = (self.memory()?, self.hva(gpa)?);
        (0..pages).try_for_each(|page| Ok(memory.write_all_at(&content(gpa, page), hva + page * PAGE)?))
    }

    /// Whether pages are as they were filled.
    ///
    /// # Errors
    /// Where the process cannot be read, or a page is another one.
    pub fn check(&mut self, gpa: u64, pages: u64) -> Result<()> {
        let (memory, hva) = (self.memory()?, self.hva(gpa)?);
        for page in 0..pages {
            let mut found = vec![0; usize::try_from(PAGE)?];
            memory.read_exact_at(&mut found, hva + page * PAGE)?;
            ensure!(found == content(gpa, page), "page {page} from {gpa:#x} on has changed");
        }
        Ok(())
    }

    fn memory(&self) -> Result<File> {
        let path = format!("/proc/{}/mem", self.pid());
        File::options().read(true).write(true).open(&path).with_context(|| format!("opening {path}"))
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        // An error means that it has ended.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn content(gpa: u64, page: u64) -> Vec<u8> {
    let seed = (gpa + page * PAGE + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..PAGE / 8).flat_map(|word| (seed ^ word).wrapping_mul(0xbf58_476d_1ce4_e5b9).to_le_bytes()).collect()
}
