//! A guest that stands still, all of whose RAM was filled from outside with what can be told again: it needs no boot and
//! no KVM, and every byte can be compared.
//!
//! In: the agent that is to find it, a kind of RAM. Out: a stopped guest of 64 MiB. Its RAM is found by itself, not by
//! asking the agent.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use anyhow::{Result, ensure};
use tiering_tests::agent::Agent;
use tiering_tests::guest::{Backend, Guest};
use tiering_tests::observe::{At, PAGE, pagemap};
use tiering_tests::pattern::{Access, Pattern};
use tiering_tests::results::Results;

use crate::host::{Host, known_vm, move_to, runs, wait_for};
use crate::spread::Spread;

const MEMORY_MIB: u32 = 64;

pub struct Still {
    /// `tt-` and what it is there for.
    pub name: String,
    guest: Guest,
    memory: File,
    ram: Range<u64>,
}

impl Still {
    /// A guest called `tt-KIND`. One agent must not meet the same name twice.
    pub fn new(agent: &Agent, kind: &str, backend: Backend) -> Result<Self> {
        let name = format!("tt-{kind}");
        let pattern = Pattern { mem_mib: 16, access: Access::Idle, ..Pattern::default() };
        let guest = Guest::builder(&name).memory_mib(MEMORY_MIB).pattern(pattern).backend(backend).start()?;
        let ram =
            wait_for("the guest to use its RAM", || Ok(guest.ram().ok().filter(|ram| in_use(&guest, ram))))?;
        // As soon as that: its boot and the agent would share one slow processor.
        guest.stop()?;
        let memory = File::options().read(true).write(true).open(format!("/proc/{}/mem", guest.pid()))?;
        let still = Self { name, guest, memory, ram };
        for hva in still.pages() {
            still.memory.write_all_at(&content(hva), hva)?;
        }
        known_vm(agent, &still.name)?;
        // The agent looks at the page tables before it shows a map.
        runs(agent, &still.name)?;
        Ok(still)
    }

    fn pages(&self) -> impl Iterator<Item = u64> + use<> {
        self.ram.clone().step_by(PAGE as usize)
    }

    pub fn all_pages(&self) -> u64 {
        (self.ram.end - self.ram.start) / PAGE
    }

    pub fn spread(&self) -> Result<Spread> {
        Spread::of(self.guest.pid(), &self.ram)
    }

    /// KiB of its RAM in huge pages, by the kernel.
    pub fn huge_kib(&self) -> Result<u64> {
        let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", self.guest.pid()))?;
        let ours = format!("{:x}-", self.ram.start);
        let mapping = smaps.lines().skip_while(|line| !line.starts_with(&ours));
        let field = mapping.into_iter().find_map(|line| line.strip_prefix("AnonHugePages:"));
        Ok(field.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0))
    }

    /// Moves all of it and notes whether it is there, by pagemap: at least 99 of 100 pages.
    pub fn check_move(&self, results: &mut Results, agent: &Agent, host: &Host, tier: &str) -> Result<()> {
        let outcome = move_to(agent, &self.name, tier, &[])?;
        let spread = self.spread()?;
        let there = spread.in_tier(host, tier)?;
        let what = format!("{} to {tier}: pages there", self.name);
        let wanted = format!("99 % of {}", self.all_pages());
        if !results.check(&what, there, &wanted, there * 100 >= self.all_pages() * 99) {
            println!("{spread}; {outcome}");
        }
        Ok(())
    }

    /// Notes whether every page is what it was filled with.
    pub fn check_content(&self, results: &mut Results) -> Result<()> {
        ensure!(self.all_pages() == u64::from(MEMORY_MIB) * 256, "RAM at {:x?}", self.ram);
        let mut page = vec![0; PAGE as usize];
        let mut wrong = 0;
        for hva in self.pages() {
            self.memory.read_exact_at(&mut page, hva)?;
            wrong += u64::from(page != content(hva));
        }
        results.check(&format!("{}: pages whose content changed", self.name), wrong, "0", wrong == 0);
        Ok(())
    }
}

/// Its kernel and more is in memory: QEMU has made all that the RAM needs.
fn in_use(guest: &Guest, ram: &Range<u64>) -> bool {
    let pages = pagemap(guest.pid(), ram.start, (ram.end - ram.start) / PAGE).unwrap_or_default();
    pages.iter().filter(|at| matches!(at, At::Memory { .. })).count() > 1024
}

/// What the page at this address is filled with: no two are equal, and none is all zero.
fn content(hva: u64) -> Vec<u8> {
    (hva | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_ne_bytes().repeat(512)
}
