//! A guest at work, alone in a memory control group: what it does, what of its RAM is free, how often it waited.

use crate::group::Group;
use crate::host::{cpu_seconds, major_faults};
use anyhow::Result;
use std::time::Duration;
use tiering_testkit::guest::{Backend, Guest};
use tiering_testkit::observe::{PAGE, mapped_and_swapped};
use tiering_testkit::pattern::Pattern;
use tiering_testkit::program::Program;

/// Some guests boot at once, emulated, and their programs make their data.
const BOOT: Duration = Duration::from_secs(240);

/// What a guest does.
#[derive(Clone)]
pub enum Load {
    Pattern(Pattern),
    Program(Program),
}

pub struct Vm {
    pub guest: Guest,
    pub group: Group,
    /// Short, in rows.
    pub label: &'static str,
    load: Load,
}

/// What a guest has done from one moment of its clock to another.
#[derive(Clone, Copy)]
pub struct Done {
    pub count: u64,
    pub start_ns: u64,
    pub end_ns: u64,
    pub p99_ns: Option<u64>,
}

impl Vm {
    /// Does not wait until it has booted.
    pub fn start(label: &'static str, memory_mib: u32, load: Load) -> Result<Self> {
        let name = format!("tt-savings-{label}");
        let builder = Guest::builder(&name).memory_mib(memory_mib).backend(Backend::AnonymousSmall);
        let guest = match &load {
            Load::Pattern(pattern) => builder.pattern(pattern.clone()).start()?,
            Load::Program(program) => builder.program(*program).start()?,
        };
        // Before it has memory: pages are charged to whoever has them first.
        let group = Group::of(&name, guest.pid())?;
        Ok(Self { guest, group, label, load })
    }

    pub fn wait_ready(&mut self) -> Result<()> {
        self.guest.wait_ready(BOOT)
    }

    /// All that it has told so far.
    pub fn done(&self) -> Result<Vec<Done>> {
        Ok(match self.load {
            Load::Pattern(_) => {
                let phases = self.guest.phases()?.into_iter();
                let done = phases.map(|phase| Done {
                    count: phase.touches,
                    start_ns: phase.start_ns,
                    end_ns: phase.end_ns,
                    p99_ns: Some(phase.p99),
                });
                done.collect()
            }
            Load::Program(_) => {
                let told = self.guest.progress()?.into_iter();
                let done = told.map(|progress| Done {
                    count: progress.operations,
                    start_ns: progress.start_ns,
                    end_ns: progress.end_ns,
                    p99_ns: None,
                });
                done.collect()
            }
        })
    }

    /// Ends its work; whether all its memory and data are right.
    pub fn finish(&mut self) -> Result<bool> {
        Ok(match self.load {
            Load::Pattern(_) => self.guest.finish()?.checksum_ok,
            Load::Program(_) => self.guest.finish_program()?.data_ok,
        })
    }

    /// Of its RAM: what it has ever touched, and what of that is in swap, copies in memory or not.
    pub fn touched_and_swapped_bytes(&self) -> Result<(u64, u64)> {
        let (mapped, swapped) = mapped_and_swapped(self.guest.pid(), &self.guest.ram()?)?;
        Ok(((mapped + swapped) * PAGE, swapped * PAGE))
    }

    /// Of its RAM, in swap and not in memory. Copies of QEMU's other memory count against it.
    pub fn free_bytes(&self) -> Result<u64> {
        let (_, swapped) = self.touched_and_swapped_bytes()?;
        Ok(swapped.saturating_sub(self.group.copies_bytes()?))
    }

    pub fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(self.guest.pid())
    }

    pub fn major_faults(&self) -> Result<u64> {
        major_faults(self.guest.pid())
    }
}
