//! A guest that stands still ([`Filled`]), and an agent that knows it.
//!
//! In: the agent that is to find it, a kind of RAM. Out: a stopped guest of 64 MiB.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use tiering_testkit::agent::Agent;
use tiering_testkit::filled::Filled;
use tiering_testkit::guest::{Backend, Guest};
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::results::Results;

use crate::host::{Host, Memcg, known_vm, move_to, runs};
use crate::spread::Spread;

const MEMORY_MIB: u32 = 64;

pub struct Still {
    /// `tt-` and what it is there for.
    pub name: String,
    pub filled: Filled,
}

impl Still {
    /// A guest called `tt-KIND`. One agent must not meet the same name twice.
    pub fn new(agent: &Agent, kind: &str, backend: Backend) -> Result<Self> {
        Self::started(agent, kind, backend, |_| Ok(()))
    }

    /// The same in a control group of its own, with these limits from the start.
    pub fn in_group(agent: &Agent, kind: &str, limits: &[(&str, u64)]) -> Result<(Self, Memcg)> {
        let mut group = None;
        let still = Self::started(agent, kind, Backend::AnonymousSmall, |pid| {
            let made = Memcg::of(&format!("tt-{kind}"), pid)?;
            for (file, bytes) in limits {
                made.set(file, bytes)?;
            }
            group = Some(made);
            Ok(())
        })?;
        Ok((still, group.context("no group was made")?))
    }

    fn started(
        agent: &Agent,
        kind: &str,
        backend: Backend,
        and_then: impl FnOnce(u32) -> Result<()>,
    ) -> Result<Self> {
        let name = format!("tt-{kind}");
        let pattern = Pattern { mem_mib: 16, access: Access::Idle, ..Pattern::default() };
        let guest = Guest::builder(&name).memory_mib(MEMORY_MIB).pattern(pattern).backend(backend);
        let still = Self { name, filled: Filled::placed(guest, and_then)? };
        known_vm(agent, &still.name)?;
        // The agent looks at the page tables before it shows a map.
        runs(agent, &still.name)?;
        Ok(still)
    }

    pub fn all_pages(&self) -> u64 {
        self.filled.all_pages()
    }

    pub fn spread(&self) -> Result<Spread> {
        Spread::of(self.filled.guest().pid(), &self.filled.ram())
    }

    /// KiB of its RAM in huge pages, by the kernel.
    pub fn huge_kib(&self) -> Result<u64> {
        self.filled.smaps_kib("AnonHugePages")
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

    /// The memory policies that the kernel shows for its RAM, if that is shared, such as `default` and `prefer
    /// (many):1`.
    pub fn policies(&self) -> Result<Vec<String>> {
        let maps = std::fs::read_to_string(format!("/proc/{}/numa_maps", self.filled.guest().pid()))?;
        let ram = self.filled.ram();
        let parts = maps.lines().filter_map(|line| {
            let (start, rest) = line.split_once(' ')?;
            let ours = ram.contains(&u64::from_str_radix(start, 16).ok()?);
            ours.then(|| rest.split(" file=").next().unwrap_or(rest).to_owned())
        });
        let policies: BTreeSet<String> = parts.collect();
        Ok(policies.into_iter().collect())
    }

    /// Notes whether every page is what it was filled with.
    pub fn check_content(&self, results: &mut Results) -> Result<()> {
        ensure!(self.all_pages() == u64::from(MEMORY_MIB) * 256, "RAM at {:x?}", self.filled.ram());
        let wrong = self.filled.changed_pages(0)?;
        results.check(&format!("{}: pages whose content changed", self.name), wrong, "0", wrong == 0);
        Ok(())
    }
}
