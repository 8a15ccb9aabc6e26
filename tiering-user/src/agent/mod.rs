//! The agent: joins the parts.
//!
//! One task owns the [`Engine`], which decides; what waits for a disk, may hang or walks page tables is done by others.
//! Around it: the scanner and the sweeper (threads that read `/proc`), the helpers (threads that may be stuck and left
//! behind), the lanes of `actuate` (threads that move pages), and what answers on the control socket and, if asked for,
//! on a TCP address. All of them talk to it by channels. One of these threads that panics ends the agent.
//!
//! | when | what |
//! |---|---|
//! | the first sample in 5 ms, the ring passes its fill threshold, or a tick (1 ms while there are accesses, 20 ms while stages wait or DAMON watches, else none) | samples are drained, the table is updated, what follows is staged |
//! | a lane is done | the table takes over what was read back, the next batch goes out |
//! | every second | demotions are planned, stages expire, sweeps are due, the status is published |
//! | a request | it is answered, or queued for the mover |

mod aside;
mod descriptors;
mod error;
mod helpers;
pub(crate) mod image_files;
mod keeper;
mod left_out;
mod lock;
mod lookups;
mod page_tables;
mod panics;
mod perform;
mod scans;
mod shell;
mod survey;
mod watch;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use procfs::Current as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch as latest};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use aside::{Aside, write_report};
pub use error::Error;
use keeper::Keeper;
use lock::Lock;
use perform::Hands;
use shell::Shell;
use survey::Survey;

use crate::actuate::{Lanes, Roots};
use crate::bpf::{Faults, PROBE_ATTACH_KINDS, Pins, Worker, host_admin, host_mark};
use crate::config::Config;
use crate::engine::{Engine, Event};
use crate::store::Store;
use crate::sys;
use crate::telemetry::status::Status;
use crate::telemetry::{RunOptions, api, socket, tcp};
use crate::tiermap::Places;
use crate::tiers::{Demotion, Ladder, Nodes, SwapTiers, node_facts};
use crate::vm::Trust;

/// Where the lock lies: one agent a host, whatever its configuration.
const RUN_DIR: &str = "/run/tiering";
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
        write_report(&Status::default(), path)?;
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
    let mut faults = Faults::attach(&PROBE_ATTACH_KINDS, Some(Pins::create()?))?;
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
    let damon = Worker::start(host_admin(), host_mark(), watching.clone()).map_err(Error::Start)?;
    let sweeper = watch::Sweeping::start(places.clone(), looked).map_err(Error::Start)?;

    let mut filled = faults.ring_fd().and_then(sys::wake_on).map_err(Error::Start)?;
    let mut read = faults.reads.ring_fd().and_then(sys::wake_on).map_err(Error::Start)?;
    let ram_bytes = procfs::Meminfo::current().map_or(0, |memory| memory.mem_total);
    let mut engine = Engine::new(config, ladder, ram_bytes, options.dry_run, sys::now());
    engine.begin_with(&store, sys::boot_id(), sys::unix_seconds());
    let attach_kind = faults.attach_kind().name();
    let hands = Hands {
        faults,
        lanes,
        sweeper,
        damon,
        watching,
        aside,
        demotion,
        places,
        processes: BTreeMap::new(),
        may_reclaim_nodes: Arc::new(AtomicBool::new(false)),
        seconds: 0,
    };
    let mut shell = Shell::new(engine, hands, survey);
    let mut keeper = Keeper::start(store).map_err(Error::Start)?;
    let (status, status_reader) = latest::channel(shell.status(None));
    let (request_sender, mut requests) = mpsc::channel(16);
    let (stop_api, api_stopped) = tokio::sync::oneshot::channel::<()>();
    let handle = api::Handle { status: status_reader, requests: request_sender };
    let public = public.map(|listener| tokio::spawn(tcp::serve(listener, handle.clone())));
    let api = tokio::spawn(api::serve(listener, handle, async move {
        api_stopped.await.ok();
    }));

    tracing::info!(attach_kind, dry_run = options.dry_run, "the agent runs");
    let mut failed = None;
    let end = options.duration.map(|duration| Instant::now() + duration);
    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reported = Instant::now();
    let mut busy_until = Instant::now();
    loop {
        let mut samples = 0;
        // The kernel side wakes this task with the first sample after 5 ms. What comes in these is taken by ticks.
        let tick = match () {
            () if Instant::now() < busy_until => Some(BUSY_TICK),
            () if shell.engine.waits_for_time() => Some(QUIET_TICK),
            () => None,
        };
        tokio::select! {
            biased;
            _ = interrupted.recv() => break,
            _ = terminated.recv() => break,
            () = at(end) => break,
            Some(panic) = panicked.recv() => {
                failed = Some(Error::from(panic));
                break;
            }
            Some(done) = lane_done.recv() => shell.tell(Event::Done(done)),
            Some(changes) = scanned.recv() => shell.on_changes(changes),
            Some(gauges) = gauges.recv() => shell.tell(Event::Gauges(gauges)),
            Some(watching) = regions_watched.recv() => shell.on_watching(watching),
            Some(looked) = looks.recv() => {
                // What was accessed before that look comes first.
                samples = shell.drain_samples();
                shell.tell(Event::Looked(looked));
            }
            Some(found) = looked_up.recv() => shell.on_found(found),
            Some(request) = requests.recv() => shell.tell(Event::Request(request)),
            _ = second.tick() => {
                shell.every_second();
                keeper.every_second(&mut shell.engine);
                if reported.elapsed() >= REPORT_EVERY {
                    reported = Instant::now();
                    shell.hands.aside.report(Arc::clone(&status.borrow()), options);
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
            () = after(tick) => {}
        }
        if shell.engine.take_status_due() {
            status.send_replace(shell.status(keeper.kept_unix_s()));
        }
        if shell.drain() + samples > 0 {
            busy_until = Instant::now() + Duration::from_millis(100);
        }
    }

    tracing::info!("stopping");
    // While nobody looks after bound VMs any more, and before what can take long.
    drop(std::mem::take(&mut shell.hands.demotion));
    drop(scanner);
    shell.hands.faults.detach();
    while shell.drain_samples() > 0 {}
    let last = shell.status(keeper.kept_unix_s());
    let reported = shell.hands.aside.last_report(Arc::clone(&last), options);
    status.send_replace(last);
    stop_api.send(()).ok();
    api.await.ok();
    if let Some(public) = public {
        public.abort();
    }
    drop(socket_file);
    let kept = shell.engine.records(true);
    // The mover finishes the batch it has begun, and switches off what is empty.
    let end = move || {
        keeper.finish(kept);
        drop(shell);
    };
    tokio::task::spawn_blocking(end).await.ok();
    // Only now: what was learned is worth more than the report.
    failed.map_or(reported, Err)
}

async fn after(tick: Option<Duration>) {
    match tick {
        Some(tick) => sleep(tick).await,
        None => std::future::pending().await,
    }
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
