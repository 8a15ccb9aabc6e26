//! Real programs in guests, recorded (docs/profile.md): `cargo bench -p tiering-tests --bench here -- recordings`,
//! which takes three quarters of an hour.
//!
//! Emulated guests show an access where a page comes up from swap, so their memory is sent to swap again and again: of
//! each page the first access after that shows, as in the rounds in which KVM guests are watched. In: nothing. Out:
//! traces in the folder `recordings` of the target folder, and beside them `epochs.csv`, the profiles of all of them; a
//! machine in a trace is called `tt-PROGRAM-MIB-RATE-SEED`.

use crate::host::{Host, known_name};
use anyhow::{Context, Result, anyhow};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tiering_testkit::agent::Agent;
use tiering_testkit::guest::Guest;
use tiering_testkit::paths;
use tiering_testkit::program::{Kind, Program};
use tiering_testkit::results::Results;
use tiering_testkit::skip::need_programs;
use tiering_testkit::stop;

const BOOT: Duration = Duration::from_secs(240);
const RECORDED: Duration = Duration::from_secs(62);
/// From one time that all is sent to swap to the next.
const ROUND: Duration = Duration::from_secs(5);
/// Guests at a time.
const AT_A_TIME: usize = 2;

/// A program as it is recorded, and what RAM its guest has beyond what it needs.
#[derive(Clone, Copy)]
struct Run {
    program: Program,
    spare_mib: u32,
}

impl Run {
    fn name(&self) -> String {
        let Program { kind, size_mib, seed, rate, .. } = self.program;
        format!("tt-{}-{size_mib}-{rate}-{seed}", kind.name())
    }
}

/// Sizes, rates and seeds of each program.
fn runs(quick: bool) -> Vec<Run> {
    let mut runs = Vec::new();
    for kind in Kind::ALL {
        let (sizes, rates, seeds): (&[usize], &[u64], u64) = match kind {
            Kind::Postgres => (&[16, 32, 48, 64, 96], &[0, 40], 2),
            Kind::Nginx => (&[8, 16, 32, 64, 96], &[0, 200], 2),
            Kind::Redis | Kind::Memcached => (&[8, 16, 32, 64, 96], &[0, 1000], 2),
            Kind::Compile => (&[1, 2, 3, 4, 6], &[0], 3),
            Kind::Sqlite => (&[8, 16, 24, 40, 64], &[0], 3),
            Kind::Idle => (&[1, 2, 3, 4, 5], &[0], 2),
            // It is not recorded: the benchmarks of prefetch run it.
            Kind::Files => continue,
        };
        let sizes = if quick { &sizes[..1] } else { sizes };
        let seeds = if quick { 1 } else { seeds };
        for (seed, size_mib) in (1..=seeds).flat_map(|seed| sizes.iter().map(move |size| (seed, *size))) {
            for rate in rates {
                let program = Program { size_mib, seed, rate: *rate, ..Program::new(kind) };
                let spare_mib = [0, 64, 160][((seed + rate) as usize + size_mib) % 3];
                runs.push(Run { program, spare_mib });
            }
        }
    }
    // Of all programs something soon, and not all of one at once.
    runs.sort_by_key(|run| (run.program.seed, run.program.rate, run.program.size_mib));
    runs
}

pub fn measure(results: &mut Results, quick: bool) -> Result<()> {
    need_programs().map_err(|skip| anyhow!("{skip}"))?;
    let folder = paths::target_dir().join("recordings");
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let trace =
        |runs: &[Run]| folder.join(runs.iter().map(Run::name).collect::<Vec<_>>().join("+") + ".trace");
    let runs = runs(quick);
    let host = Host::new()?;
    let agent = host.agent(false)?;
    let mut recorded = 0;
    for runs in runs.chunks(AT_A_TIME) {
        stop::check()?;
        let trace = trace(runs);
        // One that was made already is kept: all of them take most of an hour.
        if !trace.exists() {
            println!("      {}", record(&agent, runs, &trace)?.trim());
        }
        recorded += runs.len();
    }
    results.note("runs recorded", recorded);
    results.note("profiles in", gather(&agent, &folder)?.display());
    agent.interrupt()?;
    Ok(())
}

/// The profiles of all traces of a folder, in the order of their names, in one file.
fn gather(agent: &Agent, folder: &Path) -> Result<PathBuf> {
    let entries = std::fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    let mut traces: Vec<_> = entries.iter().map(std::fs::DirEntry::path).collect();
    traces.retain(|path| path.extension().is_some_and(|extension| extension == "trace"));
    traces.sort();
    let (one, all) = (folder.join("one.csv"), folder.join("epochs.csv"));
    let mut rows = String::new();
    for trace in traces {
        let [from, to] = [&trace, &one].map(|path| path.to_str().context("a path that is no text"));
        agent.tiering(&["replay", from?, "--epochs", to?])?;
        let epochs = std::fs::read_to_string(&one)?;
        // The head is the same for all.
        rows.extend(epochs.split_inclusive('\n').skip(usize::from(!rows.is_empty())));
    }
    std::fs::remove_file(&one).ok();
    std::fs::write(&all, rows).with_context(|| format!("writing {}", all.display()))?;
    Ok(all)
}

/// Starts guests, records them together, and ends them. Returns what the recording says of itself.
fn record(agent: &Agent, runs: &[Run], trace: &Path) -> Result<String> {
    let mut guests = Vec::new();
    for run in runs {
        let memory_mib = run.program.needs_mib() + run.spare_mib;
        guests.push(Guest::builder(&run.name()).memory_mib(memory_mib).program(run.program).start()?);
    }
    for guest in &mut guests {
        guest.wait_ready(BOOT)?;
        known_name(agent, guest.name())?;
    }
    let unfinished = trace.with_extension("part");
    std::fs::remove_file(&unfinished).ok();
    let path = unfinished.to_str().context("a path that is no text")?;
    let duration = format!("{}s", RECORDED.as_secs());
    let mut record = vec!["record", "--output", path, "--duration", &duration];
    for guest in &guests {
        record.extend(["--vm", guest.name()]);
    }
    let said = std::thread::scope(|scope| {
        let recording = scope.spawn(|| agent.tiering(&record));
        let began = Instant::now();
        while began.elapsed() < RECORDED {
            let round = Instant::now();
            for guest in &guests {
                agent.tiering(&["move", guest.name(), "--to", "nvme"])?;
            }
            stop::sleep(ROUND.saturating_sub(round.elapsed()))?;
        }
        recording.join().map_err(|_| anyhow!("the recording panicked"))?
    })?;
    std::fs::rename(&unfinished, trace)?;
    for guest in &mut guests {
        guest.kill();
    }
    Ok(said)
}
