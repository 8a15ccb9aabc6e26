//! Look-ups of one kind, one at a time for each process, that a thread asks for and collects.
//!
//! In: what to look up. Out: what was found. A look-up that hangs is not waited for: what it finds comes with a later
//! collection, and until then its process is not looked at again.

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::time::Duration;

use super::helpers::{Helpers, Spot, Subject};

/// How often it is seen to that nothing waits behind what hangs.
const TEND_EVERY: Duration = Duration::from_millis(100);

pub(super) struct Lookups<T> {
    helpers: Helpers,
    asked: BTreeSet<i32>,
    found: mpsc::Sender<(i32, T)>,
    results: mpsc::Receiver<(i32, T)>,
}

impl<T: Send + 'static> Lookups<T> {
    pub(super) fn new(helpers: &Helpers) -> Self {
        let (found, results) = mpsc::channel();
        Self { helpers: helpers.clone(), asked: BTreeSet::new(), found, results }
    }

    /// Has something looked up about a process, unless that is being done already.
    pub(super) fn ask(&mut self, pid: i32, subject: Subject, look: impl FnOnce() -> T + Send + 'static) {
        if self.asked.insert(pid) {
            let found = self.found.clone();
            self.helpers.look(Spot::Process(pid), subject, move || {
                // Nobody collects any more where the agent ends.
                found.send((pid, look())).ok();
            });
        }
    }

    /// Waits for all that was asked for and does not hang.
    pub(super) fn collect(&mut self) -> Vec<T> {
        let mut found = Vec::new();
        while !self.asked.is_empty() {
            match self.results.recv_timeout(TEND_EVERY) {
                Ok((pid, result)) => {
                    self.asked.remove(&pid);
                    found.push(result);
                }
                Err(_) => {
                    self.helpers.tend();
                    if self.helpers.is_stuck_or_done() {
                        break;
                    }
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::helpers::DEADLINE;

    /// On a busy host a look may seem to hang, too: it comes with the next ones.
    fn collect(lookups: &mut Lookups<i32>, count: usize) -> Vec<i32> {
        let mut found = Vec::new();
        while found.len() < count {
            found.extend(lookups.collect());
        }
        found.sort_unstable();
        found
    }

    #[test]
    fn what_hangs_is_not_waited_for_nor_asked_for_twice_and_comes_later() {
        let helpers = Helpers::new("test-helper", DEADLINE);
        let mut lookups = Lookups::new(&helpers);
        let subject = |pid| Subject { what: format!("looking at process {pid}"), without: "it is left out" };
        let (release, hang) = mpsc::channel::<()>();
        lookups.ask(1, subject(1), move || {
            hang.recv().ok();
            1
        });
        (2..5).for_each(|pid| lookups.ask(pid, subject(pid), move || pid));
        assert_eq!(collect(&mut lookups, 3), [2, 3, 4]);
        lookups.ask(1, subject(1), || unreachable!("it is being looked at"));
        lookups.ask(2, subject(2), || 20);
        assert_eq!(collect(&mut lookups, 1), [20]);
        assert_eq!(helpers.warnings().len(), 1);
        release.send(()).unwrap();
        assert_eq!(collect(&mut lookups, 1), [1]);
    }
}
