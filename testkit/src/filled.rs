//! A guest that stands still, all of whose RAM was filled from outside with what can be told again: it needs no boot
//! and no KVM, and every byte can be compared.
//!
//! In: a guest to be, emulated. Out: a stopped guest. Its RAM is found by itself, not by asking an agent.
//!
//! Limits: what is written and read goes through /proc/PID/mem, which brings back what is in swap and is no access that
//! the agent sees.

use crate::guest::{Builder, Guest};
use crate::observe::{At, PAGE, pagemap};
use crate::stop;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

/// QEMU has loaded the kernel by then, also on a slow machine.
const START_LIMIT: Duration = Duration::from_secs(150);
const POLL: Duration = Duration::from_millis(200);

/// The guest, stopped. Ends when it is dropped.
#[derive(Debug)]
pub struct Filled {
    guest: Guest,
    memory: File,
    ram: Range<u64>,
}

impl Filled {
    /// Starts the guest, stops it before its boot, and fills its RAM.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn new(builder: Builder) -> Result<Self> {
        Self::placed(builder, |_| Ok(()))
    }

    /// The same, with something done to its process as soon as that is there.
    ///
    /// # Errors
    /// Where it does not start, or that fails.
    pub fn placed(builder: Builder, place: impl FnOnce(u32) -> Result<()>) -> Result<Self> {
        let mut guest = builder.start()?;
        place(guest.pid())?;
        let began = Instant::now();
        let ram = loop {
            if let Some(ram) = guest.ram().ok().filter(|ram| in_use(&guest, ram)) {
                break ram;
            }
            guest.check_alive()?;
            if began.elapsed() > START_LIMIT {
                bail!("guest {} does not use its RAM after {START_LIMIT:?}", guest.name());
            }
            stop::sleep(POLL)?;
        };
        // As soon as that: its boot and the agent would share one slow processor.
        guest.stop()?;
        let memory = File::options().read(true).write(true).open(format!("/proc/{}/mem", guest.pid()))?;
        let filled = Self { guest, memory, ram };
        filled.fill(0)?;
        Ok(filled)
    }

    #[must_use]
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Where its RAM is in QEMU.
    #[must_use]
    pub fn ram(&self) -> Range<u64> {
        self.ram.clone()
    }

    /// The addresses of its pages.
    pub fn pages(&self) -> impl Iterator<Item = u64> + use<> {
        self.ram.clone().step_by(PAGE as usize)
    }

    #[must_use]
    pub fn all_pages(&self) -> u64 {
        (self.ram.end - self.ram.start) / PAGE
    }

    /// Writes all of it, which brings it to memory and gives up the slots it had in swap.
    ///
    /// # Errors
    /// Where the process has ended.
    pub fn fill(&self, version: u64) -> Result<()> {
        const STEP: u64 = 512 * PAGE;
        let mut bytes = Vec::new();
        for start in self.ram.clone().step_by(STEP as usize) {
            bytes.clear();
            let end = (start + STEP).min(self.ram.end);
            (start..end).step_by(PAGE as usize).for_each(|hva| bytes.extend(content(hva, version)));
            self.memory.write_all_at(&bytes, start).context("filling a guest's RAM")?;
        }
        Ok(())
    }

    /// Pages that are not what they were filled with last.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn changed_pages(&self, version: u64) -> Result<u64> {
        let mut page = vec![0; PAGE as usize];
        let mut wrong = 0;
        for hva in self.pages() {
            self.memory.read_exact_at(&mut page, hva).with_context(|| format!("reading page {hva:#x}"))?;
            wrong += u64::from(page != content(hva, version));
        }
        Ok(wrong)
    }

    /// Reads one page.
    ///
    /// # Errors
    /// Where the kernel cannot give it: it is lost.
    pub fn page_is_right(&self, hva: u64, version: u64) -> Result<bool> {
        let mut page = vec![0; PAGE as usize];
        self.memory.read_exact_at(&mut page, hva).with_context(|| format!("reading page {hva:#x}"))?;
        Ok(page == content(hva, version))
    }

    /// A field of what the kernel says of the mapping of its RAM (/proc/PID/smaps), KiB.
    ///
    /// # Errors
    /// Where the process has ended.
    pub fn smaps_kib(&self, field: &str) -> Result<u64> {
        let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", self.guest.pid()))?;
        let ours = format!("{:x}-", self.ram.start);
        let mapping = smaps.lines().skip_while(|line| !line.starts_with(&ours));
        let value = mapping.into_iter().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        Ok(value.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0))
    }
}

/// Its kernel and more is in memory: QEMU has made all that the RAM needs.
fn in_use(guest: &Guest, ram: &Range<u64>) -> bool {
    let pages = pagemap(guest.pid(), ram.start, (ram.end - ram.start) / PAGE).unwrap_or_default();
    pages.iter().filter(|at| matches!(at, At::Memory { .. })).count() > 1024
}

/// What the page at this address is filled with: no two are equal, and none is all zero.
fn content(hva: u64, version: u64) -> Vec<u8> {
    ((hva + 2 * version) | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_ne_bytes().repeat(512)
}
