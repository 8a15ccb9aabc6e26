//! A ladder that is proposed, and what is said of ladders in the wrong order: on a host with a slower memory node, a
//! fast disk and a slow one.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tiering_testkit::agent::Agent;
use tiering_testkit::paths;
use tiering_testkit::results::Results;
use tiering_testkit::scratch::swap_areas_below;

use crate::host::{Host, number, wait_for};
use crate::scenario::Scenario;

/// What `tiering ARGS` prints with this configuration.
fn tiering(config: &str, args: &[&str]) -> Result<String> {
    let file = tempfile::NamedTempFile::with_suffix(".toml")?;
    std::fs::write(file.path(), config)?;
    let output = Command::new(paths::tiering_bin()?).args(args).arg("--config").arg(file.path()).output()?;
    ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// What doctor says, check by check.
fn doctor(config: &str) -> Result<Vec<Value>> {
    let checks = tiering(config, &["doctor", "--json"])?;
    serde_json::from_str(&checks).context("doctor's JSON")
}

/// The details of all checks of this name that are in this state.
fn details(checks: &[Value], name: &str, state: &str) -> Vec<String> {
    let named = checks.iter().filter(|check| check["name"] == name && check["state"] == state);
    named.filter_map(|check| check["detail"].as_str().map(str::to_owned)).collect()
}

fn contains(results: &mut Results, what: &str, found: &[String], words: &[&str]) {
    let ok = found.iter().any(|text| words.iter().all(|word| text.contains(word)));
    results.check(what, format!("{found:?}"), &words.join(" … "), ok);
}

/// The configuration names no tier.
fn proposal(results: &mut Results) -> Result<()> {
    let config = "[agent]\nstate_dir = \"/run/tiers/nvme/state\"\n[policy]\ndemote_after = \"1h\"\n";
    let text = tiering(config, &["doctor"])?;
    println!("{text}");
    let (_, toml) = text.split_once("can be put there:\n\n").context("doctor shows no proposal")?;
    let (toml, _) = toml.split_once("\n\nevery VM").context("doctor ends early")?;
    let places = [
        "\"dram\"\nnodes = [0]",
        "\"node-1\"\nnodes = [1]",
        "\"disk\"",
        "path = \"/run/tiers/nvme/state/swap\"",
    ];
    let places = places.map(|place| toml.find(place));
    let in_order = places.iter().all(Option::is_some) && places.is_sorted();
    results.check(
        "proposed: main memory, then node 1, then swap",
        format!("{places:?}"),
        "in order",
        in_order,
    );

    let shown: Value = serde_json::from_str(&tiering(config, &["config", "show", "--json"])?)?;
    let pasted: Value =
        serde_json::from_str(&tiering(&format!("{config}{toml}"), &["config", "show", "--json"])?)?;
    results.check("the proposal, pasted, is the same ladder", &pasted["tier"], "as shown", pasted == shown);

    let checks = doctor(config)?;
    let of = |name: &str| details(&checks, name, "ok");
    contains(
        results,
        "node 1",
        &of("node 1"),
        &["no CPUs", "kernel tier", "distance 30 from node 0", "HMAT"],
    );
    contains(
        results,
        "the other disk",
        &of("another disk"),
        &["/run/tiers/qlc", "QEMU NVMe Ctrl", "not used"],
    );
    contains(results, "speed of the disk", &of("speed of disk"), &["p50", "QEMU NVMe Ctrl"]);
    // Not by measurement: emulated, all nodes are equally fast, and none for long.
    let contradicted: Vec<_> =
        ["order, by HMAT", "order, by distance", "order, by the kernel", "disks of the tiers"]
            .iter()
            .flat_map(|name| details(&checks, name, "degraded"))
            .collect();
    results.check("contradictions", format!("{contradicted:?}"), "none", contradicted.is_empty());

    let agent = Agent::start(config, &[])?;
    let tiers = wait_for("the load of the disk", || {
        let tiers = agent.status()?["tiers"].clone();
        Ok((!tiers[2]["device_load"].is_null()).then_some(tiers))
    })?;
    let names = [0, 1, 2].map(|level| tiers[level]["name"].clone());
    results.check(
        "the agent's tiers",
        format!("{names:?}"),
        "dram node-1 disk",
        names == ["dram", "node-1", "disk"],
    );
    for level in 0..3 {
        let tier = &tiers[level];
        let ok = number(&tier["read_latency_ns"]["p50"]) > 0 && number(&tier["bandwidth_bytes_per_s"]) > 0;
        // Emulation can take longer over a tier's memory than the agent waits.
        let told = format!("{}: {}", tier["name"], tier["read_latency_ns"]);
        let ok = ok || level < 2 && tier["read_latency_ns"].is_null();
        results.check("measured", told, "figures, if in time", ok);
    }
    // One read a second goes on.
    let reads = |tiers: &Value| -> u64 {
        let buckets = tiers[2]["latency_histogram"].as_array().into_iter().flatten();
        buckets.map(|bucket| number(&bucket[1])).sum()
    };
    let before = reads(&tiers);
    let more = wait_for("more reads", || Ok((reads(&agent.status()?["tiers"]) > before).then_some(())));
    results.check("the disk is read while the agent runs", before, "grows", more.is_ok());
    let ended = agent.interrupt()?;
    println!("{}", ended.log);
    results.check("agent's exit code", format!("{:?}", ended.code), "Some(0)", ended.code == Some(0));
    let areas = swap_areas_below(std::path::Path::new("/"))?.len();
    results.check("swap areas left", areas, "0", areas == 0);
    let left = std::fs::read_dir("/run/tiers/nvme/state/swap").is_ok();
    results.check("the tier's folder is left", left, "false", !left);
    Ok(())
}

/// Everything upside down.
fn reversed(results: &mut Results, host: &Host) -> Result<()> {
    let (nvme, qlc) = (host.folder("nvme"), host.folder("qlc"));
    let config = format!(
        "[[tier]]\nname = \"dram\"\nnodes = [1]\n[[tier]]\nname = \"far\"\nnodes = [0]\n\
         [[tier]]\nname = \"slow\"\nswap = {{ path = \"{}\", size = \"256MiB\" }}\n\
         [[tier]]\nname = \"fast\"\nswap = {{ path = \"{}\", size = \"256MiB\" }}\n",
        qlc.display(),
        nvme.display()
    );
    let checks = doctor(&config)?;
    let of = |name: &str| details(&checks, name, "degraded");
    contains(results, "by HMAT", &of("order, by HMAT"), &["`dram`", "above tier `far`"]);
    contains(
        results,
        "by distance",
        &of("order, by distance"),
        &["`dram`", "30", "above tier `far` with 10"],
    );
    contains(results, "by the kernel", &of("order, by the kernel"), &["`dram`", "above tier `far`"]);
    // Times of an emulated host: what they say of the disks is worth knowing, and no more.
    results.note("as measured", format!("{:?}", of("order, as measured")));
    for name in ["speed of slow", "speed of fast"] {
        results.note(name, details(&checks, name, "ok").join(" "));
    }
    let agent = Agent::start(&config, &[])?;
    let status = agent.status()?;
    let warnings: Vec<String> = serde_json::from_value(status["warnings"].clone())?;
    contains(results, "the status warns", &warnings, &["`far`", "exchange the two"]);
    let shown = agent.tiering(&["status"])?;
    println!("{shown}");
    let told = shown.matches("warning: ").count();
    // Three by the firmware and the kernel, and what the measurement adds.
    results.check("for people too", told, "3 to 5", (3..=5).contains(&told) && told == warnings.len());
    let ended = agent.interrupt()?;
    let loud =
        ended.log.lines().filter(|line| line.contains("WARN") && line.contains("stands above")).count();
    results.check("warnings in the log", loud, "as many", loud == told && ended.code == Some(0));
    Ok(())
}

fn one_disk(results: &mut Results, host: &Host) -> Result<()> {
    let nvme = host.folder("nvme");
    let config = host
        .config("1h")
        .replace(host.folder("qlc").to_str().context("a plain path")?, &format!("{}-2", nvme.display()));
    let found = details(&doctor(&config)?, "disks of the tiers", "degraded");
    contains(
        results,
        "two tiers on one disk",
        &found,
        &["`nvme` and `qlc` are on one disk", "QEMU NVMe Ctrl"],
    );
    let found = details(&doctor(&host.config("1h"))?, "disks of the tiers", "degraded");
    results.check("on two disks", format!("{found:?}"), "nothing", found.is_empty());
    Ok(())
}

#[test]
#[ignore = "long: the host is looked at and measured five times"]
fn a_ladder_is_proposed_and_one_in_the_wrong_order_is_warned_of() {
    // Slow enough that requests wait also where the emulation itself is slow.
    let scenario = Scenario { nvme: "5G", qlc: "5G@iops=100", ..Scenario::default() };
    scenario.run(
        "ladder::a_ladder_is_proposed_and_one_in_the_wrong_order_is_warned_of",
        |results: &mut Results| {
            let host = Host::new()?;
            proposal(results)?;
            reversed(results, &host)?;
            one_disk(results, &host)
        },
    );
}
