//! What is known of one origin: how sure it is, and how far it may go.
//!
//! In: how its stages ended. Out: its confidence, the mean of a Beta distribution; its window; whether it may go on at all.
//!
//! - Each time a quarter as many stages have ended as the window is large (within [`EPISODE`]), it doubles if most were used
//!   and halves if not.
//! - *Frozen*: nothing that was staged for an origin without a proof was used for [`FREEZE_AFTER`]. It waits for the first use.
//! - *In step*: of the last [`MEETINGS`] pages that another machine touched half were touched here before they were up. Who is as
//!   far as his leader gains nothing, and what is staged competes with both for the disk: it pauses, longer each time.

use std::time::Duration;

use super::{Origin, StageCounts};
use crate::sys::Monotonic;

/// Ends after which a record is judged: a quarter of its window, within these bounds. So a window is soon as large as it should be.
const EPISODE: std::ops::RangeInclusive<u32> = 32..=256;
/// After this time what was known of an origin weighs half: machines change what they do.
const FADE: Duration = Duration::from_secs(10);
/// A window is never smaller.
const WINDOW_LEAST: u32 = 4;
/// Below the threshold, one chance in this many is taken all the same.
const PROBE_EVERY: u32 = 100;
/// What was expected weighs as much as so many ends.
const PRIOR_ENDS: f64 = 3.0;
/// What is expected of an origin of which nothing is known.
const UNKNOWN: f64 = 2.0 / 3.0;
/// Sure enough to go for proven.
const SURE: f64 = 0.8;
/// Expected to be so sure, the first window is twice as large for each.
const SURER: [f64; 3] = [0.8, 0.85, 0.9];
/// Sure enough for what is staged to be mapped at once: as sure as it is when the least proof is all right.
const CERTAIN: f64 = 0.94;
/// Ends that prove something: what is left of them after an episode.
const PROOF_ENDS: u32 = *EPISODE.start() / 2;
const FREEZE_AFTER: Duration = Duration::from_secs(2);
const MEETINGS: u32 = 64;
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MOST: Duration = Duration::from_secs(2);

/// How the stages of one origin ended, the later ones at more weight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub counts: StageCounts,
    /// Of these, pages used and ended that were told of.
    told: (u64, u64),
    /// Stages that are open, and that may become so.
    open: u32,
    pub waiting: u32,
    expected: f64,
    used: u32,
    ended: u32,
    /// Of those since the window was judged last.
    used_lately: u32,
    ended_lately: u32,
    window: u32,
    window_first: u32,
    window_most: u32,
    may_be_in_step: bool,
    refused: u32,
    probing: bool,
    learns: bool,
    /// Since when nothing of what is open was used.
    silent_since: Monotonic,
    /// When it was weighed less for its age the last time.
    faded: Monotonic,
    /// Pages that came up in one way or another since the last look at lateness, and those that were touched first.
    met: u32,
    met_late: u32,
    paused_until: Monotonic,
    pause: Duration,
}

impl Record {
    /// Nothing is known of it but, perhaps, with which probability it will be right.
    pub(super) fn of(origin: Origin, expected: Option<f64>) -> Self {
        let (window, window_most) = origin.window_bounds();
        let may_be_in_step = matches!(origin, Origin::Touched(..));
        let mut record = Self {
            counts: StageCounts::default(),
            told: (0, 0),
            open: 0,
            waiting: 0,
            expected: UNKNOWN,
            used: 0,
            ended: 0,
            used_lately: 0,
            ended_lately: 0,
            window,
            window_first: window,
            window_most,
            may_be_in_step,
            refused: 0,
            probing: false,
            learns: true,
            silent_since: Monotonic::default(),
            faded: Monotonic::default(),
            met: 0,
            met_late: 0,
            paused_until: Monotonic::default(),
            pause: PAUSE_FIRST,
        };
        expected.into_iter().for_each(|expected| record.expect(expected));
        record
    }

    /// Before anything has ended it is thought right with this probability. Its window grows with that, as long as nothing was
    /// staged: what is sure to be right is worth more than one first try.
    pub(super) fn expect(&mut self, probability: f64) {
        if !self.learns {
            return;
        }
        self.expected = probability.clamp(0.05, 0.95);
        if self.counts.issued == 0 && self.waiting == 0 {
            let doublings = SURER.iter().filter(|least| self.expected >= **least).count();
            self.window = (self.window_first << doublings).min(self.window_most);
        }
    }

    pub(super) fn window(&self) -> u32 {
        self.window
    }

    pub(super) fn has_room(&self, now: Monotonic) -> bool {
        self.open + self.waiting < self.window && now >= self.paused_until && !self.is_frozen(now)
    }

    /// Whether more than a first try speaks for it.
    pub(super) fn is_proven(&self) -> bool {
        if !self.learns {
            return true;
        }
        let known = self.ended >= PROOF_ENDS || self.expected >= SURE;
        known && self.confidence() >= SURE
    }

    fn is_frozen(&self, now: Monotonic) -> bool {
        self.learns
            && self.open > WINDOW_LEAST
            && self.ended < PROOF_ENDS
            && now.since(self.silent_since) >= FREEZE_AFTER
    }

    /// Below the threshold: whether this chance is taken all the same.
    pub(super) fn is_probed(&mut self) -> bool {
        self.refused = (self.refused + 1) % PROBE_EVERY;
        self.probing = self.refused == 0;
        self.probing
    }

    /// Whether a chance was taken all the same, and nothing staged for that yet.
    pub(super) fn use_probe(&mut self) -> bool {
        std::mem::take(&mut self.probing)
    }

    /// Weighs what was known half as much for each [`FADE`] that has passed since.
    pub(super) fn fade(&mut self, now: Monotonic) {
        let times = (now.since(self.faded).as_nanos() / FADE.as_nanos()).min(31);
        if times > 0 {
            self.faded = now;
            self.used >>= times;
            self.ended >>= times;
        }
    }

    /// The mean of a Beta distribution that began with what was expected.
    pub(super) fn confidence(&self) -> f64 {
        (f64::from(self.used) + PRIOR_ENDS * self.expected) / (f64::from(self.ended) + PRIOR_ENDS)
    }

    /// Whether what is staged for it may be mapped at once.
    pub(super) fn is_sure(&self) -> bool {
        self.ended >= PROOF_ENDS && self.confidence() >= CERTAIN
    }

    pub(super) fn opened(&mut self, now: Monotonic) {
        if self.open == 0 {
            self.silent_since = now;
        }
        self.waiting = self.waiting.saturating_sub(1);
        self.open += 1;
        self.counts.issued += 1;
    }

    pub(super) fn closed(&mut self) {
        self.open = self.open.saturating_sub(1);
    }

    /// What is known is not used: neither confidence nor window change, and nothing stops it.
    pub(super) fn without_feedback(mut self) -> Self {
        self.learns = false;
        self
    }

    pub(super) fn used(&mut self, now: Monotonic) {
        self.silent_since = now;
        self.end(true);
    }

    pub(super) fn wasted(&mut self) {
        self.end(false);
    }

    fn end(&mut self, used: bool) {
        if !self.learns {
            return;
        }
        self.ended += 1;
        self.used += u32::from(used);
        self.ended_lately += 1;
        self.used_lately += u32::from(used);
        if self.ended_lately < (self.window / 4).clamp(*EPISODE.start(), *EPISODE.end()) {
            return;
        }
        self.used /= 2;
        self.ended /= 2;
        let share = f64::from(self.used_lately) / f64::from(self.ended_lately);
        (self.used_lately, self.ended_lately) = (0, 0);
        if share >= 0.8 {
            self.window = (self.window * 2).min(self.window_most);
        } else if share < 0.5 {
            self.window = (self.window / 2).max(WINDOW_LEAST);
        }
    }

    /// Pages used, and pages that ended, since the last call.
    pub(super) fn take_ends(&mut self) -> (u64, u64) {
        let StageCounts { used, wasted, .. } = self.counts;
        let (used_before, ended_before) = std::mem::replace(&mut self.told, (used, used + wasted));
        (used - used_before, used + wasted - ended_before)
    }

    /// A page for this came up; it was touched before that or not.
    pub(super) fn met(&mut self, late: bool, now: Monotonic) {
        if !self.may_be_in_step || !self.learns {
            return;
        }
        self.met += 1;
        self.met_late += u32::from(late);
        if self.met < MEETINGS {
            return;
        }
        if self.met_late * 2 >= self.met {
            self.paused_until = now.after(self.pause);
            self.pause = (self.pause * 2).min(PAUSE_MOST);
        } else {
            self.pause = PAUSE_FIRST;
        }
        (self.met, self.met_late) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::Match;
    use crate::track::VmId;

    const TOUCHED: Origin = Origin::Touched(VmId(1), Match::Content);

    fn at(ms: u64) -> Monotonic {
        Monotonic(ms * 1_000_000)
    }

    #[test]
    fn what_is_expected_decides_how_far_the_first_try_goes() {
        let first = |expected: Option<f64>| {
            let record = Record::of(TOUCHED, expected);
            (record.window(), record.is_proven())
        };
        assert_eq!(
            [None, Some(0.5), Some(0.82), Some(0.95)].map(first),
            [(64, false), (64, false), (128, true), (512, true)]
        );
        let mut record = Record::of(TOUCHED, None);
        record.opened(at(0));
        record.expect(0.95);
        assert_eq!(record.window(), 64, "it is under way: the outcome decides");
    }

    #[test]
    fn what_was_expected_gives_way_to_what_is_seen() {
        let mut record = Record::of(TOUCHED, None);
        record.expect(0.95);
        (0..20).for_each(|_| record.wasted());
        assert!(record.confidence() < 0.2 && !record.is_proven());
    }

    #[test]
    fn of_what_nothing_was_used_for_two_seconds_no_more_is_staged_until_something_is() {
        let mut record = Record::of(TOUCHED, None);
        (0..60).for_each(|_| record.opened(at(10_000)));
        assert!(record.has_room(at(11_900)));
        assert!(!record.has_room(at(12_000)));
        record.closed();
        record.used(at(14_000));
        assert!(record.has_room(at(14_001)));
    }

    #[test]
    fn who_is_as_far_as_its_leader_is_left_alone_longer_each_time() {
        let mut record = Record::of(TOUCHED, None);
        let meet = |record: &mut Record, late: u32, now| {
            (0..MEETINGS).for_each(|page| record.met(page < late, at(now)));
        };
        meet(&mut record, 32, 1000);
        assert!(!record.has_room(at(1049)) && record.has_room(at(1050)));
        meet(&mut record, 64, 2000);
        assert!(!record.has_room(at(2099)) && record.has_room(at(2100)));
        meet(&mut record, 31, 3000);
        assert!(record.has_room(at(3000)));
        meet(&mut record, 40, 4000);
        assert!(record.has_room(at(4050)), "the first pause is a short one again");
        let mut pull = Record::of(Origin::OwnPast, None);
        meet(&mut pull, 64, 1000);
        assert!(pull.has_room(at(1000)), "who is faster than his own tape is still helped by it");
    }
}
