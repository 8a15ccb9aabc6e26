//! What is known of one origin: how sure it is, and how far it may go.
//!
//! In: how its stages ended, and whether what it predicted in the shadow was right. Out: its confidence, the mean of a
//! Beta distribution; its window; whether it is trusted.
//!
//! - *Trusted* is what has proved itself, in the shadow at first ([`super::shadow`]), or comes from a VM so much
//!   alike that it is expected to. Only for such origins pages are staged. When the VM missed [`SILENT_MISSES`]
//!   others since one of its pages was used, an origin has to prove itself anew.
//! - Each time a quarter as many stages have ended as the window is large (within [`EPISODE`]), it doubles if most were
//!   used and halves if not.
//! - *In step*: of the last [`MEETINGS`] pages that another VM touched half were touched here before they were up.
//!   Who is as far as his leader gains nothing, and what is staged competes with both for the disk: it pauses, longer
//!   each time.

use std::time::Duration;

use super::origin::WINDOWS;
use super::{Foreseen, Match, Origin, StageCounts};
use crate::config::Priors;
use crate::sys::Monotonic;

/// Ends after which a record is judged: a quarter of its window, within these bounds. So a window is soon as large as
/// it should be.
const EPISODE: std::ops::RangeInclusive<u32> = 32..=256;
/// After this time what was known of an origin weighs half: VMs change what they do.
const FADE: Duration = Duration::from_secs(10);
/// A window is never smaller.
const WINDOW_LEAST: u32 = 4;
/// What was expected weighs as much as so many ends.
const PRIOR_ENDS: f64 = 3.0;
/// Sure enough to go for proven.
const SURE: f64 = 0.8;
/// Expected to be so sure, the first window is twice as large for each.
const SURER: [f64; 3] = [0.8, 0.85, 0.9];
/// Sure enough for what is staged to be mapped at once: as sure as it is when the least proof is all right.
const CERTAIN: f64 = 0.94;
/// Ends that prove something, and those after which all before weigh half.
pub const PROOF_ENDS: u32 = 16;
const REMEMBERED_ENDS: u32 = 64;
/// Misses in a row of what comes next on a tape, and of what may be touched a while later.
const SILENT_MISSES: u64 = 64;
const SILENT_MISSES_LATER: u64 = 512;
const MEETINGS: u32 = 64;
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MOST: Duration = Duration::from_secs(2);

/// How the stages of one origin ended, the later ones at more weight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub counts: StageCounts,
    /// What it predicted in the shadow.
    pub foreseen: Foreseen,
    /// Pages used and ended that were told of.
    told: (u64, u64),
    /// Stages of this try that are open, and that may become so.
    open: u32,
    pub waiting: u32,
    /// How often it had to prove itself anew.
    attempt: u32,
    expected: f64,
    used: u32,
    ended: u32,
    /// Of those since the window was judged last.
    used_lately: u32,
    ended_lately: u32,
    window: u32,
    window_first: u32,
    window_most: u32,
    /// Another VM's touches, not a tape.
    pushed: bool,
    for_later: bool,
    same_content: bool,
    learns: bool,
    /// It was wrong: what is expected of it does not count.
    must_prove: bool,
    /// Misses of the VM when the last one of its pages was used, or the first one staged.
    misses_at_use: u64,
    /// When it was weighed less for its age the last time.
    faded: Monotonic,
    /// Pages that came up in one way or another since the last look at lateness, and those that were touched first.
    met: u32,
    met_late: u32,
    paused_until: Monotonic,
    pause: Duration,
}

impl Record {
    /// Nothing is known of it but, perhaps, with which probability it will be right, and what kind of VM it is
    /// for.
    pub(super) fn of(origin: Origin, expected: Option<f64>, priors: &Priors) -> Self {
        let (window, window_most) = origin.window_bounds();
        let window = scaled(window, priors.first_window).clamp(WINDOW_LEAST, window_most);
        let mut record = Self {
            counts: StageCounts::default(),
            foreseen: Foreseen::default(),
            told: (0, 0),
            open: 0,
            waiting: 0,
            attempt: 0,
            expected: priors.first_confidence,
            used: 0,
            ended: 0,
            used_lately: 0,
            ended_lately: 0,
            window,
            window_first: window,
            window_most,
            pushed: matches!(origin, Origin::Touched(..)),
            for_later: origin.is_for_later(),
            same_content: origin.by() == Some(Match::Content),
            learns: true,
            must_prove: false,
            misses_at_use: 0,
            faded: Monotonic::default(),
            met: 0,
            met_late: 0,
            paused_until: Monotonic::default(),
            pause: PAUSE_FIRST,
        };
        expected.into_iter().for_each(|expected| record.expect(expected));
        record
    }

    /// Before anything has ended it is thought right with this probability. Its window grows with that, as long as
    /// nothing was staged: what is sure to be right is worth more than one first try.
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

    /// Stages that may be pending: on a tape some windows full.
    fn room(&self) -> u32 {
        self.window * if self.for_later { 1 } else { WINDOWS }
    }

    /// Stages of this try that are open, or may become so.
    pub(super) fn pending(&self) -> u32 {
        self.open + self.waiting
    }

    pub(super) fn has_room(&self, now: Monotonic) -> bool {
        self.pending() < self.room() && now >= self.paused_until
    }

    /// Whether what it predicts is staged: it is known, or expected, to be right with at least this probability.
    pub(super) fn is_trusted(&self, threshold: f64) -> bool {
        !self.learns || (self.has_proof() || self.is_expected()) && self.confidence() >= threshold
    }

    /// Whether enough is known of it.
    pub(super) fn has_proof(&self) -> bool {
        self.ended >= PROOF_ENDS
    }

    /// Whether it has proved to be right, not only been thought to be.
    pub(super) fn is_proven(&self) -> bool {
        !self.learns || self.has_proof() && self.confidence() >= SURE
    }

    /// VMs that are alike hold the same where they hold it, but not at the same addresses.
    fn is_expected(&self) -> bool {
        self.same_content && self.expected >= SURE && !self.must_prove
    }

    /// The VM, which missed so many pages by now, does not go where this origin says any more: it has to prove
    /// itself anew. What was staged before may be used yet, and takes no room from what it will say then.
    pub(super) fn look_for_silence(&mut self, misses: u64) {
        let most = if self.for_later { SILENT_MISSES_LATER } else { SILENT_MISSES };
        if self.learns && self.open > 0 && misses - self.misses_at_use >= most {
            self.misses_at_use = misses;
            (self.used, self.ended) = (0, 0);
            self.must_prove = true;
            (self.open, self.attempt) = (0, self.attempt.wrapping_add(1));
        }
    }

    /// Weighs what was known half as much for each [`FADE`] that has passed since, but never as nothing: what was right
    /// is tried again.
    pub(super) fn fade(&mut self, now: Monotonic) {
        let times = (now.since(self.faded).as_nanos() / FADE.as_nanos()).min(31);
        if times > 0 {
            self.faded = now;
            let left = (self.ended >> times).max(self.ended.min(PROOF_ENDS));
            self.used = (self.used * left).checked_div(self.ended).unwrap_or(0);
            self.ended = left;
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

    /// A page was asked to be staged for it. Returns the try that this is of.
    pub(super) fn opened(&mut self, misses: u64) -> u32 {
        if self.open == 0 {
            self.misses_at_use = misses;
        }
        self.waiting = self.waiting.saturating_sub(1);
        self.open += 1;
        self.counts.issued += 1;
        self.attempt
    }

    /// A stage of this try has ended. Returns whether that is the present one: what was staged before it says nothing
    /// of what the origin is worth now.
    pub(super) fn closed(&mut self, attempt: u32) -> bool {
        let is_present = attempt == self.attempt;
        self.open = self.open.saturating_sub(u32::from(is_present));
        is_present
    }

    /// What is known is not used: neither confidence nor window change, and nothing stops it.
    pub(super) fn without_feedback(mut self) -> Self {
        self.learns = false;
        self
    }

    pub(super) fn used(&mut self, misses: u64) {
        self.was_right(misses);
        self.end(true);
    }

    /// The VM, which missed so many pages by now, touched one that this predicted.
    pub(super) fn was_right(&mut self, misses: u64) {
        self.misses_at_use = misses;
    }

    pub(super) fn wasted(&mut self) {
        self.end(false);
    }

    /// A page that it predicted in the shadow was touched, or was not.
    pub(super) fn foresaw(&mut self, right: bool, misses: u64) {
        if right {
            self.was_right(misses);
            self.foreseen.right += 1;
        } else {
            self.foreseen.wrong += 1;
        }
        self.weigh(right);
    }

    fn weigh(&mut self, right: bool) {
        self.ended += 1;
        self.used += u32::from(right);
        // The later ones weigh more.
        if self.ended >= REMEMBERED_ENDS {
            self.used /= 2;
            self.ended /= 2;
        }
    }

    fn end(&mut self, used: bool) {
        if !self.learns {
            return;
        }
        self.weigh(used);
        self.ended_lately += 1;
        self.used_lately += u32::from(used);
        if self.ended_lately < (self.window / 4).clamp(*EPISODE.start(), *EPISODE.end()) {
            return;
        }
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
        if !self.pushed || !self.learns {
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

/// Pages, times this.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "some thousand pages, a hundred times at most"
)]
fn scaled(pages: u32, by: f64) -> u32 {
    (f64::from(pages) * by) as u32
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

    const PULLED: Origin = Origin::Followed(VmId(1), Match::Content);

    fn trusted(record: &Record) -> bool {
        record.is_trusted(0.5)
    }

    #[test]
    fn what_is_expected_decides_whether_and_how_far_it_is_tried_at_once() {
        let first = |origin, expected: Option<f64>| {
            let record = Record::of(origin, expected, &Priors::NEUTRAL);
            (record.window(), trusted(&record))
        };
        assert_eq!(
            [None, Some(0.5), Some(0.82), Some(0.95)].map(|expected| first(PULLED, expected)),
            [(64, false), (64, false), (128, true), (512, true)]
        );
        let by_address = Origin::Followed(VmId(1), Match::Page);
        assert!(!first(by_address, Some(0.95)).1, "who is alike may hold it elsewhere");
        let mut record = Record::of(PULLED, None, &Priors::NEUTRAL);
        record.opened(0);
        record.expect(0.95);
        assert_eq!(record.window(), 64, "it is under way: the outcome decides");
    }

    #[test]
    fn what_was_expected_gives_way_to_what_is_seen() {
        let mut record = Record::of(PULLED, Some(0.95), &Priors::NEUTRAL);
        (0..20).for_each(|_| record.wasted());
        assert!(record.confidence() < 0.2 && !trusted(&record) && !record.is_proven());
    }

    #[test]
    fn who_is_right_in_the_shadow_is_trusted() {
        let mut record = Record::of(PULLED, None, &Priors::NEUTRAL);
        (0..15).for_each(|_| record.foresaw(true, 0));
        assert!(!trusted(&record));
        record.foresaw(true, 0);
        assert!(trusted(&record) && record.is_proven());
        let mut record = Record::of(PULLED, None, &Priors::NEUTRAL);
        (0..100).for_each(|page| record.foresaw(page % 3 == 0, 0));
        assert!(!trusted(&record));
        assert_eq!(record.foreseen, Foreseen { right: 34, wrong: 66 });
        assert_eq!(record.take_ends(), (0, 0), "nothing was staged");
    }

    #[test]
    fn what_was_right_is_believed_after_a_rest_and_not_for_ever() {
        let mut record = Record::of(PULLED, None, &Priors::NEUTRAL);
        (0..60).for_each(|_| record.used(0));
        record.fade(at(3_600_000));
        assert!(trusted(&record) && record.is_proven());
        (0..16).for_each(|_| record.wasted());
        assert!(!record.is_proven());
    }

    #[test]
    fn who_has_nothing_to_say_of_what_is_touched_now_has_to_prove_itself_anew() {
        let mut record = Record::of(PULLED, Some(0.95), &Priors::NEUTRAL);
        (0..60).for_each(|_| _ = record.opened(1000));
        (0..30).for_each(|_| record.used(1000));
        record.look_for_silence(1063);
        assert!(trusted(&record));
        record.look_for_silence(1064);
        record.expect(0.95);
        assert!(!trusted(&record), "however alike the VMs are");
        (0..16).for_each(|_| record.foresaw(true, 1100));
        record.look_for_silence(1163);
        assert!(trusted(&record), "what was staged before and is not used yet says nothing new");
    }

    #[test]
    fn who_proved_itself_anew_has_room_whatever_is_still_open_of_the_time_before() {
        let mut record = Record::of(PULLED, Some(0.95), &Priors::NEUTRAL);
        let room = record.room();
        let first = (0..room).map(|_| record.opened(0)).last().unwrap();
        assert!(!record.has_room(at(0)));
        record.look_for_silence(64);
        (0..16).for_each(|_| record.foresaw(true, 70));
        assert!(trusted(&record) && record.has_room(at(0)));
        let room = record.room();
        let second = (0..room).map(|_| record.opened(70)).last().unwrap();
        assert!(!record.closed(first));
        assert!(!record.has_room(at(0)), "one of before has ended");
        assert!(record.closed(second));
        assert!(record.has_room(at(0)));
    }

    #[test]
    fn who_is_as_far_as_its_leader_is_left_alone_longer_each_time() {
        let mut record = Record::of(TOUCHED, None, &Priors::NEUTRAL);
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
        let mut pull = Record::of(Origin::OwnPast, None, &Priors::NEUTRAL);
        meet(&mut pull, 64, 1000);
        assert!(pull.has_room(at(1000)), "who is faster than his own tape is still helped by it");
    }
}
