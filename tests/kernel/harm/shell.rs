//! What hangs, runs out or ends in the middle costs one machine at most.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;
use tiering_testkit::agent::Agent;
use tiering_testkit::hung_files::HungFiles;
use tiering_testkit::paths;
use tiering_testkit::scratch::Scratch;
use tiering_testkit::skip::{Skip, need_guests, need_root, skip_or_fail};
use tiering_user::sys::{Pidfd, Span, move_pages, read_pages, rearm, touch_read, touch_write};

use crate::host::{Host, assert_nothing_left, wait_for};

/// What the issue calls "within seconds", on a machine that others use too.
const SECONDS: Duration = Duration::from_secs(30);

/// A process that is ended with its test.
struct Ended(Child);

impl Ended {
    fn new(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn end(&mut self) {
        self.0.kill().ok();
        self.0.wait().unwrap();
    }

    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.end();
    }
}

/// A machine of 64 MiB that does not run, with this image.
fn qemu(name: &str, image: Option<&Path>) -> Ended {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-S", "-machine", "q35", "-accel", "tcg"]);
    command.args(["-m", "64M", "-nodefaults", "-display", "none", "-name", &format!("guest={name}")]);
    if let Some(image) = image {
        let drive = format!("id=disk,if=none,format=raw,readonly=on,file={}", image.display());
        command.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=disk"]);
    }
    Ended::new(&mut command)
}

fn has_open(pid: i32, file: &Path) -> bool {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    files.into_iter().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|path| path == file))
}

fn ours(status: &Value) -> impl Iterator<Item = &Value> {
    // The lab is a VM too, and may run beside this.
    let is_ours = |vm: &&Value| vm["name"].as_str().is_some_and(|name| name.starts_with("tt-"));
    status["vms"].as_array().unwrap().iter().filter(is_ours)
}

fn names(status: &Value) -> Vec<&str> {
    ours(status).filter_map(|vm| vm["name"].as_str()).collect()
}

fn warnings(status: &Value) -> String {
    let lines = status["warnings"].as_array().unwrap().iter().filter_map(Value::as_str);
    lines.collect::<Vec<_>>().join("\n")
}

fn root_host() -> Option<Host> {
    skip_or_fail(need_root().and_then(|()| Scratch::new(2 << 30)).map(|scratch| Host { scratch }))
}

#[test]
fn an_image_whose_server_does_not_answer_holds_up_nobody_and_is_named() {
    let Some(host) = skip_or_fail(Host::new()) else { return };
    let mounted =
        HungFiles::mount(&host.scratch.path().join("server")).map_err(|error| Skip(format!("{error:#}")));
    let Some(files) = skip_or_fail(mounted) else { return };
    let hung = qemu("tt-hung", Some(&files.path()));
    assert!(
        wait_for("QEMU to open its image", || has_open(hung.pid(), &files.path()).then_some(())).is_some()
    );
    // QEMU looks at it for a moment longer.
    std::thread::sleep(Duration::from_secs(2));
    files.hang();

    let binary = paths::tiering_bin().unwrap();
    let mut agent = Agent::spawn(&binary, &host.config("1h"), &[] as &[&str]).unwrap();
    // Let go of before the agent is ended, also where a test fails: a thread that waits for FUSE cannot be killed.
    let release = files;
    let ready = wait_for("the agent to answer", || agent.is_ready().unwrap().then_some(()));
    assert!(ready.is_some(), "the agent does not answer: {}", agent.log().text());
    let began = Instant::now();
    let other = qemu("tt-other", None);
    let found = wait_for("the other machine to be managed", || {
        let status = agent.status().unwrap();
        (names(&status).contains(&"tt-other") && warnings(&status).contains("base.img")).then_some(status)
    });
    let status = found.unwrap_or_else(|| panic!("{}\n{}", agent.status().unwrap(), agent.log().text()));
    assert!(began.elapsed() < SECONDS, "found after {:?}", began.elapsed());
    assert!(names(&status).contains(&"tt-hung"), "the machine itself is managed: {status}");
    let warnings_now = warnings(&status);
    assert!(warnings_now.contains("server/base.img of tt-hung hangs"), "{warnings_now}");
    assert!(warnings_now.contains("nothing of it is read ahead"), "{warnings_now}");
    for _ in 0..10 {
        let asked = Instant::now();
        agent.status().unwrap();
        assert!(asked.elapsed() < SECONDS / 3, "the status took {:?}", asked.elapsed());
    }
    let told = agent.log().text().matches("base.img of tt-hung hangs").count();
    assert_eq!(told, 1, "told once: {}", agent.log().text());

    drop(release);
    let over = wait_for("the warning to go", || {
        (!warnings(&agent.status().unwrap()).contains("base.img")).then_some(())
    });
    assert!(over.is_some(), "{}", agent.status().unwrap());
    drop((hung, other));
    let ended = agent.interrupt().unwrap();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_nothing_left(&host);
}

/// A process that is taken for a machine: its name and its command line are those of QEMU.
fn look_alike(shell: &Path, name: &str) -> (Ended, ChildStdin) {
    let mut command = Command::new(shell);
    command.args(["-c", "read line", "-machine", "q35", "-m", "16", "-name", &format!("guest={name}")]);
    let mut process = Ended::new(command.stdin(Stdio::piped()).process_group(0));
    let input = process.0.stdin.take().unwrap();
    (process, input)
}

#[test]
fn machines_that_no_descriptor_is_left_for_are_told_of_and_managed_when_others_end() {
    const MACHINES: usize = 40;
    let Some(host) = root_host() else { return };
    let shell = host.scratch.path().join("qemu-system-x86_64");
    std::fs::copy("/bin/sh", &shell).unwrap();
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    let used = std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count();
    let limit = used + 36;
    let pid = format!("--pid={}", agent.pid());
    let limited = Command::new("prlimit").args([pid, format!("--nofile={limit}:{limit}")]).status().unwrap();
    assert!(limited.success());
    let mut machines: Vec<_> =
        (0..MACHINES).map(|number| look_alike(&shell, &format!("tt-{number}"))).collect();

    let left_out = |status: &Value| {
        let lines = warnings(status);
        let ours = |line: &&str| line.contains("tt-") && line.contains("file descriptors are in use");
        lines.lines().filter(ours).count()
    };
    let short = wait_for("all machines to be managed or told of", || {
        let status = agent.status().unwrap();
        (names(&status).len() + left_out(&status) == MACHINES).then_some(status)
    });
    let status = short.unwrap_or_else(|| panic!("{}\n{}", agent.status().unwrap(), agent.log().text()));
    let managed = names(&status).len();
    assert!(0 < managed && managed < MACHINES, "{managed} managed with {limit} descriptors");
    assert!(warnings(&status).contains(&format!("of the agent's {limit} file descriptors")), "{status}");
    assert!(warnings(&status).contains("LimitNOFILE"), "{status}");
    assert!(agent.log().text().contains("left alone: trying again"), "{}", agent.log().text());

    let of_status =
        |status: &Value| -> Vec<i64> { ours(status).map(|vm| vm["pid"].as_i64().unwrap()).collect() };
    let first = of_status(&status);
    machines.retain(|(process, _)| !first.contains(&i64::from(process.pid())));
    let later = wait_for("others to be managed", || {
        let now = of_status(&agent.status().unwrap());
        (!now.is_empty() && now.iter().all(|pid| !first.contains(pid))).then_some(())
    });
    assert!(later.is_some(), "{}\n{}", agent.status().unwrap(), agent.log().text());
    drop(machines);
    let none_left = wait_for("no warning to be left", || {
        let status = agent.status().unwrap();
        (left_out(&status) == 0 && names(&status).is_empty()).then_some(())
    });
    assert!(none_left.is_some(), "{}", agent.status().unwrap());
    let ended = agent.interrupt().unwrap();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    println!("{}", ended.log);
    assert_nothing_left(&host);
}

#[test]
fn the_agent_takes_as_many_descriptors_as_it_may_have() {
    let Some(host) = root_host() else { return };
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 128, hard).unwrap();
    let agent = Agent::start(&host.config("1h"), &[]).unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", agent.pid())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let soft: u64 = files.split_whitespace().nth(3).unwrap().parse().unwrap();
    assert_eq!(soft, hard, "{files}");
    assert_eq!(agent.interrupt().unwrap().code, Some(0));
    assert_nothing_left(&host);
}

/// Begins a process under this number, which was another one's.
fn begin_as(pid: i32) -> Option<Ended> {
    for _ in 0..50 {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).ok()?;
        let process = Ended::new(Command::new("sleep").arg("60"));
        if process.pid() == pid {
            return Some(process);
        }
    }
    None
}

#[test]
fn a_process_that_got_the_number_of_a_machine_that_has_ended_is_not_touched() {
    let Some(()) = skip_or_fail(need_root().and_then(|()| need_guests())) else { return };
    let mut first = Ended::new(Command::new("sleep").arg("60"));
    let pid = first.pid();
    let machine = Pidfd::open(pid).unwrap();
    let never_looked_at = Pidfd::open(pid).unwrap();
    machine.pagemap().unwrap();
    first.end();
    let stranger = begin_as(pid).ok_or(Skip("no process can be begun under a chosen number".to_owned()));
    let Some(stranger) = skip_or_fail(stranger) else { return };

    let maps = std::fs::read_to_string(format!("/proc/{}/maps", stranger.pid())).unwrap();
    let stack = maps.lines().find(|line| line.ends_with("[stack]")).unwrap();
    let (start, end) = stack.split_once(' ').unwrap().0.split_once('-').unwrap();
    let (start, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
    let page = Span { start: end - 4096, bytes: 4096 };
    assert!(start < page.start);
    for process in [&machine, &never_looked_at] {
        let gone = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
        let tried = [
            touch_read(process, &[page]).map(drop),
            touch_write(process, page),
            read_pages(process, &[page.start], &mut [[0; 4096]]).map(drop),
            move_pages(process, &[page.start], 0).map(drop),
            rearm(process),
        ];
        assert_eq!(tried.map(gone), [Some(libc::ESRCH); 5]);
        let seen = process.pagemap().and_then(|pagemap| pagemap.read(page.start, 1));
        assert!(seen.is_err(), "{seen:?}");
    }
}
