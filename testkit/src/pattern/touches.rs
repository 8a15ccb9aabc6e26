//! The truth: which page is touched, in which order, read or written. The guest executes this iterator, the host
//! recomputes it.
//!
//! In: a pattern. Out: touches without end (none for an idle guest), the same each time.
//! When they happen is not decided here.

use super::zipf::Zipf;
use super::{Access, PAGES_A_MIB, Pattern};
use crate::random::Random;

/// One touch of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Touch {
    /// Its number in the pattern's memory.
    pub page: usize,
    /// Whether it is written after it was read.
    pub write: bool,
}

/// What seeds are mixed with, so that choices of different kinds are not alike.
const PAGES: u64 = 1 << 32;
const WRITES: u64 = 2 << 32;
const PLACES: u64 = 3 << 32;
const HOT: u64 = 4 << 32;
const HOT_WRITES: u64 = 5 << 32;
const ORDERS: u64 = 6 << 32;

impl Pattern {
    /// The touches of all rounds, one after the other.
    #[must_use]
    pub fn touches(&self) -> Touches {
        let pages = self.access.set_mib() * PAGES_A_MIB;
        let random = Random::new(self.seed ^ PAGES);
        let source = match self.access {
            Access::Zipf { skew_percent, .. } => {
                let mut page_of_rank: Vec<_> = (0..pages).collect();
                Random::new(self.seed ^ PLACES).shuffle(&mut page_of_rank);
                Source::Zipf { page_of_rank, ranks: Zipf::new(pages, skew_percent), random }
            }
            Access::Uniform { .. } => Source::Uniform { pages, random },
            Access::Ages { hot_mib, warm_mib, tail_mib, warm_ppm, tail_ppm } => {
                let [hot, warm, tail] = [hot_mib, warm_mib, tail_mib].map(|mib| mib * PAGES_A_MIB);
                Source::Ages { sets: [hot, warm, tail], warm_ppm, tail_ppm, random }
            }
            Access::PhaseChange { every_touches, .. } => {
                Source::Parts { parts: self.pages() / pages, pages, every_touches, part: 0, left: 0, random }
            }
            _ => {
                let reorder = self.reorder.then(|| Random::new(ORDERS));
                Source::Walk { order: self.order(pages), at: 0, reorder }
            }
        };
        self.with_writes(source, WRITES)
    }

    /// What a guest that runs freely touches between the rounds: pages of the hot set; nothing with any other access.
    #[must_use]
    pub fn between(&self) -> Touches {
        let source = match self.access {
            Access::HotAndLoop { hot_mib, .. } if hot_mib > 0 => {
                Source::Uniform { pages: hot_mib * PAGES_A_MIB, random: Random::new(self.seed ^ HOT) }
            }
            _ => Source::Walk { order: Vec::new(), at: 0, reorder: None },
        };
        self.with_writes(source, HOT_WRITES)
    }

    /// The pages of a walk that is the same each time.
    fn order(&self, pages: usize) -> Vec<usize> {
        match self.access {
            Access::HotAndLoop { hot_mib, .. } => {
                let hot_pages = hot_mib * PAGES_A_MIB;
                let mut order: Vec<_> = (hot_pages..hot_pages + pages).collect();
                Random::new(self.seed).shuffle(&mut order);
                order
            }
            Access::Stride { stride_pages, .. } => {
                (0..stride_pages).flat_map(|start| (start..pages).step_by(stride_pages)).collect()
            }
            Access::Follow { order_seed, overlap_percent, .. } => {
                let mut order: Vec<_> = (0..pages).collect();
                Random::new(order_seed).shuffle(&mut order);
                let own = own_places(pages, overlap_percent);
                let mut random = Random::new(self.seed ^ PLACES);
                let mut places: Vec<_> = (0..pages).collect();
                random.shuffle(&mut places);
                let mut own_pages: Vec<_> = (pages..pages + own).collect();
                random.shuffle(&mut own_pages);
                for (place, page) in places.into_iter().zip(own_pages) {
                    order[place] = page;
                }
                order
            }
            _ => (0..pages).collect(),
        }
    }

    fn with_writes(&self, source: Source, kind: u64) -> Touches {
        Touches { source, writes: Random::new(self.seed ^ kind), write_one_in: self.write_one_in }
    }
}

/// At how many places of the order a follower touches pages of its own.
pub(super) fn own_places(pages: usize, overlap_percent: u64) -> usize {
    let overlap = usize::try_from(overlap_percent.min(100)).unwrap_or(100);
    pages - (pages * overlap + 50) / 100
}

/// Touches without end, or none.
#[derive(Debug, Clone)]
pub struct Touches {
    source: Source,
    /// Apart from the pages, so that these do not depend on how many touches write.
    writes: Random,
    write_one_in: u64,
}

#[derive(Debug, Clone)]
enum Source {
    Walk {
        order: Vec<usize>,
        at: usize,
        /// Shuffles the order before each walk but the first.
        reorder: Option<Random>,
    },
    Uniform {
        pages: usize,
        random: Random,
    },
    Ages {
        /// Pages of the hot set, the warm set, the tail.
        sets: [usize; 3],
        warm_ppm: u64,
        tail_ppm: u64,
        random: Random,
    },
    Zipf {
        page_of_rank: Vec<usize>,
        ranks: Zipf,
        random: Random,
    },
    Parts {
        parts: usize,
        /// Of each part.
        pages: usize,
        every_touches: u64,
        part: usize,
        /// Touches until the next jump.
        left: u64,
        random: Random,
    },
}

impl Iterator for Touches {
    type Item = Touch;

    fn next(&mut self) -> Option<Touch> {
        let page = self.source.next()?;
        let write = self.write_one_in > 0 && self.writes.next().is_multiple_of(self.write_one_in);
        Some(Touch { page, write })
    }
}

impl Source {
    fn next(&mut self) -> Option<usize> {
        match self {
            Self::Walk { order, at, reorder } => {
                if *at == order.len() {
                    *at = 0;
                    if let Some(random) = reorder {
                        random.shuffle(order);
                    }
                }
                let page = *order.get(*at)?;
                *at += 1;
                Some(page)
            }
            Self::Uniform { pages, random } => Some(random.below(*pages)),
            Self::Ages { sets: [hot, warm, tail], warm_ppm, tail_ppm, random } => {
                let choice = random.below(1_000_000) as u64;
                Some(if choice < *tail_ppm {
                    *hot + *warm + random.below(*tail)
                } else if choice < *tail_ppm + *warm_ppm {
                    *hot + random.below(*warm)
                } else {
                    random.below(*hot)
                })
            }
            Self::Zipf { page_of_rank, ranks, random } => Some(page_of_rank[ranks.draw(random)]),
            Self::Parts { parts, pages, every_touches, part, left, random } => {
                if *left == 0 {
                    // Any but the one it is in.
                    *part = (*part + 1 + random.below(*parts - 1)) % *parts;
                    *left = *every_touches;
                }
                *left -= 1;
                Some(*part * *pages + random.below(*pages))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn pattern(access: Access) -> Pattern {
        Pattern { mem_mib: 8, access, ..Pattern::default() }
    }

    fn pages(pattern: &Pattern, count: usize) -> Vec<usize> {
        pattern.touches().take(count).map(|touch| touch.page).collect()
    }

    /// How often each page is among them, most often first.
    fn counts(pages: &[usize]) -> Vec<(usize, usize)> {
        let mut counts = HashMap::new();
        for page in pages {
            *counts.entry(*page).or_insert(0) += 1;
        }
        let mut counts: Vec<_> = counts.into_iter().map(|(page, count)| (count, page)).collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        counts
    }

    fn sorted(mut pages: Vec<usize>) -> Vec<usize> {
        pages.sort_unstable();
        pages
    }

    #[test]
    fn zipf_is_as_skewed_as_told_and_its_hot_pages_are_spread() {
        // With a skew of 1 over 1024 pages the first has 1/H(1024) = 13.3 % of the touches, the first ten 39 %.
        let counts = counts(&pages(&pattern(Access::Zipf { set_mib: 4, skew_percent: 100 }), 100_000));
        assert!((12_800..13_800).contains(&counts[0].0), "{}", counts[0].0);
        let ten: usize = counts[..10].iter().map(|(count, _)| count).sum();
        assert!((38_000..40_000).contains(&ten), "{ten}");
        assert!(counts.iter().all(|(_, page)| *page < 1024));
        assert!(counts[..10].iter().any(|(_, page)| *page >= 512));
        assert!(counts[..10].iter().any(|(_, page)| *page < 512));
    }

    #[test]
    fn uniform_prefers_no_page() {
        let counts = counts(&pages(&pattern(Access::Uniform { set_mib: 1 }), 256_000));
        assert_eq!(counts.len(), 256);
        assert!(counts[0].0 < 1150 && counts[255].0 > 850, "{counts:?}");
    }

    #[test]
    fn sequential_walks_in_order_and_begins_again() {
        let walked = pages(&pattern(Access::Sequential { set_mib: 1 }), 300);
        assert!(walked.iter().enumerate().all(|(at, page)| *page == at % 256));
    }

    #[test]
    fn a_stride_visits_each_page_once_a_walk() {
        let walked = pages(&pattern(Access::Stride { set_mib: 1, stride_pages: 100 }), 512);
        assert_eq!(walked[..4], [0, 100, 200, 1]);
        assert_eq!(sorted(walked[..256].to_vec()), (0..256).collect::<Vec<_>>());
        assert_eq!(walked[..256], walked[256..]);
    }

    #[test]
    fn a_phase_change_stays_in_one_part_and_jumps_to_another() {
        let pattern = pattern(Access::PhaseChange { part_mib: 2, every_touches: 100 });
        assert_eq!(pattern.round_len(), 100);
        let parts: Vec<_> = pages(&pattern, 2000).iter().map(|page| page / 512).collect();
        let phases: Vec<_> = parts.chunks(100).collect();
        assert!(phases.iter().all(|phase| phase.iter().all(|part| *part == phase[0])), "{parts:?}");
        assert!(phases.windows(2).all(|two| two[0][0] != two[1][0]), "{parts:?}");
        assert_eq!(counts(&parts).len(), 4, "it comes to every part");
    }

    #[test]
    fn memory_of_all_ages_is_touched_as_often_as_told_and_the_rest_never() {
        let access =
            Access::Ages { hot_mib: 1, warm_mib: 2, tail_mib: 3, warm_ppm: 300_000, tail_ppm: 10_000 };
        let touched = pages(&pattern(access), 100_000);
        let share = |pages: std::ops::Range<usize>| {
            touched.iter().filter(|page| pages.contains(page)).count() as f64 / touched.len() as f64
        };
        assert!((share(0..256) - 0.69).abs() < 0.01);
        assert!((share(256..768) - 0.30).abs() < 0.01);
        assert!((share(768..1536) - 0.01).abs() < 0.002);
        assert!(touched.iter().all(|page| *page < 1536));
    }

    #[test]
    fn an_idle_guest_touches_nothing() {
        assert_eq!(pattern(Access::Idle).touches().next(), None);
        assert_eq!(pattern(Access::Idle).round_len(), 0);
    }

    #[test]
    fn a_follower_is_at_the_leaders_page_as_often_as_told_and_else_behind_the_set() {
        let follow = |seed, overlap_percent| Pattern {
            seed,
            ..pattern(Access::Follow { set_mib: 4, order_seed: 3, overlap_percent })
        };
        let leader = pages(&follow(1, 100), 2048);
        assert_eq!(sorted(leader[..1024].to_vec()), (0..1024).collect::<Vec<_>>());
        assert_eq!(leader[..1024], leader[1024..], "the order is the same in each walk");
        assert_eq!(leader, pages(&follow(2, 100), 2048), "whatever the guest's own seed");
        for overlap in [90, 70, 50, 0] {
            let follower = pages(&follow(2, overlap), 1024);
            let same = follower.iter().zip(&leader).filter(|(own, leaders)| own == leaders).count();
            assert!((same as f64 / 1024.0 - overlap as f64 / 100.0).abs() < 0.01, "{overlap}: {same}");
            let own: Vec<_> = follower.iter().filter(|page| **page >= 1024).copied().collect();
            assert_eq!(own.len(), 1024 - same);
            assert_eq!(counts(&own).len(), own.len(), "each of its own pages once a walk");
            assert_ne!(follower, pages(&follow(9, overlap), 1024), "where is decided by its seed");
        }
    }

    #[test]
    fn a_reordered_walk_visits_the_same_pages_and_the_follower_still_goes_along() {
        let follow = |seed, overlap_percent| {
            let access = Access::Follow { set_mib: 4, order_seed: 3, overlap_percent };
            pages(&Pattern { seed, reorder: true, ..pattern(access) }, 2048)
        };
        let (leader, follower) = (follow(1, 100), follow(2, 50));
        assert_ne!(leader[..1024], leader[1024..]);
        assert_eq!(sorted(leader[1024..].to_vec()), (0..1024).collect::<Vec<_>>());
        let same = |walk: std::ops::Range<usize>| walk.filter(|at| leader[*at] == follower[*at]).count();
        assert_eq!((same(0..1024), same(1024..2048)), (512, 512));
    }

    #[test]
    fn leader_and_followers_hold_equal_pages_in_the_set_only() {
        let follow = |seed| Pattern {
            seed,
            ..pattern(Access::Follow { set_mib: 4, order_seed: 3, overlap_percent: 50 })
        };
        assert_eq!((follow(1).content_seed(1023), follow(2).content_seed(1023)), (3, 3));
        assert_eq!((follow(1).content_seed(1024), follow(2).content_seed(1024)), (1, 2));
        let image = follow(1).on_image(8, 6);
        assert_eq!((image.content_seed(0), image.content_seed(2047)), (6, 6));
    }

    #[test]
    fn the_loop_set_is_walked_in_one_order_and_the_hot_set_lies_before_it() {
        let pattern = pattern(Access::HotAndLoop { hot_mib: 1, loop_mib: 2, loop_every_ms: 1 });
        let walked = pages(&pattern, 1024);
        assert_eq!(sorted(walked[..512].to_vec()), (256..768).collect::<Vec<_>>());
        assert_eq!(walked[..512], walked[512..]);
        assert!(pattern.between().take(1000).all(|touch| touch.page < 256));
    }

    #[test]
    fn writes_are_as_many_as_told_and_do_not_change_the_pages() {
        let uniform = |write_one_in| Pattern { write_one_in, ..pattern(Access::Uniform { set_mib: 1 }) };
        let writes = |write_one_in| uniform(write_one_in).touches().take(8000).filter(|t| t.write).count();
        assert_eq!((writes(0), writes(1)), (0, 8000));
        assert!((900..1100).contains(&writes(8)), "{}", writes(8));
        assert_eq!(pages(&uniform(0), 100), pages(&uniform(8), 100));
    }
}
