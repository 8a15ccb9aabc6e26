//! A process that the agent takes for a machine, and that does nothing but fault: to measure what it costs to see a
//! fault, and what comes of more faults than a guest can make.
//!
//! In: at what rate, how many. Out: how long its touches took. It is the calling executable again, under the name of
//! QEMU: that must call [`be_one`] first thing in its `main`.
//!
//! # Limits
//! Every touch is a write to a page that is not there, so that the kernel clears a page for it.

use crate::qemu::QEMU;
use anyhow::{Context, Result, ensure};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
const MEMORY_MIB: usize = 64;
const MEMORY: usize = MEMORY_MIB << 20;
/// With a rate: faults are made in portions, one in this time.
const PORTION: Duration = Duration::from_millis(1);

/// A running one. Ends when it is dropped.
#[derive(Debug)]
pub struct Faulter {
    name: String,
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// What came of an order.
#[derive(Debug, Clone, Copy)]
pub struct Made {
    pub faults: u64,
    /// Of the touches alone.
    pub touching: Duration,
    /// From the first to the last.
    pub elapsed: Duration,
}

impl Made {
    /// A touch with its fault, nanoseconds.
    #[must_use]
    pub fn each_ns(&self) -> f64 {
        self.touching.as_nanos() as f64 / self.faults as f64
    }

    /// Faults a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.faults as f64 / self.elapsed.as_secs_f64()
    }
}

impl Faulter {
    /// Starts one; `folder` is on a file system that this executable can be linked or copied to.
    ///
    /// # Errors
    /// Where that fails.
    pub fn start(name: &str, folder: &Path) -> Result<Self> {
        let program = folder.join(QEMU);
        if !program.exists() {
            let own = std::env::current_exe()?;
            std::fs::copy(&own, &program).with_context(|| format!("copying to {}", program.display()))?;
        }
        let memory = format!("{MEMORY_MIB}M");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(&program);
        command.args(["-name", name, "-machine", "q35,accel=tcg", "-m", &memory]);
        let mut child = command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let orders = child.stdin.take().context("no standard input")?;
        let answers = BufReader::new(child.stdout.take().context("no standard output")?);
        Ok(Self { name: name.to_owned(), child, orders, answers })
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Has it fault so often, at so many a second, or as fast as it can.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn order(&mut self, faults: u64, a_second: Option<u64>) -> Result<()> {
        writeln!(self.orders, "{faults} {}", a_second.unwrap_or(0)).context("the faulter has ended")
    }

    /// Waits until it has done what was ordered.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn done(&mut self) -> Result<Made> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let numbers: Vec<u64> =
            line.split_whitespace().map(str::parse).collect::<Result<_, _>>().context("no answer")?;
        ensure!(numbers.len() == 3, "the faulter says {line:?}");
        let (touching, elapsed) = (Duration::from_nanos(numbers[1]), Duration::from_nanos(numbers[2]));
        Ok(Made { faults: numbers[0], touching, elapsed })
    }
}

impl Drop for Faulter {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Where this process was started as a [`Faulter`], it is one, and does not return.
pub fn be_one() {
    let own = std::env::current_exe().unwrap_or_default();
    if own.file_name().is_none_or(|name| name != QEMU) {
        return;
    }
    let memory = Memory::new();
    let mut next = 0;
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let mut numbers = line.split_whitespace().filter_map(|word| word.parse().ok());
        let (Some(faults), Some(rate)) = (numbers.next(), numbers.next()) else { break };
        let made = make(&memory, &mut next, faults, rate);
        println!("{} {} {}", made.faults, made.touching.as_nanos(), made.elapsed.as_nanos());
    }
    std::process::exit(0);
}

fn make(memory: &Memory, next: &mut usize, faults: u64, rate: u64) -> Made {
    let portion = match rate {
        0 => u64::MAX,
        rate => (rate / 1000).max(1),
    };
    let (began, mut touching, mut left) = (Instant::now(), Duration::ZERO, faults);
    let mut due = began;
    while left > 0 {
        if *next == MEMORY / PAGE {
            memory.empty();
            *next = 0;
        }
        let count = portion.min(left).min((MEMORY / PAGE - *next) as u64);
        let touched = Instant::now();
        for page in *next..*next + count as usize {
            memory.touch(page);
        }
        touching += touched.elapsed();
        *next += count as usize;
        left -= count;
        if rate > 0 {
            due += PORTION.mul_f64(count as f64 * 1000.0 / rate as f64);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
    Made { faults, touching, elapsed: began.elapsed() }
}

/// Marked as QEMU marks guest RAM, never in huge pages.
struct Memory(*mut libc::c_void);

impl Memory {
    fn new() -> Self {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), MEMORY, access, kind, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        let memory = Self(start);
        memory.advise(libc::MADV_DONTFORK);
        memory.advise(libc::MADV_NOHUGEPAGE);
        memory
    }

    fn advise(&self, advice: i32) {
        // SAFETY: all of the mapping, which holds nothing that anybody relies on.
        let failed = unsafe { libc::madvise(self.0, MEMORY, advice) } != 0;
        assert!(!failed, "{}", std::io::Error::last_os_error());
    }

    fn empty(&self) {
        self.advise(libc::MADV_DONTNEED);
    }

    fn touch(&self, page: usize) {
        let byte = self.0.cast::<u8>().wrapping_add(page * PAGE);
        // SAFETY: `page` is below the number of pages of the mapping, which is writable.
        unsafe { byte.write_volatile(1) };
    }
}
