//! The oldest kernel and the newest stock one, with the same binary: `tiering doctor` says of each what is true, and
//! pages go through the same ladder on both.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tiering_testkit::paths;
use tiering_testkit::results::Results;
use tiering_user::sys::ZeroPages;

use crate::host::{Host, shell};
use crate::memory_tiers::through_the_ladder;
use crate::scenario::Scenario;

/// What `tiering doctor --json` says, with this lab's ladder.
fn doctor(host: &Host) -> Result<Vec<Value>> {
    let config = tempfile::NamedTempFile::with_suffix(".toml")?;
    std::fs::write(config.path(), host.config("1h"))?;
    let binary = paths::tiering_bin()?;
    let output = Command::new(binary).args(["doctor", "--json", "--config"]).arg(config.path()).output()?;
    ensure!(output.status.success(), "doctor: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("doctor's JSON")
}

/// 1 KiB blocks that reach the disk when 16 MiB of zero pages are swapped.
fn zeroes_written_kib(host: &Host) -> Result<u64> {
    const PAGES: usize = 4096;
    let file = host.swap_on("nvme", 64 << 20)?;
    shell("sync")?;
    let written = || -> Result<u64> {
        let disk = std::fs::canonicalize("/dev/disk/by-id/tiering-nvme")?;
        let disk = disk.file_name().context("a disk without name")?;
        let stat = std::fs::read_to_string(Path::new("/sys/block").join(disk).join("stat"))?;
        // Sectors of 512 bytes (Documentation/block/stat.rst).
        Ok(stat.split_whitespace().nth(6).context("too few numbers")?.parse::<u64>()? / 2)
    };
    let before = written()?;
    let mut pages = ZeroPages::map(PAGES)?;
    pages.page_out(0, PAGES)?;
    std::thread::sleep(std::time::Duration::from_secs(1));
    let after = written()?;
    drop(pages);
    let path = file.display();
    shell(&format!("swapoff {path} && rm {path}"))?;
    Ok(after - before)
}

fn there(path: &str) -> bool {
    Path::new(path).exists()
}

/// The kernel's memory tiers, as the nodes of each.
fn kernel_tiers() -> Result<Vec<String>> {
    let output = shell("cat /sys/devices/virtual/memory_tiering/memory_tier*/nodelist")?;
    Ok(output.lines().map(str::to_owned).collect())
}

/// Each fact is read from the kernel without the agent; doctor must say the same.
fn doctor_is_right(results: &mut Results, host: &Host) -> Result<()> {
    let checks = doctor(host)?;
    let of = |name: &str| {
        let check = checks.iter().find(|check| check["name"] == name);
        let [state, detail, consequence] = ["state", "detail", "consequence"]
            .map(|field| check.and_then(|check| check[field].as_str()).unwrap_or_default());
        (state.to_owned(), detail.to_owned(), consequence.to_owned())
    };
    for check in &checks {
        println!("{check}");
    }

    let release = shell("uname -r")?;
    let (state, detail, consequence) = of("kernel");
    results.check("kernel", &detail, release.trim(), detail == release.trim());
    let written = zeroes_written_kib(host)?;
    let told = consequence.contains("zero pages are written");
    results.check(
        "KiB written for 16 MiB of zero pages; doctor warns of it",
        format!("{written}; {told}, {state}"),
        "both or neither",
        (written > 8192) == told && (written < 1024) != told,
    );

    let symbols = std::fs::read_to_string("/proc/kallsyms")?;
    let facts = [
        (
            "PAGEMAP_SCAN",
            "a kernel function of its own",
            symbols.contains(" pagemap_scan_pmd_entry"),
            "degraded",
        ),
        ("BTF", "/sys/kernel/btf/vmlinux", there("/sys/kernel/btf/vmlinux"), "degraded"),
        ("PSI", "/proc/pressure/memory", there("/proc/pressure/memory"), "degraded"),
        ("cgroup v2", "/sys/fs/cgroup/cgroup.procs", there("/sys/fs/cgroup/cgroup.procs"), "degraded"),
        (
            "source kvm_page_fault",
            "the tracepoint kvm:kvm_page_fault",
            there("/sys/kernel/tracing/events/kvm/kvm_page_fault"),
            "missing",
        ),
    ];
    for (name, fact, holds, otherwise) in facts {
        let wanted = if holds { "ok" } else { otherwise };
        let (state, detail, _) = of(name);
        let what = format!("{name} ({fact}: {})", if holds { "there" } else { "not there" });
        results.check(&what, format!("{state}: {detail}"), wanted, state == wanted);
    }

    let damon = there("/sys/kernel/mm/damon/admin");
    let (state, detail, _) = of("source damon");
    let wanted = if damon { "in the kernel" } else { "not in this kernel" };
    let ok = state == "missing" && detail.contains("not in this kernel") != damon;
    results.check(&format!("source damon ({wanted})"), format!("{state}: {detail}"), wanted, ok);

    let tiers = kernel_tiers()?;
    let (state, detail, _) = of("memory tiers");
    let wanted = format!("2 in the ladder, {} in the kernel", tiers.len());
    let ok = state == "ok" && detail.starts_with(&wanted);
    results.check(
        &format!("memory tiers (the kernel's: {tiers:?})"),
        format!("{state}: {detail}"),
        &wanted,
        ok,
    );
    Ok(())
}

fn doctor_and_ladder(results: &mut Results) -> Result<()> {
    let host = Host::new()?;
    doctor_is_right(results, &host)?;
    through_the_ladder(results, &host)
}

#[test]
#[ignore = "long: the oldest kernel"]
fn on_6_1_doctor_tells_what_is_missing_and_pages_go_through_the_ladder() {
    Scenario { kernel: "6.1", ..Scenario::default() }.run(
        "kernel_6_1::on_6_1_doctor_tells_what_is_missing_and_pages_go_through_the_ladder",
        doctor_and_ladder,
    );
}

#[test]
#[ignore = "long: with the one on 6.1"]
fn on_6_12_doctor_tells_what_is_there() {
    Scenario::default().run("kernel_6_1::on_6_12_doctor_tells_what_is_there", |results: &mut Results| {
        doctor_is_right(results, &Host::new()?)
    });
}
