//! QEMU's monitor: a line of JSON each way.
//!
//! In: the socket that QEMU listens on, commands. Out: what it answers. One client at a time.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const ANSWER_LIMIT: Duration = Duration::from_secs(120);

/// A monitor that takes commands.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Qmp {
    /// # Errors
    /// Where nobody listens there, or who does is not QEMU.
    pub fn connect(monitor: &Path) -> Result<Self> {
        let stream =
            UnixStream::connect(monitor).with_context(|| format!("connecting to {}", monitor.display()))?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        let mut qmp = Self { lines: BufReader::new(stream.try_clone()?), stream };
        qmp.answer().context("the greeting")?;
        qmp.run(&json!({"execute": "qmp_capabilities"}))?;
        Ok(qmp)
    }

    /// Runs a command and returns what it returns.
    ///
    /// # Errors
    /// Where QEMU refuses it.
    pub fn run(&mut self, command: &Value) -> Result<Value> {
        self.stream.write_all(format!("{command}\n").as_bytes())?;
        loop {
            let mut answer = self.answer().with_context(|| format!("after {command}"))?;
            ensure!(answer.get("error").is_none(), "{command}: {answer}");
            // All else is an event.
            if let Some(returned) = answer.get_mut("return") {
                return Ok(returned.take());
            }
        }
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        ensure!(self.lines.read_line(&mut line)? > 0, "QEMU hung up");
        serde_json::from_str(&line).with_context(|| format!("no JSON: {line}"))
    }
}
