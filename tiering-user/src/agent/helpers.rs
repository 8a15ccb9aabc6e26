//! Look-ups that may hang, each in a thread that can be left behind.
//!
//! Who reads a file of a dead NFS server, or looks at a process that is stuck, waits for as long as that takes and
//! cannot be woken. So the agent has helper threads for it:
//!
//! 1. One thread does all look-ups, one after another.
//! 2. When it has been at one for longer than the deadline it is left to it. That is told, and another thread goes on
//!    with the others.
//! 3. Of one place (a file system, a process) there is one look-up at a time, so that a place which hangs costs one
//!    thread.
//! 4. When [`MOST_STUCK`] threads are stuck, the look-ups that wait are left out until one comes back.
//!
//! In: look-ups, each with its place and its name. Out: what they send on channels of their own, also when it comes
//! late; what hangs now.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::sys::{self, Monotonic};

/// A look-up that takes longer does not come back, as far as can be told.
pub(super) const DEADLINE: Duration = Duration::from_secs(1);
/// Threads that may be stuck at a time.
pub(super) const MOST_STUCK: usize = 8;

/// What hangs as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Spot {
    /// By the number of its device.
    FileSystem(u64),
    Process(i32),
    /// Something that is there once on the host.
    Only(&'static str),
}

/// A look-up in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subject {
    /// "Opening the image ...".
    pub what: String,
    /// What the agent goes on without.
    pub without: &'static str,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, without } = self;
        write!(
            f,
            "{what} hangs: {without}; other VMs are not held up. Look whether its server or its disk is down"
        )
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// The helpers of one kind. Dropped, they end when they have nothing to do; one that is stuck is left behind.
#[derive(Clone)]
pub(super) struct Helpers(Arc<Shared>);

struct Shared {
    /// Of the threads.
    name: &'static str,
    state: Mutex<State>,
    work: Condvar,
}

struct State {
    queue: Queue<Job>,
    /// Threads that wait for something to do.
    idle: usize,
}

impl Helpers {
    /// Threads of this name, of which each is given up after `deadline`.
    pub(super) fn new(name: &'static str, deadline: Duration) -> Self {
        let state = State { queue: Queue::new(deadline), idle: 0 };
        Self(Arc::new(Shared { name, state: Mutex::new(state), work: Condvar::new() }))
    }

    /// Has a look-up done. Does not wait.
    pub(super) fn look(&self, spot: Spot, subject: Subject, job: impl FnOnce() + Send + 'static) {
        let mut state = self.0.lock();
        state.queue.push(spot, subject, Box::new(job));
        self.employ(&mut state);
    }

    /// Goes on with what waits behind a look-up that hangs, and tells of that. To be called about once a second.
    pub(super) fn tend(&self) {
        let mut state = self.0.lock();
        for subject in state.queue.newly_stuck(sys::now()) {
            tracing::warn!("{subject}");
        }
        self.employ(&mut state);
    }

    /// Nothing will come before a look-up that hangs comes back.
    pub(super) fn is_stuck_or_done(&self) -> bool {
        self.0.lock().queue.is_stuck_or_done(sys::now())
    }

    /// What hangs now, each in a line.
    pub(super) fn warnings(&self) -> Vec<String> {
        let state = self.0.lock();
        let now = sys::now();
        let mut lines: Vec<String> = state.queue.stuck(now).map(ToString::to_string).collect();
        if lines.len() >= MOST_STUCK {
            lines.push(format!(
                "{} more look-ups wait for one of these {MOST_STUCK}",
                state.queue.waiting.len()
            ));
        }
        lines
    }

    fn employ(&self, state: &mut State) {
        if state.idle > 0 {
            self.0.work.notify_one();
        } else if state.queue.needs_thread(sys::now()) {
            let shared = Arc::downgrade(&self.0);
            let work = move || {
                while let Some(shared) = shared.upgrade()
                    && shared.work_once()
                {}
            };
            if let Err(error) = thread::Builder::new().name(self.0.name.to_owned()).spawn(work) {
                // The next look-up, or the next second, tries again.
                tracing::warn!(%error, "no thread for a look-up that may hang");
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is done under the lock that panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does a look-up, or waits for one. Returns whether the thread is still of use.
    fn work_once(&self) -> bool {
        let mut state = self.lock();
        let Some((number, job)) = state.queue.take(sys::now()) else {
            // One that comes back from what hung finds another in its place.
            if state.idle > 0 {
                return false;
            }
            state.idle += 1;
            let (mut state, _) =
                self.work.wait_timeout(state, DEADLINE).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
            return true;
        };
        drop(state);
        job();
        if let Some(subject) = self.lock().queue.done(number) {
            tracing::info!("no longer hangs: {}", subject.what);
        }
        true
    }
}

/// Which look-up is next, and which hang. Pure: the time is an argument.
#[derive(Debug)]
struct Queue<J> {
    deadline: Duration,
    waiting: VecDeque<(Spot, Subject, J)>,
    running: Vec<Running>,
    /// Of the next one that runs.
    number: u64,
}

#[derive(Debug)]
struct Running {
    number: u64,
    spot: Spot,
    subject: Subject,
    since: Monotonic,
    /// It was told that it hangs.
    told: bool,
}

impl<J> Queue<J> {
    fn new(deadline: Duration) -> Self {
        Self { deadline, waiting: VecDeque::new(), running: Vec::new(), number: 0 }
    }

    fn push(&mut self, spot: Spot, subject: Subject, job: J) {
        self.waiting.push_back((spot, subject, job));
    }

    /// The first that waits whose place is free.
    fn next(&self) -> Option<usize> {
        self.waiting.iter().position(|(spot, ..)| self.running.iter().all(|running| running.spot != *spot))
    }

    fn take(&mut self, now: Monotonic) -> Option<(u64, J)> {
        let (spot, subject, job) = self.waiting.remove(self.next()?)?;
        self.number += 1;
        self.running.push(Running { number: self.number, spot, subject, since: now, told: false });
        Some((self.number, job))
    }

    /// A look-up has come back. Returns what it was about if it was told that it hangs.
    fn done(&mut self, number: u64) -> Option<Subject> {
        let at = self.running.iter().position(|running| running.number == number)?;
        let running = self.running.swap_remove(at);
        running.told.then_some(running.subject)
    }

    /// Something waits that could be done, and each thread is stuck.
    fn needs_thread(&self, now: Monotonic) -> bool {
        self.next().is_some()
            && self.running.len() < MOST_STUCK
            && self.running.iter().all(|running| self.is_stuck(running, now))
    }

    fn is_stuck(&self, running: &Running, now: Monotonic) -> bool {
        now.since(running.since) > self.deadline
    }

    fn is_stuck_or_done(&self, now: Monotonic) -> bool {
        let none_left = self.next().is_none() || self.running.len() >= MOST_STUCK;
        none_left && self.running.iter().all(|running| self.is_stuck(running, now))
    }

    fn stuck(&self, now: Monotonic) -> impl Iterator<Item = &Subject> {
        self.running.iter().filter(move |running| self.is_stuck(running, now)).map(|running| &running.subject)
    }

    fn newly_stuck(&mut self, now: Monotonic) -> Vec<Subject> {
        let stuck = self.running.iter_mut().filter(|running| now.since(running.since) > self.deadline);
        stuck
            .filter_map(|running| {
                (!std::mem::replace(&mut running.told, true)).then(|| running.subject.clone())
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn subject(what: &str) -> Subject {
        Subject { what: what.to_owned(), without: "it is left out" }
    }

    fn at(ms: u64) -> Monotonic {
        Monotonic(ms * 1_000_000)
    }

    fn queue(spots: &[Spot]) -> Queue<usize> {
        let mut queue = Queue::new(DEADLINE);
        for (number, spot) in spots.iter().enumerate() {
            queue.push(spot.clone(), subject(&number.to_string()), number);
        }
        queue
    }

    #[test]
    fn a_place_that_hangs_is_tried_once_and_the_others_go_on() {
        let mut queue = queue(&[Spot::FileSystem(1), Spot::FileSystem(1), Spot::FileSystem(2)]);
        assert!(queue.needs_thread(at(0)));
        let (hanging, job) = queue.take(at(0)).unwrap();
        assert_eq!(job, 0);
        assert!(!queue.needs_thread(at(900)), "it may come back");
        assert!(queue.needs_thread(at(1100)));
        assert_eq!(queue.newly_stuck(at(1100)), [subject("0")]);
        assert_eq!(queue.newly_stuck(at(1100)), [], "told once");
        let (other, job) = queue.take(at(1100)).unwrap();
        assert_eq!(job, 2);
        assert!(queue.take(at(1100)).is_none(), "its place hangs");
        assert!(!queue.is_stuck_or_done(at(1100)));
        assert_eq!(queue.done(other), None);
        assert!(queue.is_stuck_or_done(at(1100)) && !queue.needs_thread(at(9000)));
        assert_eq!(queue.done(hanging), Some(subject("0")), "what was told is over");
        assert_eq!(queue.take(at(9000)).map(|(_, job)| job), Some(1));
    }

    #[test]
    fn only_so_many_threads_are_given_up() {
        let spots: Vec<Spot> = (0..20).map(Spot::FileSystem).collect();
        let mut queue = queue(&spots);
        let mut now = 0;
        while queue.needs_thread(at(now)) {
            queue.take(at(now)).unwrap();
            now += 1100;
        }
        assert_eq!(queue.stuck(at(now)).count(), MOST_STUCK);
        assert!(queue.is_stuck_or_done(at(now)), "the rest waits");
        assert_eq!(queue.waiting.len(), 20 - MOST_STUCK);
    }

    #[test]
    fn a_look_up_that_never_ends_keeps_no_other_waiting_and_is_named() {
        let helpers = Helpers::new("test-helper", DEADLINE);
        let (release, hang) = mpsc::channel::<()>();
        let (answer, answers) = mpsc::channel();
        helpers.look(Spot::Process(1), subject("looking at process 1"), move || {
            hang.recv().ok();
        });
        for pid in 2..10 {
            let answer = answer.clone();
            helpers.look(Spot::Process(pid), subject("another"), move || answer.send(pid).unwrap());
        }
        let mut there = Vec::new();
        while there.len() < 8 {
            helpers.tend();
            there.extend(answers.recv_timeout(Duration::from_millis(100)));
        }
        // By one thread, or by more where the first one was slow to begin.
        there.sort_unstable();
        assert_eq!(there, (2..10).collect::<Vec<_>>());
        while !helpers.is_stuck_or_done() {
            thread::yield_now();
        }
        let warnings = helpers.warnings();
        assert!(warnings.len() == 1 && warnings[0].starts_with("looking at process 1 hangs"), "{warnings:?}");
        release.send(()).unwrap();
        while !helpers.warnings().is_empty() {
            thread::yield_now();
        }
    }
}
