//! `cargo xtask bench NAME`: measures, prints a table and, as its last line, the headline figures.
//!
//! In: the name of a benchmark, perhaps of one of its parts. Out: the table on standard output, and with `--out` the
//! same as JSON, a file a benchmark. Exit code 1 where something could not be measured; never because a figure is bad.
//! A benchmark is a module here that names its parts; what is measured is in `tests/bench` and `tests/lab/bench`.

mod part;
mod prefetch;
mod profile;
mod savings;
mod scale;
mod tiers;
mod tracking;

use crate::{build, setup};
use anyhow::{Context, Result, ensure};
use part::Part;
pub use part::here;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tiering_testkit::kernel;
use tiering_testkit::results::Results;
use tiering_testkit::stop;

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Which benchmark
    name: Name,
    /// Fewer repeats, less data
    #[arg(long)]
    quick: bool,
    /// Only this part; may be given more than once
    #[arg(long, value_name = "NAME")]
    part: Vec<String>,
    /// Write the figures as JSON into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Name {
    /// Moves between tiers: how fast, where to, and what it does to guests
    Tiers,
    /// Staging ahead of need: what it saves
    Prefetch,
    /// Seeing accesses: what it costs, and how many
    Tracking,
    /// Knowing VMs: how right it is, and what it costs
    Profile,
    /// Memory that leaves DRAM by the default configuration, and what it costs guests
    Savings,
    /// What the agent itself costs on large hosts
    Scale,
}

impl Name {
    fn parts(self) -> &'static [Part] {
        match self {
            Self::Tiers => &tiers::PARTS,
            Self::Prefetch => &prefetch::PARTS,
            Self::Tracking => &tracking::PARTS,
            Self::Profile => &profile::PARTS,
            Self::Savings => &savings::PARTS,
            Self::Scale => &scale::PARTS,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Tiers => "tiers",
            Self::Prefetch => "prefetch",
            Self::Tracking => "tracking",
            Self::Profile => "profile",
            Self::Savings => "savings",
            Self::Scale => "scale",
        }
    }
}

pub fn run(options: &Options) -> Result<ExitCode> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "a benchmark loads eBPF programs and switches swap files on: run it as root"
    );
    let parts = chosen(options.name.parts(), &options.part)?;
    setup::ensure(setup::Purpose::Test)?;
    if parts.iter().any(Part::needs_lab) {
        setup::ensure(setup::Purpose::Lab(Some(kernel::LINES[0])))?;
    }
    let built = build::build(true)?;
    // What is being measured is interrupted too, and cleans up.
    stop::on_signals()?;
    let mut failed = Vec::new();
    let mut all = Vec::new();
    for part in parts {
        stop::check()?;
        println!("\n{} {}: {}", options.name.text(), part.name, part.about);
        Results::begin_run();
        let ran = part.run(&built, options.quick);
        if let Err(error) = &ran {
            eprintln!("{}: could not be measured: {error:#}", part.name);
            failed.push(part.name);
        }
        all.extend(Results::of_this_run());
    }
    if let Some(folder) = &options.out {
        save(folder, options, &all)?;
    }
    for results in &all {
        println!("\n{results}");
    }
    println!("\n{}", last_line(options.name.text(), &all, &failed));
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The parts that were asked for, in their order; all of them where none was named.
fn chosen<'a>(parts: &'a [Part], names: &[String]) -> Result<Vec<&'a Part>> {
    for name in names {
        let known: Vec<_> = parts.iter().map(|part| part.name).collect();
        ensure!(known.contains(&name.as_str()), "there is no part `{name}`: there are {}", known.join(", "));
    }
    Ok(parts.iter().filter(|part| names.is_empty() || names.iter().any(|name| name == part.name)).collect())
}

fn save(folder: &Path, options: &Options, all: &[Results]) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let name = options.name.text();
    let value = serde_json::json!({ "bench": name, "quick": options.quick, "parts": all });
    let path = folder.join(format!("{name}.json"));
    let text = serde_json::to_string_pretty(&value)? + "\n";
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}

fn last_line(name: &str, all: &[Results], failed: &[&str]) -> String {
    let mut figures: Vec<String> = all.iter().flat_map(|results| results.headlines.clone()).collect();
    figures.extend(failed.iter().map(|part| format!("{part} not measured")));
    format!("{name}: {}", figures.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_in_their_order_and_an_unknown_one_names_those_there_are() {
        let names = |wanted: &[&str]| -> Result<Vec<&str>> {
            let wanted: Vec<_> = wanted.iter().map(|name| (*name).to_owned()).collect();
            Ok(chosen(&tiers::PARTS, &wanted)?.iter().map(|part| part.name).collect())
        };
        assert_eq!(names(&["placement", "throughput"]).unwrap(), ["throughput", "placement"]);
        assert_eq!(names(&[]).unwrap().len(), tiers::PARTS.len());
        let error = names(&["speed"]).unwrap_err().to_string();
        assert!(error.contains("no part `speed`") && error.contains("throughput, placement"), "{error}");
    }

    #[test]
    fn the_last_line_has_all_headlines_and_what_is_missing() {
        let mut results = Results::new("bench::one");
        results.headline("contiguous 97 %");
        assert_eq!(last_line("tiers", &[results], &["skew"]), "tiers: contiguous 97 %; skew not measured");
    }
}
