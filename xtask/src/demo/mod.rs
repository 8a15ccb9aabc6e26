//! `cargo xtask run --demo`: the agent at work on guests of its own.
//!
//! 1. A scratch folder with two swap tiers to be, and three small emulated guests in it until they are ready;
//! 2. the agent, for the time asked, with a live table of what it does;
//! 3. each guest verifies all its memory, wherever that is by now;
//! 4. the swap tiers are drained, which brings everything back and removes their files; the agent is interrupted, the
//!    guests are switched off;
//! 5. the report, a summary, and a look for anything that was left behind.
//!
//! In: the built agent. Out: exit code 0 if every page was right and nothing is left, 130 after a Ctrl-C, else 1.
//! Whatever happens, the guests and the agent end and the folder goes: their owners are dropped. A guest that dies is
//! reported, the others go on. Emulated guests, because the faults of KVM guests come from another source.

mod config;
mod guests;
mod leftovers;
mod outcome;
mod table;

use crate::build::Built;
use anyhow::{Result, anyhow, ensure};
use guests::Guests;
use leftovers::Baseline;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use table::Table;
use tiering_testkit::agent::Agent;
use tiering_testkit::scratch::Scratch;
use tiering_testkit::stop;

/// Swap files of 3 GiB, and room to breathe.
const ROOM_BYTES: u64 = 4 << 30;
const BOOT_LIMIT: Duration = Duration::from_secs(300);
const AGENT_LIMIT: Duration = Duration::from_secs(60);
const VERIFY_LIMIT: Duration = Duration::from_secs(300);
/// How often everything is looked at.
const TICK: Duration = Duration::from_millis(200);
const INTERRUPTED: u8 = 130;

pub fn run(built: &Built, duration: Duration, report: Option<&Path>, args: &[OsString]) -> Result<ExitCode> {
    stop::on_signals()?;
    let baseline = Baseline::take();
    let scratch = Scratch::new(ROOM_BYTES).map_err(|skip| anyhow!("{skip}"))?;
    let folder = scratch.path().to_owned();
    let mut pids = Vec::new();

    let played = play(built, &folder, duration, args, &mut pids);
    let reported = report.map_or(Ok(()), |file| outcome::copy_report(&folder, file));
    drop(scratch);

    let left = baseline.left_behind(&folder, &pids);
    for thing in &left {
        println!("LEFT BEHIND: {thing}");
    }
    if left.is_empty() {
        println!("nothing left behind");
    }
    if stop::asked() {
        return Ok(ExitCode::from(INTERRUPTED));
    }
    let all_well = played? && left.is_empty();
    reported?;
    Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Steps 1 to 4; whether all went well. What it started has ended when it returns, also with an error.
fn play(
    built: &Built,
    folder: &Path,
    duration: Duration,
    args: &[OsString],
    pids: &mut Vec<u32>,
) -> Result<bool> {
    println!("starting three guests; they fill their memory first");
    let mut guests = Guests::start(pids)?;
    wait("the guests are not ready", BOOT_LIMIT, || guests.ready())?;

    // Declared after the guests, so dropped before them: the agent's VMs do not vanish because the demo fails.
    let mut agent = start_agent(built, folder, args)?;
    pids.push(agent.pid());
    wait("the agent does not answer", AGENT_LIMIT, || agent.is_ready())?;

    println!("the agent runs for {}", humantime::format_duration(duration));
    let mut table = Table::new();
    let lived = watch(&mut guests, &mut agent, &mut table, duration, |_| false);
    if stop::asked() {
        return lived.map(|()| false);
    }

    println!("the guests verify all their memory, also what is in slower tiers");
    guests.send_finish();
    match &lived {
        Ok(()) => watch(&mut guests, &mut agent, &mut table, VERIFY_LIMIT, Guests::finished)?,
        // Without the agent the guests' memory must be right all the same.
        Err(_) => wait("the guests have not verified their memory", VERIFY_LIMIT, || {
            guests.look();
            Ok(guests.finished())
        })?,
    }

    if lived.is_ok() {
        println!("the agent brings everything back and ends");
        for tier in config::SWAP_TIERS.iter().rev() {
            print!("{}", agent.tiering(&["drain", tier])?);
        }
    }
    let ended = agent.interrupt()?;
    guests.poweroff();
    let reported = outcome::add_guests(folder, &guests);
    outcome::print_summary(folder, &guests);
    lived?;
    ensure!(ended.code == Some(0), "the agent's exit code is {:?}; its log:\n{}", ended.code, ended.log);
    reported?;
    Ok(guests.all_well())
}

fn start_agent(built: &Built, folder: &Path, args: &[OsString]) -> Result<Agent> {
    let report = outcome::report_in(folder);
    let mut run_args = vec![OsStr::new("--report"), report.as_os_str()];
    run_args.extend(args.iter().map(OsString::as_os_str));
    Agent::spawn(&built.tiering, &config::toml(folder), &run_args)
}

/// Shows the table and looks after guests and agent, until `done` or for `limit`.
fn watch(
    guests: &mut Guests,
    agent: &mut Agent,
    table: &mut Table,
    limit: Duration,
    done: impl Fn(&Guests) -> bool,
) -> Result<()> {
    let ends = Instant::now() + limit;
    while Instant::now() < ends && !done(guests) {
        stop::check()?;
        agent.check_alive()?;
        for death in guests.look() {
            table.message(&death);
        }
        if table.due() {
            // An agent too busy to answer is asked again in two seconds; one that has ended is seen above.
            if let Ok(status) = agent.status() {
                table.show(&status);
            }
        }
        std::thread::sleep(TICK);
    }
    Ok(())
}

/// Waits for `done`, which may fail, and for Ctrl-C.
fn wait(what: &str, limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let ends = Instant::now() + limit;
    while !done()? {
        ensure!(Instant::now() < ends, "{what} after {}", humantime::format_duration(limit));
        stop::sleep(TICK)?;
    }
    Ok(())
}
