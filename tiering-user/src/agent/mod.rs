//! The agent: owns the state, and joins the parts.
//!
//! One task owns everything; what waits for a disk, may hang or walks page tables is done by others. Around it: the
//! scanner and the sweeper (threads that read `/proc`), the helpers (threads that may be stuck and left behind), the
//! lanes of `actuate` (threads that move pages), and what answers on the control socket and, if asked for, on a TCP
//! address. All of them talk to it by channels. One of these threads that panics ends the agent.
//!
//! | when | what |
//! |---|---|
//! | the first sample in 5 ms, the ring passes its fill threshold, or a tick (1 ms while there are accesses, else 20 ms) | samples are drained, the table is updated, what follows is staged |
//! | a lane is done | the table takes over what was read back, the next batch goes out |
//! | every second | demotions are planned, stages expire, sweeps are due, the status is published |
//! | a request | it is answered, or queued for the mover |

mod answers;
mod arrivals;
mod aside;
mod asked;
mod asking;
mod asking_host;
mod blocks;
mod braking;
mod bystanders;
mod came_up;
mod ceiling;
mod classes;
mod decisions;
mod demoting;
mod descriptors;
mod error;
mod explain;
mod foretell;
mod freeing;
mod helpers;
mod histories;
mod images;
mod keeper;
mod kept;
mod knowledge;
mod layout_proof;
mod left_out;
mod likeness;
mod lock;
mod lookup;
mod lookups;
mod machine;
mod panics;
mod planning;
mod profiling;
mod queue;
mod rates;
mod reading_ahead;
mod rearming;
mod recording;
mod regions;
mod report;
mod savings;
mod scans;
mod seasons;
mod shared_groups;
mod staging;
mod state;
mod survey;
mod sweeping;
mod tapes;
mod tenants;
mod troubles;
mod waiting;
mod watch;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch as latest};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use aside::Aside;
pub use error::Error;
use keeper::Keeper;
use lock::Lock;
use state::State;
use survey::Survey;

use crate::actuate::{Lanes, Roots};
use crate::bpf::{Faults, PROBE_ROADS, Pins, Worker, host_admin, host_mark};
use crate::config::Config;
use crate::store::Store;
use crate::sys;
use crate::telemetry::status::Status;
use crate::telemetry::{RunOptions, api, socket, tcp};
use crate::tiermap::Places;
use crate::tiers::{Demotion, Ladder, Nodes, SwapTiers, node_facts};
use crate::vm::Trust;

/// Where the lock lies: one agent a host, whatever its configuration.
const RUN_DIR: &str = "/run/tiering";
/// Samples of one drain; between two, the other channels get their turn.
const DRAIN_SAMPLES: usize = 16_384;
const BUSY_TICK: Duration = Duration::from_millis(1);
const QUIET_TICK: Duration = Duration::from_millis(20);
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// Runs the agent until a signal comes or its time is up.
///
/// # Errors
/// Any [`Error`]. Programs, pins and empty swap files are gone then; swap files that hold pages stay on, for the
/// next agent or `tiering drain`.
pub fn run(config: Config, options: &RunOptions) -> Result<(), Error> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    descriptors::raise_limit();
    let _lock = Lock::take(Path::new(RUN_DIR))?;
    let ladder = Ladder::new(&config);
    let sys_root = Path::new("/sys");
    // First: what an agent left that was killed is put back, whatever comes next.
    let demotion =
        Demotion::open(sys_root, &Path::new(RUN_DIR).join("demotion"), &ladder, &node_facts(sys_root));
    let nodes = Nodes::open(sys_root, &ladder)?;
    // While nothing is served yet: it takes some tenths of a second.
    let survey = Survey::of(&ladder);
    // One thread: a second one would only be woken to wake this one, a thousand times a second.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Start)?
        .block_on(serve(config, ladder, nodes, survey, demotion, options))
}

async fn serve(
    config: Config,
    ladder: Ladder,
    nodes: Nodes,
    mut survey: Survey,
    demotion: Demotion,
    options: &RunOptions,
) -> Result<(), Error> {
    if let Some(path) = &options.report {
        report::write(&Status::default(), path)?;
    }
    // First what can fail and leaves nothing behind, then what must be cleaned up.
    let mut interrupted = signal(SignalKind::interrupt()).map_err(Error::Start)?;
    let mut terminated = signal(SignalKind::terminate()).map_err(Error::Start)?;
    let public = match config.telemetry.listen {
        Some(address) => Some(tcp::listen(address.0).await?),
        None => None,
    };
    // Before the first thread begins.
    let mut panicked = panics::watch();
    let listener = socket::listen(&config.agent.socket)?;
    let socket_file = RemoveOnDrop(&config.agent.socket.clone());
    let mut faults = Faults::attach(&PROBE_ROADS, Some(Pins::create()?))?;
    // Before a swap tier is covered: what is mapped later, and unlocked, stays so.
    lock_memory();
    let store = Arc::new(match options.dry_run {
        true => Store::nothing(),
        false => Store::in_folder(&config.agent.state_dir),
    });
    let swap = if options.dry_run { None } else { Some(SwapTiers::open(&ladder, Arc::clone(&store))?) };

    let roots = Roots { proc: "/proc".into(), cgroup: cgroup_root() };
    let areas = swap.as_ref().map(|swap| swap.areas().clone()).unwrap_or_default();
    survey.keep_current(areas.clone()).map_err(Error::Start)?;
    let places = Places { areas, nodes };
    let (done, mut lane_done) = mpsc::unbounded_channel();
    let lanes = Lanes::start(swap, places.nodes.clone(), roots.clone(), done).map_err(Error::Start)?;
    let (found, mut scanned) = mpsc::channel(16);
    let (gauged, mut gauges) = mpsc::channel(2);
    let (looked, mut looks) = mpsc::unbounded_channel();
    let (found_aside, mut looked_up) = mpsc::unbounded_channel();
    let aside = Aside::new(found_aside);
    let several = ladder.node_tiers().0 > 1;
    let scanner = watch::Scanning::start(roots, trust(&config), several, &aside.processes, found, gauged)
        .map_err(Error::Start)?;
    let (watching, mut regions_watched) = mpsc::unbounded_channel();
    // Until a VM needs DAMON, the status says of it what `tiering doctor` says.
    if config.tracking.damon {
        faults.probe_regions();
    }
    let damon = Worker::start(host_admin(), host_mark(), watching).map_err(Error::Start)?;
    let sweeper = watch::Sweeping::start(places.clone(), looked).map_err(Error::Start)?;

    let mut filled = faults.ring_fd().and_then(sys::wake_on).map_err(Error::Start)?;
    let mut read = faults.reads.ring_fd().and_then(sys::wake_on).map_err(Error::Start)?;
    let mut state = State::new(config, ladder, places, lanes, sweeper, damon, options.dry_run);
    state.survey = survey;
    state.demotion = demotion;
    state.aside = aside;
    state.begin_with(&store);
    let mut keeper = Keeper::start(store).map_err(Error::Start)?;
    let (status, status_reader) = latest::channel(Arc::new(state.status(&faults)));
    let (request_sender, mut requests) = mpsc::channel(16);
    let (stop_api, api_stopped) = tokio::sync::oneshot::channel::<()>();
    let handle = api::Handle { status: status_reader, requests: request_sender };
    let public = public.map(|listener| tokio::spawn(tcp::serve(listener, handle.clone())));
    let api = tokio::spawn(api::serve(listener, handle, async move {
        api_stopped.await.ok();
    }));

    tracing::info!(road = faults.road().name(), dry_run = options.dry_run, "the agent runs");
    let mut failed = None;
    let end = options.duration.map(|duration| Instant::now() + duration);
    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reported = Instant::now();
    let mut busy_until = Instant::now();
    loop {
        let tick = if Instant::now() < busy_until { BUSY_TICK } else { QUIET_TICK };
        let mut samples = 0;
        tokio::select! {
            biased;
            _ = interrupted.recv() => break,
            _ = terminated.recv() => break,
            () = at(end) => break,
            Some(panic) = panicked.recv() => {
                failed = Some(Error::from(panic));
                break;
            }
            Some(done) = lane_done.recv() => state.on_done(done),
            Some(changes) = scanned.recv() => state.on_changes(changes, &mut faults),
            Some(gauges) = gauges.recv() => state.on_gauges(gauges),
            Some(watching) = regions_watched.recv() => state.on_watching(watching, &mut faults),
            Some(looked) = looks.recv() => {
                // What was accessed before that look comes first.
                samples = state.drain(&mut faults, DRAIN_SAMPLES);
                state.on_looked(looked, &mut faults);
            }
            Some(found) = looked_up.recv() => state.on_found(found, &mut faults),
            Some(request) = requests.recv() => state.on_request(request),
            _ = second.tick() => {
                state.tend(&mut faults);
                state.every_second(&mut faults);
                state.look_at_savings();
                keeper.every_second(&mut state);
                state.status_due = true;
                if reported.elapsed() >= REPORT_EVERY {
                    reported = Instant::now();
                    state.aside.report(Arc::clone(&status.borrow()), options);
                }
            }
            ready = filled.readable_mut() => {
                if let Ok(mut ready) = ready {
                    ready.clear_ready();
                }
            }
            ready = read.readable_mut() => {
                if let Ok(mut ready) = ready {
                    ready.clear_ready();
                }
            }
            () = sleep(tick) => {}
        }
        if std::mem::take(&mut state.status_due) {
            status.send_replace(Arc::new(state.status(&faults)));
        }
        samples += state.drain(&mut faults, DRAIN_SAMPLES);
        state.adapt_sampling(&mut faults, samples);
        if state.drain_reads(&mut faults) + state.drain_regions(&mut faults) + samples > 0 {
            busy_until = Instant::now() + Duration::from_millis(100);
        }
    }

    tracing::info!("stopping");
    // While nobody looks after bound VMs any more, and before what can take long.
    drop(std::mem::take(&mut state.demotion));
    drop(scanner);
    faults.detach();
    while state.drain(&mut faults, DRAIN_SAMPLES) > 0 {}
    let last = Arc::new(state.status(&faults));
    let reported = state.aside.last_report(Arc::clone(&last), options);
    status.send_replace(last);
    stop_api.send(()).ok();
    api.await.ok();
    if let Some(public) = public {
        public.abort();
    }
    drop(socket_file);
    let kept = state.records(true);
    // The mover finishes the batch it has begun, and switches off what is empty.
    let end = move || {
        keeper.finish(kept);
        drop(state);
    };
    tokio::task::spawn_blocking(end).await.ok();
    // Only now: what was learned is worth more than the report.
    failed.map_or(reported, Err)
}

async fn at(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}

/// Keeps the agent's own memory out of the swap it fills.
fn lock_memory() {
    use nix::sys::mman::{MlockAllFlags, mlockall};
    let flags = MlockAllFlags::from_bits_retain(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT);
    if let Err(error) = mlockall(flags) {
        tracing::warn!(%error, "cannot lock the agent's memory: it may be slow while memory is short");
    }
}

/// Whose processes may be managed.
fn trust(config: &Config) -> Trust {
    let (trust, unknown) = Trust::new(&config.discover.users);
    for user in unknown {
        tracing::warn!(
            user,
            "discover.users names a user that this host does not have, so nothing is managed for it: correct the name, or start the agent anew \
             when there is such a user"
        );
    }
    trust
}

/// Where cgroup v2 is mounted: at the usual place, or beside v1 hierarchies.
fn cgroup_root() -> std::path::PathBuf {
    let unified = Path::new("/sys/fs/cgroup/unified");
    if unified.exists() { unified.into() } else { "/sys/fs/cgroup".into() }
}

struct RemoveOnDrop<'a>(&'a Path);

impl Drop for RemoveOnDrop<'_> {
    fn drop(&mut self) {
        std::fs::remove_file(self.0).ok();
    }
}

/// Seconds since the agent's start, and the clock they are taken from.
#[derive(Clone, Copy, Debug)]
struct Clock {
    start: sys::Monotonic,
}

impl Clock {
    fn start() -> Self {
        Self { start: sys::now() }
    }

    fn uptime(self) -> Duration {
        sys::now().since(self.start)
    }

    fn seconds(self) -> crate::tiermap::Seconds {
        self.seconds_at(sys::now())
    }

    fn seconds_at(self, time: sys::Monotonic) -> crate::tiermap::Seconds {
        // Wraps, as the table expects.
        crate::tiermap::Seconds((time.since(self.start).as_secs() & 0xffff) as u16)
    }
}
