//! Pages brought up ahead of need, and what became of them.
//!
//! Each stage ends in one of two ways: the page is touched (used; late if that was before the stage was done), or
//! its deadline passes (wasted). What it was staged for, its [`Origin`], is judged by that: each has a confidence of its
//! own, so a neighbour that foretells nothing is soon asked no more. For what a machine's own past foretells, every
//! [`EPISODE`] ends the window doubles if most were used and halves if not.
//!
//! # Limits
//! One confidence an origin, not one a page. A window at its least keeps probing, however bad it is,
//! unless the configured threshold stops it; then one chance in [`PROBE_EVERY`] is taken.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use crate::sys::Monotonic;
use crate::tiermap::PageIndex;
use crate::track::VmId;

/// Ends after which a record is judged.
const EPISODE: u32 = 256;
/// Pages ahead: at first, at least, at most.
const WINDOW_START: u32 = 32;
const WINDOW_LEAST: u32 = 4;
const WINDOW_MOST: u32 = 256;
/// Below the threshold, one chance in this many is taken all the same.
const PROBE_EVERY: u32 = 100;

/// Why a page is thought to be touched soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The machine touched it next, last time.
    OwnPast,
    /// Another machine touched the page at the same guest-physical address.
    SamePage(VmId),
    /// Another machine touched a page of the same content.
    SameContent(VmId),
}

#[derive(Clone, Copy, Debug)]
struct Stage {
    requested: Monotonic,
    done: Option<Monotonic>,
    origin: Origin,
}

/// Totals, pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageCounts {
    pub issued: u64,
    /// Of `issued`: foretold by other machines' touches.
    pub issued_by_page: u64,
    pub issued_by_content: u64,
    pub used: u64,
    pub wasted: u64,
    /// Of `used`: touched before the stage was done.
    pub late: u64,
}

impl StageCounts {
    fn issued_by(&mut self, origin: Origin) -> Option<&mut u64> {
        match origin {
            Origin::OwnPast => None,
            Origin::SamePage(_) => Some(&mut self.issued_by_page),
            Origin::SameContent(_) => Some(&mut self.issued_by_content),
        }
    }
}

/// How the stages of one origin ended: those of the running episode, and the earlier ones at half weight.
#[derive(Clone, Copy, Debug, Default)]
struct Record {
    used: u32,
    ended: u32,
    since_judged: u32,
    refused: u32,
}

impl Record {
    /// The mean of a Beta distribution that began at 2 used of 3.
    fn confidence(self) -> f64 {
        f64::from(self.used + 2) / f64::from(self.ended + 3)
    }

    /// Takes in one end; the share of used ones at the end of an episode.
    fn end(&mut self, used: bool) -> Option<f64> {
        self.ended += 1;
        self.used += u32::from(used);
        self.since_judged += 1;
        if self.since_judged < EPISODE {
            return None;
        }
        let share = f64::from(self.used) / f64::from(self.ended);
        self.since_judged = 0;
        self.used /= 2;
        self.ended /= 2;
        Some(share)
    }
}

/// The stages of one virtual machine.
#[derive(Clone, Debug)]
pub struct Stages {
    open: HashMap<PageIndex, Stage>,
    /// In order of request. A page may stand here after its stage has ended.
    order: VecDeque<(Monotonic, PageIndex)>,
    counts: StageCounts,
    records: BTreeMap<Origin, Record>,
    window: u32,
}

impl Default for Stages {
    fn default() -> Self {
        Self {
            open: HashMap::new(),
            order: VecDeque::new(),
            counts: StageCounts::default(),
            records: BTreeMap::new(),
            window: WINDOW_START,
        }
    }
}

impl Stages {
    pub fn counts(&self) -> StageCounts {
        self.counts
    }

    /// How many pages ahead of its own past to stage.
    pub fn window(&self) -> u32 {
        self.window
    }

    /// Probability that a page staged for this will be used.
    pub fn confidence(&self, origin: Origin) -> f64 {
        self.records.get(&origin).copied().unwrap_or_default().confidence()
    }

    /// Whether a chance to stage should be taken: always at or above `threshold`, now and then below it.
    pub fn worth_it(&mut self, origin: Origin, threshold: f64) -> bool {
        let record = self.records.entry(origin).or_default();
        if record.confidence() >= threshold {
            return true;
        }
        record.refused = (record.refused + 1) % PROBE_EVERY;
        record.refused == 0
    }

    /// `page` was asked to be brought up.
    pub fn requested(&mut self, page: PageIndex, origin: Origin, now: Monotonic) {
        // It may have come up and gone down again unseen: then the former stage counts neither way.
        self.failed(page);
        self.open.insert(page, Stage { requested: now, done: None, origin });
        self.counts.issued += 1;
        self.counts.issued_by(origin).into_iter().for_each(|count| *count += 1);
        self.records.entry(origin).or_default();
        self.order.push_back((now, page));
    }

    /// `page` is up.
    pub fn done(&mut self, page: PageIndex, now: Monotonic) {
        if let Some(stage) = self.open.get_mut(&page) {
            stage.done = Some(now);
        }
    }

    /// The stage of `page` came to nothing; it counts neither way.
    pub fn failed(&mut self, page: PageIndex) {
        if let Some(stage) = self.open.remove(&page) {
            self.counts.issued -= 1;
            self.counts.issued_by(stage.origin).into_iter().for_each(|count| *count -= 1);
        }
    }

    /// `page` was touched at `time`. Returns whether a stage ended by it.
    pub fn touched(&mut self, page: PageIndex, time: Monotonic) -> bool {
        let Some(stage) = self.open.remove(&page) else { return false };
        self.counts.used += 1;
        if stage.done.is_none_or(|done| time < done) {
            self.counts.late += 1;
        }
        self.end(stage.origin, true);
        true
    }

    /// Stages older than `deadline`, which end as wasted.
    pub fn expire(&mut self, now: Monotonic, deadline: Duration) -> Vec<PageIndex> {
        let mut wasted = Vec::new();
        while let Some((requested, page)) = self.order.front().copied()
            && now.since(requested) >= deadline
        {
            self.order.pop_front();
            // A page may have been used and staged anew since.
            let Some(stage) = self.open.get(&page).copied().filter(|stage| stage.requested == requested)
            else {
                continue;
            };
            self.open.remove(&page);
            self.counts.wasted += 1;
            self.end(stage.origin, false);
            wasted.push(page);
        }
        wasted
    }

    /// Forgets what is known about another machine, which has gone.
    pub fn forget(&mut self, vm: VmId) {
        self.records
            .retain(|origin, _| *origin != Origin::SamePage(vm) && *origin != Origin::SameContent(vm));
    }

    fn end(&mut self, origin: Origin, used: bool) {
        // Of a machine that has gone there is no record any more.
        let judged = self.records.get_mut(&origin).and_then(|record| record.end(used));
        let Some(share) = judged.filter(|_| origin == Origin::OwnPast) else { return };
        if share >= 0.8 {
            self.window = (self.window * 2).min(WINDOW_MOST);
        } else if share < 0.5 {
            self.window = (self.window / 2).max(WINDOW_LEAST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Origin::{OwnPast, SameContent, SamePage};
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn at(seconds: u64) -> Monotonic {
        Monotonic(seconds * SECOND)
    }

    #[test]
    fn a_touch_after_it_is_done_is_in_time_and_one_before_is_late() {
        let mut stages = Stages::default();
        for page in [1, 2, 3] {
            stages.requested(page, OwnPast, at(1));
        }
        stages.done(1, at(2));
        stages.done(2, at(4));
        assert!(stages.touched(1, at(3)));
        assert!(stages.touched(2, at(3)));
        assert!(stages.touched(3, at(3)), "not done at all yet");
        assert!(!stages.touched(3, at(3)), "it ended already");
        assert_eq!(stages.counts(), StageCounts { issued: 3, used: 3, late: 2, ..StageCounts::default() });
    }

    #[test]
    fn what_is_not_touched_in_time_is_wasted_once() {
        let mut stages = Stages::default();
        stages.requested(1, OwnPast, at(1));
        stages.requested(2, OwnPast, at(1));
        stages.done(1, at(1));
        stages.touched(1, at(2));
        stages.requested(1, OwnPast, at(8));
        let deadline = Duration::from_secs(10);
        assert!(stages.expire(at(10), deadline).is_empty());
        assert_eq!(stages.expire(at(11), deadline), [2]);
        assert_eq!(stages.expire(at(18), deadline), [1]);
        assert_eq!(stages.counts(), StageCounts { issued: 3, used: 1, wasted: 2, ..StageCounts::default() });
    }

    #[test]
    fn a_failed_stage_is_as_if_never_asked_for() {
        let mut stages = Stages::default();
        stages.requested(1, OwnPast, at(1));
        stages.failed(1);
        assert!(!stages.touched(1, at(2)));
        assert_eq!(stages.counts(), StageCounts::default());
    }

    #[test]
    fn the_window_follows_the_outcome() {
        let mut stages = Stages::default();
        for page in 0..600 {
            stages.requested(page, OwnPast, at(1));
            stages.done(page, at(1));
            stages.touched(page, at(2));
        }
        assert_eq!(stages.window(), 4 * WINDOW_START);
        assert!(stages.confidence(OwnPast) > 0.9);

        for page in 1000..4000 {
            stages.requested(page, OwnPast, at(3));
        }
        stages.expire(at(100), Duration::from_secs(1));
        assert_eq!(stages.window(), WINDOW_LEAST);
        assert!(stages.confidence(OwnPast) < 0.1);
    }

    #[test]
    fn below_the_threshold_one_in_a_hundred_is_tried() {
        let mut stages = Stages::default();
        assert!(stages.worth_it(OwnPast, 0.5));
        let tried = (0..1000).filter(|_| stages.worth_it(OwnPast, 0.99)).count();
        assert_eq!(tried, 10);
    }

    #[test]
    fn a_page_staged_anew_while_its_stage_is_open_expires_and_counts_once() {
        let mut stages = Stages::default();
        stages.requested(1, SamePage(VmId(1)), at(1));
        stages.requested(1, OwnPast, at(5));
        assert_eq!(stages.counts(), StageCounts { issued: 1, ..StageCounts::default() });
        let deadline = Duration::from_secs(10);
        assert!(stages.expire(at(14), deadline).is_empty());
        assert_eq!(stages.expire(at(15), deadline), [1]);
        stages.failed(1);
        assert_eq!(stages.counts(), StageCounts { issued: 1, wasted: 1, ..StageCounts::default() });
    }

    #[test]
    fn a_neighbour_that_foretells_nothing_costs_the_others_nothing() {
        let (good, bad) = (SamePage(VmId(1)), SameContent(VmId(2)));
        let mut stages = Stages::default();
        for page in 0..100 {
            stages.requested(page, good, at(1));
            stages.requested(page + 1000, bad, at(1));
            stages.done(page, at(1));
            stages.touched(page, at(2));
        }
        stages.expire(at(100), Duration::from_secs(1));
        let StageCounts { issued_by_page, issued_by_content, used, wasted, .. } = stages.counts();
        assert_eq!((issued_by_page, issued_by_content, used, wasted), (100, 100, 100, 100));
        assert!(stages.worth_it(good, 0.5) && stages.worth_it(OwnPast, 0.5));
        assert!(!stages.worth_it(bad, 0.5));
        assert_eq!(stages.window(), WINDOW_START, "the window is about the machine's own past");

        stages.forget(VmId(2));
        assert!(stages.worth_it(bad, 0.5), "another machine of that number is another one");
    }
}
