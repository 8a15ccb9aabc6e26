//! A simple predictor, to compare the agent with: how many touches of one guest those of another would have told it.
//!
//! In: the order in which each touched pages that were in swap, with times, and the content of each page by a hash.
//! Out: the share of the follower's touches that it would still have waited for, and the share of the staged pages
//! that it would have used. A touch of the follower is looked for on the leader's tape, as far as that was written by
//! then, by content, else by address. Of what comes next there each page is staged, by content, else by address.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What is staged at a time.
const WINDOW: usize = 32;

/// When a page was touched.
pub type Touch = (Duration, u32);

/// What a guest touched, in order, and what its pages hold; 0 is a page of zeroes.
pub struct Tape {
    pub touches: Vec<Touch>,
    pub contents: Vec<u64>,
}

/// Percent.
pub struct Predicted {
    pub missed: f64,
    pub used: f64,
}

/// Of pages that a guest waited for, by what the leader's tape could have told of them. Pages.
#[derive(Clone, Copy, Default)]
pub struct Kinds {
    /// Their content stands on it.
    pub content: usize,
    /// Their address stands on it, with another content.
    pub address: usize,
    pub neither: usize,
}

pub fn kinds(leader: &Tape, follower: &Tape, pages: &[u32]) -> Kinds {
    let (by_content, by_page) = leader.places();
    let mut kinds = Kinds::default();
    for page in pages {
        if follower.content(*page).is_some_and(|content| by_content.contains_key(&content)) {
            kinds.content += 1;
        } else if by_page.contains_key(page) {
            kinds.address += 1;
        } else {
            kinds.neither += 1;
        }
    }
    kinds
}

impl Tape {
    fn content(&self, page: u32) -> Option<u64> {
        self.contents.get(page as usize).copied().filter(|content| *content != 0)
    }

    /// Where each content stands, and where each page stands first.
    fn places(&self) -> (BTreeMap<u64, Vec<usize>>, BTreeMap<u32, usize>) {
        let (mut by_content, mut by_page) = (BTreeMap::<_, Vec<_>>::new(), BTreeMap::new());
        for (place, (_, page)) in self.touches.iter().enumerate() {
            by_page.entry(*page).or_insert(place);
            if let Some(content) = self.content(*page) {
                by_content.entry(content).or_default().push(place);
            }
        }
        (by_content, by_page)
    }
}

pub fn predict(leader: &Tape, follower: &Tape) -> Predicted {
    let (by_content, by_page) = leader.places();
    let mut copies = BTreeMap::<u64, Vec<u32>>::new();
    for page in 0..u32::try_from(follower.contents.len()).unwrap_or(u32::MAX) {
        if let Some(content) = follower.content(page) {
            copies.entry(content).or_default().push(page);
        }
    }
    let (mut touched, mut staged) = (BTreeSet::new(), BTreeSet::new());
    let (mut missed, mut last) = (0, 0);
    for (time, page) in &follower.touches {
        if !touched.insert(*page) {
            continue;
        }
        missed += usize::from(!staged.contains(page));
        let written = |place: &usize| leader.touches[*place].0 <= *time;
        let same_content = follower.content(*page).and_then(|content| by_content.get(&content));
        // Of a content that stands there more than once, the place next to the last one.
        let place = same_content
            .and_then(|places| {
                places.iter().copied().filter(written).min_by_key(|place| place.abs_diff(last))
            })
            .or_else(|| by_page.get(page).copied().filter(written));
        let Some(place) = place else { continue };
        last = place;
        for (_, next) in leader.touches[place + 1..].iter().take(WINDOW).take_while(|(at, _)| at <= time) {
            let copy = leader.content(*next).and_then(|content| copies.get(&content));
            let there = copy.and_then(|pages| {
                let is_new = |page: &u32| !touched.contains(page) && !staged.contains(page);
                pages.iter().find(|page| **page == *next || is_new(page)).copied()
            });
            let there = there.unwrap_or(*next);
            if !touched.contains(&there) {
                staged.insert(there);
            }
        }
    }
    let used = staged.intersection(&touched).count();
    let percent = |part: usize, whole: usize| part as f64 / whole.max(1) as f64 * 100.0;
    Predicted { missed: percent(missed, touched.len()), used: percent(used, staged.len()) }
}
