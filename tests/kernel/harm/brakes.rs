//! Brakes hold back what is pressed for memory, never its relief; and what is missing goes down once.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tiering_tests::agent::Agent;
use tiering_tests::filled::Filled;
use tiering_tests::guest::{Backend, Guest};
use tiering_tests::pattern::{Access, Pattern};
use tiering_tests::skip::{Skip, skip_or_fail};

use crate::host::{Host, no_swap_is_on, vm, wait_for};

const MIB: u64 = 1 << 20;
const GROUP_BYTES: u64 = 16 * MIB;
const FILE_BYTES: u64 = 96 * MIB;
/// Tasks that wait for memory.
const PRESSED: usize = 2;

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

/// Processes in a small control group that read a file which does not fit there: they wait for memory all the time, and
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
        let file = host.scratch.path().join("read-again-and-again");
        fs::write(&file, vec![1; usize::try_from(FILE_BYTES).unwrap()]).unwrap();
        let script = format!(
            "echo $$ > {}/cgroup.procs; while :; do cat {} > /dev/null; done",
            group.display(),
            file.display()
        );
        let reader = || Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).spawn().unwrap();
        let this = Self { group, readers: (0..PRESSED).map(|_| reader()).collect() };
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
    let guest = cold_guest("tt-cold", 64);
    let Some(pressed) = skip_or_fail(Pressed::start(&host)) else { return };
    // With the limit that an operator has who sets none, on a host that wants far more free than there is.
    let config = host.config("1s").replace("psi_limit = \"100%\"", "free_target = \"99%\"");
    let agent = Agent::start(&config, &[]).unwrap();
    let went = wait_for("a cold VM to go down", || {
        let went = demoted(&agent, "tt-cold");
        (went >= 32 * MIB).then_some(went)
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
fn meminfo(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap().split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

/// What can be had without a write. Nothing in the swap cache is mapped while all whose pages are in swap stand still.
fn available() -> u64 {
    meminfo("MemAvailable") + meminfo("SwapCached")
}

/// What a shortage was at the worst, and how far what others use went up and down meanwhile.
struct Shortage {
    target: u64,
    most_missing: u64,
    others: (u64, u64),
}

impl Shortage {
    fn look(&mut self, demoted: u64) {
        // As it would be, had nothing gone down.
        let without = available().saturating_sub(demoted);
        self.most_missing = self.most_missing.max(self.target.saturating_sub(without));
        self.others = (self.others.0.min(without), self.others.1.max(without));
    }

    fn swing(&self) -> u64 {
        self.others.1 - self.others.0
    }
}

#[test]
fn what_a_shortage_lacks_goes_down_once_although_its_copies_stay_in_the_swap_cache() {
    const MISSING: u64 = 64 * MIB;
    /// Half of it is when pages go that are idle for long enough anyway.
    const WATCHED: Duration = Duration::from_secs(50);
    let Some(()) = skip_or_fail(no_swap_is_on()) else { return };
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let guest = cold_guest("tt-short", 768);
    let target = available() + MISSING;
    let percent = target as f64 / meminfo("MemTotal") as f64 * 100.0;
    let config = host.config("1m").replace("[policy]", &format!("[policy]\nfree_target = \"{percent:.4}%\""));
    let began = Instant::now();
    let agent = Agent::start(&config, &[]).unwrap();

    let mut shortage = Shortage { target, most_missing: 0, others: (u64::MAX, 0) };
    let mut went = 0;
    while began.elapsed() < WATCHED {
        let before = demoted(&agent, "tt-short");
        shortage.look(before);
        if began.elapsed() < WATCHED {
            went = before;
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    let (missing, swing) = (shortage.most_missing, shortage.swing());
    println!("{} MiB missing, others by {} MiB: {} MiB went", missing / MIB, swing / MIB, went / MIB);
    assert!(
        went * 2 <= (missing + swing) * 3,
        "{went} bytes went, {missing} were missing, others took {swing}"
    );
    let goes =
        wait_for("what is missing to go down", || (demoted(&agent, "tt-short") >= MISSING / 2).then_some(()));
    assert!(goes.is_some(), "{}", vm(&agent, "tt-short"));
    assert_eq!(guest.changed_pages(0).unwrap(), 0);
}
