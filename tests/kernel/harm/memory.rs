//! What others can make the agent keep is bounded, and so is the agent.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::Backend;
use tiering_testkit::qemu::QEMU;
use tiering_testkit::skip::skip_or_fail;
use tiering_user::store::Store;

use crate::host::{Host, assert_memory_right, drain_and_end, guest, vm, wait_for};

const NOBODY: &str = "65534";
const TIB: u64 = 1 << 40;
/// What the agent may grow by for machines that hold next to nothing.
const FEW_MIB: u64 = 8;

/// A QEMU with nothing in it but firmware. Killed when it is dropped.
struct Bare(Child);

impl Bare {
    fn start(name: &str, user: Option<&str>, args: &[&str]) -> Self {
        let mut command = Command::new("setpriv");
        if let Some(user) = user {
            command.args(["--reuid", user, "--regid", user, "--clear-groups"]);
        }
        command.args(["--pdeathsig", "KILL", QEMU, "-name", name, "-nodefaults", "-display", "none"]);
        command.args(args).process_group(0).stdin(Stdio::null());
        Self(command.spawn().unwrap())
    }

    /// With as much RAM as no host has.
    fn with_ram(name: &str, user: Option<&str>, tib: u64) -> Self {
        let size = format!("{tib}T");
        let ram = format!("memory-backend-ram,id=ram,size={size},reserve=off");
        let machine = ["-machine", "q35,memory-backend=ram", "-cpu", "max,phys-bits=48"];
        Self::start(name, user, &[&machine[..], &["-m", &size, "-object", &ram]].concat())
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// What the status says of this machine, once it does.
fn listed(agent: &Agent, name: &str) -> Value {
    let found = wait_for("the agent to list it", || {
        let status = agent.status().unwrap();
        status["vms"].as_array().unwrap().iter().find(|vm| vm["name"] == name).cloned()
    });
    found.unwrap_or_else(|| panic!("no {name} in {}", agent.status().unwrap()))
}

fn reason(vm: &Value) -> &str {
    vm["reason"].as_str().unwrap_or_default()
}

/// A field of the agent's own `/proc/PID/status`, MiB.
fn own_mib(agent: &Agent, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
}

/// How much the agent grows while `what` is done and in some seconds after it, MiB. `VmLck` would not tell: it counts
/// what the C library reserves for the heap of each thread, whether anything is in it or not.
fn growth_mib(agent: &Agent, what: impl FnOnce()) -> u64 {
    let before = own_mib(agent, "VmRSS");
    what();
    std::thread::sleep(Duration::from_secs(5));
    own_mib(agent, "VmRSS").saturating_sub(before)
}

#[test]
fn a_process_of_a_user_whom_nobody_named_is_listed_and_left_alone_until_he_is_named() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let _stranger = Bare::start("tt-stranger", Some(NOBODY), &["-machine", "q35", "-m", "128"]);
    let mut ours = guest("tt-ours", Backend::Anonymous);
    let config = host.config("1s");
    let agent = Agent::start(&config, &[]).unwrap();
    let stranger = listed(&agent, "tt-stranger");
    assert_eq!(stranger["movable"], false, "{stranger}");
    assert!(reason(&stranger).contains(r#""nobody""#), "{stranger}");
    assert!(reason(&stranger).contains(r#"add "nobody" to discover.users"#), "{stranger}");
    assert_eq!(stranger["tier_bytes"], serde_json::json!({}), "nothing is known of its memory: {stranger}");
    assert_ne!(stranger["tenant"], "test", "its name does not make it a member of a tenant: {stranger}");
    let id = stranger["id"].as_str().unwrap();
    let error = format!("{:#}", agent.tiering(&["move", id, "--to", "nvme"]).unwrap_err());
    assert!(error.contains("discover.users"), "{error}");
    assert_eq!(vm(&agent, "tt-ours")["movable"], true, "root's own is managed as before");
    assert_memory_right(&mut ours);
    drain_and_end(agent, &host);

    for user in ["nobody", NOBODY] {
        let named = format!("{config}[discover]\nusers = [\"{user}\"]\n");
        let agent = Agent::start(&named, &[]).unwrap();
        let stranger = listed(&agent, "tt-stranger");
        assert_eq!((&stranger["movable"], &stranger["tenant"]), (&true.into(), &"test".into()), "{stranger}");
        drain_and_end(agent, &host);
    }
}

#[test]
fn a_user_that_the_host_does_not_have_is_told_and_no_reason_not_to_run() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let config = format!("{}[discover]\nusers = [\"no-such-user\"]\n", host.config("1h"));
    let agent = Agent::start(&config, &[]).unwrap();
    let log = agent.interrupt().unwrap().log;
    assert!(
        log.lines().any(|line| line.contains("no-such-user") && line.contains("discover.users")),
        "{log}"
    );
}

#[test]
fn many_processes_of_strangers_cost_next_to_nothing_and_hide_nobody() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    let mut strangers = Vec::new();
    let grown = growth_mib(&agent, || {
        let args = ["-machine", "q35", "-m", "128"];
        strangers.extend((0..12).map(|number| Bare::start(&format!("tt-x{number}"), Some(NOBODY), &args)));
        strangers.extend((0..2).map(|number| Bare::with_ram(&format!("tt-large{number}"), Some(NOBODY), 1)));
        listed(&agent, "tt-large1");
    });
    assert!(grown <= FEW_MIB, "grown by {grown} MiB");
    let _ours = Bare::start("tt-ours", None, &["-machine", "q35", "-m", "128"]);
    assert_eq!(listed(&agent, "tt-ours")["movable"], true);
    drop(agent);
}

#[test]
fn address_spaces_of_terabytes_cost_what_is_in_them() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let agent = Agent::start(&host.config("1s"), &[]).unwrap();
    let mut machines = Vec::new();
    let grown = growth_mib(&agent, || {
        for (name, tib) in [("tt-8t", 8), ("tt-1t-a", 1), ("tt-1t-b", 1)] {
            machines.push(Bare::with_ram(name, None, tib));
            assert_eq!(listed(&agent, name)["ram_bytes"], tib * TIB);
            // What its firmware has touched was found.
            vm(&agent, name);
        }
    });
    assert!(grown <= FEW_MIB, "grown by {grown} MiB");
    assert_eq!(listed(&agent, "tt-8t")["movable"], true);
    drop(machines);
    drain_and_end(agent, &host);
}

/// Has QEMU read a page of the drive called `disk`, through the host's page cache.
fn read_page(monitor: &Path, offset: u64) {
    let socket = wait_for("QEMU to listen", || UnixStream::connect(monitor).ok()).unwrap();
    let mut answers = BufReader::new(socket.try_clone().unwrap()).lines();
    let mut ask = |command: String| {
        writeln!(&socket, "{command}").unwrap();
        answers.find(|line| line.as_ref().unwrap().contains("\"return\"")).unwrap().unwrap()
    };
    ask(r#"{"execute":"qmp_capabilities"}"#.to_owned());
    let line = format!(r#"{{"command-line":"qemu-io disk \"read {offset} 4096\""}}"#);
    let answer = ask(format!(r#"{{"execute":"human-monitor-command","arguments":{line}}}"#));
    assert!(!answer.contains("rror"), "{answer}");
}

#[test]
fn a_sparse_image_of_terabytes_costs_what_is_read_of_it() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let image = host.scratch.path().join("sparse.img");
    let bytes = 8 * TIB;
    File::create(&image).unwrap().set_len(bytes).unwrap();
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    let monitor = host.scratch.path().join("monitor");
    let drive = format!("id=disk,if=none,format=raw,readonly=on,file={}", image.display());
    let socket = format!("unix:{},server=on,wait=off", monitor.display());
    let args = ["-machine", "q35", "-m", "64", "-drive", &drive, "-qmp", &socket];
    let _reader = Bare::start("tt-sparse", None, &args);
    listed(&agent, "tt-sparse");
    let seen = || {
        let status = agent.status().unwrap();
        let image =
            status["images"].as_array().unwrap().iter().find(|image| image["name"] == "sparse.img")?.clone();
        Some((image["bytes"].as_u64()?, image["known_bytes"].as_u64()?))
    };
    assert_eq!(wait_for("the image to be watched", seen), Some((bytes, 0)));
    let grown = growth_mib(&agent, || {
        read_page(&monitor, bytes - 4096);
        let known = wait_for("the read to be seen", || seen().filter(|(_, known)| *known > 0));
        assert!(known.is_some(), "{}", agent.status().unwrap());
    });
    assert!(grown <= FEW_MIB, "grown by {grown} MiB");
    drop(agent);
}

/// Puts so many tapes of a MiB each into the agent's state, of machines that are gone; the one with the highest number
/// was written last.
fn remember_tapes(state: &Path, tapes: u64) {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let store = Store::in_folder(state);
    for tape in 0..tapes {
        let header = format!("{{\"saved_unix_s\":{}}}\n", now - tapes + tape).into_bytes();
        let record = [header.clone(), vec![1; 1 << 20]].concat();
        let records = [
            (format!("machine/name/gone-{tape}"), Some(header)),
            (format!("tape/name/gone-{tape}"), Some(record)),
        ];
        assert!(store.write(&records));
    }
}

#[test]
fn an_agent_that_remembers_too_much_forgets_the_oldest_says_so_and_goes_on() {
    const TAPES: u64 = 60;
    const LIMIT_MIB: u64 = 64;
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let state = host.scratch.path().join("state");
    remember_tapes(&state, TAPES);
    let config =
        host.config("1s").replacen("[agent]\n", &format!("[agent]\nmemory_limit = \"{LIMIT_MIB}MiB\"\n"), 1);
    let mut guest = guest("tt-ours", Backend::Anonymous);
    let agent = Agent::start(&config, &[]).unwrap();
    let own = |field: &str| {
        agent.status().unwrap()["agent"][field].as_u64().unwrap_or_else(|| panic!("no {field}"))
    };
    assert_eq!(own("memory_limit_bytes"), LIMIT_MIB << 20);
    assert!(wait_for("the agent to forget", || (own("forgotten_total") > 0).then_some(())).is_some());
    vm(&agent, "tt-ours");
    // The agent looks once a second, so it may be a little over the limit in between.
    for _ in 0..5 {
        std::thread::sleep(Duration::from_secs(1));
        let resident = own_mib(&agent, "VmRSS");
        assert!(resident <= LIMIT_MIB + LIMIT_MIB / 8, "{resident} MiB");
        assert!(own("memory_bytes") <= (LIMIT_MIB + LIMIT_MIB / 8) << 20);
    }
    let demoted = wait_for("the agent to go on", || {
        Some(vm(&agent, "tt-ours")).filter(|vm| vm["demoted_bytes_total"].as_u64().unwrap() > 0)
    });
    assert!(demoted.is_some(), "{}", agent.log().text());
    assert_memory_right(&mut guest);
    agent.tiering(&["drain", "nvme"]).unwrap();
    let log = agent.interrupt().unwrap().log;
    let told =
        log.lines().find(|line| line.contains("agent.memory_limit")).unwrap_or_else(|| panic!("{log}"));
    assert!(told.contains("tapes on record"), "{told}");
    let kept = Store::in_folder(&state).names("tape/name/gone-");
    assert!(kept.contains(&format!("tape/name/gone-{}", TAPES - 1)), "the newest stays: {kept:?}");
    assert!(!kept.contains(&"tape/name/gone-0".to_owned()), "the oldest goes: {kept:?}");
}

#[test]
fn a_memory_limit_that_is_too_small_is_refused() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let config = host.config("1h").replacen("[agent]\n", "[agent]\nmemory_limit = \"1MiB\"\n", 1);
    let error = Agent::start(&config, &[]).map(|_| ()).unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("memory_limit") && error.contains("64MiB"), "{error}");
}
