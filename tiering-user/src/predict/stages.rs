//! Pages brought up ahead of need, and what became of them.
//!
//! Each stage ends in one of two ways: the page is touched (used; late if that was before the stage was done), or
//! its deadline passes (wasted). What it was staged for, its [`Origin`], is judged by that ([`Record`]): each has a confidence
//! of its own, and a window, which is how many of its stages may be open. So a neighbour that foretells nothing costs one
//! window and is then hardly asked any more; and all that have proved nothing yet have [`UNPROVEN_MOST`] together.
//!
//! # Limits
//! One confidence an origin, not one a page. A window at its least keeps probing, however bad it is,
//! unless the configured threshold stops it; then one chance in a hundred is taken. Whether a page that is not touched
//! is wasted shows at its deadline only.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;

use super::record::Record;
use super::stage::{OriginCounts, Request, Stage, StageCounts, Used, Wasted};
use super::{Calibration, Delays, Match, Origin};
use crate::sys::Monotonic;
use crate::tiermap::PageIndex;
use crate::track::VmId;

/// While so many stages of a machine are open or waiting, an origin that has not proved anything gets a probe at most.
const UNPROVEN_MOST: u32 = 1024;

/// What to do with a chance to stage a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chance {
    /// Stage it: it is likely enough to be used, or a probe.
    Taken,
    /// Not for this reason alone.
    Doubtful,
    /// Perhaps later: so much is open that there is no room for more.
    NoRoom,
}

/// The stages of one virtual machine.
#[derive(Clone, Debug, Default)]
pub struct Stages {
    open: HashMap<PageIndex, Stage>,
    /// In order of request. A page may stand here after its stage has ended.
    order: VecDeque<(Monotonic, PageIndex)>,
    records: BTreeMap<Origin, Record>,
    /// Of other machines, where it is known how alike they are.
    expected: BTreeMap<VmId, f64>,
    /// Stages that wait to be requested.
    waiting: u32,
    /// Counts of machines that have gone, by the kind of match.
    gone: BTreeMap<Option<Match>, StageCounts>,
    calibration: Calibration,
    without_feedback: bool,
    /// From a touch of another machine until what is staged for it was asked of the kernel; until it was mapped.
    pub delays: Delays,
    pub mapping_delays: Delays,
}

impl Stages {
    /// Nothing is learned from what becomes of stages: to measure what that is worth.
    pub fn without_feedback() -> Self {
        Self { without_feedback: true, ..Self::default() }
    }

    /// Of all origins.
    pub fn counts(&self) -> StageCounts {
        sum(self.records.values().map(|record| record.counts).chain(self.gone.values().copied()))
    }

    /// Of the machine's own past, or of what was foretold by others by this kind of match.
    pub fn counts_by(&self, by: Option<Match>) -> StageCounts {
        let records = self.records.iter().filter(|(origin, _)| origin.by() == by);
        sum(records.map(|(_, record)| record.counts).chain(self.gone.get(&by).copied()))
    }

    /// Of all that another machine foretold.
    pub fn counts_of(&self, leader: VmId) -> StageCounts {
        let records = self.records.iter().filter(|(origin, _)| origin.leader() == Some(leader));
        sum(records.map(|(_, record)| record.counts))
    }

    /// How what other machines foretold ended since the last call: the machine, pages used, and pages that ended.
    pub fn take_ends(&mut self) -> Vec<(VmId, u64, u64)> {
        let mut ends: BTreeMap<VmId, (u64, u64)> = BTreeMap::new();
        for (origin, record) in &mut self.records {
            if let Some(leader) = origin.leader() {
                let (used, ended) = record.take_ends();
                let sum = ends.entry(leader).or_default();
                (sum.0, sum.1) = (sum.0 + used, sum.1 + ended);
            }
        }
        let some = ends.into_iter().filter(|(_, (_, ended))| *ended > 0);
        some.map(|(leader, (used, ended))| (leader, used, ended)).collect()
    }

    /// What is known of each origin that was ever staged for.
    pub fn origins(&self) -> impl Iterator<Item = (Origin, OriginCounts)> + '_ {
        let told = |record: &Record| OriginCounts {
            counts: record.counts,
            confidence: record.confidence(),
            window: record.window(),
        };
        self.records
            .iter()
            .filter(|(_, record)| record.counts != StageCounts::default())
            .map(move |(origin, record)| (*origin, told(record)))
    }

    /// How well what was thought of stages agrees with what became of them.
    pub fn calibration(&self) -> &Calibration {
        &self.calibration
    }

    /// Before anything is known of what another machine foretells, it is thought right with this probability.
    pub fn expect(&mut self, leader: VmId, probability: f64) {
        self.expected.insert(leader, probability);
        let of_it = self.records.iter_mut().filter(|(origin, _)| origin.leader() == Some(leader));
        of_it.for_each(|(_, record)| record.expect(probability));
    }

    /// How many pages may be staged, and not yet known to be right, for this.
    pub fn window(&self, origin: Origin) -> u32 {
        self.record(origin).window()
    }

    /// What to do with a chance to stage for this.
    pub fn chance(&mut self, origin: Origin, threshold: f64, now: Monotonic) -> Chance {
        let crowded = self.pending() >= UNPROVEN_MOST;
        let record = self.record_mut(origin);
        record.fade(now);
        if !record.has_room(now) {
            return Chance::NoRoom;
        }
        let sure = record.confidence() >= threshold;
        if sure && (record.is_proven() || !crowded) || record.is_probed() {
            Chance::Taken
        } else if sure {
            Chance::NoRoom
        } else {
            Chance::Doubtful
        }
    }

    /// Takes the room of one page in the window, if there is any, until it is [`requested`](Self::requested) or
    /// [`withdrawn`](Self::withdrawn).
    pub fn reserve(&mut self, origin: Origin, now: Monotonic) -> bool {
        let crowded = self.pending() >= UNPROVEN_MOST;
        let record = self.record_mut(origin);
        let room = record.has_room(now) && (record.is_proven() || !crowded || record.use_probe());
        record.waiting += u32::from(room);
        self.waiting += u32::from(room);
        room
    }

    /// A page that was worth it came up before it was requested.
    pub fn withdrawn(&mut self, origin: Origin, now: Monotonic) {
        self.waiting = self.waiting.saturating_sub(1);
        if let Some(record) = self.records.get_mut(&origin) {
            record.waiting = record.waiting.saturating_sub(1);
            record.met(true, now);
        }
    }

    /// A page that was worth it waited too long, or too little memory is left.
    pub fn dropped(&mut self, origin: Origin) {
        self.waiting = self.waiting.saturating_sub(1);
        if let Some(record) = self.records.get_mut(&origin) {
            record.waiting = record.waiting.saturating_sub(1);
        }
    }

    fn pending(&self) -> u32 {
        u32::try_from(self.open.len()).unwrap_or(u32::MAX).saturating_add(self.waiting)
    }

    fn record_mut(&mut self, origin: Origin) -> &mut Record {
        let expected = origin.leader().and_then(|leader| self.expected.get(&leader)).copied();
        let without_feedback = self.without_feedback;
        self.records.entry(origin).or_insert_with(|| match without_feedback {
            true => Record::of(origin, None).without_feedback(),
            false => Record::of(origin, expected),
        })
    }

    fn record(&self, origin: Origin) -> Record {
        let expected = || origin.leader().and_then(|leader| self.expected.get(&leader)).copied();
        self.records.get(&origin).copied().unwrap_or_else(|| Record::of(origin, expected()))
    }

    /// Whether pages that are staged for this may be mapped at once.
    pub fn is_sure(&self, origin: Origin) -> bool {
        self.record(origin).is_sure()
    }

    /// Probability that a page that is staged for this will be used.
    pub fn confidence(&self, origin: Origin) -> f64 {
        self.record(origin).confidence()
    }

    /// A page was asked to be brought up.
    pub fn requested(&mut self, request: Request, now: Monotonic) {
        // It may have come up and gone down again unseen: then the former stage counts neither way.
        self.failed(request.page);
        self.waiting = self.waiting.saturating_sub(1);
        let record = self.record_mut(request.origin);
        record.opened(now);
        let confidence = record.confidence();
        self.open
            .insert(request.page, Stage { request, requested: now, done: None, confidence, mapped: false });
        self.order.push_back((now, request.page));
    }

    /// `page` is up.
    pub fn done(&mut self, page: PageIndex, now: Monotonic) {
        if let Some(stage) = self.open.get_mut(&page) {
            stage.done = Some(now);
            if let Origin::Touched(..) = stage.request.origin {
                self.delays.note(now.since(stage.request.foretold));
            }
        }
    }

    /// The origin of the stage of `page`, if one is open.
    pub fn origin_of(&self, page: PageIndex) -> Option<Origin> {
        self.open.get(&page).map(|stage| stage.request.origin)
    }

    /// `page`, which is up, was mapped too.
    pub fn mapped(&mut self, page: PageIndex, now: Monotonic) {
        if let Some(stage) = self.open.get_mut(&page) {
            stage.mapped = true;
            let Request { origin, foretold, .. } = stage.request;
            if let Origin::Touched(..) = origin {
                self.mapping_delays.note(now.since(foretold));
            }
            self.tally(origin).mapped += 1;
        }
    }

    /// `page` was sent down again: whatever was staged is no more.
    pub fn gone_down(&mut self, page: PageIndex) {
        if let Some(stage) = self.open.remove(&page) {
            self.tally(stage.request.origin).issued -= 1;
            self.close(stage.request.origin);
        }
    }

    /// The stage of `page` came to nothing; it counts neither way.
    pub fn failed(&mut self, page: PageIndex) {
        if let Some(stage) = self.open.remove(&page) {
            self.tally(stage.request.origin).issued -= 1;
            self.close(stage.request.origin);
        }
    }

    /// `page` was touched at `time`. Returns the stage that ended by it, if one did.
    pub fn touched(&mut self, page: PageIndex, time: Monotonic) -> Option<Used> {
        let stage = self.open.remove(&page)?;
        let late = stage.done.is_none_or(|done| time < done);
        let counts = self.tally(stage.request.origin);
        counts.used += 1;
        counts.late += u64::from(late);
        self.calibration.note(stage.confidence, true);
        if let Some(record) = self.close(stage.request.origin) {
            record.used(time);
            record.met(late, time);
        }
        Some(Used { in_time: !late, tier: stage.request.to })
    }

    /// Stages older than `deadline` end; where their use would have been seen, as wasted.
    pub fn expire(&mut self, now: Monotonic, deadline: Duration) -> Wasted {
        let mut wasted = Wasted::default();
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
            if stage.mapped { &mut wasted.mapped } else { &mut wasted.unmapped }.push(page);
            self.tally(stage.request.origin).wasted += 1;
            self.calibration.note(stage.confidence, false);
            if let Some(record) = self.close(stage.request.origin) {
                record.wasted();
            }
        }
        wasted.unmapped.sort_unstable();
        wasted.mapped.sort_unstable();
        wasted
    }

    /// Forgets what is known about another machine, which has gone.
    pub fn forget(&mut self, vm: VmId) {
        self.expected.remove(&vm);
        for (origin, record) in self.records.extract_if(.., |origin, _| origin.leader() == Some(vm)) {
            self.waiting = self.waiting.saturating_sub(record.waiting);
            *self.gone.entry(origin.by()).or_default() += record.counts;
        }
    }

    fn tally(&mut self, origin: Origin) -> &mut StageCounts {
        match self.records.get_mut(&origin) {
            Some(record) => &mut record.counts,
            None => self.gone.entry(origin.by()).or_default(),
        }
    }

    /// A stage is not open any more. Of a machine that has gone there is no record.
    fn close(&mut self, origin: Origin) -> Option<&mut Record> {
        let record = self.records.get_mut(&origin)?;
        record.closed();
        Some(record)
    }
}

fn sum(counts: impl Iterator<Item = StageCounts>) -> StageCounts {
    counts.fold(StageCounts::default(), |mut sum, counts| {
        sum += counts;
        sum
    })
}

#[cfg(test)]
mod tests {
    use super::Origin::{Followed, OwnPast, Touched};
    use super::*;
    use crate::tiers::TierId;

    const SECOND: u64 = 1_000_000_000;
    const BY_PAGE: Origin = Followed(VmId(1), Match::Page);

    fn worth_it(stages: &mut Stages, origin: Origin, threshold: f64, now: Monotonic) -> bool {
        stages.chance(origin, threshold, now) == Chance::Taken
    }

    fn request(page: PageIndex, origin: Origin) -> Request {
        Request { page, origin, foretold: at(0), to: TierId(0) }
    }

    fn at(seconds: u64) -> Monotonic {
        Monotonic(seconds * SECOND)
    }

    #[test]
    fn a_touch_after_it_is_done_is_in_time_and_one_before_is_late() {
        let mut stages = Stages::default();
        for page in [1, 2, 3] {
            stages.requested(request(page, OwnPast), at(1));
        }
        stages.done(1, at(2));
        stages.done(2, at(4));
        let in_time = |used: Option<Used>| used.map(|used| used.in_time);
        assert_eq!(in_time(stages.touched(1, at(3))), Some(true));
        assert_eq!(in_time(stages.touched(2, at(3))), Some(false));
        assert_eq!(in_time(stages.touched(3, at(3))), Some(false), "not done at all yet");
        assert_eq!(stages.touched(3, at(3)), None, "it ended already");
        assert_eq!(stages.counts(), StageCounts { issued: 3, used: 3, late: 2, ..StageCounts::default() });
    }

    #[test]
    fn what_is_not_touched_in_time_is_wasted_once() {
        let mut stages = Stages::default();
        stages.requested(request(1, OwnPast), at(1));
        stages.requested(request(2, OwnPast), at(1));
        stages.done(1, at(1));
        stages.touched(1, at(2));
        stages.requested(request(1, OwnPast), at(8));
        let deadline = Duration::from_secs(10);
        assert_eq!(stages.expire(at(10), deadline), Wasted::default());
        assert_eq!(stages.expire(at(11), deadline).unmapped, [2]);
        assert_eq!(stages.expire(at(18), deadline).unmapped, [1]);
        assert_eq!(stages.counts(), StageCounts { issued: 3, used: 1, wasted: 2, ..StageCounts::default() });
    }

    #[test]
    fn pages_that_were_mapped_go_back_as_such() {
        let mut stages = Stages::default();
        for page in [3, 2, 1] {
            stages.requested(request(page, OwnPast), at(1));
            stages.done(page, at(1));
        }
        [3, 1, 4].iter().for_each(|page| stages.mapped(*page, at(1)));
        let used = stages.touched(1, at(2)).unwrap();
        assert_eq!((used.in_time, used.tier), (true, TierId(0)));
        let wasted = stages.expire(at(20), Duration::from_secs(10));
        assert_eq!(wasted, Wasted { unmapped: vec![2], mapped: vec![3] });
        assert_eq!(stages.counts().mapped, 2);
    }

    #[test]
    fn what_goes_down_again_was_never_staged() {
        let mut stages = Stages::default();
        stages.requested(request(1, OwnPast), at(1));
        stages.gone_down(1);
        assert_eq!(stages.touched(1, at(2)), None);
        assert_eq!(stages.counts(), StageCounts::default());
    }

    #[test]
    fn for_what_others_touch_the_delay_is_measured() {
        let mut stages = Stages::default();
        for (page, origin) in [(1, Touched(VmId(1), Match::Content)), (2, OwnPast)] {
            stages.requested(Request { foretold: at(3), ..request(page, origin) }, at(4));
            stages.done(page, at(5 + u64::from(page) * 10));
            stages.mapped(page, at(6 + u64::from(page) * 10));
        }
        let near = |delays: &Delays, seconds: u64| {
            delays.quantile_ns(1.0).unwrap().abs_diff(seconds * SECOND) < SECOND / 5
        };
        assert!(near(&stages.delays, 12) && near(&stages.mapping_delays, 13));
    }

    #[test]
    fn a_failed_stage_is_as_if_never_asked_for() {
        let mut stages = Stages::default();
        stages.requested(request(1, OwnPast), at(1));
        stages.failed(1);
        assert_eq!(stages.touched(1, at(2)), None);
        assert_eq!(stages.counts(), StageCounts::default());
    }

    #[test]
    fn the_window_follows_the_outcome() {
        let mut stages = Stages::default();
        for page in 0..32 + 64 {
            stages.requested(request(page, BY_PAGE), at(1));
            stages.done(page, at(1));
            stages.touched(page, at(2));
        }
        assert_eq!(stages.window(BY_PAGE), 4 * 32);
        assert!(stages.record(BY_PAGE).confidence() > 0.9);

        for page in 1000..4000 {
            stages.requested(request(page, BY_PAGE), at(3));
        }
        stages.expire(at(100), Duration::from_secs(1));
        assert_eq!(stages.window(BY_PAGE), 4);
        assert!(stages.record(BY_PAGE).confidence() < 0.1);
    }

    #[test]
    fn below_the_threshold_one_in_a_hundred_is_tried() {
        let mut stages = Stages::default();
        assert!(worth_it(&mut stages, OwnPast, 0.5, at(1)));
        let tried = (0..1000).filter(|_| worth_it(&mut stages, OwnPast, 0.99, at(1))).count();
        assert_eq!(tried, 10);
    }

    #[test]
    fn no_more_is_open_than_the_window_allows() {
        let origin = Touched(VmId(1), Match::Content);
        let mut stages = Stages::default();
        let ask = |stages: &mut Stages| (0..10_000).filter(|_| stages.reserve(origin, at(1))).count();
        assert_eq!(ask(&mut stages), 64);
        stages.withdrawn(origin, at(1));
        assert_eq!(ask(&mut stages), 1);
        for page in 0..64 {
            stages.requested(request(page, origin), at(1));
            stages.done(page, at(1));
        }
        assert_eq!(ask(&mut stages), 0);
        stages.failed(63);
        (0..32).for_each(|page| assert!(stages.touched(page, at(2)).is_some()));
        assert_eq!(ask(&mut stages), 128 - 31, "all were right: the window doubled");
    }

    #[test]
    fn all_that_have_proved_nothing_share_one_room() {
        let mut stages = Stages::default();
        let origins: Vec<_> = (1..=100).map(|vm| Touched(VmId(vm), Match::Content)).collect();
        let taken: usize =
            origins.iter().map(|origin| (0..512).filter(|_| stages.reserve(*origin, at(1))).count()).sum();
        assert_eq!(taken, UNPROVEN_MOST as usize);
        assert_eq!(stages.chance(origins[99], 0.5, at(1)), Chance::NoRoom);
        let tried = |stages: &mut Stages| {
            worth_it(stages, origins[99], 0.5, at(1)) && stages.reserve(origins[99], at(1))
        };
        assert_eq!(
            (0..999).filter(|_| tried(&mut stages)).count(),
            10,
            "now and then one is tried all the same"
        );
        let known = Touched(VmId(200), Match::Content);
        stages.expect(VmId(200), 0.9);
        assert!(worth_it(&mut stages, known, 0.5, at(1)) && stages.reserve(known, at(1)));
    }

    #[test]
    fn what_foretells_nothing_is_given_up_after_one_window() {
        let origin = Followed(VmId(1), Match::Address);
        let mut stages = Stages::default();
        // A thousand chances a second, of which nothing is ever touched.
        let mut issued = vec![0];
        for second in 0..60 {
            let pages = (0..1000)
                .filter(|_| {
                    worth_it(&mut stages, origin, 0.5, at(second)) && stages.reserve(origin, at(second))
                })
                .count();
            let first = issued[issued.len() - 1];
            issued.push(first + u32::try_from(pages).unwrap());
            (first..first + u32::try_from(pages).unwrap())
                .for_each(|page| stages.requested(request(page, origin), at(second)));
            stages.expire(at(second), Duration::from_secs(10));
        }
        assert_eq!(issued[9], 16, "one window until the first deadline");
        assert!(issued[60] - issued[40] <= 5 * 4, "later now and then a few: {issued:?}");
    }

    #[test]
    fn a_page_staged_anew_while_its_stage_is_open_expires_and_counts_once() {
        let mut stages = Stages::default();
        stages.requested(request(1, Touched(VmId(1), Match::Page)), at(1));
        stages.requested(request(1, OwnPast), at(5));
        assert_eq!(stages.counts(), StageCounts { issued: 1, ..StageCounts::default() });
        let deadline = Duration::from_secs(10);
        assert_eq!(stages.expire(at(14), deadline), Wasted::default());
        assert_eq!(stages.expire(at(15), deadline).unmapped, [1]);
        stages.failed(1);
        assert_eq!(stages.counts(), StageCounts { issued: 1, wasted: 1, ..StageCounts::default() });
    }

    #[test]
    fn a_neighbour_that_foretells_nothing_costs_the_others_nothing() {
        let (good, bad) = (Touched(VmId(1), Match::Page), Touched(VmId(2), Match::Content));
        let mut stages = Stages::default();
        for page in 0..100 {
            stages.requested(request(page, good), at(1));
            stages.requested(request(page + 1000, bad), at(1));
            stages.done(page, at(1));
            stages.touched(page, at(2));
        }
        stages.expire(at(100), Duration::from_secs(1));
        let StageCounts { used, wasted, .. } = stages.counts();
        let issued_by = |stages: &Stages, by| stages.counts_by(Some(by)).issued;
        let (issued_by_page, issued_by_content) =
            (issued_by(&stages, Match::Page), issued_by(&stages, Match::Content));
        assert_eq!((issued_by_page, issued_by_content, used, wasted), (100, 100, 100, 100));
        assert!(worth_it(&mut stages, good, 0.5, at(1)) && worth_it(&mut stages, OwnPast, 0.5, at(1)));
        assert!(!worth_it(&mut stages, bad, 0.5, at(1)));
        stages.forget(VmId(2));
        assert!(worth_it(&mut stages, bad, 0.5, at(1)), "another machine of that number is another one");
        assert_eq!(stages.counts_by(Some(Match::Content)).issued, 100, "what it did still counts");
    }
}
