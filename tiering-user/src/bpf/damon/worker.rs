//! The thread that sets DAMON up: to end a kdamond takes as long as it sleeps between two looks.
//!
//! In: which VMs to watch. Out: which are. While a kdamond of ours is there a file says so, with the processes
//! that it watches, so that the next agent gives back what one left that was killed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc as std_mpsc;
use std::thread;

use tokio::sync::mpsc;

use super::super::source::Delivery;
use super::admin::{Admin, Availability, Setup};
use crate::track::VmId;

/// What is watched now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watching {
    Nothing,
    /// These VMs, in the order of the targets; how, and by which thread.
    Vms {
        ids: Vec<VmId>,
        kdamond: u32,
        samples: u32,
    },
    /// Why nothing.
    Failed(String),
}

impl Watching {
    /// The thread that watches.
    pub fn kdamond(&self) -> Option<u32> {
        match self {
            Self::Vms { kdamond, .. } => Some(*kdamond),
            Self::Nothing | Self::Failed(_) => None,
        }
    }

    pub(super) fn not_available(availability: &Availability) -> Self {
        Self::Failed(match availability {
            Availability::Free => "free".to_owned(),
            Availability::Taken => "in use by somebody else, left alone".to_owned(),
            Availability::Absent(why) => (*why).to_owned(),
        })
    }

    pub(super) fn delivery(&self) -> Delivery {
        match self {
            Self::Nothing => Delivery::Idle("no VM needs it".to_owned()),
            Self::Vms { ids, kdamond, .. } => {
                Delivery::Active(format!("thread {kdamond} watches {} VMs", ids.len()))
            }
            Self::Failed(why) => Delivery::Unavailable(why.clone()),
        }
    }
}

/// The running thread. Dropped, it ends what it has DAMON do, and then itself.
#[derive(Debug)]
pub struct Worker {
    tasks: Option<std_mpsc::Sender<(Vec<VmId>, Setup)>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Worker {
    /// Starts it. `mark` is the file that says that a kdamond is ours.
    ///
    /// # Errors
    /// Where the system has no thread left.
    pub fn start(admin: Admin, mark: PathBuf, done: mpsc::UnboundedSender<Watching>) -> io::Result<Self> {
        let (tasks, queue) = std_mpsc::channel::<(Vec<VmId>, Setup)>();
        let thread = thread::Builder::new().name("tiering-damon".into()).spawn(move || {
            let mut ours = Ours { admin, mark, running: None };
            ours.give_back_what_was_left();
            for (ids, setup) in queue {
                let watching = ours.watch(ids, &setup);
                if done.send(watching).is_err() {
                    break;
                }
            }
            ours.give_back();
        })?;
        Ok(Self { tasks: Some(tasks), thread: Some(thread) })
    }

    /// Has these VMs be watched, and no others.
    pub fn watch(&self, ids: Vec<VmId>, setup: Setup) {
        if let Some(tasks) = &self.tasks {
            // The thread lives as long as this value.
            tasks.send((ids, setup)).ok();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.tasks = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was told already.
            thread.join().ok();
        }
    }
}

struct Ours {
    admin: Admin,
    /// A line for each process that is watched, and the last one for the thread that watches, once that is known.
    mark: PathBuf,
    running: Option<Running>,
}

/// A kdamond that was made by an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Running {
    /// None where the agent was killed before it knew.
    kdamond: Option<u32>,
    pids: Vec<i32>,
}

const KDAMOND: &str = "kdamond ";

impl Running {
    fn marked(text: &str) -> Self {
        let kdamond = text.lines().find_map(|line| line.strip_prefix(KDAMOND)?.parse().ok());
        Self { kdamond, pids: text.lines().filter_map(|line| line.parse().ok()).collect() }
    }

    fn mark(&self) -> String {
        let pids = self.pids.iter().map(i32::to_string);
        pids.chain(self.kdamond.map(|thread| format!("{KDAMOND}{thread}"))).collect::<Vec<_>>().join("\n")
    }

    /// Whether the kdamond that is there now is this one: that thread, or, where none runs, one set up for the same
    /// processes, perhaps not yet for all.
    fn is(&self, admin: &Admin) -> bool {
        let watched = admin.watched();
        match (admin.kdamond(), self.kdamond) {
            (Some(there), Some(ours)) => there == ours,
            (Some(_), None) => watched == self.pids,
            (None, _) => !watched.is_empty() && self.pids.starts_with(&watched),
        }
    }
}

/// Whether the kdamond that is there now was set up by an agent, running or killed.
pub(super) fn is_an_agents(admin: &Admin, mark: &Path) -> bool {
    fs::read_to_string(mark).is_ok_and(|marked| Running::marked(&marked).is(admin))
}

impl Ours {
    fn watch(&mut self, ids: Vec<VmId>, setup: &Setup) -> Watching {
        self.give_back();
        if ids.is_empty() {
            return Watching::Nothing;
        }
        match self.admin.availability() {
            Availability::Free => {}
            other => return Watching::not_available(&other),
        }
        let pids = setup.targets.iter().map(|target| target.pid).collect();
        let mut running = Running { kdamond: None, pids };
        // Before there is something to give back.
        if let Err(error) = fs::write(&self.mark, running.mark()) {
            return Watching::Failed(format!("{}: {error}", self.mark.display()));
        }
        match self.admin.start(setup) {
            Ok(kdamond) => {
                running.kdamond = Some(kdamond);
                // Without that line the processes tell.
                fs::write(&self.mark, running.mark()).ok();
                self.running = Some(running);
                Watching::Vms { ids, kdamond, samples: setup.samples }
            }
            Err(error) => {
                fs::remove_file(&self.mark).ok();
                Watching::Failed(error.to_string())
            }
        }
    }

    /// An agent that was killed leaves its kdamond running.
    fn give_back_what_was_left(&mut self) {
        let Ok(marked) = fs::read_to_string(&self.mark) else { return };
        self.running = Some(Running::marked(&marked));
        self.give_back();
    }

    /// Somebody else may have taken DAMON since ours ended.
    fn give_back(&mut self) {
        let Some(running) = &self.running else { return };
        let stopped = if self.admin.availability() == Availability::Taken && running.is(&self.admin) {
            self.admin.stop()
        } else {
            Ok(())
        };
        match stopped {
            Ok(()) => {
                self.running = None;
                fs::remove_file(&self.mark).ok();
            }
            Err(error) => tracing::warn!(%error, "DAMON was not given back"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::admin::tests::{files, setup};
    use super::*;

    fn ours(folder: &tempfile::TempDir, admin: &Admin) -> Ours {
        Ours { admin: admin.clone(), mark: folder.path().join("mark"), running: None }
    }

    #[test]
    fn what_a_killed_agent_left_is_given_back_and_somebody_elses_is_not() {
        let (folder, admin) = files("0");
        let mut killed = ours(&folder, &admin);
        assert_eq!(killed.watch(vec![VmId(1), VmId(2)], &setup()).kdamond(), Some(4711));
        let mark = fs::read_to_string(&killed.mark).unwrap();
        assert_eq!(mark, "10\n20\nkdamond 4711");

        // Ours has ended, and another one runs for the same processes.
        fs::write(folder.path().join("kdamonds/0/pid"), "4712").unwrap();
        ours(&folder, &admin).give_back_what_was_left();
        assert_eq!((admin.availability(), admin.kdamond()), (Availability::Taken, Some(4712)));
        assert!(!folder.path().join("mark").exists());

        fs::write(folder.path().join("kdamonds/0/pid"), "4711").unwrap();
        fs::write(folder.path().join("mark"), mark).unwrap();
        ours(&folder, &admin).give_back_what_was_left();
        assert_eq!((admin.availability(), admin.kdamond()), (Availability::Free, None));
    }

    #[test]
    fn one_that_was_not_set_up_for_all_processes_yet_is_ours_too() {
        let (folder, admin) = files("1");
        fs::write(folder.path().join("kdamonds/0/contexts/0/targets/nr_targets"), "1").unwrap();
        fs::write(folder.path().join("kdamonds/0/contexts/0/targets/0/pid_target"), "10").unwrap();
        let marked = |text: &str| Running::marked(text).is(&admin);
        assert!(marked("10\n20") && !marked("20\n10") && !marked("11"));
    }
}
