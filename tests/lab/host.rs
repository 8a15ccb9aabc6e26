//! The lab from inside: its disks as folders for tiers, guests, the agent.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::{Accel, Backend, Builder, Guest};
use tiering_testkit::results::Results;
use tiering_testkit::scratch::swap_areas_below;

/// A nested guest in an emulated lab takes 10 s on a machine at rest.
pub const BOOT: Duration = Duration::from_secs(90);
/// What outlives an agent.
pub const STATE_DIR: &str = "/run/tiering-state";
const MOST: Duration = Duration::from_secs(150);

/// The disks of the lab, mounted; each has a folder for a tier's swap files.
pub struct Host {
    root: PathBuf,
}

impl Host {
    /// Makes file systems on both disks.
    pub fn new() -> Result<Self> {
        Self::with_qlc("/dev/disk/by-id/tiering-qlc")
    }

    /// The same with another device for qlc. Without a journal, which a disk that refuses writes would end for good.
    pub fn with_qlc(qlc: &str) -> Result<Self> {
        let root = PathBuf::from("/run/tiers");
        for (disk, device) in [("nvme", "/dev/disk/by-id/tiering-nvme"), ("qlc", qlc)] {
            let folder = root.join(disk);
            std::fs::create_dir_all(&folder)?;
            shell(&format!("mkfs.ext4 -q -O ^has_journal {device} && mount {device} {}", folder.display()))?;
        }
        Ok(Self { root })
    }

    /// The folder of a swap tier's files.
    pub fn folder(&self, tier: &str) -> PathBuf {
        self.root.join(tier).join("swap")
    }

    /// A configuration of nothing but the ladder: dram, cxl (where the lab has two nodes), nvme, qlc.
    pub fn ladder(&self) -> String {
        let cxl = if Path::new("/sys/devices/system/node/node1").exists() {
            "[[tier]]\nname = \"cxl\"\nnodes = [1]\n"
        } else {
            ""
        };
        let (nvme, qlc) = (self.folder("nvme"), self.folder("qlc"));
        format!(
            r#"[agent]
state_dir = "{STATE_DIR}"
[[tier]]
name = "dram"
nodes = [0]
{cxl}[[tier]]
name = "nvme"
swap = {{ path = "{}", size = "256MiB" }}
[[tier]]
name = "qlc"
swap = {{ path = "{}", size = "384MiB" }}
"#,
            nvme.display(),
            qlc.display()
        )
    }

    /// The same with brakes that do not hold in an emulated lab; guests called `tt-*` are of one tenant.
    pub fn config(&self, demote_after: &str) -> String {
        format!(
            r#"{}[policy]
demote_after = "{demote_after}"
psi_limit = "100%"
slow_read = "1h"
refault_limit = "100%"
cpu_limit = "100%"
[[vm]]
match = {{ name = "tt-*" }}
tenant = "test"
"#,
            self.ladder()
        )
    }

    /// Switches a swap file on, on one of the disks, without any agent.
    pub fn swap_on(&self, disk: &str, bytes: u64) -> Result<PathBuf> {
        let file = self.root.join(disk).join("plain.swap");
        let path = file.display();
        shell(&format!(
            "fallocate -l {bytes} {path} && chmod 600 {path} && mkswap -q {path} && swapon {path}"
        ))?;
        Ok(file)
    }
}

/// A guest of 128 MiB under KVM, to be started.
pub fn kvm_guest(name: &str, backend: Backend) -> Builder {
    Guest::builder(name).memory_mib(128).backend(backend).accel(Accel::Kvm)
}

/// Starts a guest and waits until its pattern runs. One after the other: they share one processor anyway.
pub fn ready(builder: Builder, results: &mut Results) -> Result<Guest> {
    let mut guest = builder.start()?;
    guest.wait_ready(BOOT)?;
    results.note("ready", guest.name());
    Ok(guest)
}

/// Runs a shell command that must succeed; its output.
pub fn shell(command: &str) -> Result<String> {
    let output = Command::new("sh").args(["-c", command]).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command}: {}: {}", output.status, errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The status of the guest called `name`; none before the agent knows its pages.
pub fn vm(agent: &Agent, name: &str) -> Result<Option<Value>> {
    let status = agent.status()?;
    let vms = status["vms"].as_array().context("a status without VMs")?;
    let known = vms.iter().find(|vm| vm["name"] == name && vm["untouched_bytes"] != vm["ram_bytes"]);
    Ok(known.cloned())
}

/// The same, once the agent knows it.
pub fn known_vm(agent: &Agent, name: &str) -> Result<Value> {
    wait_for(&format!("the agent to find {name}"), || vm(agent, name))
}

/// A number of the status.
pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// Asks again and again, for two minutes and a half.
pub fn wait_for<T>(what: &str, ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    wait_at_most(MOST, what, ask)
}

/// Asks again and again, for so long.
pub fn wait_at_most<T>(most: Duration, what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let began = Instant::now();
    while began.elapsed() < most {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    bail!("waited {most:?} for {what}")
}

/// A memory control group (v2) with one guest in it.
pub struct Memcg {
    folder: PathBuf,
}

impl Memcg {
    /// Makes a group and puts a process into it that has just been started: what it has charged elsewhere stays there.
    pub fn of(name: &str, pid: u32) -> Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        std::fs::write(root.join("cgroup.subtree_control"), "+memory")?;
        let folder = root.join(name);
        std::fs::create_dir(&folder).with_context(|| format!("creating {}", folder.display()))?;
        std::fs::write(folder.join("cgroup.procs"), pid.to_string())?;
        Ok(Self { folder })
    }

    /// Faults that had to wait for a disk.
    pub fn major_faults(&self) -> Result<u64> {
        self.field("memory.stat", "pgmajfault")
    }

    /// Sets one of its files.
    pub fn set(&self, file: &str, value: impl Display + Copy) -> Result<()> {
        std::fs::write(self.folder.join(file), format!("{value}")).with_context(|| format!("writing {file}"))
    }

    /// The number in one of its files.
    pub fn bytes(&self, file: &str) -> Result<u64> {
        Ok(std::fs::read_to_string(self.folder.join(file))?.trim().parse()?)
    }

    /// The number behind a word of one of its files.
    pub fn field(&self, file: &str, word: &str) -> Result<u64> {
        let text = std::fs::read_to_string(self.folder.join(file))?;
        let line = text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
        Ok(line.with_context(|| format!("{file} has no {word}"))?.parse()?)
    }

    /// Puts another process into it.
    pub fn add(&self, pid: u32) -> Result<()> {
        self.set("cgroup.procs", pid)
    }

    /// Has the kernel free memory of the group, the least used first; the kernel may find less.
    pub fn reclaim(&self, bytes: u64) {
        std::fs::write(self.folder.join("memory.reclaim"), bytes.to_string()).ok();
    }
}

/// The longest that making and removing a group took, while `run` goes on.
pub fn longest_mkdir(run: impl FnOnce() -> Result<()>) -> Result<(Duration, u32)> {
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looker = scope.spawn(|| -> Result<(Duration, u32)> {
            let folder = Path::new("/sys/fs/cgroup/tt-mkdir");
            let (mut longest, mut times) = (Duration::ZERO, 0);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let began = Instant::now();
                std::fs::create_dir(folder)?;
                std::fs::remove_dir(folder)?;
                longest = longest.max(began.elapsed());
                times += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok((longest, times))
        });
        let ran = run();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let looked = looker.join().map_err(|_| anyhow::anyhow!("the looker panicked"))?;
        ran.and(looked)
    })
}

/// What `tiering move` says of moving the guest called `name`; `more` are further arguments.
pub fn move_to(agent: &Agent, name: &str, tier: &str, more: &[&str]) -> Result<Value> {
    let command = [&["move", name, "--to", tier, "--json"], more].concat();
    serde_json::from_str(&agent.tiering(&command)?).context("the outcome of a move")
}

/// The guest's RAM as the map shows it, run by run.
pub fn runs(agent: &Agent, name: &str) -> Result<Vec<Value>> {
    let map: Value = serde_json::from_str(&agent.tiering(&["map", name, "--json"])?)?;
    map["runs"].as_array().cloned().context("a map without runs")
}

/// Brings everything back, ends the agent, and notes whether it left anything.
pub fn drain_and_end(results: &mut Results, agent: Agent, host: &Host) -> Result<()> {
    for tier in ["qlc", "nvme"] {
        agent.tiering(&["drain", tier])?;
    }
    let ended = agent.interrupt()?;
    results.check("agent's exit code", format!("{:?}", ended.code), "Some(0)", ended.code == Some(0));
    let areas = swap_areas_below(Path::new("/"))?.len();
    results.check("swap areas left", areas, "0", areas == 0);
    let mut places = vec![PathBuf::from("/sys/fs/bpf/tiering"), "/run/tiering/tiering.sock".into()];
    places.extend(["nvme", "qlc"].map(|tier| host.folder(tier)));
    places.retain(|place| place.exists());
    results.check("pins, sockets, folders left", format!("{places:?}"), "none", places.is_empty());
    Ok(())
}
