//! The pattern itself: bursts in the hot set, walks through the loop set, a final pass over everything.
//!
//! In: the time. Out: how long to pause, and at the end the result. It works in short steps, so that commands are
//! heard and an emulated guest stays well below half a core.

use crate::histogram::Histogram;
use crate::memory::Memory;
use crate::random::Random;
use anyhow::Result;
use std::time::{Duration, Instant};
use tiering_tests::pattern::{GuestResult, PAGE_BYTES, Pattern};

/// Touches of the hot set in one step, and the pause after it: at most 640 touches a second.
const HOT_BURST: usize = 64;
const HOT_PAUSE: Duration = Duration::from_millis(100);
/// Pages of the loop set in one step, and the pause after it: a walk of 48 MiB takes a second or two.
const LOOP_BURST: usize = 64;
const LOOP_PAUSE: Duration = Duration::from_millis(5);

pub struct Walker {
    memory: Memory,
    hot_pages: usize,
    write_one_in: u64,
    loop_every: Duration,
    random: Random,
    /// The pages of the loop set in the order of every walk.
    order: Vec<usize>,
    /// Where in `order` the walk is; at its end while none is under way.
    at: usize,
    /// When the latest walk began; before the first one, when the guest was ready.
    loop_began: Option<Instant>,
    loops: u64,
    touches: u64,
    latency: Histogram,
    ok: bool,
}

impl Walker {
    /// Fills the memory.
    pub fn new(pattern: &Pattern) -> Result<Self> {
        let pages = |mib: usize| (mib << 20) / PAGE_BYTES;
        let Pattern { seed, mem_mib, hot_mib, loop_mib, loop_every_ms, write_one_in } = *pattern;
        let mut random = Random::new(seed);
        let mut order: Vec<_> = (pages(hot_mib)..pages(hot_mib + loop_mib)).collect();
        random.shuffle(&mut order);
        Ok(Self {
            memory: Memory::new(seed, mem_mib)?,
            hot_pages: pages(hot_mib),
            write_one_in,
            loop_every: Duration::from_millis(loop_every_ms),
            random,
            at: order.len(),
            order,
            loop_began: None,
            loops: 0,
            touches: 0,
            latency: Histogram::new(),
            ok: true,
        })
    }

    /// Does the next few touches and says how long to pause.
    pub fn step(&mut self, now: Instant) -> Duration {
        let began = *self.loop_began.get_or_insert(now);
        if self.at == self.order.len() && now.duration_since(began) >= self.loop_every {
            self.at = 0;
            self.loop_began = Some(now);
        }
        if self.at < self.order.len() { self.step_loop() } else { self.step_hot() }
    }

    /// Verifies every page once more.
    pub fn finish(&mut self) -> GuestResult {
        for number in 0..self.memory.len() {
            self.ok &= self.memory.verify(number);
        }
        GuestResult {
            checksum_ok: self.ok,
            pages_verified: self.memory.len() as u64,
            touches: self.touches,
            loops: self.loops,
            touch_ns: self.latency.quantiles(),
        }
    }

    fn step_hot(&mut self) -> Duration {
        if self.hot_pages > 0 {
            for _ in 0..HOT_BURST {
                let number = self.random.below(self.hot_pages);
                self.touch(number);
            }
        }
        HOT_PAUSE
    }

    fn step_loop(&mut self) -> Duration {
        let end = (self.at + LOOP_BURST).min(self.order.len());
        while self.at < end {
            let number = self.order[self.at];
            self.latency.record(self.memory.load_ns(number));
            self.touch(number);
            self.at += 1;
        }
        if end == self.order.len() {
            self.loops += 1;
        }
        LOOP_PAUSE
    }

    fn touch(&mut self, number: usize) {
        self.touches += 1;
        self.ok &= self.memory.verify(number);
        if self.write_one_in > 0 && self.random.next().is_multiple_of(self.write_one_in) {
            self.memory.write(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walker() -> Walker {
        let pattern =
            Pattern { seed: 1, mem_mib: 3, hot_mib: 1, loop_mib: 1, loop_every_ms: 1000, write_one_in: 2 };
        Walker::new(&pattern).unwrap()
    }

    #[test]
    fn the_loop_set_is_walked_once_a_period_and_the_hot_set_meanwhile() {
        let mut walker = walker();
        let mut now = Instant::now();
        assert_eq!(walker.step(now), HOT_PAUSE);
        now += Duration::from_secs(1);
        for _ in 0..256 / LOOP_BURST {
            assert_eq!(walker.step(now), LOOP_PAUSE);
        }
        assert_eq!(walker.step(now), HOT_PAUSE);
        let result = walker.finish();
        assert!(result.checksum_ok);
        assert_eq!((result.loops, result.touches), (1, 256 + 2 * HOT_BURST as u64));
        assert_eq!(result.pages_verified, 768);
    }

    #[test]
    fn the_order_covers_the_loop_set_only() {
        let mut order = walker().order;
        order.sort_unstable();
        assert_eq!(order, (256..512).collect::<Vec<_>>());
    }
}
