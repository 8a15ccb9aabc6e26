//! What a follower saves of real work: two guests of one disk image that were booted one after the other.
//!
//! Two emulated guests of a tenant run real programs: each reads 3,000 files of the image, an archive of a third of
//! them, and 40 MiB of its own. Their pages hold the same content, mostly at other addresses. Nearly all of both is in
//! the nvme tier's swap file and nowhere else; then the leader does that once more, and after the lag the follower. By
//! turns in each repeat: an agent that stages nothing, with the kernel's readahead at page-cluster 0, 3 and 5, and an
//! agent that does, with page-cluster 3, newly started and without state on disk. Counted are the follower's major
//! faults on its RAM, not those on QEMU's own memory, which went out too; times are not: an emulated guest computes too
//! slowly for them to mean anything.
//!
//! With page-cluster 0 the order of all touches is recorded, for a [`simple`] predictor to be compared with. The last
//! recording is kept ([`recorded`]): `tiering-user/traces/boots.json` is such a one, by which staging is tested.

use crate::faults::MajorFaults;
use crate::host::Host;
use crate::recorded;
use crate::simple::{self, Kinds, Predicted, Tape, Touch};
use crate::walk::{DEFAULT_PAGE_CLUSTER, Member, PAGE_CLUSTERS, Staged, builder, send_down};
use anyhow::{Context, Result, anyhow, ensure};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::FileExt;
use std::time::Duration;
use tiering_testkit::agent::Agent;
use tiering_testkit::observe::PAGE;
use tiering_testkit::program::{Kind, Program};
use tiering_testkit::readahead::Readahead;
use tiering_testkit::repeats::Repeats;
use tiering_testkit::results::Results;
use tiering_testkit::skip::need_programs;
use tiering_testkit::stop;
use tiering_user::trace::{Event, Reader};

use crate::prefetch::{FOLLOWER, LEADER};

const OWN_MIB: usize = 40;
const MEMORY_MIB: u32 = 400;
/// Until a recording has begun, and how long it goes on after the follower has begun.
const RECORDS: Duration = Duration::from_secs(2);
const RECORDED: Duration = Duration::from_secs(45);

/// One repeat.
struct Round {
    /// Major faults by page-cluster.
    kernel: Vec<usize>,
    ours: usize,
    left: Kinds,
    staged: Staged,
    simple: Predicted,
}

pub fn measure(results: &mut Results, quick: bool) -> Result<()> {
    need_programs().map_err(|skip| anyhow!("{skip}"))?;
    let host = Host::new()?;
    let readahead = Readahead::keep()?;
    let mut leader = start(LEADER, 1)?;
    let mut follower = start(FOLLOWER, 2)?;
    let lags_s: &[u64] = if quick { &[14] } else { &[2, 14, 60] };
    for lag_s in lags_s {
        let lag = Duration::from_secs(*lag_s);
        let mut rounds = Vec::new();
        for _ in 0..if quick { 2 } else { 5 } {
            rounds.push(repeat((&mut leader, &mut follower), &host, &readahead, lag)?);
        }
        show(results, &format!("lag {lag_s} s"), &rounds);
    }
    for member in [&mut leader, &mut follower] {
        let right = member.finish_program()?;
        results.check(&format!("{}: data right", member.name()), right, "true", right);
    }
    Ok(())
}

fn start(name: &str, seed: u64) -> Result<Member> {
    let files = Program { size_mib: OWN_MIB, seed, rounds_on_command: true, ..Program::new(Kind::Files) };
    Member::of(builder(name).memory_mib(MEMORY_MIB).program(files).start()?)
}

fn repeat(
    (leader, follower): (&mut Member, &mut Member),
    host: &Host,
    readahead: &Readahead,
    lag: Duration,
) -> Result<Round> {
    let contents = [contents(leader)?, contents(follower)?];
    let agent = host.agent_of_two_tiers(false)?;
    let (mut kernel, mut touches) = (Vec::new(), None);
    for cluster in PAGE_CLUSTERS {
        readahead.set(cluster)?;
        send_down(&agent, &[leader, follower])?;
        if cluster == PAGE_CLUSTERS[0] {
            let (faults, recorded) = recorded(&agent, host, (leader, follower), lag)?;
            touches = Some(recorded);
            kernel.push(faults.len());
        } else {
            kernel.push(wake(leader, follower, lag)?.len());
        }
    }
    end(agent)?;
    readahead.set(DEFAULT_PAGE_CLUSTER)?;
    host.forget_state()?;
    let agent = host.agent_of_two_tiers(true)?;
    send_down(&agent, &[leader, follower])?;
    let ours = wake(leader, follower, lag)?;
    let staged = Staged::of(&agent, FOLLOWER)?;
    end(agent)?;
    let [first, second] = touches.context("nothing was recorded")?;
    let tape = |touches, contents: &Vec<u64>| Tape { touches, contents: contents.clone() };
    let (first, second) = (tape(first, &contents[0]), tape(second, &contents[1]));
    let (simple, left) = (simple::predict(&first, &second), simple::kinds(&first, &second, &ours));
    recorded::keep(&first, &second)?;
    Ok(Round { kernel, ours: ours.len(), left, staged, simple })
}

/// Nothing is left in swap: the next agent has no state to tell it which area is which.
fn end(agent: Agent) -> Result<()> {
    agent.tiering(&["drain", "nvme"])?;
    agent.interrupt().map(drop)
}

/// The leader's work, and after the lag the follower's: the pages of its RAM that it waited for, in order.
fn wake(leader: &mut Member, follower: &mut Member, lag: Duration) -> Result<Vec<u32>> {
    leader.begin()?;
    stop::sleep(lag)?;
    let ram = follower.ram()?;
    let faults = MajorFaults::of(follower.pid(), ram.clone())?;
    follower.begin()?;
    follower.end_round()?;
    let addresses = faults.addresses()?;
    leader.end_round()?;
    let pages = addresses.iter().map(|address| u32::try_from((address - ram.start) / PAGE));
    Ok(pages.collect::<Result<_, _>>()?)
}

/// The same, and what both touched meanwhile, in order.
fn recorded(
    agent: &Agent,
    host: &Host,
    (leader, follower): (&mut Member, &mut Member),
    lag: Duration,
) -> Result<(Vec<u32>, [Vec<Touch>; 2])> {
    let path = host.folder("boots.trace");
    std::fs::remove_file(&path).ok();
    let text = path.to_str().context("a path that is no text")?;
    let duration = format!("{}s", (RECORDS + lag + RECORDED).as_secs());
    let record = ["record", "--output", text, "--duration", &duration, "--vm", LEADER, "--vm", FOLLOWER];
    let faults = std::thread::scope(|scope| {
        let recording = scope.spawn(|| agent.tiering(&record));
        stop::sleep(RECORDS)?;
        let faults = wake(leader, follower, lag)?;
        ensure!(!recording.is_finished(), "it took longer than was recorded");
        recording.join().map_err(|_| anyhow!("the recording panicked"))??;
        anyhow::Ok(faults)
    })?;
    let mut touches = [Vec::new(), Vec::new()];
    let mut ids = [None, None];
    let mut pages = Vec::new();
    Reader::new(File::open(&path)?)?.for_each(|timed| match &timed.event {
        Event::Appeared(appeared) => {
            if let Some(which) = [LEADER, FOLLOWER].iter().position(|name| appeared.name == *name) {
                ids[which] = Some(appeared.vm);
                pages.push(u64::from(appeared.pages));
            }
        }
        Event::Accessed { vm, page, .. } => {
            if let Some(which) = ids.iter().position(|id| *id == Some(*vm)) {
                touches[which].push((Duration::from_nanos(timed.time.0), *page));
            }
        }
        _ => {}
    })?;
    let ram = leader.ram()?;
    // So that the number of a page says where it is.
    ensure!(pages.iter().all(|pages| pages * PAGE == ram.end - ram.start), "RAM has more than one part");
    ensure!(touches.iter().all(|touches| !touches.is_empty()), "no touch was recorded");
    Ok((faults, touches))
}

/// What each page of its RAM holds, by a hash; 0 for zeroes. It brings all of it into memory.
fn contents(member: &Member) -> Result<Vec<u64>> {
    let ram = member.ram()?;
    let memory = File::open(format!("/proc/{}/mem", member.pid()))?;
    let mut bytes = vec![0; PAGE as usize];
    let mut contents = Vec::new();
    for at in ram.step_by(PAGE as usize) {
        memory.read_exact_at(&mut bytes, at).context("reading a guest's memory")?;
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        contents.push(if bytes.iter().all(|byte| *byte == 0) { 0 } else { hasher.finish() | 1 });
    }
    Ok(contents)
}

fn show(results: &mut Results, name: &str, rounds: &[Round]) {
    let mut row = |what: &str, each: &dyn Fn(&Round) -> f64, target: Option<f64>| {
        let values: Vec<f64> = rounds.iter().map(each).collect();
        let Some(repeats) = Repeats::of(&values) else { return 0.0 };
        let what = format!("{name}: {what}");
        // In each repeat, not in the median alone.
        let met = |target: f64| values.iter().all(|value| *value >= target);
        match target {
            Some(target) => results.figure(&what, repeats, &format!("{target} in each"), met(target)),
            None => results.note(&what, repeats),
        }
        repeats.median
    };
    for (number, cluster) in PAGE_CLUSTERS.iter().enumerate() {
        let what = format!("major faults, page-cluster {cluster}");
        row(&what, &|round| round.kernel[number] as f64, None);
    }
    row("major faults, agent", &|round| round.ours as f64, None);
    row("... of pages whose content the leader touched", &|round| round.left.content as f64, None);
    row("... of pages whose address it touched", &|round| round.left.address as f64, None);
    row("... of others", &|round| round.left.neither as f64, None);
    let of_default = |round: &Round| {
        let default = PAGE_CLUSTERS.iter().position(|cluster| *cluster == DEFAULT_PAGE_CLUSTER);
        round.kernel[default.unwrap_or(0)] as f64
    };
    let target = if name == "lag 2 s" { 60.0 } else { 80.0 };
    let avoided = row(
        "major faults avoided, %",
        &|round| (1.0 - round.ours as f64 / of_default(round).max(1.0)) * 100.0,
        Some(target),
    );
    let used = row("staged pages that were used, %", &|round| round.staged.accuracy(), Some(95.0));
    row("a simple predictor: touches predicted, %", &|round| 100.0 - round.simple.missed, None);
    row("a simple predictor: staged pages that were used, %", &|round| round.simple.used, None);
    results.headline(format!("{name}: {avoided:.0} % of major faults avoided, {used:.0} % used"));
}
