//! The thread that sets DAMON up: to end a kdamond takes as long as it sleeps between two looks.
//!
//! In: which machines to watch. Out: which are. While a kdamond of ours is there a file says so, with the processes that it watches, so that the next
//! agent gives back what one left that was killed.

use std::fs;
use std::io;
use std::path::PathBuf;
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
    /// These machines, in the order of the targets; how, and by which thread.
    Machines {
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
            Self::Machines { kdamond, .. } => Some(*kdamond),
            Self::Nothing | Self::Failed(_) => None,
        }
    }

    pub(super) fn not_available(availability: &Availability) -> Self {
        Self::Failed(match availability {
            Availability::Free => "it was given back".to_owned(),
            Availability::Taken => "in use by somebody else, left alone".to_owned(),
            Availability::Absent(why) => (*why).to_owned(),
        })
    }

    pub(super) fn delivery(&self) -> Delivery {
        match self {
            Self::Nothing => Delivery::Idle("no machine needs it".to_owned()),
            Self::Machines { ids, kdamond, .. } => {
                Delivery::Active(format!("thread {kdamond} watches {} machines", ids.len()))
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
            let mut ours = Ours { admin, mark, running: false };
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

    /// Has these machines be watched, and no others.
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
    mark: PathBuf,
    running: bool,
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
        let pids: Vec<_> = setup.targets.iter().map(|target| target.pid.to_string()).collect();
        // Before there is something to give back.
        if let Err(error) = fs::write(&self.mark, pids.join("\n")) {
            return Watching::Failed(format!("{}: {error}", self.mark.display()));
        }
        match self.admin.start(setup) {
            Ok(kdamond) => {
                self.running = true;
                Watching::Machines { ids, kdamond, samples: setup.samples }
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
        let marked: Vec<i32> = marked.lines().filter_map(|line| line.parse().ok()).collect();
        let watched = self.admin.watched();
        self.running = !watched.is_empty() && watched == marked;
        self.give_back();
        fs::remove_file(&self.mark).ok();
    }

    fn give_back(&mut self) {
        if !std::mem::take(&mut self.running) {
            return;
        }
        match self.admin.stop() {
            Ok(()) => drop(fs::remove_file(&self.mark)),
            Err(error) => tracing::warn!(%error, "DAMON was not given back"),
        }
    }
}
