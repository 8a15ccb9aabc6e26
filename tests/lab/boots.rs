//! The lab boots, does what it is told, tells how it went, and is gone.

use std::time::Duration;
use tiering_testkit::kernel;
use tiering_testkit::lab::{Job, Lab};
use tiering_testkit::skip::{need_lab, skip_or_fail};

struct Ran {
    ended: anyhow::Result<u8>,
    stdout: String,
    stderr: String,
    out: tempfile::TempDir,
}

fn run_in_lab(script: &str, limit: Duration) -> Ran {
    let out = tempfile::tempdir().unwrap();
    let lab = Lab {
        kernel: kernel::of_line(kernel::LINES[0]).unwrap(),
        nodes: "dram:1G,cxl:512M".parse().unwrap(),
        nvme: "256M".parse().unwrap(),
        qlc: "512M@iops=2000".parse().unwrap(),
        cpus: None,
        job: Job::Command(["sh", "-c", script].map(Into::into).to_vec()),
        limit: Some(limit),
        out: out.path().to_owned(),
    };
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let ended = lab.run(&mut stdout, &mut stderr, &|| false);
    let [stdout, stderr] = [stdout, stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    Ran { ended, stdout, stderr, out }
}

const PATIENT: Duration = Duration::from_secs(180);

#[test]
fn a_command_sees_a_host_with_tiers_and_its_exit_code_output_and_files_come_back() {
    let Some(()) = skip_or_fail(need_lab()) else { return };
    let script = r#"
        echo "folder $PWD"
        echo "kernel $(uname -r)"
        for tier in /sys/devices/virtual/memory_tiering/*/nodelist; do echo "tier $(cat $tier)"; done
        for serial in tiering-nvme tiering-qlc; do
            disk=$(basename "$(readlink /dev/disk/by-id/$serial)")
            echo "disk $(cat /sys/block/$disk/size) $serial"
        done
        [ -c /dev/kvm ] && echo "kvm there"
        for kind in cgroup2 tracefs debugfs bpf securityfs; do
            grep -q " $kind " /proc/mounts && echo "mounted $kind"
        done
        [ -e /proc/pressure/memory ] && echo "psi on"
        swap=$(readlink /dev/disk/by-id/tiering-nvme)
        mkswap -q $swap && swapon $swap && grep -q $swap /proc/swaps && echo "swap on"
        touch /usr/lab-was-here && echo "root can be written"
        echo result >"$LAB_OUT/x"
        echo complaint >&2
        exit 3
    "#;
    let ran = run_in_lab(script, PATIENT);
    assert_eq!(ran.ended.unwrap(), 3, "{}{}", ran.stdout, ran.stderr);
    let root = tiering_testkit::paths::workspace_root();
    let release = kernel::of_line(kernel::LINES[0]).unwrap().release;
    let disks = [(256 << 11, "tiering-nvme"), (512 << 11, "tiering-qlc")];
    let disks = disks.map(|(sectors, serial)| format!("disk {sectors} {serial}"));
    let expected = format!(
        "folder {}\nkernel {release}\ntier 0\ntier 1\n{}\nkvm there\nmounted cgroup2\nmounted tracefs\nmounted debugfs\n\
         mounted bpf\nmounted securityfs\npsi on\nswap on\nroot can be written\n",
        root.display(),
        disks.join("\n"),
    );
    let lines: String = ran.stdout.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    assert_eq!(lines, expected);
    assert_eq!(ran.stderr, "complaint\n");
    assert_eq!(std::fs::read_to_string(ran.out.path().join("x")).unwrap(), "result\n");
    assert!(!std::path::Path::new("/usr/lab-was-here").exists(), "the lab wrote to this machine");
}

#[test]
fn a_panic_is_told_with_the_console_and_what_was_written_before_is_kept() {
    let Some(()) = skip_or_fail(need_lab()) else { return };
    let script = r#"echo before; echo kept >"$LAB_OUT/x"; echo c >/proc/sysrq-trigger; sleep 100"#;
    let ran = run_in_lab(script, PATIENT);
    let error = format!("{:#}", ran.ended.unwrap_err());
    assert!(error.contains("gave up: Kernel panic - not syncing: sysrq triggered crash"), "{error}");
    assert!(error.contains("Call Trace"), "{error}");
    assert_eq!(ran.stdout, "before\n");
    assert_eq!(std::fs::read_to_string(ran.out.path().join("x")).unwrap(), "kept\n");
}

#[test]
fn a_job_that_hangs_ends_with_the_time_and_leaves_no_process() {
    let Some(()) = skip_or_fail(need_lab()) else { return };
    let ran = run_in_lab("sleep 100000", Duration::from_secs(12));
    let error = format!("{:#}", ran.ended.unwrap_err());
    assert!(error.contains("not done after 12s") && error.contains("--timeout"), "{error}");
    // One virtiofsd was told the name of the folder.
    let ours = |process: std::io::Result<std::fs::DirEntry>| {
        let words = std::fs::read(process.ok()?.path().join("cmdline")).ok()?;
        let words = String::from_utf8_lossy(&words).into_owned();
        words.contains(&*ran.out.path().to_string_lossy()).then_some(words)
    };
    let left: Vec<_> = std::fs::read_dir("/proc").unwrap().filter_map(ours).collect();
    assert_eq!(left, [""; 0]);
}
