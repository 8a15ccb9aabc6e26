//! How much of what a machine accesses goes on where it was: page after page, or in steps of a few.
//!
//! As hardware prefetchers do: a handful of streams, each with its last page and its step. An access that is a step further continues one;
//! one that is near gives it another step; any other begins a new stream in place of the one that was continued least lately.

use crate::tiermap::PageIndex;

const STREAMS: usize = 16;
/// Pages within which an access may belong to a stream.
const NEAR: u32 = 64;

/// Weights of accesses, by what they were.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Steps {
    /// The page before or behind the last one of a stream.
    pub sequential: f64,
    /// As far from it as that was from the one before.
    pub strided: f64,
    pub other: f64,
}

impl Steps {
    pub fn total(&self) -> f64 {
        self.sequential + self.strided + self.other
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    last: PageIndex,
    /// 0 while it has only one page.
    step: i64,
    /// Number of the access that continued it; 0 where there is no stream.
    at: u64,
}

/// The streams of one machine.
#[derive(Debug, Default)]
pub struct Streams {
    streams: [Stream; STREAMS],
    accesses: u64,
    steps: Steps,
}

impl Streams {
    pub fn access(&mut self, page: PageIndex, weight: f64) {
        self.accesses += 1;
        let at = self.accesses;
        let step_to = |stream: &Stream| i64::from(page) - i64::from(stream.last);
        let is_next =
            |stream: &&mut Stream| stream.at > 0 && stream.step != 0 && step_to(stream) == stream.step;
        if let Some(stream) = self.streams.iter_mut().find(is_next) {
            let kind =
                if stream.step.abs() == 1 { &mut self.steps.sequential } else { &mut self.steps.strided };
            *kind += weight;
            *stream = Stream { last: page, at, ..*stream };
            return;
        }
        self.steps.other += weight;
        let distance = |stream: &Stream| stream.last.abs_diff(page);
        let near = self.streams.iter_mut().filter(|stream| stream.at > 0 && distance(stream) <= NEAR);
        if let Some(stream) = near.min_by_key(|stream| distance(stream)) {
            *stream = Stream { last: page, step: step_to(stream), at };
        } else if let Some(oldest) = self.streams.iter_mut().min_by_key(|stream| stream.at) {
            *oldest = Stream { last: page, step: 0, at };
        }
    }

    /// What there was since this was asked the last time.
    pub fn take(&mut self) -> Steps {
        std::mem::take(&mut self.steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(pages: impl Iterator<Item = PageIndex>) -> (f64, f64) {
        let mut streams = Streams::default();
        pages.for_each(|page| streams.access(page, 1.0));
        let steps = streams.take();
        assert_eq!(streams.take(), Steps::default());
        (steps.sequential / steps.total(), steps.strided / steps.total())
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
}
