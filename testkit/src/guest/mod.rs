//! A small real guest in QEMU, whose memory behaves as told and can be checked at the end.
//!
//! In: a [`Builder`]. Out: a running [`Guest`]; what went wrong is an error with the end of its console.
//! The guest is killed by pid when it is dropped. It never decides what a test means.

use crate::lines::Lines;
use crate::locate;
use crate::pattern::{Access, GuestResult, PHASE, Pattern, PhaseResult, READY, RESULT};
use crate::program::{PROGRESS, ProgramResult, Progress};
use crate::qemu::{self, Load, Machine};
use crate::stop;
use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

mod builder;
mod snapshot;

pub use crate::qemu::{Accel, Backend};
pub use builder::Builder;
pub use snapshot::Snapshot;

/// The final pass may have to read all memory back from a slow tier, on a busy machine.
const FINISH_LIMIT: Duration = Duration::from_secs(180);
const POWEROFF_LIMIT: Duration = Duration::from_secs(30);
/// Enough for QEMU to start and a kernel to boot, also in the lab, where KVM is emulated.
const KVM_LIMIT: Duration = Duration::from_secs(60);
/// How often a waiting function looks.
const POLL: Duration = Duration::from_millis(20);

/// A running guest.
#[derive(Debug)]
pub struct Guest {
    machine: Machine,
    child: Child,
    /// The guest's serial line, towards it.
    input: ChildStdin,
    console: Lines,
    /// Read by QEMU when it starts; removed with the guest.
    initramfs: Arc<NamedTempFile>,
}

impl Guest {
    /// Starts QEMU for this machine.
    fn launch(machine: Machine, kernel: &Path, initramfs: Arc<NamedTempFile>) -> Result<Self> {
        let mut command = machine.command(kernel, initramfs.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = qemu::spawn(&mut command, machine.backend != Backend::AnonymousSmall)?;
        let console = Lines::default();
        console.read(child.stdout.take().context("the child has no standard output")?);
        console.read(child.stderr.take().context("the child has no standard error")?);
        let input = child.stdin.take().context("the child has no standard input")?;
        Ok(Self { machine, child, input, console, initramfs })
    }

    /// A guest of 256 MiB with anonymous RAM, emulated, of the default pattern.
    #[must_use]
    pub fn builder(name: &str) -> Builder {
        Builder(Machine {
            name: name.to_owned(),
            memory_mib: 256,
            load: Load::Pattern(Pattern::default()),
            backend: Backend::Anonymous,
            accel: Accel::Tcg,
            disk: None,
            monitor: None,
            state: None,
        })
    }

    /// The name that QEMU was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.machine.name
    }

    /// QEMU's pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything the guest and QEMU have said.
    #[must_use]
    pub fn console(&self) -> &Lines {
        &self.console
    }

    /// Fails where the guest is not running any more.
    ///
    /// # Errors
    /// With the reason and the end of the console.
    pub fn check_alive(&mut self) -> Result<()> {
        // After an internal error of KVM QEMU does not end but stands still.
        let fatal = |line: &str| line.contains("Kernel panic") || line.contains("KVM internal error");
        let panic = self.console.find(0, |line| fatal(line).then(|| line.to_owned()));
        let exit = self.child.try_wait().with_context(|| format!("waiting for {}", self.name()))?;
        let what = match (panic, exit) {
            (Some(line), _) => line,
            (None, Some(status)) => format!("QEMU ended: {status}"),
            (None, None) => return Ok(()),
        };
        bail!("guest {}: {what}; the end of its console:\n{}", self.name(), self.console.tail())
    }

    /// All pages are filled and the pattern runs. Does not wait.
    ///
    /// # Errors
    /// Where the guest is not running any more.
    pub fn is_ready(&mut self) -> Result<bool> {
        self.check_alive()?;
        Ok(self.console.find(0, |line| line.contains(READY).then_some(())).is_some())
    }

    /// Waits until the pattern runs.
    ///
    /// # Errors
    /// Where the guest ends, or is not ready in time.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        self.wait("is not ready", limit, |guest| {
            let ready = guest.is_ready()?;
            if !ready && guest.machine.state.is_some() {
                // It said so in its former life. What it is asked before its state is read is lost.
                guest.send("ready")?;
            }
            Ok(ready.then_some(()))
        })
    }

    /// Where its RAM is in QEMU.
    ///
    /// # Errors
    /// Where that cannot be told: QEMU may not have made it yet, so wait until the guest is ready.
    pub fn ram(&self) -> Result<Range<u64>> {
        locate::ram(self.pid(), self.machine.memory_mib)
    }

    /// Tells a guest whose rounds are on command to do one. Does not wait.
    ///
    /// # Errors
    /// Where QEMU does not read.
    pub fn go(&mut self) -> Result<()> {
        self.send("go")
    }

    /// Waits for the phase of this number, from 1, and returns what the guest says of it.
    ///
    /// # Errors
    /// Where the guest ends, prints nonsense, or the phase has not ended in time.
    pub fn wait_phase(&mut self, number: u64, limit: Duration) -> Result<PhaseResult> {
        let phase = |guest: &mut Self| {
            let phase = guest.phases()?.into_iter().find(|phase| phase.number == number);
            // What a guest said before its end counts.
            if phase.is_none() { guest.check_alive().map(|()| None) } else { Ok(phase) }
        };
        self.wait(&format!("has not ended phase {number}"), limit, phase)
    }

    /// All phases that have ended so far. Does not wait.
    ///
    /// # Errors
    /// Where the guest prints nonsense.
    pub fn phases(&self) -> Result<Vec<PhaseResult>> {
        self.told(PHASE)
    }

    /// Tells the guest to stop the pattern and verify all its memory. Does not wait.
    ///
    /// # Errors
    /// Where QEMU does not read.
    pub fn send_finish(&mut self) -> Result<()> {
        self.send("finish")
    }

    /// The result, when it is there. Does not wait.
    ///
    /// # Errors
    /// Where the guest is not running any more, or prints nonsense.
    pub fn result(&mut self) -> Result<Option<GuestResult>> {
        let json = self.console.find(0, |line| Some(line.split_once(RESULT)?.1.to_owned()));
        match json {
            Some(json) => serde_json::from_str(&json).map(Some).with_context(|| format!("the result {json}")),
            None => self.check_alive().map(|()| None),
        }
    }

    /// Stops the pattern, verifies all memory, and returns what the guest found. The guest then waits.
    ///
    /// # Errors
    /// Where the guest ends or takes more than three minutes.
    pub fn finish(&mut self) -> Result<GuestResult> {
        self.send_finish()?;
        self.wait("has not finished", FINISH_LIMIT, Self::result)
    }

    /// All that a program has told of itself so far. Does not wait.
    ///
    /// # Errors
    /// Where the guest prints nonsense.
    pub fn progress(&self) -> Result<Vec<Progress>> {
        self.told(PROGRESS)
    }

    /// Waits for the progress of this number, from 1.
    ///
    /// # Errors
    /// Where the guest ends, prints nonsense, or its program has not come that far in time.
    pub fn wait_progress(&mut self, number: u64, limit: Duration) -> Result<Progress> {
        self.wait(&format!("has made no progress {number}"), limit, |guest| {
            guest.check_alive()?;
            Ok(guest.progress()?.into_iter().find(|progress| progress.number == number))
        })
    }

    /// Ends the program when its round is done, and returns what became of it and its data. The guest then waits.
    ///
    /// # Errors
    /// Where the guest ends or takes more than three minutes.
    pub fn finish_program(&mut self) -> Result<ProgramResult> {
        self.send_finish()?;
        self.wait("has not finished", FINISH_LIMIT, |guest| {
            guest.check_alive()?;
            Ok(guest.told(RESULT)?.pop())
        })
    }

    /// Stops all threads of QEMU: the guest holds its breath.
    ///
    /// # Errors
    /// Where there is no such process any more.
    pub fn stop(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Undoes [`Guest::stop`].
    ///
    /// # Errors
    /// Where there is no such process any more.
    pub fn cont(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Ends QEMU at once, as a crash would.
    pub fn kill(&mut self) {
        // An error means that it has ended and was waited for: what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Switches the guest off and waits for QEMU's end.
    ///
    /// # Errors
    /// Where it does not end in half a minute; it is killed then.
    pub fn poweroff(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        self.send("poweroff")?;
        let started = Instant::now();
        while self.child.try_wait()?.is_none() {
            if started.elapsed() > POWEROFF_LIMIT {
                self.kill();
                bail!(
                    "guest {} did not switch off; the end of its console:\n{}",
                    self.name(),
                    self.console.tail()
                );
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// The JSON of all lines with this mark.
    fn told<T: DeserializeOwned>(&self, mark: &str) -> Result<Vec<T>> {
        let text = self.console.text();
        let lines = text.lines().filter_map(|line| Some(line.split_once(mark)?.1));
        lines.map(|json| serde_json::from_str(json).with_context(|| format!("{mark}{json}"))).collect()
    }

    fn send(&mut self, command: &str) -> Result<()> {
        let sent = self.input.write_all(format!("{command}\n").as_bytes()).and_then(|()| self.input.flush());
        sent.with_context(|| format!("sending {command} to guest {}", self.name()))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid())?);
        kill(pid, signal).with_context(|| format!("{signal} to guest {}", self.name()))
    }

    fn wait<T>(
        &mut self,
        what: &str,
        limit: Duration,
        look: impl Fn(&mut Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let started = Instant::now();
        loop {
            if let Some(value) = look(self)? {
                return Ok(value);
            }
            if started.elapsed() > limit {
                let tail = self.console.tail();
                bail!("guest {} {what} after {limit:?}; the end of its console:\n{tail}", self.name());
            }
            stop::sleep(POLL)?;
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
        if let Some(monitor) = &self.machine.monitor {
            std::fs::remove_file(monitor).ok();
        }
    }
}

/// Whether a KVM guest boots here: /dev/kvm alone says little where KVM is nested. Asked once a process.
///
/// # Errors
/// Why it does not.
pub fn kvm_works() -> Result<()> {
    static ANSWER: OnceLock<Result<(), String>> = OnceLock::new();
    let boot = || {
        let pattern = Pattern { mem_mib: 8, access: Access::Idle, ..Pattern::default() };
        let small = Guest::builder("kvm-check").memory_mib(128).pattern(pattern).accel(Accel::Kvm);
        small.start()?.wait_ready(KVM_LIMIT)
    };
    let answer = ANSWER.get_or_init(|| boot().map_err(|error| format!("{error:#}")));
    answer.clone().map_err(|error| anyhow!("KVM guests do not work here: {error}"))
}
