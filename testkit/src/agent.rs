//! The agent as a process: started, asked, stopped, as a user would.
//!
//! In: a configuration. Out: what `tiering status --json` says, and at the end its exit code and log.
//! Dropping it interrupts it, so that it brings everything back, and kills it only if it does not end.

use crate::lines::Lines;
use crate::paths;
use crate::stop;
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Loading BPF and making swap files takes seconds on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Bringing gigabytes back from swap takes its time.
const STOP_LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    binary: PathBuf,
    config: tempfile::NamedTempFile,
    child: Child,
    log: Lines,
}

/// How an agent ended.
#[derive(Debug)]
pub struct Ended {
    /// None where a signal ended it.
    pub code: Option<i32>,
    /// Everything it wrote to its standard output and standard error.
    pub log: String,
}

impl Agent {
    /// Starts `tiering run --config FILE ARGS` and waits until its status can be read.
    ///
    /// # Errors
    /// With the agent's log, where it ends or does not answer within a minute.
    pub fn start(config: &str, args: &[&str]) -> Result<Self> {
        let mut agent = Self::spawn(&paths::tiering_bin()?, config, args)?;
        let started = Instant::now();
        while !agent.is_ready()? {
            if started.elapsed() > START_LIMIT {
                bail!(
                    "the agent does not answer after {START_LIMIT:?}; the end of its log:\n{}",
                    agent.log.tail()
                );
            }
            stop::sleep(POLL)?;
        }
        Ok(agent)
    }

    /// Starts `binary`, from a thread that must live as long as the agent, and does not wait.
    ///
    /// # Errors
    /// Where it cannot be executed.
    pub fn spawn(binary: &Path, config: &str, args: &[impl AsRef<OsStr>]) -> Result<Self> {
        let mut file = tempfile::Builder::new().prefix("tiering-config-").suffix(".toml").tempfile()?;
        file.write_all(config.as_bytes())?;
        // In a process group of its own, so that a Ctrl-C is its owner's to pass on; interrupted where its owner dies.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "INT"]).arg(binary).args(["run", "--config"]).arg(file.path());
        command
            .args(args)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        let log = Lines::default();
        log.read(child.stdout.take().context("the child has no standard output")?);
        log.read(child.stderr.take().context("the child has no standard error")?);
        Ok(Self { binary: binary.to_path_buf(), config: file, child, log })
    }

    /// The agent answers. Does not wait.
    ///
    /// # Errors
    /// With its log, where it has ended.
    pub fn is_ready(&mut self) -> Result<bool> {
        self.check_alive()?;
        Ok(self.status().is_ok())
    }

    /// Fails where the agent has ended.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn check_alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the agent ended: {status}; the end of its log:\n{}", self.log.tail());
        }
        Ok(())
    }

    /// What `tiering status --json` prints.
    ///
    /// # Errors
    /// Where the agent does not answer.
    pub fn status(&self) -> Result<Value> {
        let output = self.tiering(&["status", "--json"])?;
        serde_json::from_str(&output).with_context(|| format!("the status is no JSON: {output}"))
    }

    /// What another command prints, asked of this agent.
    ///
    /// # Errors
    /// Where the command fails, with what it says.
    pub fn tiering(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.binary);
        command.args(args).arg("--config").arg(self.config.path());
        let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?}: {}: {}", output.status, errors.trim());
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The agent's pid.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far.
    #[must_use]
    pub fn log(&self) -> &Lines {
        &self.log
    }

    /// Sends SIGINT and waits for the end.
    ///
    /// # Errors
    /// Where it does not end within two minutes; it is killed then.
    pub fn interrupt(mut self) -> Result<Ended> {
        let status = self.stop()?;
        // The pipes end with the process; the threads that read them may be a moment behind.
        while !self.log.ended() {
            std::thread::sleep(POLL);
        }
        Ok(Ended { code: status.code(), log: self.log.text() })
    }

    /// Ends it as a crash would: nothing is brought back.
    pub fn kill9(&mut self) {
        // An error means that it has ended and was waited for: what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        kill(Pid::from_raw(i32::try_from(self.pid())?), Signal::SIGINT).context("interrupting the agent")?;
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if started.elapsed() > STOP_LIMIT {
                self.kill9();
                bail!(
                    "the agent did not end {STOP_LIMIT:?} after SIGINT; the end of its log:\n{}",
                    self.log.tail()
                );
            }
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.stop().is_err() {
            self.kill9();
        }
    }
}
