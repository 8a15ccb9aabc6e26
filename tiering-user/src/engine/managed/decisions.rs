//! The last decisions about one VM, and what became of each.
//!
//! In: outcomes of steps. Out: the last ones, and those about one page. Pure: nothing is decided here.
//!
//! Limits: a log of so many steps and so many runs of pages, whichever is reached first; the oldest go. Scattered pages
//! make many runs, so that fewer steps are remembered of a VM that is moved page by page.

use std::collections::{BTreeMap, VecDeque};

use crate::actuate::{Outcome, Skip};
use crate::policy::{Action, Reason};
use crate::sys::Monotonic;
use crate::tiermap::{PageIndex, PageRun, Place};

/// Most steps that are remembered.
const STEPS: usize = 1024;
/// Most runs of pages in them, for a VM of any size, and pages of the VM for one run more: at 12 bytes a run,
/// a thirtieth of its table.
const RUNS: usize = 1024;
const PAGES_A_RUN: u32 = 96;

/// A step that was carried out, or tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// When it was done.
    pub at: Monotonic,
    pub action: Action,
    pub reason: Reason,
    /// Pages the step was about, ascending, each with where it was afterwards if that was read back.
    pub runs: Vec<(PageRun, Option<Place>)>,
    pub moved_pages: u64,
    pub huge_split_pages: u64,
    pub skipped: BTreeMap<Skip, u64>,
}

impl Decision {
    /// How many pages it was about.
    pub fn pages(&self) -> u64 {
        self.runs.iter().map(|(run, _)| u64::from(run.count)).sum()
    }

    /// Whether it was about this page; then where that was afterwards, if it was read back.
    fn about(&self, page: PageIndex) -> Option<Option<Place>> {
        let after = self.runs.partition_point(|(run, _)| run.first <= page);
        let (run, place) = self.runs.get(after.checked_sub(1)?)?;
        run.pages().contains(&page).then_some(*place)
    }
}

/// The log.
#[derive(Clone, Debug)]
pub struct Decisions {
    /// Newest last.
    log: VecDeque<Decision>,
    runs: usize,
    most_runs: usize,
}

impl Decisions {
    /// An empty log for a VM of so many pages.
    pub fn new(pages: u32) -> Self {
        Self { log: VecDeque::new(), runs: 0, most_runs: RUNS + (pages / PAGES_A_RUN) as usize }
    }

    /// Notes what became of a step.
    pub fn note(&mut self, outcome: &Outcome) {
        let runs = runs_with_places(&outcome.asked, &outcome.found);
        self.runs += runs.len();
        self.log.push_back(Decision {
            at: outcome.finished,
            action: outcome.action,
            reason: outcome.reason,
            runs,
            moved_pages: outcome.moved_pages,
            huge_split_pages: outcome.huge_split_pages,
            skipped: outcome.skipped.clone(),
        });
        while self.log.len() > 1 && (self.log.len() > STEPS || self.runs > self.most_runs) {
            if let Some(oldest) = self.log.pop_front() {
                self.runs -= oldest.runs.len();
            }
        }
    }

    /// All that is remembered, newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = &Decision> {
        self.log.iter().rev()
    }

    /// Those about this page, newest first, each with where the page was afterwards.
    pub fn about(&self, page: PageIndex) -> impl Iterator<Item = (&Decision, Option<Place>)> {
        self.newest_first().filter_map(move |decision| Some((decision, decision.about(page)?)))
    }
}

/// The pages that were asked for, in runs of one place. What was found can be about more pages, and fewer.
fn runs_with_places(asked: &[PageIndex], found: &[(PageRun, Place)]) -> Vec<(PageRun, Option<Place>)> {
    let mut runs: Vec<(PageRun, Option<Place>)> = Vec::new();
    let mut found = found.iter().peekable();
    for &page in asked {
        while found.next_if(|(run, _)| run.first + run.count <= page).is_some() {}
        let place = found.peek().filter(|(run, _)| run.first <= page).map(|(_, place)| *place);
        match runs.last_mut() {
            Some((run, last)) if *last == place && run.first + run.count == page => run.count += 1,
            _ => runs.push((PageRun { first: page, count: 1 }, place)),
        }
    }
    runs.shrink_to_fit();
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiers::TierId;
    use crate::track::VmId;
    use std::time::Duration;

    const NVME: Place = Place::In(TierId(1));

    fn outcome(asked: &[PageIndex], found: &[(PageRun, Place)]) -> Outcome {
        Outcome {
            vm: VmId(1),
            action: Action::Place { to: TierId(1) },
            reason: Reason::Idle(Duration::from_secs(9)),
            asked: asked.to_vec(),
            left_out: Vec::new(),
            found: found.to_vec(),
            moved_pages: 0,
            raised_pages: 0,
            huge_split_pages: 0,
            tags: Vec::new(),
            skipped: BTreeMap::new(),
            finished: Monotonic(7),
        }
    }

    #[test]
    fn a_page_is_told_by_which_steps_it_was_meant_and_where_it_was_then() {
        let mut decisions = Decisions::new(100);
        decisions.note(&outcome(&[1, 2, 3, 9], &[(PageRun { first: 0, count: 3 }, NVME)]));
        decisions.note(&outcome(&[2], &[(PageRun { first: 2, count: 1 }, Place::Untouched)]));
        let about = |page| decisions.about(page).map(|(_, place)| place).collect::<Vec<_>>();
        assert_eq!(about(2), [Some(Place::Untouched), Some(NVME)], "newest first");
        assert_eq!(about(1), [Some(NVME)]);
        assert_eq!(about(3), [None], "meant, and not read back");
        assert!(about(0).is_empty(), "found, and not meant");
        assert!(about(4).is_empty() && about(10).is_empty());
        assert_eq!(decisions.newest_first().map(Decision::pages).collect::<Vec<_>>(), [1, 4]);
    }

    #[test]
    fn the_log_is_bounded_in_steps_and_in_runs() {
        let mut decisions = Decisions::new(0);
        for page in 0..2000 {
            decisions.note(&outcome(&[page], &[]));
        }
        assert_eq!(decisions.newest_first().count(), STEPS);
        assert_eq!(decisions.about(1999).count(), 1);
        assert_eq!(decisions.about(1999 - 1024).count(), 0);

        let scattered: Vec<_> = (0..1500).map(|n| n * 2).collect();
        decisions.note(&outcome(&scattered, &[]));
        assert_eq!(decisions.newest_first().count(), 1, "the newest is kept whole, however scattered");
        decisions.note(&outcome(&[5], &[]));
        assert_eq!(decisions.newest_first().map(Decision::pages).collect::<Vec<_>>(), [1]);
    }
}
