//! How soon a VM accesses a page again: after how much time, and after how many other pages. The latter is its
//! miss-ratio curve.
//!
//! Spatial sampling with a bound on memory (SHARDS, Waldspurger et al., FAST 2015): a page is looked at if its hash is
//! below a limit, always or never; where there would be too many the limit is lowered. With a share R of all pages
//! looked at, a distance of d sampled pages stands for d / R, and a sampled access for 1 / R. What is then missing or
//! too much of all accesses is taken as accesses of the nearest distance, as there.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::again::{Pages, Uses};
use super::fenwick::Fenwick;
use super::histogram::LogHistogram;
use crate::sys::Monotonic;
use crate::tiermap::PageIndex;

/// Most pages that are looked at.
const PAGES: usize = 2048;
/// Accesses of these until their order is numbered anew.
const ORDER: usize = 8 * PAGES;
/// By how much of itself a number of pages may be wrong that a sample tells: a standard deviation, about.
const UNSURE: f64 = 0.025;
/// What was accessed within this is known to a VM that is described by parts of what it knows.
const KNOWN: Duration = Duration::from_mins(10);

/// Accesses of a VM's pages, sampled.
#[derive(Debug)]
pub struct Reuse {
    /// Pages whose hash is below are looked at.
    limit: u64,
    pages: HashMap<PageIndex, Last>,
    by_hash: BTreeSet<(u32, PageIndex)>,
    /// Which numbers of the order are a page's last.
    order: Fenwick,
    next: usize,
    distances: LogHistogram,
    times: LogHistogram,
    /// As of the end of the last epoch: pages that are looked at, and were accessed within [`KNOWN`].
    lately: usize,
    /// Weight of accesses of pages that were not accessed before.
    first: f32,
    /// Weight of all accesses, whether looked at or not.
    accesses: f32,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    number: usize,
    time: Monotonic,
    uses: Uses,
}

impl Default for Reuse {
    fn default() -> Self {
        Self {
            limit: 1 << 32,
            pages: HashMap::new(),
            by_hash: BTreeSet::new(),
            order: Fenwick::new(ORDER),
            next: 0,
            distances: LogHistogram::default(),
            times: LogHistogram::default(),
            lately: 0,
            first: 0.0,
            accesses: 0.0,
        }
    }
}

impl Reuse {
    pub fn access(&mut self, page: PageIndex, write: bool, time: Monotonic, weight: u32) {
        self.accesses += weight as f32;
        let hash = hash(page);
        if u64::from(hash) >= self.limit {
            return;
        }
        if self.next == ORDER {
            self.number_anew();
        }
        let weight = weight as f32 * self.stands_for() as f32;
        match self.pages.entry(page) {
            Entry::Occupied(mut entry) => {
                let last = entry.get_mut();
                let between = self.order.sum(last.number + 1..self.next);
                self.order.add(last.number, -1);
                self.distances.add((u64::from(between) << 32) / self.limit, weight);
                let ms = time.since(last.time).as_millis();
                self.times.add(u64::try_from(ms).unwrap_or(u64::MAX), weight);
                (last.number, last.time) = (self.next, time);
                last.uses.access(write);
            }
            Entry::Vacant(entry) => {
                let mut uses = Uses::default();
                uses.access(write);
                entry.insert(Last { number: self.next, time, uses });
                self.first += weight;
                self.by_hash.insert((hash, page));
            }
        }
        self.order.add(self.next, 1);
        self.next += 1;
        if self.pages.len() > PAGES
            && let Some((hash, page)) = self.by_hash.pop_last()
        {
            self.limit = hash.into();
            self.forget(page);
            // Others may have the same hash.
            while let Some((_, page)) = self.by_hash.last().copied().filter(|(other, _)| *other == hash) {
                self.by_hash.pop_last();
                self.forget(page);
            }
        }
    }

    /// Ends an epoch. Returns how many pages were used in it, and in the one before, as those say that are looked at.
    pub fn end_epoch(&mut self, now: Monotonic) -> Pages {
        let mut pages = Pages::default();
        self.pages.values_mut().for_each(|last| last.uses.end_epoch(&mut pages));
        self.lately = self.pages.values().filter(|last| now.since(last.time) <= KNOWN).count();
        pages * self.stands_for()
    }

    /// For how many pages each one stands that is looked at.
    fn stands_for(&self) -> f64 {
        (1u64 << 32) as f64 / self.limit as f64
    }

    fn is_sampled(&self) -> bool {
        self.limit < 1 << 32
    }

    /// Has what was before count less.
    pub fn fade(&mut self, by: f32) {
        self.distances.fade(by);
        self.times.fade(by);
        self.first *= by;
        self.accesses *= by;
    }

    /// The share of accesses that would have to wait if so many pages, the last ones accessed, were in memory; 0 to 1.
    /// None while there are no accesses. A page's first access always waits.
    pub fn miss_ratio(&self, pages: u64) -> Option<f64> {
        let known = f64::from(self.accesses);
        // Where all fit nothing waits again, however far apart a sample says that accesses are.
        let unsure = if self.is_sampled() { UNSURE } else { 0.0 };
        let all = pages as f64 >= self.pages.len() as f64 * self.stands_for() * (1.0 - unsure);
        let again = if all { 0.0 } else { self.distances.from(pages.max(1)) };
        (known > 0.0).then(|| ((again + f64::from(self.first)) / known).min(1.0))
    }

    /// The same of repeated accesses alone, if as many pages were in memory as this share of those accessed within ten
    /// minutes, as of the end of the last epoch. None while none is repeated.
    pub fn miss_ratio_of_repeated(&self, share: f64) -> Option<f64> {
        let repeated = self.distances.total();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a number of pages"
        )]
        let pages = (self.lately as f64 * self.stands_for() * share) as u64;
        (repeated > 0.0).then(|| self.distances.from(pages.max(1)) / repeated)
    }

    /// The time in milliseconds after which at most this share of repeated accesses came; none while there are none.
    pub fn time(&self, share: f64) -> Option<u64> {
        self.times.quantile(share)
    }

    fn forget(&mut self, page: PageIndex) {
        if let Some(last) = self.pages.remove(&page) {
            self.order.add(last.number, -1);
        }
    }

    fn number_anew(&mut self) {
        let mut pages: Vec<_> = self.pages.values_mut().collect();
        pages.sort_unstable_by_key(|last| last.number);
        self.order = Fenwick::new(ORDER);
        for (number, last) in pages.into_iter().enumerate() {
            last.number = number;
            self.order.add(number, 1);
        }
        self.next = self.pages.len();
    }
}

/// Mixes the number of a page (the finalizer of MurmurHash3, by Austin Appleby, public domain).
fn hash(page: PageIndex) -> u32 {
    let mut hash = page ^ 0x9e37_79b9;
    hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// The exact miss ratio of a memory of so many pages, least recently used going first.
    fn exact(accesses: &[PageIndex], pages: usize) -> f64 {
        let mut stack: VecDeque<PageIndex> = VecDeque::new();
        let mut misses = 0;
        for page in accesses {
            match stack.iter().position(|other| other == page) {
                Some(at) if at < pages => {
                    stack.remove(at);
                }
                Some(at) => {
                    stack.remove(at);
                    misses += 1;
                }
                None => misses += 1,
            }
            stack.push_front(*page);
        }
        misses as f64 / accesses.len() as f64
    }

    fn sampled(accesses: &[PageIndex]) -> Reuse {
        let mut reuse = Reuse::default();
        for (at, page) in (0..).zip(accesses) {
            reuse.access(*page, false, Monotonic(at * 1_000_000), 1);
        }
        reuse
    }

    /// Third powers of uniform numbers: low pages are far more likely.
    fn skewed(pages: u32, count: usize) -> Vec<PageIndex> {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let uniform = u128::from(state >> 40);
            (u128::from(pages) * uniform.pow(3)) >> 72
        };
        (0..count).map(|_| PageIndex::try_from(next()).unwrap()).collect()
    }

    #[test]
    fn few_pages_have_their_exact_curve() {
        let accesses = skewed(1500, 6000);
        let reuse = sampled(&accesses);
        for pages in [1, 64, 256, 1024] {
            let (found, exact) = (reuse.miss_ratio(pages).unwrap(), exact(&accesses, pages as usize));
            assert!((found - exact).abs() < 0.005, "{pages} pages: {found} for {exact}");
        }
    }

    #[test]
    fn of_many_pages_a_sample_tells_the_curve() {
        let accesses = skewed(60_000, 60_000);
        let reuse = sampled(&accesses);
        assert!(reuse.limit < 1 << 31, "sampled");
        for pages in [2048, 8192, 16_384] {
            let (found, exact) = (reuse.miss_ratio(pages).unwrap(), exact(&accesses, pages as usize));
            assert!((found - exact).abs() < 0.04, "{pages} pages: {found} for {exact}");
        }
    }

    #[test]
    fn a_loop_waits_for_every_page_until_it_fits() {
        let accesses: Vec<PageIndex> = (0..20).flat_map(|_| 0..1000).collect();
        let mut reuse = sampled(&accesses);
        assert!(reuse.miss_ratio(960).unwrap() > 0.99, "one that nearly fits waits too");
        reuse.end_epoch(Monotonic(20_000 * 1_000_000));
        assert!(reuse.miss_ratio(700).unwrap() > 0.99);
        assert!(reuse.miss_ratio(1100).unwrap() < 0.06);
        assert!(reuse.miss_ratio_of_repeated(0.7).unwrap() > 0.99);
        assert!(reuse.miss_ratio_of_repeated(1.1).unwrap() < 0.01, "first accesses do not count");
        let again = reuse.time(0.5).unwrap();
        assert!((800..=1000).contains(&again), "a page comes again after a second: {again} ms");
    }

    #[test]
    fn what_is_used_again_is_known_however_small_the_sample_is() {
        let mut reuse = Reuse::default();
        let mut epoch = |number: u64| {
            let now = Monotonic(number * 10_000_000_000);
            (0..50_000).for_each(|page| reuse.access(page, page % 2 == 0, now, 1));
            reuse.end_epoch(now)
        };
        let first = epoch(1);
        assert!((first.used - 50_000.0).abs() < 2500.0 && first.kept == 0.0, "{first:?}");
        let second = epoch(2);
        assert_eq!((second.kept, second.used_before), (second.used, second.used));
        assert!(second.written_again == second.written && second.written < 0.55 * second.used, "{second:?}");
    }

    #[test]
    fn what_is_old_counts_less() {
        let mut reuse = sampled(&(0..10).flat_map(|_| 0..100).collect::<Vec<_>>());
        for epoch in 0..20 {
            reuse.fade(0.5);
            for access in 0..100 {
                reuse.access(500, false, Monotonic((epoch * 100 + access) * 1_000_000 + 10_000_000_000), 1);
            }
        }
        assert!(reuse.miss_ratio(1).unwrap() < 0.01, "one page is all it needs now");
    }
}
