//! Pages of one VM that wait to be staged.
//!
//! In: pages, in the order in which they are likely to be needed, by reason. Out: a step's worth of one reason, the
//! first ones first; reasons of one [`Urgency`] take turns.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::policy::Reason;
use crate::predict::{Match, Origin};
use crate::sys::Monotonic;
use crate::tiermap::PageIndex;
use crate::track::VmId;

/// A page that is to be staged: because of this, which happened then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Predicted {
    pub page: PageIndex,
    pub origin: Origin,
    pub at: Monotonic,
}

/// How soon pages are likely to be needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// The VM itself is on its way there.
    Now,
    /// Another one was there.
    Later,
    /// Another one was there, and that may mean little.
    Doubtful,
}

impl Predicted {
    /// Whether it should have been touched by now.
    pub fn is_over(&self, now: Monotonic) -> bool {
        now.since(self.at) >= self.origin.patience()
    }

    /// How soon it is likely to be needed.
    pub fn urgency(&self) -> Urgency {
        Urgency::of(reason(self.origin))
    }
}

impl Urgency {
    pub fn of(reason: Reason) -> Self {
        match reason {
            Reason::FollowedLastTime | Reason::FollowedElsewhere | Reason::Readahead => Self::Now,
            Reason::MayBeTouched => Self::Doubtful,
            _ => Self::Later,
        }
    }
}

#[derive(Debug, Default)]
pub struct Waiting {
    pages: HashMap<PageIndex, (Reason, Predicted)>,
    /// What does not stand in `pages` for this reason any more is passed over; it is never the first one.
    queues: BTreeMap<Reason, VecDeque<PageIndex>>,
    last: Option<Reason>,
}

impl Waiting {
    /// When the first page of this urgency was predicted, of those that still wait.
    pub fn since(&self, urgency: Urgency) -> Option<Monotonic> {
        let queues = self.queues.iter().filter(|(reason, _)| Urgency::of(**reason) == urgency);
        let first = queues.filter_map(|(_, queue)| self.pages.get(queue.front()?));
        first.map(|(_, predicted)| predicted.at).min()
    }

    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    pub fn contains(&self, page: PageIndex) -> bool {
        self.pages.contains_key(&page)
    }

    /// Whether the page waits, and is not likely enough to be touched to take memory for.
    pub fn is_doubtful(&self, page: PageIndex) -> bool {
        self.pages.get(&page).is_some_and(|(reason, _)| *reason == Reason::MayBeTouched)
    }

    /// A page waits for the first reason that it is predicted for.
    pub fn push(&mut self, predicted: Predicted) {
        self.push_for(reason(predicted.origin), predicted);
    }

    /// A page that is not likely enough to be touched to take memory for.
    pub fn push_doubtful(&mut self, predicted: Predicted) {
        self.push_for(Reason::MayBeTouched, predicted);
    }

    fn push_for(&mut self, reason: Reason, predicted: Predicted) {
        if let Entry::Vacant(place) = self.pages.entry(predicted.page) {
            place.insert((reason, predicted));
            self.queues.entry(reason).or_default().push_back(predicted.page);
        }
    }

    /// Pages that were predicted too long ago wait no more.
    pub fn expire(&mut self, now: Monotonic) -> Vec<Predicted> {
        let old = |(_, predicted): &(Reason, Predicted)| predicted.is_over(now);
        let expired: Vec<_> = self.pages.extract_if(|_, waiting| old(waiting)).map(|(_, (_, f))| f).collect();
        if !expired.is_empty() {
            self.clean();
        }
        expired
    }

    /// A page need not be staged any more. Returns it if it waited.
    pub fn remove(&mut self, page: PageIndex) -> Option<Predicted> {
        let (reason, predicted) = self.pages.remove(&page)?;
        self.trim(reason);
        Some(predicted)
    }

    /// The first page of this reason waits again, or none is left: what is touched while it waits must not pile up.
    fn trim(&mut self, reason: Reason) {
        let Some(queue) = self.queues.get_mut(&reason) else { return };
        let waits = |page: &PageIndex| self.pages.get(page).is_some_and(|(of, _)| *of == reason);
        while queue.front().is_some_and(|page| !waits(page)) {
            queue.pop_front();
        }
    }

    /// The first pages of this urgency, of the reason whose turn it is, at most so many.
    pub fn next(&mut self, urgency: Urgency, most: usize) -> Option<(Reason, Vec<Predicted>)> {
        self.queues.retain(|_, queue| !queue.is_empty());
        let mut of_it = self.queues.keys().filter(|reason| Urgency::of(**reason) == urgency);
        let first = *of_it.clone().next()?;
        let reason = of_it.find(|reason| Some(**reason) > self.last).map_or(first, |reason| *reason);
        self.last = Some(reason);
        let queue = self.queues.get_mut(&reason)?;
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some(page) = queue.pop_front()
        {
            if self.pages.get(&page).is_some_and(|(of, _)| *of == reason) {
                taken.extend(self.pages.remove(&page).map(|(_, predicted)| predicted));
            }
        }
        self.trim(reason);
        Some((reason, taken))
    }

    /// Nothing is staged any more because of this VM.
    pub fn forget(&mut self, leader: VmId) {
        self.pages.retain(|_, (_, predicted)| predicted.origin.leader() != Some(leader));
        self.clean();
    }

    /// What does not wait is in no queue.
    fn clean(&mut self) {
        let pages = &self.pages;
        for (reason, queue) in &mut self.queues {
            queue.retain(|page| pages.get(page).is_some_and(|(of, _)| of == reason));
        }
    }
}

/// Why a page that is staged for this is staged.
fn reason(origin: Origin) -> Reason {
    match origin {
        Origin::OwnPast | Origin::Earlier(_) => Reason::FollowedLastTime,
        Origin::Season(_) => Reason::TouchedLastPeriod,
        Origin::Touched(_, Match::Page | Match::Address) => Reason::TouchedElsewhere,
        Origin::Touched(_, Match::Content) => Reason::ContentTouchedElsewhere,
        Origin::Followed(..) => Reason::FollowedElsewhere,
        Origin::Readahead => Reason::Readahead,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn predicted(page: PageIndex, origin: Origin) -> Predicted {
        Predicted { page, origin, at: Monotonic(0) }
    }

    fn pages(step: Option<(Reason, Vec<Predicted>)>) -> Vec<PageIndex> {
        step.into_iter().flat_map(|(_, taken)| taken).map(|predicted| predicted.page).collect()
    }

    #[test]
    fn what_is_needed_first_goes_first_and_reasons_take_turns() {
        let other = Origin::Touched(VmId(2), Match::Content);
        let mut waiting = Waiting::default();
        [9, 3, 7, 5].iter().for_each(|page| waiting.push(predicted(*page, Origin::OwnPast)));
        [4, 3, 8].iter().for_each(|page| waiting.push(predicted(*page, other)));
        assert!(waiting.contains(7));
        waiting.push(predicted(6, Origin::Followed(VmId(2), Match::Content)));
        assert_eq!(pages(waiting.next(Urgency::Now, 2)), [9, 3]);
        assert_eq!(pages(waiting.next(Urgency::Now, 2)), [6]);
        assert_eq!(pages(waiting.next(Urgency::Now, 2)), [7, 5]);
        assert_eq!((waiting.next(Urgency::Now, 2), waiting.since(Urgency::Now)), (None, None));
        assert_eq!(waiting.since(Urgency::Later), Some(Monotonic(0)));
        assert_eq!(pages(waiting.next(Urgency::Later, 2)), [4, 8], "3 waits once");
        assert_eq!(waiting.since(Urgency::Later), None);
    }

    #[test]
    fn what_was_touched_does_not_wait_and_may_be_foretold_anew_for_another_reason() {
        let mut waiting = Waiting::default();
        waiting.push(predicted(1, Origin::Touched(VmId(2), Match::Content)));
        assert_eq!(waiting.remove(1).map(|predicted| predicted.page), Some(1));
        assert_eq!(waiting.remove(1), None);
        waiting.push(predicted(1, Origin::OwnPast));
        assert!(pages(waiting.next(Urgency::Later, 9)).is_empty());
        assert_eq!(pages(waiting.next(Urgency::Now, 9)), [1]);
    }

    #[test]
    fn what_is_touched_while_it_waits_does_not_pile_up() {
        let mut waiting = Waiting::default();
        for page in 0..1000 {
            waiting.push(predicted(page, Origin::OwnPast));
            waiting.remove(page);
        }
        assert!(waiting.queues.values().all(VecDeque::is_empty));
        waiting.push(predicted(1, Origin::OwnPast));
        assert_eq!(waiting.since(Urgency::Now), Some(Monotonic(0)));
    }

    #[test]
    fn what_waits_too_long_waits_no_more() {
        let mut waiting = Waiting::default();
        let at = |page, seconds: u64| Predicted {
            at: Monotonic(seconds * 1_000_000_000),
            ..predicted(page, Origin::OwnPast)
        };
        [at(1, 1), at(2, 5), at(3, 1)].into_iter().for_each(|predicted| waiting.push(predicted));
        let mut expired = waiting.expire(Monotonic(11_000_000_000));
        expired.sort_by_key(|predicted| predicted.page);
        assert_eq!(expired, [at(1, 1), at(3, 1)]);
        assert_eq!(pages(waiting.next(Urgency::Now, 9)), [2]);
        assert_eq!(waiting.since(Urgency::Now), None);
    }

    #[test]
    fn what_a_vm_that_is_gone_foretold_is_dropped() {
        let (gone, there) =
            (Origin::Touched(VmId(1), Match::Content), Origin::Touched(VmId(2), Match::Content));
        let mut waiting = Waiting::default();
        waiting.push(predicted(1, gone));
        waiting.push(predicted(2, there));
        waiting.forget(VmId(1));
        assert_eq!(pages(waiting.next(Urgency::Later, 9)), [2]);
    }
}
