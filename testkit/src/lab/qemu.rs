//! QEMU as the lab's process, and the terminal that it may use meanwhile.

use super::machine::{Console, Machine};
use crate::lines::Lines;
use anyhow::{Context, Result};
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(20);

/// A running QEMU. Killed when dropped, and the terminal is as it was.
pub struct Qemu {
    child: Child,
    /// QEMU switches the terminal to single keys without echo, and cannot undo that when it is killed.
    terminal: Option<Termios>,
}

impl Qemu {
    /// Starts the machine; what QEMU itself has to say goes to `log`.
    pub fn start(machine: &Machine<'_>, log: &Lines) -> Result<Self> {
        let mut command = machine.command();
        let terminal = match machine.console {
            Console::Terminal(_) => {
                Some(tcgetattr(std::io::stdin()).context("a shell in the lab needs a terminal")?)
            }
            Console::File(_) => {
                command.stdin(Stdio::null()).stdout(Stdio::null());
                None
            }
        };
        command.stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        log.read(child.stderr.take().context("the child has no standard error")?);
        Ok(Self { child, terminal })
    }

    pub fn ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits for a machine that is switching itself off; one that does not is killed when this is dropped.
    pub fn wait(&mut self, limit: Duration) -> Result<()> {
        let started = Instant::now();
        while !self.ended()? && started.elapsed() < limit {
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // An error means that it has ended and was waited for: what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(terminal) = &self.terminal {
            // A terminal that is gone needs no care.
            let _ = tcsetattr(std::io::stdin(), SetArg::TCSANOW, terminal);
        }
    }
}
