//! What a way down and up leaves of huge pages, and what that costs a guest.
//!
//! A guest whose RAM is in huge pages walks its memory; all of it is demoted to nvme and promoted to dram; it walks
//! again. Told: bytes in huge pages, by the kernel, and how long the touches took, before and after. The walk after the
//! promotion is done twice: KVM has to map each page anew in the first.

use std::time::{Duration, Instant};

use anyhow::Result;
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::{Backend, Guest};
use tiering_testkit::pattern::{Access, Pattern, PhaseResult};
use tiering_testkit::results::Results;

use crate::host::{BOOT, Host, drain_and_end, known_vm, kvm_guest, move_to, number};
use crate::scenario::Scenario;

const NAME: &str = "tt-huge";
/// How long the agent and the kernel have to make huge pages again.
const COLLAPSE: Duration = Duration::from_secs(20);

fn huge(results: &mut Results) -> Result<()> {
    let host = Host::new()?;
    std::fs::write("/sys/kernel/mm/transparent_hugepage/enabled", "always")?;
    let pattern = Pattern {
        mem_mib: 48,
        write_one_in: 4,
        rounds_on_command: true,
        access: Access::Uniform { set_mib: 32 },
        ..Pattern::default()
    };
    let mut guest = kvm_guest(NAME, Backend::Anonymous).pattern(pattern).start()?;
    guest.wait_ready(BOOT)?;
    // The first maps all pages.
    walk(&mut guest, 1)?;
    let before = walk(&mut guest, 2)?;
    let huge_before = huge_kib(&guest)?;

    let agent = Agent::start(&host.config("1h"), &[])?;
    known_vm(&agent, NAME)?;
    let down = move_to(&agent, NAME, "nvme", &[])?;
    let huge_down = huge_kib(&guest)?;
    let up = move_to(&agent, NAME, "dram", &[])?;
    let began = Instant::now();
    while huge_kib(&guest)? < huge_before && began.elapsed() < COLLAPSE {
        std::thread::sleep(Duration::from_secs(1));
    }
    let huge_after = huge_kib(&guest)?;
    let first = walk(&mut guest, 3)?;
    let after = walk(&mut guest, 4)?;

    for (when, outcome) in [("down", &down), ("up", &up)] {
        let (asked, there) = (number(&outcome["asked_pages"]), number(&outcome["in_tier_pages"]));
        results.note(&format!("{when}: pages asked for, and there"), format!("{asked}, {there}"));
    }
    let mib = |kib: u64| kib >> 10;
    results.note(
        "MiB in huge pages before, down, up",
        format!("{}, {}, {}", mib(huge_before), mib(huge_down), mib(huge_after)),
    );
    let kept = huge_after as f64 / huge_before.max(1) as f64 * 100.0;
    results.note("of the huge bytes there again, %", format!("{kept:.0}"));
    for (when, phase) in [("before", &before), ("after, first walk", &first), ("after, second walk", &after)]
    {
        let (mean, p99) = (mean_ns(phase) / 1000.0, phase.p99 / 1000);
        results.note(&format!("touch {when}"), format!("mean {mean:.1} us, p99 {p99} us"));
    }
    let slower = (mean_ns(&after) / mean_ns(&before) - 1.0) * 100.0;
    results.note("second walk: mean touch slower by, %", format!("{slower:.1}"));
    results.headline(format!("huge bytes kept {kept:.0} %, touch {slower:+.0} %"));
    drain_and_end(results, agent, &host)?;
    let right = guest.finish()?.checksum_ok;
    results.check("memory right", right, "true", right);
    Ok(())
}

fn walk(guest: &mut Guest, number: u64) -> Result<PhaseResult> {
    guest.go()?;
    guest.wait_phase(number, BOOT)
}

fn mean_ns(phase: &PhaseResult) -> f64 {
    let touches: u64 = phase.latency.iter().map(|(_, touches)| touches).sum();
    let sum: f64 = phase.latency.iter().map(|(ns, touches)| *ns as f64 * *touches as f64).sum();
    sum / touches.max(1) as f64
}

/// KiB of QEMU's RAM in huge pages, by the kernel.
fn huge_kib(guest: &Guest) -> Result<u64> {
    let ram = guest.ram()?;
    let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", guest.pid()))?;
    let ours = format!("{:x}-", ram.start);
    let mapping = smaps.lines().skip_while(|line| !line.starts_with(&ours));
    let field = mapping.into_iter().find_map(|line| line.strip_prefix("AnonHugePages:"));
    Ok(field.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0))
}

#[test]
#[ignore = "a benchmark: cargo xtask bench tiers --part huge"]
fn bench_huge() {
    Scenario { nodes: "dram:1G", ..Scenario::default() }.run("bench::huge::bench_huge", huge);
}
