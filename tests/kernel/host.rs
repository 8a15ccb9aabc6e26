//! What the tests of the agent have in common: a host with scratch tiers, a guest, and a look at pagemap that owes the
//! agent nothing.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use tiering_testkit::agent::{Agent, Ended};
use tiering_testkit::guest::{Backend, Guest};
use tiering_testkit::observe;
pub use tiering_testkit::observe::{At, PAGE};
use tiering_testkit::paths;
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::scratch::Scratch;
use tiering_testkit::skip::{Skip, need_guests, need_root};

const ROOM_BYTES: u64 = 2 << 30;
pub const BOOT: Duration = Duration::from_secs(120);
/// What takes longer will not come; a guest that shares two busy processors needs 40 s for three of its walks.
const LONG: Duration = Duration::from_secs(280);

/// Folders for two swap tiers, gone with everything in them when dropped.
pub struct Host {
    pub scratch: Scratch,
}

impl Host {
    /// A host on which guests, swap files and BPF can be had.
    pub fn new() -> Result<Self, Skip> {
        need_root()?;
        need_guests()?;
        Ok(Self { scratch: Scratch::new(ROOM_BYTES)? })
    }

    /// dram, nvme and qlc; nothing is demoted before `demote_after`, and machines of other people are left alone.
    pub fn config(&self, demote_after: &str) -> String {
        let folder = self.scratch.path().display();
        format!(
            r#"
[agent]
state_dir = "{folder}/state"
[[tier]]
name = "dram"
nodes = [0]
[[tier]]
name = "nvme"
swap = {{ path = "{folder}/nvme", size = "512MiB" }}
[[tier]]
name = "qlc"
swap = {{ path = "{folder}/qlc", size = "1GiB" }}
[policy]
demote_after = "{demote_after}"
psi_limit = "100%"
slow_read = "1h"
refault_limit = "100%"
cpu_limit = "100%"
[[vm]]
match = {{ name = "tt-*" }}
tenant = "test"
[[vm]]
match = {{ name = "*" }}
managed = false
"#
        )
    }
}

/// A guest of 128 MiB that is ready.
pub fn guest(name: &str, backend: Backend) -> Guest {
    let access = Access::HotAndLoop { hot_mib: 4, loop_mib: 24, loop_every_ms: 10_000 };
    let pattern = Pattern { mem_mib: 64, access, ..Pattern::default() };
    let mut guest = Guest::builder(name).memory_mib(128).pattern(pattern).backend(backend).start().unwrap();
    guest.wait_ready(BOOT).unwrap();
    guest
}

/// The status of the guest called `name`, once the agent knows it.
pub fn vm(agent: &Agent, name: &str) -> Value {
    let found = wait_for("the agent to find the guest", || {
        let status = agent.status().unwrap();
        let vms = status["vms"].as_array().unwrap();
        vms.iter().find(|vm| vm["name"] == name && vm["untouched_bytes"] != vm["ram_bytes"]).cloned()
    });
    found.unwrap_or_else(|| panic!("no {name} in {}", agent.status().unwrap()))
}

/// Asks again and again, for up to `LONG`.
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let began = Instant::now();
    while began.elapsed() < LONG {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    eprintln!("waited {LONG:?} for {what}");
    None
}

/// Starts the agent where it must not start. What it said last.
pub fn refusal(config: &str) -> String {
    let binary = paths::tiering_bin().unwrap();
    let mut agent = Agent::spawn(&binary, config, &[] as &[&str]).unwrap();
    let began = Instant::now();
    while agent.check_alive().is_ok() {
        assert!(!agent.is_ready().is_ok_and(|ready| ready), "the agent runs:\n{}", agent.log().text());
        assert!(began.elapsed() < Duration::from_secs(60), "{}", agent.log().text());
        std::thread::sleep(Duration::from_millis(50));
    }
    let Ended { code, log } = agent.interrupt().unwrap();
    assert!(code.is_some_and(|code| code != 0), "{log}");
    log.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().to_owned()
}

/// Reads `pages` entries of a process's pagemap.
pub fn pagemap(pid: u32, hva: u64, pages: u64) -> Vec<At> {
    observe::pagemap(pid, hva, pages).unwrap()
}

/// The kernel's numbers of the areas below `folder`.
pub fn area_numbers(folder: &Path) -> Vec<u64> {
    observe::area_numbers(folder).unwrap()
}

/// Whether no swap area is on, as [`area_numbers`] needs it.
pub fn no_swap_is_on() -> Result<(), Skip> {
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap();
    if swaps.lines().count() == 1 {
        Ok(())
    } else {
        Err(Skip(format!("swap areas of others are on:\n{swaps}")))
    }
}

/// The guest's RAM as the map shows it: address and pages of every run.
pub fn runs(agent: &Agent, vm: &str) -> Vec<Value> {
    let map: Value = serde_json::from_str(&agent.tiering(&["map", vm, "--json"]).unwrap()).unwrap();
    map["runs"].as_array().unwrap().clone()
}

/// Waits until the agent moves nothing of this guest any more.
pub fn wait_until_quiet(agent: &Agent, name: &str) {
    let moved = || {
        let vm = vm(agent, name);
        (vm["demoted_bytes_total"].clone(), vm["promoted_bytes_total"].clone(), vm["prefetch"].clone())
    };
    let mut before = moved();
    let quiet = wait_for("the moves to end", || {
        std::thread::sleep(Duration::from_secs(3));
        let now = moved();
        let same = now == before;
        before = now;
        same.then_some(())
    });
    assert!(quiet.is_some(), "still moving: {before:?}");
}

/// The guest verifies all its memory.
pub fn assert_memory_right(guest: &mut Guest) {
    let result = guest.finish().unwrap();
    assert!(result.checksum_ok, "{}", guest.console().text());
    assert_eq!(result.pages_verified, 64 * 256);
}

/// Brings everything back, ends the agent, and checks that it left nothing.
pub fn drain_and_end(agent: Agent, host: &Host) {
    for tier in ["qlc", "nvme"] {
        agent.tiering(&["drain", tier]).unwrap();
    }
    let ended = agent.interrupt().unwrap();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_nothing_left(host);
}

/// No swap area, no swap file, no pin, no socket.
pub fn assert_nothing_left(host: &Host) {
    assert_eq!(host.scratch.swap_areas().unwrap(), Vec::<std::path::PathBuf>::new());
    for path in ["/sys/fs/bpf/tiering", "/run/tiering/tiering.sock"] {
        assert!(!Path::new(path).exists(), "{path} was left behind");
    }
    for tier in ["nvme", "qlc"] {
        assert!(!host.scratch.path().join(tier).exists(), "the folder of {tier} was left behind");
    }
}

/// A file system of the kernel at its usual place; unmounted again if it was not there before.
pub struct Mounted {
    path: &'static str,
    by_us: bool,
}

impl Mounted {
    pub fn at(path: &'static str, kind: &str) -> Self {
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        let by_us = !mounts.lines().any(|line| line.split(' ').nth(1) == Some(path));
        if by_us {
            let flags = nix::mount::MsFlags::empty();
            nix::mount::mount(Some(kind), path, Some(kind), flags, None::<&str>).unwrap();
        }
        Self { path, by_us }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.by_us {
            nix::mount::umount(self.path).unwrap();
        }
    }
}
