//! A process that the agent takes for a machine: named like QEMU, with RAM mapped as QEMU maps it, of which it does
//! what it is told. It says how long its own memory calls wait, and gives memory back as a balloon does, which no QEMU
//! does on command.
//!
//! In: how much RAM. Out: answers to orders. [`run`] is the process's side.
//!
//! # Limits
//! Nothing runs in it: its RAM is touched once, half of it densely, of the other half every other page.

use crate::qemu::QEMU;
use anyhow::{Context, Result, ensure};
use std::io::{BufRead as _, BufReader, Write as _};
use std::ops::Range;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
const HUGE: usize = 2 << 20;
/// Mapped, touched and unmapped at a time, as an allocator does.
const SCRATCH: usize = 64 << 10;
/// Between two rounds of that.
const REST: Duration = Duration::from_micros(100);

/// A running one. Ends when it is dropped.
#[derive(Debug)]
pub struct StandIn {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    ram: Range<u64>,
}

/// How long memory calls were blocked: without the time in which they ran, or waited for a processor.
#[derive(Debug, Clone, Copy)]
pub struct Waits {
    /// Rounds of mapping, touching and unmapping.
    pub rounds: u64,
    pub longest: Duration,
}

impl StandIn {
    /// Starts `program`, the one that calls [`run`], under the name of QEMU, and waits until its RAM is touched.
    /// `folder` is on a file system that it can be copied to.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn start(program: &Path, folder: &Path, name: &str, memory_mib: u32) -> Result<Self> {
        let qemu = folder.join(QEMU);
        std::fs::copy(program, &qemu).with_context(|| format!("copying to {}", qemu.display()))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(&qemu);
        command.args(["-name", name, "-machine", "q35,accel=tcg", "-m", &format!("{memory_mib}M")]);
        let mut child = command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let orders = child.stdin.take().context("no standard input")?;
        let answers = BufReader::new(child.stdout.take().context("no standard output")?);
        let mut started = Self { child, orders, answers, ram: 0..0 };
        let ram = started.answer()?;
        ensure!(ram.len() == 2, "the stand-in says {ram:?}");
        started.ram = ram[0]..ram[1];
        Ok(started)
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Addresses of its RAM.
    #[must_use]
    pub fn ram(&self) -> Range<u64> {
        self.ram.clone()
    }

    /// Begins to map, touch and unmap memory, for so long.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn begin_to_map(&mut self, time: Duration) -> Result<()> {
        writeln!(self.orders, "map {}", time.as_millis()).context("the stand-in has ended")
    }

    /// Waits until it has done so.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn waits(&mut self) -> Result<Waits> {
        let numbers = self.answer()?;
        ensure!(numbers.len() == 2, "the stand-in says {numbers:?}");
        Ok(Waits { rounds: numbers[0], longest: Duration::from_nanos(numbers[1]) })
    }

    /// Has it give these bytes of its RAM back, counted from its start.
    ///
    /// # Errors
    /// Where it has ended.
    pub fn give_back(&mut self, bytes: &Range<u64>) -> Result<()> {
        writeln!(self.orders, "give-back {} {}", bytes.start, bytes.end)?;
        self.answer().map(|_| ())
    }

    fn answer(&mut self) -> Result<Vec<u64>> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(!line.is_empty(), "the stand-in has ended");
        line.split_whitespace().map(str::parse).collect::<Result<_, _>>().context("no numbers")
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Is a stand-in, as its command line says.
///
/// # Errors
/// Where it was not started as one, or the kernel refuses something.
pub fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let memory = arguments.windows(2).find(|pair| pair[0] == "-m").context("start it with -m SIZEM")?;
    let mib: usize = memory[1].trim_end_matches('M').parse().context("the size behind -m")?;
    let ram = Mapping::like_qemu(mib << 20)?;
    let start = ram.0.addr();
    println!("{start} {}", start + (mib << 20));
    for line in std::io::stdin().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| words.get(at).and_then(|word| word.parse::<usize>().ok()).unwrap_or(0);
        match words.first().copied() {
            Some("map") => {
                let waits = map_for(Duration::from_millis(number(1) as u64))?;
                println!("{} {}", waits.rounds, waits.longest.as_nanos());
            }
            Some("give-back") => {
                let (first, end) = (number(1), number(2));
                ensure!(first <= end && end <= mib << 20, "RAM ends before {end}");
                ram.advise(first, end - first, libc::MADV_DONTNEED)?;
                println!("0");
            }
            _ => {}
        }
    }
    Ok(())
}

fn map_for(time: Duration) -> Result<Waits> {
    run_at_once();
    let (mut waits, began) = (Waits { rounds: 0, longest: Duration::ZERO }, Instant::now());
    while began.elapsed() < time {
        let (round, used) = (Instant::now(), processor_time()?);
        let scratch = Mapping::new(SCRATCH)?;
        (0..SCRATCH).step_by(PAGE).for_each(|byte| scratch.touch(byte));
        scratch.unmap(SCRATCH)?;
        waits.rounds += 1;
        let (elapsed, used) = (round.elapsed(), processor_time()?.saturating_sub(used));
        waits.longest = waits.longest.max(elapsed.saturating_sub(used));
        std::thread::sleep(REST);
    }
    Ok(waits)
}

/// What this thread has had of a processor, and how long it waited for one though it could have run: the rest of its
/// time it was blocked.
fn processor_time() -> Result<Duration> {
    let mut ran = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one time, which outlives the call.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut ran) } != 0;
    ensure!(!failed, "clock_gettime: {}", std::io::Error::last_os_error());
    let stat =
        std::fs::read_to_string("/proc/thread-self/schedstat").context("this kernel has no schedstat")?;
    let waited = stat.split_whitespace().nth(1).and_then(|ns| ns.parse().ok()).context("schedstat")?;
    Ok(Duration::new(u64::try_from(ran.tv_sec)?, u32::try_from(ran.tv_nsec)?) + Duration::from_nanos(waited))
}

/// Ahead of all others, so that what is measured is not who else has the processor. Not as a real-time thread: with one
/// of those a machine is left alone.
fn run_at_once() {
    // SAFETY: three numbers; 0 is the calling thread. Where it is forbidden, more is measured.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
}

struct Mapping(*mut libc::c_void);

impl Mapping {
    fn new(bytes: usize) -> Result<Self> {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, kind, -1, 0) };
        ensure!(start != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Ok(Self(start))
    }

    /// RAM as `qemu_ram_mmap` makes it (util/mmap-alloc.c, QEMU 7.2): aligned to huge pages, a guard page behind, not
    /// inherited by children. In small pages, each with content of its own.
    fn like_qemu(bytes: usize) -> Result<Self> {
        let whole = Self::new(bytes + 2 * HUGE)?;
        let ram = Self(whole.0.map_addr(|start| start.next_multiple_of(HUGE)));
        let guard = ram.0.wrapping_byte_add(bytes);
        // SAFETY: behind the RAM, within the mapping, which is larger by two huge pages than the RAM.
        let failed = unsafe { libc::mprotect(guard, PAGE, libc::PROT_NONE) } != 0;
        ensure!(!failed, "mprotect: {}", std::io::Error::last_os_error());
        ram.advise(0, bytes, libc::MADV_DONTFORK)?;
        ram.advise(0, bytes, libc::MADV_NOHUGEPAGE)?;
        let dense = (0..bytes / 2).step_by(PAGE);
        dense.chain((bytes / 2..bytes).step_by(2 * PAGE)).for_each(|byte| ram.touch(byte));
        Ok(ram)
    }

    fn advise(&self, first: usize, bytes: usize, advice: i32) -> Result<()> {
        // SAFETY: part of a mapping of ours that holds nothing that anybody relies on.
        let failed = unsafe { libc::madvise(self.0.wrapping_byte_add(first), bytes, advice) } != 0;
        ensure!(!failed, "madvise: {}", std::io::Error::last_os_error());
        Ok(())
    }

    /// Writes a number that no other page has.
    fn touch(&self, byte: usize) {
        // SAFETY: within the mapping, writable, and aligned since `byte` is that of a page.
        unsafe { self.0.wrapping_byte_add(byte).cast::<u64>().write_volatile(byte as u64 | 1) };
    }

    fn unmap(self, bytes: usize) -> Result<()> {
        // SAFETY: the whole mapping, to which nothing refers any more.
        let failed = unsafe { libc::munmap(self.0, bytes) } != 0;
        ensure!(!failed, "munmap: {}", std::io::Error::last_os_error());
        Ok(())
    }
}
