//! The threads that carry steps out.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc as async_mpsc;

use super::group_reclaim::{NoReclaim, Proofs, Reclaimed};
use super::huge;
use super::later::Preferences;
use super::node_reclaim::Order;
use super::page_states::PageStates;
use super::recent::Recent;
use super::stage::{drop_stage, map_staged, stage};
use super::target::{Outcome, Roots, Skip, Target, gone};
use super::{collapse, drain, group_reclaim, limits, memory, node_reclaim, swap};
use crate::policy::{Action, Step};
use crate::sys::{self, Monotonic};
use crate::tiermap::{PageIndex, Places};
use crate::tiers::{Nodes, Passage, SwapError, SwapTiers, TierId};
use crate::track::VmId;

/// How often an idle mover looks after the swap files, and whether an area of somebody else's has come or gone.
const SETTLE_EVERY: Duration = Duration::from_secs(2);
/// How long the mover keeps a lower tier open for the next batch.
const NEXT_WITHIN: Duration = Duration::from_millis(20);

/// Something for a lane to do.
#[derive(Debug)]
pub enum Job {
    Step(Target, Step),
    /// A swap tier, and the VMs that may have something there.
    Drain(TierId, Vec<Target>),
    /// Of a VM's own control group the kernel reclaims so many bytes; what page-outs left in the swap cache first.
    Reclaim(Target, u64),
    /// Of the first tier's nodes the kernel reclaims memory.
    ReclaimNodes(Order),
}

/// Something a lane has done.
#[derive(Debug)]
pub enum Done {
    Step(Outcome),
    /// Pages brought up, and how long it took.
    Drain(TierId, Result<u64, SwapError>, Duration),
    Reclaim(VmId, Result<Reclaimed, NoReclaim>),
    ReclaimNodes(Result<Reclaimed, NoReclaim>),
    /// From now on nothing can be sent to these swap tiers, and why; to all others it can.
    Hindered(BTreeMap<TierId, String>),
}

/// What a lane is at.
#[derive(Clone, Debug)]
pub struct Busy {
    pub what: String,
    pub since: Monotonic,
}

/// What a thread is at, for others to see.
#[derive(Clone, Debug, Default)]
pub struct NowAt(Arc<Mutex<Option<Busy>>>);

impl NowAt {
    pub fn begin(&self, what: String) {
        *self.lock() = Some(Busy { what, since: sys::now() });
    }

    pub fn end(&self) {
        *self.lock() = None;
    }

    pub fn get(&self) -> Option<Busy> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Busy>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What all lanes go by.
#[derive(Clone, Debug)]
struct Settings {
    roots: Roots,
    dry_run: bool,
    places: Places,
    passage: Passage,
}

/// The running lanes. Dropped, they finish the job they are at, leave those that wait, and end.
#[derive(Debug)]
pub struct Lanes {
    mover: Lane,
    stager: Lane,
    /// Waits for what the stager has asked for, or sends it back.
    mapper: Lane,
    /// Frees copies of what was paged out.
    freer: Lane,
    /// Asks the kernel, and waits for it.
    reclaimer: Lane,
}

#[derive(Debug)]
struct Lane {
    jobs: Option<mpsc::Sender<Job>>,
    /// Set when the lane should end after the job it is at.
    stop: Arc<AtomicBool>,
    /// Written by the lane.
    at: NowAt,
    thread: Option<thread::JoinHandle<()>>,
}

impl Lanes {
    /// Starts them; what they have done arrives at `done`. Without swap tiers, every step is a dry run.
    ///
    /// # Errors
    /// Where the system has no thread left.
    pub fn start(
        swap: Option<SwapTiers>,
        nodes: Nodes,
        roots: Roots,
        done: async_mpsc::UnboundedSender<Done>,
    ) -> std::io::Result<Self> {
        let passage = swap.as_ref().map(SwapTiers::passage).unwrap_or_default();
        let areas = swap.as_ref().map(|swap| swap.areas().clone()).unwrap_or_default();
        let settings = Settings { roots, dry_run: swap.is_none(), places: Places { areas, nodes }, passage };
        let mover = Lane::start("tiering-mover", settings.clone(), swap, done.clone())?;
        let stager = Lane::start("tiering-stager", settings.clone(), None, done.clone())?;
        let mapper = Lane::start("tiering-mapper", settings.clone(), None, done.clone())?;
        let freer = Lane::start("tiering-freer", settings.clone(), None, done.clone())?;
        let reclaimer = Lane::start("tiering-reclaim", settings, None, done)?;
        Ok(Self { mover, stager, mapper, freer, reclaimer })
    }

    /// Hands a job to the lane it belongs to. Callers send the next one of a kind for a VM when the one before
    /// is done, so that few are waiting.
    pub fn send(&self, job: Job) {
        let lane = match &job {
            Job::Step(_, Step { action: Action::Stage { .. }, .. }) => &self.stager,
            // One after the other: what is dropped is not mapped again behind that.
            Job::Step(_, Step { action: Action::MapStaged | Action::DropStage { .. }, .. }) => &self.mapper,
            // What is being freed is not staged meanwhile: nothing of it is with another lane.
            Job::Step(_, Step { action: Action::Free, .. }) => &self.freer,
            Job::Reclaim(..) | Job::ReclaimNodes(..) => &self.reclaimer,
            Job::Step(..) | Job::Drain(..) => &self.mover,
        };
        if let Some(jobs) = &lane.jobs {
            // A lane ends only with this value.
            jobs.send(job).ok();
        }
    }

    /// What the lanes are at now.
    pub fn busy(&self) -> Vec<Busy> {
        let lanes = [&self.mover, &self.stager, &self.mapper, &self.freer, &self.reclaimer];
        lanes.into_iter().filter_map(|lane| lane.at.get()).collect()
    }
}

impl Lane {
    fn start(
        name: &str,
        settings: Settings,
        mut swap: Option<SwapTiers>,
        done: async_mpsc::UnboundedSender<Done>,
    ) -> std::io::Result<Self> {
        let (sender, jobs) = mpsc::channel::<Job>();
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let at = NowAt::default();
        let now_at = at.clone();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let mut memory = LaneMemory::default();
            let mut upkeep = Upkeep::default();
            let mut next = None;
            loop {
                let received = match next.take() {
                    Some(job) => Ok(job),
                    None => jobs.recv_timeout(SETTLE_EVERY),
                };
                let mut fills = None;
                match received {
                    _ if stopping.load(Ordering::Relaxed) => break,
                    Ok(job) => {
                        fills = job.fills();
                        now_at.begin(job.what());
                        if done.send(run(job, &settings, swap.as_mut(), &mut memory, &stopping)).is_err() {
                            break;
                        }
                        // The next batch comes when this one's outcome has been seen: to close a lower tier and
                        // fill what is free above it again takes far longer.
                        let wait = if fills.is_some() { NEXT_WITHIN } else { Duration::ZERO };
                        next = jobs.recv_timeout(wait).ok();
                    }
                    Err(mpsc::RecvTimeoutError::Timeout) => {}
                    Err(mpsc::RecvTimeoutError::Disconnected) => break,
                }
                // Between two jobs for one tier it stays open.
                let goes_on = fills.is_some() && next.as_ref().and_then(Job::fills) == fills;
                if let Some(swap) = swap.as_mut().filter(|_| !goes_on) {
                    now_at.begin("looking after swap files".to_owned());
                    upkeep.go_on(swap, &done);
                }
                now_at.end();
            }
            if let Some(swap) = &mut swap {
                swap.release_empty();
            }
        })?;
        Ok(Self { jobs: Some(sender), stop, at, thread: Some(thread) })
    }
}

impl Job {
    /// The tier that it sends pages to.
    fn fills(&self) -> Option<TierId> {
        match self {
            Self::Step(_, Step { action: Action::Place { to }, .. }) => Some(*to),
            _ => None,
        }
    }

    fn what(&self) -> String {
        match self {
            Self::Step(target, _) => format!("moving pages of {}", target.info.vm.name),
            Self::Drain(tier, _) => format!("draining the tier of level {}", tier.0),
            Self::Reclaim(target, _) => {
                format!("having the kernel reclaim memory of {}", target.info.vm.name)
            }
            Self::ReclaimNodes(..) => "having the kernel reclaim memory of the host".to_owned(),
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// What the mover does between jobs.
#[derive(Debug, Default)]
struct Upkeep {
    /// As last told.
    hindered: BTreeMap<TierId, String>,
}

impl Upkeep {
    /// Closes the lower tier that is open and looks after the files of all. Tells which tiers areas of others are in the
    /// way of, when that changes.
    fn go_on(&mut self, swap: &mut SwapTiers, done: &async_mpsc::UnboundedSender<Done>) {
        if let Err(error) = swap.settle() {
            tracing::warn!(%error, "the swap files are not as they should be");
        }
        if let Ok(hindered) = swap.hindered()
            && hindered != self.hindered
        {
            self.hindered.clone_from(&hindered);
            // Where nobody listens any more, the lane is about to end.
            done.send(Done::Hindered(hindered)).ok();
        }
    }
}

/// What a lane remembers from one job to the next.
#[derive(Debug, Default)]
struct LaneMemory {
    later: Preferences,
    recent: Recent,
    proofs: Proofs,
}

fn run(
    job: Job,
    settings: &Settings,
    swap: Option<&mut SwapTiers>,
    memory: &mut LaneMemory,
    stop: &AtomicBool,
) -> Done {
    match job {
        Job::Step(target, step) if matches!(step.action, Action::Stage { .. } | Action::MapStaged) => {
            Done::Step(run_stage(&target, step, settings, &mut memory.recent))
        }
        Job::Step(target, step) => Done::Step(run_step(&target, step, settings, swap, &mut memory.later)),
        Job::Reclaim(target, bytes) => {
            let reclaimed = memory.proofs.of(&target, &settings.roots).and_then(|()| {
                let (roots, nodes) = (&settings.roots, &settings.places.nodes);
                group_reclaim::reclaim(&target, roots, nodes, &settings.passage, bytes, stop)
            });
            Done::Reclaim(target.info.id, reclaimed)
        }
        Job::ReclaimNodes(order) => {
            let files = settings.places.nodes.reclaim_files(TierId(0));
            let (roots, passage) = (&settings.roots, &settings.passage);
            Done::ReclaimNodes(node_reclaim::reclaim(&files, &order, roots, passage, stop))
        }
        Job::Drain(tier, vms) => {
            let began = Instant::now();
            let host = (&settings.roots, &settings.places);
            let result = match swap {
                Some(swap) => drain::drain(tier, &vms, host, swap, stop),
                None => Ok(0),
            };
            Done::Drain(tier, result, began.elapsed())
        }
    }
}

/// Pages up ahead of need: small steps, many of them.
fn run_stage(target: &Target, step: Step, settings: &Settings, recent: &mut Recent) -> Outcome {
    let mut outcome = Outcome::new(step.vm, step.action, step.reason, step.pages);
    let asked = outcome.asked.len() as u64;
    if settings.dry_run {
        outcome.skip(Skip::DryRun, asked);
    } else if let Some(why) = recent.leave_out(target, &settings.roots, &mut outcome) {
        outcome.skip(why, asked);
    } else {
        let given_back = outcome.leave_out_given_back(target);
        match step.action {
            Action::Stage { to } => stage(target, to, &settings.places, &mut outcome),
            _ => map_staged(target, &settings.places, &mut outcome),
        }
        outcome.found_absent(&given_back);
    }
    outcome.finished = sys::now();
    outcome
}

fn run_step(
    target: &Target,
    step: Step,
    settings: &Settings,
    swap: Option<&mut SwapTiers>,
    later: &mut Preferences,
) -> Outcome {
    let order = step.pages;
    let mut ascending = order.clone();
    ascending.sort_unstable();
    let mut outcome = Outcome::new(step.vm, step.action, step.reason, ascending);
    let asked = outcome.asked.len() as u64;
    let within_memory = match step.action {
        Action::Place { to } => settings.places.nodes.tiers().contains(to),
        Action::Collapse => true,
        Action::Stage { .. } | Action::MapStaged | Action::DropStage { .. } | Action::Free => false,
    };
    if settings.dry_run {
        outcome.skip(Skip::DryRun, asked);
    } else if let Some(why) = target.refusal(&settings.roots, within_memory) {
        outcome.skip(why, asked);
    } else {
        let moves = matches!(step.action, Action::Place { .. });
        let look = if moves {
            PageStates::in_brief(target, &outcome.asked, &settings.places)
        } else {
            Ok(PageStates::default())
        };
        match look {
            Ok(look) => carry_out(target, &order, look, settings, swap, later, &mut outcome),
            Err(error) => outcome.skip(gone(error), asked),
        }
    }
    outcome.finished = sys::now();
    outcome
}

/// `look` is what the page tables say of pages that are to be placed; of others nothing need be known.
fn carry_out(
    target: &Target,
    order: &[PageIndex],
    mut look: PageStates,
    settings: &Settings,
    swap: Option<&mut SwapTiers>,
    later: &mut Preferences,
    outcome: &mut Outcome,
) {
    let (roots, places) = (&settings.roots, &settings.places);
    let given_back = outcome.leave_out_given_back_by(target, &look);
    // Before the control groups' room is divided: what is not sent needs none.
    let (kept, huge_before) = huge::leave_out(target, places, &look, outcome);
    let fails_before = limits::leave_out(target, roots, places, &look, outcome);
    target.note_homes(&look, &outcome.asked, places);
    let asked = outcome.asked.len() as u64;
    match (outcome.action, swap) {
        _ if outcome.asked.is_empty() => {}
        (Action::Place { to }, _) if places.nodes.tiers().contains(to) => {
            memory::place(target, to, places, later, &mut look, outcome);
        }
        (Action::Place { to }, Some(swap)) => {
            swap::place(target, to, order, places, swap, &mut look, outcome);
        }
        (Action::Place { .. }, None) => outcome.skip(Skip::Failed("not the mover's lane".into()), asked),
        (Action::Collapse, _) => collapse::collapse(target, places, outcome),
        (Action::DropStage { mapped }, _) => drop_stage(target, mapped, places, outcome),
        (Action::Free, _) => drop_stage(target, false, places, outcome),
        (Action::Stage { .. } | Action::MapStaged, _) => {
            outcome.skip(Skip::Failed("not a step of this kind".into()), asked);
        }
    }
    limits::explain(target, roots, places, fails_before, &look, outcome);
    outcome.found_absent(&given_back);
    outcome.found_too(kept);
    outcome.huge_split_pages = huge_before.lost_pages(target, &look, &outcome.asked);
}
