//! The init of a test guest: fills memory, touches it by a pattern, checks that no page ever changes by itself; or runs
//! a real program.
//!
//! In: the pattern or program on the kernel command line, commands on the serial console. Out: a few lines there. They
//! are described in `tiering_testkit::pattern` and `tiering_testkit::program`. It runs as process 1 and does not
//! return: it switches the machine off. To be linked statically, since it is alone in its initramfs (`cargo xtask
//! build` does).

mod disk;
mod histogram;
mod memory;
mod pace;
mod phase;
mod program;
mod sys;
mod walker;

use anyhow::{Context, Result};
use std::io::BufRead;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use tiering_testkit::pattern::{DISK_PATH, MODULES_PATH, PHASE, Pattern, READY, RESULT};
use tiering_testkit::program::Program;
use walker::Walker;

fn main() {
    if std::process::id() != 1 {
        eprintln!("tiering-guest is the init of a test guest: `cargo xtask run --demo` boots some");
        std::process::exit(64);
    }
    if let Err(error) = run() {
        println!("tg: {error:#}");
    }
    sys::power_off();
}

fn run() -> Result<()> {
    sys::mount("proc", Path::new("/proc"))?;
    let cmdline = std::fs::read_to_string("/proc/cmdline").context("reading the command line")?;
    if let Some(program) = Program::from_cmdline(&cmdline)? {
        prepare_disk()?;
        sys::enter_disk(Path::new(DISK_PATH))?;
        return program::run(program, &console());
    }
    walk(&Pattern::from_cmdline(&cmdline)?)
}

fn prepare_disk() -> Result<()> {
    sys::mount("devtmpfs", Path::new("/dev"))?;
    disk::load_modules(&Path::new("/").join(MODULES_PATH))
}

/// Walks the memory, until it is told to switch off.
fn walk(pattern: &Pattern) -> Result<()> {
    if pattern.on_disk {
        prepare_disk()?;
    }
    let mut walker = Walker::new(pattern)?;
    let commands = console();
    println!("{READY}");
    loop {
        let step = walker.step(&sys::now);
        if let Some(phase) = step.phase {
            println!("{PHASE}{}", serde_json::to_string(&phase)?);
        }
        match commands.recv_timeout(step.pause) {
            Ok(command) if command == "go" => walker.go(),
            Ok(command) if command == "ready" => println!("{READY}"),
            Ok(command) if command == "poweroff" => return Ok(()),
            Ok(command) if command == "finish" => break,
            Ok(command) => println!("tg: unknown command {command}"),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
    let result = serde_json::to_string(&walker.finish())?;
    println!("{RESULT}{result}");
    while commands.recv().is_ok_and(|command| command != "poweroff") {}
    Ok(())
}

/// Reads the console's lines in a thread, so that the pattern does not wait for them.
fn console() -> Receiver<String> {
    let (lines, received) = channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if lines.send(line.trim().to_owned()).is_err() {
                return;
            }
        }
    });
    received
}
