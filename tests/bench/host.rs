//! What the benchmarks have in common: folders for two swap tiers on this machine's disk, guests that stand still, an
//! agent that moves nothing unless it is told to.

use anyhow::{Context, Result, anyhow, ensure};
use procfs::process::Process;
use serde_json::Value;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tiering_testkit::agent::Agent;
use tiering_testkit::filled::Filled;
use tiering_testkit::guest::{Backend, Guest};
use tiering_testkit::observe::{PAGE, meminfo};
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::scratch::Scratch;
use tiering_testkit::skip::{need_guests, need_root};
use tiering_testkit::stop;

/// Of both tiers, and room to breathe.
const ROOM_BYTES: u64 = 6 << 30;
const LIMIT: Duration = Duration::from_secs(60);
/// Left of what is being written to swap, when the next measurement may begin.
const WRITEBACK_BYTES: u64 = 4 << 20;

/// Gone with everything in it when dropped.
pub struct Host {
    scratch: Scratch,
}

impl Host {
    pub fn new() -> Result<Self> {
        need_root().and_then(|()| need_guests()).map_err(|skip| anyhow!("{skip}"))?;
        let swaps = std::fs::read_to_string("/proc/swaps")?;
        ensure!(
            swaps.lines().count() == 1,
            "swap areas are on, into which pages could go: switch them off with swapoff -a"
        );
        Ok(Self { scratch: Scratch::new(ROOM_BYTES).map_err(|skip| anyhow!("{skip}"))? })
    }

    /// The folder of a swap tier's files.
    pub fn folder(&self, tier: &str) -> PathBuf {
        self.scratch.path().join(tier)
    }

    /// The next agent knows nothing of those before.
    pub fn forget_state(&self) -> Result<()> {
        let folder = self.folder("state");
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
        }
        Ok(())
    }

    /// An agent for dram, nvme and qlc, and the machines called `tt-*` alone. Those called `tt-tagged-*` have a tenant,
    /// so that the content of what goes to swap is hashed; so have leader, follower and those called `tt-mate-*`. It
    /// stages if `prefetch` says so.
    pub fn agent(&self, prefetch: bool) -> Result<Agent> {
        self.agent_that(&format!("enabled = {prefetch}"))
    }

    /// The same, with these lines about staging in its configuration.
    pub fn agent_that(&self, prefetch: &str) -> Result<Agent> {
        self.agent_with(&format!("[prefetch]\n{prefetch}\n"))
    }

    /// The same, with these sections in its configuration.
    pub fn agent_with(&self, sections: &str) -> Result<Agent> {
        self.start(&still_unless_told(sections))
    }

    /// An agent as an operator has it who gives it a folder on the only disk and configures nothing else.
    pub fn agent_by_default(&self) -> Result<Agent> {
        self.agent_by_default_but("")
    }

    /// The same, with these sections in its configuration.
    pub fn agent_by_default_but(&self, sections: &str) -> Result<Agent> {
        self.start_on(&[("nvme", "2GiB")], sections)
    }

    /// As [`agent`](Self::agent), for dram and nvme alone.
    pub fn agent_of_two_tiers(&self, prefetch: bool) -> Result<Agent> {
        self.start_on(&[("nvme", "2GiB")], &still_unless_told(&format!("[prefetch]\nenabled = {prefetch}\n")))
    }

    fn start(&self, sections: &str) -> Result<Agent> {
        self.start_on(&[("nvme", "2GiB"), ("qlc", "3GiB")], sections)
    }

    fn start_on(&self, tiers: &[(&str, &str)], sections: &str) -> Result<Agent> {
        let folder = self.scratch.path().display();
        let tier = |(name, size): &(&str, &str)| {
            format!(
                "[[tier]]\nname = \"{name}\"\nswap = {{ path = \"{folder}/{name}\", size = \"{size}\" }}\n"
            )
        };
        let tiers: String = tiers.iter().map(tier).collect();
        let config = format!(
            r#"
[agent]
state_dir = "{folder}/state"
[[tier]]
name = "dram"
nodes = [0]
{tiers}
{sections}
[[vm]]
match = {{ name = "tt-tagged-*" }}
tenant = "bench"
[[vm]]
match = {{ name = "tt-leader" }}
tenant = "pair"
[[vm]]
match = {{ name = "tt-follower" }}
tenant = "pair"
[[vm]]
match = {{ name = "tt-mate-*" }}
tenant = "pair"
[[vm]]
match = {{ name = "tt-*" }}
[[vm]]
match = {{ name = "*" }}
managed = false
"#
        );
        Agent::start(&config, &[])
    }
}

/// A configuration of these sections by which nothing moves but what is told to.
fn still_unless_told(sections: &str) -> String {
    format!("[policy]\ndemote_after = \"4h\"\npsi_limit = \"100%\"\n{sections}")
}

/// A guest that stands still, its RAM never in huge pages.
pub fn still(name: &str, memory_mib: u32, backend: Backend) -> Result<Filled> {
    let pattern = Pattern { mem_mib: 16, access: Access::Idle, ..Pattern::default() };
    Filled::new(Guest::builder(name).memory_mib(memory_mib).pattern(pattern).backend(backend))
}

/// Waits until the agent has found the guest.
pub fn known(agent: &Agent, guest: &Filled) -> Result<()> {
    known_name(agent, guest.guest().name())
}

/// The same, by name.
pub fn known_name(agent: &Agent, name: &str) -> Result<()> {
    wait_for(&format!("the agent to find {name}"), || {
        let status = agent.status()?;
        let vms = status["vms"].as_array().context("a status without VMs")?;
        Ok(vms.iter().any(|vm| vm["name"] == name && vm["untouched_bytes"] != vm["ram_bytes"]))
    })
}

/// Waits until the agent has noticed that the guest has ended.
pub fn gone(agent: &Agent, name: &str) -> Result<()> {
    wait_for(&format!("the agent to notice that {name} has ended"), || {
        let status = agent.status()?;
        let vms = status["vms"].as_array().context("a status without VMs")?;
        Ok(vms.iter().all(|vm| vm["name"] != name))
    })
}

/// Has the agent look where the guest's pages are now.
pub fn look(agent: &Agent, guest: &Filled) -> Result<()> {
    let start = guest.ram().start;
    let first = format!("{start:#x}..{:#x}", start + PAGE);
    agent.tiering(&["map", guest.guest().name(), "--hva", &first, "--json"]).map(drop)
}

/// What `tiering move` says.
pub fn move_to(agent: &Agent, guest: &Filled, tier: &str) -> Result<Value> {
    let outcome = agent.tiering(&["move", guest.guest().name(), "--to", tier, "--json"])?;
    serde_json::from_str(&outcome).context("the outcome of a move")
}

/// How often a process has waited for a page so far.
pub fn major_faults(pid: u32) -> Result<u64> {
    Ok(Process::new(i32::try_from(pid)?)?.stat()?.majflt)
}

/// CPU time of all threads of a process so far.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = Process::new(i32::try_from(pid)?)?.stat()?;
    Ok((stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64)
}

/// Waits until next to nothing is being written: what was measured before does not slow down what comes.
pub fn disk_at_rest() -> Result<()> {
    wait_for("the disk to be at rest", || Ok(meminfo("Writeback")? < WRITEBACK_BYTES))
}

fn wait_for(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !done()? {
        ensure!(began.elapsed() < LIMIT, "waited {LIMIT:?} for {what}");
        stop::sleep(Duration::from_millis(50))?;
    }
    Ok(())
}
