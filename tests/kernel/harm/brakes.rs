//! Brakes hold back what is pressed for memory, never its relief; and what is missing goes down once.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tiering_testkit::agent::Agent;
use tiering_testkit::filled::Filled;
use tiering_testkit::guest::{Backend, Guest};
use tiering_testkit::paths::tiering_bin;
use tiering_testkit::pattern::{Access, Pattern};
use tiering_testkit::skip::{Skip, skip_or_fail};

use crate::host::{Host, no_swap_is_on, vm, wait_for};

const MIB: u64 = 1 << 20;
/// Memory of tasks that wait for it, and the file that each of them reads.
const GROUP_BYTES: u64 = 32 * MIB;
const FILE_MIB: u64 = 24;
const PRESSED: usize = 4;

/// A guest that stands still, with all of its RAM in use.
fn cold_guest(name: &str, memory_mib: u32) -> Filled {
    let pattern = Pattern { mem_mib: 16, access: Access::Idle, ..Pattern::default() };
    let guest = Guest::builder(name).memory_mib(memory_mib).pattern(pattern).backend(Backend::AnonymousSmall);
    Filled::new(guest).unwrap()
}

fn demoted(agent: &Agent, name: &str) -> u64 {
    vm(agent, name)["demoted_bytes_total"].as_u64().unwrap()
}

/// Percent of the last 10 s in which some task of the host waited for memory.
fn host_stalls() -> Result<f64, Skip> {
    let text =
        fs::read_to_string("/proc/pressure/memory").map_err(|error| Skip(format!("no PSI: {error}")))?;
    let avg10 = text.split_once("some avg10=").and_then(|(_, rest)| rest.split(' ').next()?.parse().ok());
    avg10.ok_or_else(|| Skip(format!("PSI that cannot be read: {text}")))
}

/// Processes in a small control group that read files which do not fit there: they wait for memory all the time, and
/// the host has plenty.
struct Pressed {
    group: PathBuf,
    readers: Vec<Child>,
}

impl Pressed {
    fn start(host: &Host) -> Result<Self, Skip> {
        host_stalls()?;
        let v1 = PathBuf::from("/sys/fs/cgroup/memory");
        let (parent, limit) = if v1.join("memory.limit_in_bytes").exists() {
            (v1, "memory.limit_in_bytes")
        } else {
            (PathBuf::from("/sys/fs/cgroup"), "memory.max")
        };
        let group = parent.join("tiering-test-pressed");
        fs::create_dir_all(&group).map_err(|error| Skip(format!("{}: {error}", group.display())))?;
        fs::write(group.join(limit), GROUP_BYTES.to_string())
            .map_err(|error| Skip(format!("no memory control group to be had: {error}")))?;
        // Page cache is charged to whoever was the first to touch it: each writes its own file.
        let reader = |number: usize| {
            let file = host.scratch.path().join(format!("read-again-and-again-{number}"));
            let (file, group) = (file.display(), group.display());
            let script = format!(
                "echo $$ > {group}/cgroup.procs && head -c {FILE_MIB}M /dev/zero > {file} && sync {file}; \
                 while :; do cat {file} > /dev/null; done"
            );
            Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).spawn().unwrap()
        };
        let readers = (0..PRESSED).map(reader).collect();
        let this = Self { group, readers };
        let stalls = wait_for("the host to stall", || host_stalls().ok().filter(|percent| *percent > 2.0));
        stalls.map(|_| this).ok_or_else(|| Skip("a group that is too small makes no stalls here".to_owned()))
    }
}

impl Drop for Pressed {
    fn drop(&mut self) {
        for reader in &mut self.readers {
            // An error means that it has ended.
            let _ = reader.kill();
            let _ = reader.wait();
        }
        // Its last `cat` ends a moment later.
        wait_for("the group to be empty", || fs::remove_dir(&self.group).ok());
    }
}

#[test]
fn tasks_elsewhere_that_wait_for_memory_do_not_stop_the_relief_of_a_cold_vm() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let guest = cold_guest("tt-cold", 128);
    let Some(pressed) = skip_or_fail(Pressed::start(&host)) else { return };
    // With the limit that an operator has who sets none, on a host that wants far more free than there is.
    let config = host.config("1s").replace("psi_limit = \"100%\"", "free_target = \"99%\"");
    let agent = Agent::start(&config, &[]).unwrap();
    let went = wait_for("a cold VM to go down", || {
        let went = demoted(&agent, "tt-cold");
        (went >= 64 * MIB).then_some(went)
    });
    let stalls = host_stalls().unwrap();
    assert!(went.is_some(), "{} MiB went: {}", demoted(&agent, "tt-cold") / MIB, vm(&agent, "tt-cold"));
    assert!(stalls > 0.5, "the host stalls no more ({stalls} %): nothing is shown");
    let held_back = &vm(&agent, "tt-cold")["limited_by"];
    assert!(
        !held_back.to_string().contains("waited for memory"),
        "a VM that stands still waits: {held_back}"
    );
    drop(pressed);
    assert_eq!(guest.changed_pages(0).unwrap(), 0);
}

/// Bytes of a line of /proc/meminfo.
fn meminfo(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap().split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

/// The host's /proc/meminfo for one agent, in which nobody else uses memory or gives it back: `MemAvailable` stays what
/// it was, as page-outs leave it, and the rest is the kernel's.
struct StillHost {
    file: PathBuf,
    available: String,
}

impl StillHost {
    fn new(host: &Host) -> Self {
        let text = Self::real();
        let available = text.lines().find(|line| line.starts_with("MemAvailable:")).unwrap().to_owned();
        let this = Self { file: host.scratch.path().join("meminfo"), available };
        this.update();
        this
    }

    fn real() -> String {
        fs::read_to_string("/proc/meminfo").unwrap()
    }

    fn update(&self) {
        let line = |line: &str| match line.starts_with("MemAvailable:") {
            true => format!("{}\n", self.available),
            false => format!("{line}\n"),
        };
        let text: String = Self::real().lines().map(line).collect();
        // In place: whoever has it mounted reads the same file, and its lines are always as long.
        let file = fs::File::options().create(true).write(true).truncate(false).open(&self.file).unwrap();
        file.write_all_at(text.as_bytes(), 0).unwrap();
    }

    /// The agent in a mount namespace of its own.
    fn start(&self, config: &str) -> Agent {
        let (script, agent) = (self.file.with_extension("sh"), tiering_bin().unwrap());
        let mount = format!("mount --bind {} /proc/meminfo", self.file.display());
        let text = format!(
            "#!/bin/sh\nexec unshare -m sh -c '{mount} && exec {} \"$@\"' tiering \"$@\"\n",
            agent.display()
        );
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let mut agent = Agent::spawn(&script, config, &[""; 0]).unwrap();
        let ready = wait_for("the agent to answer", || agent.is_ready().unwrap().then_some(()));
        assert!(ready.is_some(), "{}", agent.log().tail());
        agent
    }
}

#[test]
fn what_a_shortage_lacks_goes_down_once_although_its_copies_stay_in_the_swap_cache() {
    const MISSING: u64 = 64 * MIB;
    /// A first part goes after a quarter of it, and the rest after half; after all of it pages go in any case.
    const DEMOTE_AFTER: &str = "40s";
    const WATCHED: Duration = Duration::from_secs(37);
    let Some(()) = skip_or_fail(no_swap_is_on()) else { return };
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let guest = cold_guest("tt-short", 768);
    let still = StillHost::new(&host);
    let text = StillHost::real();
    let target = meminfo(&still.available, "MemAvailable") + MISSING;
    let percent = target as f64 / meminfo(&text, "MemTotal") as f64 * 100.0;
    let short = format!("[policy]\nfree_target = \"{percent:.5}%\"");
    let began = Instant::now();
    let agent = still.start(&host.config(DEMOTE_AFTER).replace("[policy]", &short));

    let mut went = 0;
    while began.elapsed() < WATCHED {
        let before = demoted(&agent, "tt-short");
        if began.elapsed() < WATCHED {
            went = before;
        }
        still.update();
        std::thread::sleep(Duration::from_millis(200));
    }
    let copies = meminfo(&StillHost::real(), "SwapCached");
    println!("{} MiB went, {} MiB are in the swap cache", went / MIB, copies / MIB);
    assert!(went * 2 <= MISSING * 3, "{} MiB went where {} MiB were missing", went / MIB, MISSING / MIB);
    let goes = wait_for("what is missing to go down", || {
        still.update();
        (demoted(&agent, "tt-short") >= MISSING / 2).then_some(())
    });
    assert!(goes.is_some(), "{}", vm(&agent, "tt-short"));
    assert_eq!(guest.changed_pages(0).unwrap(), 0);
}
