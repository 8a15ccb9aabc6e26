//! The demo's result: what the guests found is added to the agent's report, and both are summed up.

use super::config::TENANT;
use super::guests::{Guests, Player};
use super::table::{count, items, mib};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tiering_testkit::pattern::TouchNs;

/// Where the agent writes its report.
pub fn report_in(folder: &Path) -> PathBuf {
    folder.join("report.json")
}

/// Adds the part `demo` to the report.
pub fn add_guests(folder: &Path, guests: &Guests) -> Result<()> {
    let file = report_in(folder);
    let mut report = read(&file)?;
    let guests: Vec<Value> = guests.iter().map(entry).collect();
    report["demo"] = json!({ "guests": guests });
    let text = serde_json::to_string_pretty(&report)?;
    std::fs::write(&file, text + "\n").with_context(|| format!("writing {}", file.display()))
}

/// Puts the report where the user wants it.
pub fn copy_report(folder: &Path, to: &Path) -> Result<()> {
    let copied = std::fs::copy(report_in(folder), to);
    copied.map(|_| ()).with_context(|| format!("there is no report to write to {}", to.display()))
}

/// What a person wants to know.
pub fn print_summary(folder: &Path, guests: &Guests) {
    println!();
    for player in guests.iter() {
        println!("{}", line(player));
    }
    match read(&report_in(folder)) {
        Ok(report) => print_report(&report),
        Err(error) => println!("the agent left no report: {error:#}"),
    }
}

fn print_report(report: &Value) {
    for vm in items(&report["vms"]).filter(|vm| vm["tenant"] == TENANT) {
        let peaks = items(&report["tiers"]).filter_map(|tier| tier["name"].as_str()).skip(1);
        let peaks: Vec<_> =
            peaks.map(|tier| format!("{} in {tier}", mib(&vm["tier_bytes_peak"][tier]))).collect();
        println!(
            "{}: at most {}; {} demoted, {} promoted; {} faults; {} pages staged, {} used",
            vm["name"].as_str().unwrap_or("-"),
            peaks.join(", "),
            mib(&vm["demoted_bytes_total"]),
            mib(&vm["promoted_bytes_total"]),
            count(&vm["faults_total"]),
            count(&vm["prefetch"]["issued_pages"]),
            count(&vm["prefetch"]["used_pages"]),
        );
    }
    let events = &report["events"];
    let (produced, consumed, dropped) = (&events["produced"], &events["consumed"], &events["dropped"]);
    println!(
        "events: {} produced = {} consumed + {} dropped",
        count(produced),
        count(consumed),
        count(dropped)
    );
}

fn line(Player { guest, result, death }: &Player) -> String {
    let name = guest.name();
    match (result, death) {
        (Some(result), _) => {
            let pages = result.pages_verified;
            let right = if result.checksum_ok { "every page right" } else { "SOME PAGES WRONG" };
            let (p50, p99) = (result.touch_ns.p50 / 1000, result.touch_ns.p99 / 1000);
            let loops = match result.loops {
                0 => "its loop set was not walked to the end".to_owned(),
                loops => {
                    format!("{loops} walks of the loop set, a page's first load p50 {p50} us, p99 {p99} us")
                }
            };
            format!("{name}: {pages} pages verified, {right}; {loops}")
        }
        // The first line: the rest is the console, shown when it happened.
        (None, Some(death)) => format!("{name}: NOT VERIFIED: {}", death.lines().next().unwrap_or_default()),
        (None, None) => format!("{name}: NOT VERIFIED"),
    }
}

fn entry(player: &Player) -> Value {
    let (ok, pages, TouchNs { p50, p99 }) = match &player.result {
        Some(result) => (result.checksum_ok, result.pages_verified, result.touch_ns),
        None => (false, 0, TouchNs { p50: 0, p99: 0 }),
    };
    json!({
        "name": player.guest.name(),
        "checksum_ok": ok,
        "pages_verified": pages,
        "touch_ns": { "p50": p50, "p99": p99 },
        "error": player.death,
    })
}

fn read(file: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no JSON", file.display()))
}
