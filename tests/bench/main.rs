//! The parts of benchmarks that run on this machine, on small guests: `throughput` and `placement` of `cargo xtask
//! bench tiers`, most of `cargo xtask bench prefetch`, `tracking` and `profile`. Those that need a whole virtual host
//! are in `tests/lab/bench`.
//!
//! In: the name of a part, `--quick`. Out: its table, printed and kept for who asked. Exit code 1 where something could
//! not be measured; a bad figure is a figure.

mod ablation;
mod boots;
mod classes;
mod clones;
mod confusion;
mod events;
mod faults;
mod files;
mod forecast;
mod group;
mod host;
mod idle;
mod mix;
mod placement;
mod prefetch;
mod profile;
mod quotas;
mod recorded;
mod recordings;
mod replay;
mod restart;
mod savings;
mod scale;
mod similar;
mod simple;
mod storm;
mod throughput;
mod walk;

use anyhow::{Result, bail};
use std::process::ExitCode;
use tiering_testkit::faulter;
use tiering_testkit::results::Results;
use tiering_testkit::stop;

fn main() -> ExitCode {
    faulter::be_one();
    if let Err(error) = stop::on_signals() {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    // Cargo says so to every benchmark.
    let quick = args.iter().any(|arg| arg == "--quick");
    let parts = args.iter().filter(|arg| !arg.starts_with("--"));
    for part in parts {
        let mut results = Results::new(&format!("bench::{part}"));
        let measured = run(part, quick, &mut results);
        if let Err(error) = results.keep().and(measured) {
            eprintln!("{part}: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn run(part: &str, quick: bool, results: &mut Results) -> Result<()> {
    match part {
        "throughput" => throughput::measure(results, if quick { 3 } else { 5 }),
        "placement" => placement::measure(results, if quick { 2 << 30 } else { 10 << 30 }),
        "pair" => prefetch::measure(results, quick),
        "similar" => similar::measure(results, quick),
        "ages" => savings::measure(savings::Work::Ages, results, quick),
        "redis" => savings::measure(savings::Work::Redis, results, quick),
        "programs" => savings::measure(savings::Work::Programs, results, quick),
        "wake" => savings::wake::measure(results, quick),
        "storm" => storm::measure(results, quick),
        "hosts" => scale::measure(results, quick),
        "idle" => idle::measure(results, quick),
        "mix" => mix::measure(results, quick),
        "ablation" => ablation::measure(results, quick),
        "boots" => boots::measure(results, quick),
        "clones" => clones::measure(results, quick),
        "restart" => restart::measure(results, quick),
        "files" => files::measure(results, quick),
        "fault" => events::measure_one(results, quick),
        "events" => events::measure(results, quick),
        "cost" => profile::cost(results, quick),
        "forecast" => forecast::measure(results, quick),
        "replay" => replay::measure(results, quick),
        "quotas" => quotas::measure(results, quick),
        "train" => classes::train(results),
        "evaluate" => classes::evaluate(results),
        "recordings" => recordings::measure(results, quick),
        _ => bail!("there is no part `{part}`"),
    }
}
