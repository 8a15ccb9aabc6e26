//! Bad input gets one clear line and the right exit code, and leaves nothing behind.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};

use tiering_testkit::agent::Agent;
use tiering_testkit::paths;
use tiering_testkit::scratch::Scratch;
use tiering_testkit::skip::{need_root, skip_or_fail};

use crate::host::{Host, Mounted, assert_nothing_left};

/// `tiering ARGS` with this configuration: exit code and standard error.
fn tiering(config: &str, args: &[&str], prepare: impl FnOnce(&mut Command)) -> (i32, String) {
    let file = tempfile_with(config);
    let mut command = Command::new(paths::tiering_bin().unwrap());
    command.args(args).arg("--config").arg(file.path());
    prepare(&mut command);
    let Output { status, stderr, .. } = command.output().unwrap();
    (status.code().unwrap(), String::from_utf8(stderr).unwrap())
}

fn tempfile_with(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(file.path(), readable).unwrap();
    file
}

/// The last line, which is the error; the log stands above it.
fn last_line(stderr: &str) -> &str {
    stderr.lines().last().unwrap_or_default()
}

fn host() -> Option<Host> {
    skip_or_fail(need_root().and_then(|()| Scratch::new(2 << 30)).map(|scratch| Host { scratch }))
}

#[test]
fn a_host_without_machines_is_fine() {
    let Some(host) = host() else { return };
    let (code, stderr) = tiering(&host.config("1s"), &["run", "--duration", "3s"], |_| ());
    assert_eq!(code, 0, "{stderr}");
    assert_nothing_left(&host);
}

#[test]
fn only_root_may_run_it() {
    let Some(host) = host() else { return };
    let (code, stderr) = tiering(&host.config("1s"), &["run"], |command| {
        command.uid(65534);
    });
    assert_eq!(code, 77, "{stderr}");
    assert!(last_line(&stderr).contains("needs root"), "{stderr}");
}

#[test]
fn a_kernel_that_refuses_bpf_is_told_so() {
    let Some(host) = host() else { return };
    let binary = paths::tiering_bin().unwrap();
    let config = tempfile_with(&host.config("1s"));
    // Mounting it would need CAP_SYS_ADMIN, and be refused first.
    let _bpffs = Mounted::at("/sys/fs/bpf", "bpf");
    let output = Command::new("setpriv")
        .args(["--bounding-set", "-bpf,-sys_admin,-perfmon", "--inh-caps", "-bpf,-sys_admin,-perfmon"])
        .arg(binary)
        .args(["run", "--config"])
        .arg(config.path())
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(77), "{stderr}");
    assert!(last_line(&stderr).contains("run as root, or with CAP_BPF"), "{stderr}");
    assert_nothing_left(&host);
}

#[test]
fn a_second_agent_is_sent_away_and_the_first_goes_on() {
    let Some(host) = host() else { return };
    let first = Agent::start(&host.config("1h"), &[]).unwrap();
    let other = host.config("1h").replace("[agent]", "[agent]\nsocket = \"/run/tiering/other.sock\"");
    let (code, stderr) = tiering(&other, &["run"], |_| ());
    assert_eq!(code, 69, "{stderr}");
    assert!(last_line(&stderr).contains("another agent runs here"), "{stderr}");
    first.status().unwrap();
    let ended = first.interrupt().unwrap();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_nothing_left(&host);
}

#[test]
fn a_folder_that_cannot_hold_swap_is_named_with_its_file_system() {
    let Some(host) = host() else { return };
    // The first swap tier, and one that is not used before the first demotion to it.
    for tier in ["nvme", "qlc"] {
        let folder = host.scratch.path().join(tier);
        let config = host.config("1s").replace(folder.to_str().unwrap(), "/dev/shm/tiering-test");
        let (code, stderr) = tiering(&config, &["run"], |_| ());
        assert_eq!(code, 69, "{stderr}");
        assert!(last_line(&stderr).contains("tmpfs cannot hold swap files"), "{stderr}");
        assert!(!std::path::Path::new("/dev/shm/tiering-test").exists());
        assert_nothing_left(&host);
    }
}

#[test]
fn a_full_disk_is_told_with_figures() {
    let Some(host) = host() else { return };
    let config = host.config("1s").replace("512MiB", "512TiB");
    let (code, stderr) = tiering(&config, &["run"], |_| ());
    assert_eq!(code, 69, "{stderr}");
    assert!(last_line(&stderr).contains("MiB are free and 536870912 MiB needed"), "{stderr}");
    assert_nothing_left(&host);
}

#[test]
fn no_number_left_for_a_swap_area_is_told_and_nothing_stays_on() {
    let Some(host) = host() else { return };
    // Areas as small as they can be, until the kernel has no number left.
    let mut on = Vec::new();
    let full = loop {
        let path = host.scratch.path().join(format!("filler-{}", on.len()));
        let made = Command::new("fallocate").args(["-l", "65536"]).arg(&path).status().unwrap();
        let formatted = Command::new("/usr/sbin/mkswap").arg("-q").arg(&path).output().unwrap();
        assert!(made.success() && formatted.status.success());
        let switched = Command::new("/usr/sbin/swapon").arg(&path).output().unwrap();
        if !switched.status.success() {
            break true;
        }
        on.push(path);
        if on.len() > 40 {
            break false;
        }
    };
    assert!(full, "the kernel took {} areas", on.len());
    let (code, stderr) = tiering(&host.config("1s"), &["run"], |_| ());
    for path in &on {
        assert!(Command::new("/usr/sbin/swapoff").arg(path).status().unwrap().success());
    }
    assert_eq!(code, 69, "{stderr}");
    assert!(last_line(&stderr).contains("no number left for another swap area"), "{stderr}");
    assert_nothing_left(&host);
}

#[test]
fn an_area_that_would_be_filled_first_is_named() {
    let Some(host) = host() else { return };
    let path = host.scratch.path().join("other.swap");
    let made = Command::new("fallocate").args(["-l", "1M"]).arg(&path).status().unwrap();
    let formatted = Command::new("/usr/sbin/mkswap").arg("-q").arg(&path).output().unwrap();
    assert!(made.success() && formatted.status.success());
    assert!(Command::new("/usr/sbin/swapon").args(["-p", "32767"]).arg(&path).status().unwrap().success());
    let (code, stderr) = tiering(&host.config("1s"), &["run"], |_| ());
    assert!(Command::new("/usr/sbin/swapoff").arg(&path).status().unwrap().success());
    assert_eq!(code, 69, "{stderr}");
    assert!(last_line(&stderr).contains("other.swap has priority 32767"), "{stderr}");
    assert_nothing_left(&host);
}

#[test]
fn a_report_that_cannot_be_written_is_told_at_once() {
    let Some(host) = host() else { return };
    let (code, stderr) = tiering(&host.config("1s"), &["run", "--report", "/nowhere/r.json"], |_| ());
    assert_eq!(code, 69, "{stderr}");
    assert!(last_line(&stderr).contains("/nowhere/r.json: cannot write the report"), "{stderr}");
    assert_nothing_left(&host);
}

#[test]
fn unknown_keys_are_told_with_file_line_and_column_and_what_is_allowed() {
    let config = "[policy]\ndemote_afer = \"2m\"\n";
    let (code, stderr) = tiering(config, &["run"], |_| ());
    assert_eq!(code, 78, "{stderr}");
    let line = last_line(&stderr);
    assert!(
        line.contains(":2:1: ") && line.contains("demote_afer") && line.contains("demote_after"),
        "{stderr}"
    );
}

#[test]
fn without_an_agent_a_question_says_what_to_do() {
    let Some(_) = skip_or_fail(need_root()) else { return };
    let config = "[agent]\nsocket = \"/run/tiering/nobody-there.sock\"\n";
    let (code, stderr) = tiering(config, &["status"], |_| ());
    assert_eq!(code, 69, "{stderr}");
    assert!(last_line(&stderr).contains("start it with `tiering run`"), "{stderr}");
}

#[test]
fn a_node_that_the_host_lacks_is_named_with_those_it_has() {
    let config = "[[tier]]\nname = \"dram\"\nnodes = [0]\n[[tier]]\nname = \"cxl\"\nnodes = [977]\n";
    let Some(()) = skip_or_fail(need_root()) else { return };
    let (code, stderr) = tiering(config, &["run"], |_| ());
    assert_eq!(code, 78, "{stderr}");
    let line = last_line(&stderr);
    assert!(line.contains("tier `cxl`") && line.contains("no memory node 977 (it has 0"), "{stderr}");
}

#[test]
fn a_memory_tier_below_a_swap_tier_is_refused_where_it_stands() {
    let config = "[[tier]]\nname = \"dram\"\nnodes = [0]\n[[tier]]\nname = \"nvme\"\n\
        swap = { path = \"/s\", size = \"1GiB\" }\n[[tier]]\nname = \"cxl\"\nnodes = [1]\n";
    let (code, stderr) = tiering(config, &["run"], |_| ());
    assert_eq!(code, 78, "{stderr}");
    let line = last_line(&stderr);
    assert!(line.contains(":9:9: ") && line.contains("above all swap tiers"), "{stderr}");
}
