//! Leaders of which none is sure enough alone, and that agree.
//!
//! In: pages that doubtful origins predict. Out: a page when the chance that at least one of them is right is large
//! enough, if they are independent; with the origin that is most sure.
//!
//! # Limits
//! They are not independent: VMs that are alike are wrong alike. What was predicted more than [`COUNTS_FOR`] ago
//! does not count.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::Origin;
use crate::sys::Monotonic;
use crate::tiermap::PageIndex;
use crate::track::VmId;

const COUNTS_FOR: Duration = Duration::from_secs(2);
/// Pages that are remembered; when there are more, the oldest go.
const MOST_PAGES: usize = 4096;
/// Who is right less often does not vote.
const LEAST: f64 = 0.1;

/// What was predicted for one VM.
#[derive(Clone, Debug, Default)]
pub struct Votes {
    votes: HashMap<PageIndex, Vote>,
    /// In the order in which they came. A page may stand here when it is not remembered any more.
    order: VecDeque<PageIndex>,
}

#[derive(Clone, Debug)]
struct Vote {
    /// Each once, with its confidence.
    by: Vec<(Origin, f64)>,
    first: Monotonic,
}

impl Votes {
    /// `origin`, which is right with this probability, predicts `page`. If with all others that do the chance reaches
    /// `threshold`, returns the most sure of them.
    pub fn cast(
        &mut self,
        page: PageIndex,
        (origin, confidence): (Origin, f64),
        threshold: f64,
        now: Monotonic,
    ) -> Option<Origin> {
        if confidence < LEAST {
            return None;
        }
        if !self.votes.contains_key(&page) {
            self.order.push_back(page);
            while self.order.len() > MOST_PAGES
                && let Some(oldest) = self.order.pop_front()
            {
                self.votes.remove(&oldest);
            }
        }
        let vote = self.votes.entry(page).or_insert_with(|| Vote { by: Vec::new(), first: now });
        if now.since(vote.first) >= COUNTS_FOR {
            *vote = Vote { by: Vec::new(), first: now };
        }
        vote.by.retain(|(other, _)| *other != origin);
        vote.by.push((origin, confidence));
        let none_right: f64 = vote.by.iter().map(|(_, confidence)| 1.0 - confidence).product();
        if 1.0 - none_right < threshold {
            return None;
        }
        let vote = self.votes.remove(&page)?;
        vote.by.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).map(|(origin, _)| origin)
    }

    /// What a VM that has gone predicted counts no more.
    pub fn forget(&mut self, leader: VmId) {
        for vote in self.votes.values_mut() {
            vote.by.retain(|(origin, _)| origin.leader() != Some(leader));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::Match;

    fn by(vm: u32) -> Origin {
        Origin::Followed(VmId(vm), Match::Content)
    }

    fn at(ms: u64) -> Monotonic {
        Monotonic(ms * 1_000_000)
    }

    #[test]
    fn two_who_doubt_are_as_good_as_one_who_does_not() {
        let mut votes = Votes::default();
        let mut cast = |page, vm, confidence, ms| votes.cast(page, (by(vm), confidence), 0.5, at(ms));
        assert_eq!(cast(7, 1, 0.3, 0), None);
        assert_eq!(cast(7, 1, 0.3, 1), None, "nobody votes twice");
        assert_eq!(cast(8, 2, 0.4, 1), None, "another page");
        assert_eq!(cast(7, 2, 0.4, 1), Some(by(2)));
        assert_eq!(cast(7, 3, 0.4, 2), None, "it begins anew");
        assert_eq!(cast(7, 2, 0.4, 2002), None, "too long ago");
        assert_eq!(cast(9, 1, 0.09, 0), None);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut votes = Votes::default();
        (0..10_000).for_each(|page| assert_eq!(votes.cast(page, (by(1), 0.2), 0.5, at(0)), None));
        assert_eq!((votes.votes.len(), votes.order.len()), (MOST_PAGES, MOST_PAGES));
        assert_eq!(votes.cast(9_999, (by(2), 0.45), 0.5, at(1)), Some(by(2)), "the latest are remembered");
        assert_eq!(votes.cast(1, (by(2), 0.45), 0.5, at(1)), None, "and the first are not");
    }

    #[test]
    fn a_leader_that_is_gone_has_no_vote() {
        let mut votes = Votes::default();
        assert_eq!(votes.cast(7, (by(1), 0.4), 0.5, at(0)), None);
        votes.forget(VmId(1));
        assert_eq!(votes.cast(7, (by(2), 0.4), 0.5, at(0)), None);
    }
}
