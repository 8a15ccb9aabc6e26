//! Tiers that are full, or that fail: no page of a guest is harmed, the status says which tier it is and why, the
//! others go on, and what works again is used again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::Backend;
use tiering_testkit::observe::meminfo;
use tiering_testkit::results::Results;

use crate::host::{Host, Memcg, drain_and_end, longest_mkdir, move_to, number, runs, shell, wait_for};
use crate::scenario::Scenario;
use crate::still::Still;

const QLC: &str = "/dev/disk/by-id/tiering-qlc";

/// A tier of the status.
fn tier(agent: &Agent, name: &str) -> Result<Value> {
    let status = agent.status()?;
    let tiers = status["tiers"].as_array().context("a status without tiers")?;
    tiers.iter().find(|tier| tier["name"] == name).cloned().with_context(|| format!("no tier {name}"))
}

/// What the status says is wrong with a tier.
fn trouble(agent: &Agent, name: &str) -> Result<Option<String>> {
    Ok(tier(agent, name)?["trouble"].as_str().map(str::to_owned))
}

/// Tries to move all of a guest into a tier that cannot take it: nothing goes there, and the status says why.
fn is_refused(results: &mut Results, agent: &Agent, host: &Host, still: &Still, why: &str) -> Result<()> {
    let outcome = move_to(agent, &still.name, "qlc", &[])?;
    let there = still.spread()?.in_tier(host, "qlc")?;
    results.check(&format!("{}: pages in qlc", still.name), there, "0", there == 0);
    let told = outcome["skipped"].to_string();
    results.check(&format!("{}: the outcome tells", still.name), &told, why, told.contains(why));
    let trouble = wait_for("the status to tell", || trouble(agent, "qlc"))?;
    results.check(&format!("{}: the status tells", still.name), &trouble, why, trouble.contains(why));
    Ok(())
}

/// The tier takes pages again, and the status does not complain any more.
fn works_again(results: &mut Results, agent: &Agent, host: &Host, still: &Still) -> Result<()> {
    still.check_move(results, agent, host, "qlc")?;
    let told =
        wait_for("the trouble to be over", || Ok(Some(trouble(agent, "qlc")?).filter(Option::is_none)));
    results.check("qlc works again, by the status", told.is_ok(), "true", told.is_ok());
    Ok(())
}

/// The file system of a tier is filled by somebody else before the tier makes its first file there.
fn disk_full(results: &mut Results, host: &Host) -> Result<()> {
    // Four times that in nvme, and they want to go on to qlc.
    let agent = Agent::start(&host.config("4s"), &[])?;
    shell(
        "cd /run/tiers/qlc; free=$(df --output=avail -B1M . | tail -1); fallocate -l $((free - 30))M filler",
    )?;
    let first = Still::new(&agent, "first", Backend::Anonymous)?;
    let told = wait_for("the status to tell that qlc is full", || trouble(&agent, "qlc"))?;
    results.check("disk full: the status tells", &told, "MiB needed", told.contains("MiB needed"));
    let second = Still::new(&agent, "second", Backend::Anonymous)?;
    let there = wait_for("the second guest's idle pages in nvme", || {
        let there = second.spread()?.in_tier(host, "nvme")?;
        Ok((there * 100 >= second.all_pages() * 95).then_some(there))
    })?;
    results.check("disk full: idle pages go to nvme all the same", there, "95 % of all", true);
    let told = trouble(&agent, "qlc")?.unwrap_or_default();
    results.note("disk full: meanwhile the status says of qlc", told);
    shell("rm /run/tiers/qlc/filler")?;
    let arrived = wait_for("pages in qlc, by themselves", || {
        let there = first.spread()?.in_tier(host, "qlc")?;
        Ok((there > 8000).then_some(there))
    })?;
    results.check("room again: pages that go to qlc by themselves", arrived, "> 8000", true);
    works_again(results, &agent, host, &first)?;
    for still in [&first, &second] {
        still.check_content(results)?;
    }
    drop((first, second));
    drain_and_end(results, agent, host)
}

/// All numbers for swap areas are taken.
fn no_area_left(results: &mut Results, host: &Host) -> Result<()> {
    let agent = Agent::start(&host.config("1h"), &[])?;
    let others = shell(
        "cd /run/tiers/nvme; for n in $(seq 40); do \
         fallocate -l 1M other-$n && chmod 600 other-$n && mkswap -q other-$n && swapon other-$n 2>/dev/null || break; \
         done; grep -c other- /proc/swaps",
    )?;
    results.note("areas of others switched on", others.trim());
    let still = Still::new(&agent, "areas", Backend::Anonymous)?;
    is_refused(results, &agent, host, &still, "no number left for another swap area")?;
    still.check_move(results, &agent, host, "nvme")?;
    shell("cd /run/tiers/nvme; for n in $(seq 40); do swapoff other-$n 2>/dev/null; rm -f other-$n; done")?;
    // The numbers in /proc/swaps have changed, and with them how `Spread` knows them.
    let outcome = move_to(&agent, &still.name, "qlc", &[])?;
    let there = number(&outcome["in_tier_pages"]);
    results.check("an area again: pages in qlc", there, "99 %", there * 100 >= still.all_pages() * 99);
    let told =
        wait_for("the trouble to be over", || Ok(Some(trouble(&agent, "qlc")?).filter(Option::is_none)));
    results.check("an area again: qlc works again", told.is_ok(), "true", told.is_ok());
    still.check_content(results)?;
    drop(still);
    drain_and_end(results, agent, host)
}

/// A lower memory tier that somebody else has filled.
fn node_full(results: &mut Results, host: &Host) -> Result<()> {
    let agent = Agent::start(&host.config("1h"), &[])?;
    let still = Still::new(&agent, "node", Backend::Anonymous)?;
    // What is bound to the node and locked cannot be moved out of the way.
    shell(
        "mkdir -p /run/hog && mount -t tmpfs -o mpol=bind:1,size=100% tmpfs /run/hog; \
         free=$(sed -n 's/.*MemFree: *\\([0-9]*\\) kB/\\1/p' /sys/devices/system/node/node1/meminfo); \
         dd if=/dev/zero of=/run/hog/hog bs=1M count=$((free / 1024 - 80)) 2>/dev/null",
    )?;
    let outcome = move_to(&agent, &still.name, "cxl", &[])?;
    let there = still.spread()?.in_tier(host, "cxl")?;
    let refused = number(&outcome["skipped"]["the tier is full"]);
    results.check("node full: pages refused", refused, "a tenth at least", refused * 10 > still.all_pages());
    let all = still.all_pages();
    let counted = format!("{} of {all}", there + refused);
    results.check("node full: pages there or refused", counted, "all", there + refused == all);
    still.check_move(results, &agent, host, "nvme")?;
    shell("umount /run/hog")?;
    still.check_move(results, &agent, host, "cxl")?;
    still.check_content(results)?;
    drop(still);
    drain_and_end(results, agent, host)
}

#[test]
#[ignore = "long: a disk or a node that fails takes its time"]
fn a_full_node_is_told_of_and_the_other_tiers_go_on() {
    let scenario = Scenario::default();
    scenario.run("failing::a_full_node_is_told_of_and_the_other_tiers_go_on", |results: &mut Results| {
        node_full(results, &Host::new()?)
    });
}

#[test]
#[ignore = "long: all numbers for swap areas are taken first"]
fn a_tier_that_gets_no_swap_area_is_told_of_and_tried_again() {
    let scenario = Scenario::default();
    let test = "failing::a_tier_that_gets_no_swap_area_is_told_of_and_tried_again";
    scenario.run(test, |results: &mut Results| no_area_left(results, &Host::new()?));
}

#[test]
#[ignore = "long: pages go idle, are refused, and go again"]
fn a_full_disk_is_told_of_and_used_again_when_there_is_room() {
    let test = "failing::a_full_disk_is_told_of_and_used_again_when_there_is_room";
    Scenario::default().run(test, |results: &mut Results| disk_full(results, &Host::new()?));
}

/// A device above the qlc disk that can be told to refuse writes.
struct Faulty {
    sectors: String,
}

impl Faulty {
    /// The first of its kind. Without udev there is no name for it in /dev/mapper.
    const DEVICE: &str = "/dev/dm-0";

    fn new() -> Result<Self> {
        shell("busybox modprobe dm-mod; busybox modprobe dm-flakey")?;
        let sectors = shell(&format!("blockdev --getsz {QLC}"))?.trim().to_owned();
        ensure!(!sectors.is_empty(), "the qlc disk has no size");
        let table = format!("0 {sectors} linear {QLC} 0");
        shell(&format!("dmsetup --noudevrules --noudevsync create faulty --table '{table}'"))?;
        Ok(Self { sectors })
    }

    /// From now on each write is an error; what is there can be read.
    fn refuse_writes(&self) -> Result<()> {
        self.become_table(&format!("0 {} flakey {QLC} 0 0 3600 1 error_writes", self.sectors))
    }

    /// From now on reads and writes wait.
    fn hang(&self) -> Result<()> {
        shell("dmsetup --noudevrules --noudevsync suspend --nolockfs --noflush faulty").map(drop)
    }

    fn go_on(&self) -> Result<()> {
        shell("dmsetup --noudevrules --noudevsync resume faulty").map(drop)
    }

    fn heal(&self) -> Result<()> {
        self.become_table(&format!("0 {} linear {QLC} 0", self.sectors))
    }

    fn become_table(&self, table: &str) -> Result<()> {
        let dmsetup = "dmsetup --noudevrules --noudevsync";
        let script = format!(
            "{dmsetup} suspend --nolockfs --noflush faulty && {dmsetup} reload faulty --table '{table}' && \
             {dmsetup} resume faulty"
        );
        shell(&script).map(drop)
    }
}

fn io_errors(results: &mut Results) -> Result<()> {
    let faulty = Faulty::new()?;
    let host = Host::with_qlc(Faulty::DEVICE)?;
    let agent = Agent::start(&host.config("1h"), &[])?;
    let still = Still::new(&agent, "errors", Backend::Anonymous)?;
    let there_before = Still::new(&agent, "before", Backend::Anonymous)?;
    there_before.check_move(results, &agent, &host, "qlc")?;

    faulty.refuse_writes()?;
    // The tier was found to work just now; it is probed again when that is 2 s ago.
    std::thread::sleep(Duration::from_secs(3));
    is_refused(results, &agent, &host, &still, "Input/output error")?;
    still.check_move(results, &agent, &host, "nvme")?;
    still.check_content(results)?;
    there_before.check_content(results)?;

    faulty.heal()?;
    works_again(results, &agent, &host, &still)?;
    // What goes there just before the next look meets the errors: it stays in memory.
    there_before.filled.fill(0)?;
    runs(&agent, &there_before.name)?;
    faulty.refuse_writes()?;
    let outcome = move_to(&agent, &there_before.name, "qlc", &[])?;
    results.note("sent to a disk that has just failed", outcome);
    there_before.check_content(results)?;
    faulty.heal()?;
    for still in [&still, &there_before] {
        still.check_content(results)?;
    }
    drop((still, there_before));
    drain_and_end(results, agent, &host)
}

#[test]
#[ignore = "long: a disk or a node that fails takes its time"]
fn a_disk_that_refuses_writes_gets_nothing_until_it_takes_them_again() {
    Scenario::default()
        .run("failing::a_disk_that_refuses_writes_gets_nothing_until_it_takes_them_again", io_errors);
}

/// A disk answers nothing for a while, with memory of a VM on it that is wanted back.
fn disk_hangs(results: &mut Results) -> Result<()> {
    let faulty = Faulty::new()?;
    let host = Host::with_qlc(Faulty::DEVICE)?;
    let agent = Agent::start(&host.config("1h"), &[])?;
    let (there, group) = Still::in_group(&agent, "there", &[])?;
    let other = Still::new(&agent, "other", Backend::Anonymous)?;
    there.check_move(results, &agent, &host, "qlc")?;
    wait_for("what went to qlc to be there alone, and not in the swap cache", || {
        group.reclaim(64 << 20);
        Ok((meminfo("SwapCached")? < 4 << 20).then_some(()))
    })?;
    let mut before = None;
    let (alone, _) = longest_mkdir(|| {
        before = Some(fastest_status(&agent)?);
        std::thread::sleep(Duration::from_secs(10));
        Ok(())
    })?;
    let before = before.context("no status")?;
    faulty.hang()?;
    let (moved, longest) = std::thread::scope(|scope| {
        let up = scope.spawn(|| move_to(&agent, &there.name, "dram", &[]));
        let longest = longest_mkdir(|| while_it_hangs(results, &agent, &other, before));
        // Whatever came of that: who waits for the disk waits for ever otherwise.
        faulty.go_on()?;
        let moved = up.join().map_err(|_| anyhow::anyhow!("the move panicked"))?;
        Ok::<_, anyhow::Error>((moved?, longest?.0))
    })?;
    results.check(
        "making another control group took at most",
        format!("{} ms", longest.as_millis()),
        &format!("200 ms, or twice the {} ms before", alone.as_millis()),
        longest < (alone * 2).max(Duration::from_millis(200)),
    );
    results.note("the move that the disk held up", moved);
    let told = wait_for("the warning to be over", || Ok(lane_warning(&agent)?.is_none().then_some(())));
    results.check("the warning is over", told.is_ok(), "true", told.is_ok());
    other.check_move(results, &agent, &host, "qlc")?;
    there.check_content(results)?;
    other.check_content(results)?;
    drop((there, other, group));
    drain_and_end(results, agent, &host)
}

/// The agent answers, and says what it waits for; another VM has its memory.
fn while_it_hangs(results: &mut Results, agent: &Agent, other: &Still, before: Duration) -> Result<()> {
    let warning = wait_for("a warning", || lane_warning(agent))?;
    results.check("the warning names the VM", &warning, "tt-there", warning.contains("tt-there"));
    let took = fastest_status(agent)?;
    results.check(
        "the status took",
        format!("{} ms", took.as_millis()),
        &format!("2 s, or twice the {} ms before", before.as_millis()),
        took < (before * 2).max(Duration::from_secs(2)),
    );
    other.check_content(results)
}

/// The fastest of a few answers: an emulated host has pauses of its own.
fn fastest_status(agent: &Agent) -> Result<Duration> {
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        let began = Instant::now();
        agent.status()?;
        fastest = fastest.min(began.elapsed());
    }
    Ok(fastest)
}

/// What the status says of a lane that has been at one job for long.
fn lane_warning(agent: &Agent) -> Result<Option<String>> {
    let status = agent.status()?;
    let warnings = status["warnings"].as_array().context("a status without warnings")?;
    let warnings = warnings.iter().filter_map(Value::as_str);
    Ok(warnings.filter(|line| line.contains("meanwhile nothing else")).map(str::to_owned).next())
}

#[test]
#[ignore = "long: a disk hangs for more than a minute"]
fn a_disk_that_hangs_holds_up_moves_and_nothing_else() {
    Scenario::default().run("failing::a_disk_that_hangs_holds_up_moves_and_nothing_else", disk_hangs);
}

/// A tier holds more than memory has room for.
fn drain_with_little_memory(results: &mut Results) -> Result<()> {
    let host = Host::new()?;
    let agent = Agent::start(&host.config("1h"), &[])?;
    // Of all that is started from here on.
    let group = Memcg::of("stills", std::process::id())?;
    let stills = ["one", "two", "three"].map(|name| Still::new(&agent, name, Backend::Anonymous));
    let stills = stills.into_iter().collect::<Result<Vec<_>>>()?;
    for still in &stills {
        still.check_move(results, &agent, &host, "qlc")?;
    }
    let segments =
        || Ok::<_, anyhow::Error>(shell("grep -c tiers/qlc /proc/swaps || true")?.trim().parse::<u64>()?);
    let before = segments()?;
    wait_for("what went to qlc to be there alone, and not in the swap cache", || {
        group.reclaim(64 << 20);
        Ok((meminfo("SwapCached")? < 4 << 20).then_some(()))
    })?;
    // Room for one segment of 64 MiB and what must stay, not for two. A ramfs cannot be swapped.
    let keep_mib = 64 + 64 + 40;
    let hog_mib = (meminfo("MemAvailable")? >> 20).saturating_sub(keep_mib);
    shell(&format!(
        "mkdir -p /run/hog && mount -t ramfs ramfs /run/hog && dd if=/dev/zero of=/run/hog/hog bs=1M count={hog_mib} 2>/dev/null"
    ))?;
    results.note("MiB of memory left", meminfo("MemAvailable")? >> 20);
    let drained = agent.tiering(&["drain", "qlc"]);
    let said = drained.map_or_else(|error| format!("{error:#}"), |said| format!("no error: {said}"));
    let ok = said.contains("must come back") && said.contains("free some first");
    results.check("too little memory: drain says", &said, "MiB must come back ... free some first", ok);
    let left = segments()?;
    let ok = left > 0 && left < before;
    results.check("too little memory: swap files left", left, &format!("1 to {}", before - 1), ok);
    let used = number(&tier(&agent, "qlc")?["used_bytes"]) >> 20;
    results.check("too little memory: MiB still in qlc, by the status", used, "> 32", used > 32);

    shell("umount /run/hog")?;
    for still in &stills {
        still.check_content(results)?;
    }
    // It is a tier like before: takes pages, and drains. The agent has to see first what was read from outside.
    runs(&agent, &stills[0].name)?;
    stills[0].check_move(results, &agent, &host, "qlc")?;
    let said = agent.tiering(&["drain", "qlc"])?;
    results.note("room again: drain says", said.trim());
    let left = segments()?;
    results.check("room again: swap files left", left, "0", left == 0);
    for still in &stills {
        still.check_content(results)?;
    }
    drop(stills);
    let ended = agent.interrupt()?;
    results.check("agent's exit code", format!("{:?}", ended.code), "Some(0)", ended.code == Some(0));
    Ok(())
}

#[test]
#[ignore = "long: a disk or a node that fails takes its time"]
fn a_drain_with_too_little_memory_says_so_and_stops_half_way() {
    Scenario { nodes: "dram:1G", ..Scenario::default() }
        .run("failing::a_drain_with_too_little_memory_says_so_and_stops_half_way", drain_with_little_memory);
}
