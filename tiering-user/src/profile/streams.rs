//! How much of what a VM accesses goes on where it was: page after page, or in steps of a few; and how far it goes
//! otherwise.
//!
//! As hardware prefetchers do: a handful of streams, each with its last page and its step. An access that is a step
//! further continues one; one that is near gives it another step; any other begins a new stream in place of the one
//! that was continued least lately.

use derive_more::{Add, Mul};

use super::histogram::LogHistogram;
use crate::tiermap::PageIndex;

const STREAMS: usize = 16;
/// Pages within which an access may belong to a stream.
const NEAR: u32 = 64;
/// From so many steps on a stream is a walk, and a long one.
const WALK: u32 = 8;
const LONG_WALK: u32 = 32;

/// Weights of accesses, by what they were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Add, Mul)]
pub struct Steps {
    /// The page before or behind the last one of a stream.
    pub sequential: f64,
    /// As far from it as that was from the one before.
    pub strided: f64,
    /// Neither, but no more than 64 pages from a stream.
    pub near: f64,
    pub elsewhere: f64,
    /// Of the sequential ones, writes.
    pub sequential_writes: f64,
    /// Of the sequential and strided ones, those from the 8th step of their stream on, and from the 32nd.
    pub in_walks: f64,
    pub in_long_walks: f64,
    /// To a higher page than the access before, wherever that was.
    pub upward: f64,
}

impl Steps {
    pub fn total(&self) -> f64 {
        self.sequential + self.strided + self.near + self.elsewhere
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    last: PageIndex,
    /// 0 while it has only one page.
    step: i64,
    steps: u32,
    /// Number of the access that continued it; 0 where there is no stream.
    at: u64,
}

/// The streams of one VM.
#[derive(Debug, Default)]
pub struct Streams {
    streams: [Stream; STREAMS],
    accesses: u64,
    steps: Steps,
    last: Option<PageIndex>,
    /// From each access to the next one, pages.
    distances: LogHistogram,
}

impl Streams {
    pub fn access(&mut self, page: PageIndex, write: bool, weight: f64) {
        self.accesses += 1;
        let at = self.accesses;
        if let Some(last) = self.last.replace(page) {
            self.distances.add(last.abs_diff(page).into(), weight as f32);
            self.steps.upward += if page > last { weight } else { 0.0 };
        }
        let step_to = |stream: &Stream| i64::from(page) - i64::from(stream.last);
        let is_next =
            |stream: &&mut Stream| stream.at > 0 && stream.step != 0 && step_to(stream) == stream.step;
        if let Some(stream) = self.streams.iter_mut().find(is_next) {
            *stream = Stream { last: page, at, steps: stream.steps.saturating_add(1), ..*stream };
            let sums = &mut self.steps;
            if stream.step.abs() == 1 {
                sums.sequential += weight;
                sums.sequential_writes += if write { weight } else { 0.0 };
            } else {
                sums.strided += weight;
            }
            sums.in_walks += if stream.steps >= WALK { weight } else { 0.0 };
            sums.in_long_walks += if stream.steps >= LONG_WALK { weight } else { 0.0 };
            return;
        }
        // To read a page and then write it is no step.
        if let Some(stream) = self.streams.iter_mut().find(|stream| stream.at > 0 && stream.last == page) {
            self.steps.near += weight;
            stream.at = at;
            return;
        }
        let distance = |stream: &Stream| stream.last.abs_diff(page);
        let near = self.streams.iter_mut().filter(|stream| stream.at > 0 && distance(stream) <= NEAR);
        if let Some(stream) = near.min_by_key(|stream| distance(stream)) {
            self.steps.near += weight;
            *stream = Stream { last: page, step: step_to(stream), steps: 1, at };
        } else {
            self.steps.elsewhere += weight;
            if let Some(oldest) = self.streams.iter_mut().min_by_key(|stream| stream.at) {
                *oldest = Stream { last: page, step: 0, steps: 0, at };
            }
        }
    }

    /// What there was since this was asked the last time.
    pub fn take(&mut self) -> Steps {
        std::mem::take(&mut self.steps)
    }

    /// How far apart, in pages, at most this share of the accesses that follow each other are; none while there are
    /// none.
    pub fn distance(&self, share: f64) -> Option<u64> {
        self.distances.quantile(share)
    }

    /// Has what was before count less.
    pub fn fade(&mut self, by: f32) {
        self.distances.fade(by);
    }

    /// Has what was before count for nothing.
    pub fn forget(&mut self) {
        self.distances = LogHistogram::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(pages: impl Iterator<Item = PageIndex>) -> Steps {
        let mut streams = Streams::default();
        pages.for_each(|page| streams.access(page, page % 2 == 0, 1.0));
        let steps = streams.take();
        assert_eq!(streams.take(), Steps::default());
        steps * (1.0 / steps.total())
    }

    fn shares(pages: impl Iterator<Item = PageIndex>) -> (f64, f64) {
        let steps = steps(pages);
        (steps.sequential, steps.strided)
    }

    #[test]
    fn walks_are_told_apart() {
        assert!(shares(1000..2000).0 > 0.99);
        assert!(shares((1000..2000).rev()).0 > 0.99);
        assert!(shares((0..10_000).step_by(7)).1 > 0.99);
        let (sequential, strided) = shares((0..1000).map(|access| access * 7919 % 100_003));
        assert!(sequential + strided < 0.05, "{sequential} {strided}");
    }

    #[test]
    fn a_few_walks_at_once_are_all_seen() {
        let (sequential, strided) = shares(
            (0..4000).map(|access| (access % 4) * 100_000 + access / 4 * if access % 4 == 0 { 3 } else { 1 }),
        );
        assert!((sequential - 0.75).abs() < 0.01 && (strided - 0.25).abs() < 0.01, "{sequential} {strided}");
    }

    #[test]
    fn long_walks_are_told_from_short_ones_and_writes_from_reads() {
        // Twenty pages here, then twenty there.
        let short = steps((0..4000).map(|access| access / 20 * 7919 % 100_003 + access % 20));
        assert!(short.in_walks > 0.5 && short.in_long_walks == 0.0, "{short:?}");
        let long = steps(1000..3000);
        assert!(long.in_walks > 0.99 && long.in_long_walks > 0.98 && long.upward > 0.99, "{long:?}");
        assert!((long.sequential_writes - 0.5).abs() < 0.01, "{long:?}");
        assert!(steps((1000..3000).rev()).upward < 0.01);
        let twice = steps((2000..6000).map(|access| access / 2));
        assert!(twice.in_walks > 0.49 && twice.near > 0.49, "each page is read, then written: {twice:?}");
    }

    #[test]
    fn distances_from_one_access_to_the_next_are_known_to_a_quarter_of_themselves() {
        let mut streams = Streams::default();
        assert_eq!(streams.distance(0.5), None);
        (0..1000u32).for_each(|access| streams.access(access % 2 * 1000 + access / 2, false, 1.0));
        let (half, most) = (streams.distance(0.5), streams.distance(0.9));
        assert!([half, most].iter().flatten().all(|pages| (768..=1000).contains(pages)), "{half:?} {most:?}");
    }
}
