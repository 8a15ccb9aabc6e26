//! Sums over the last seconds or minutes. Pure.

use std::collections::VecDeque;
use std::iter::Sum;
use std::ops::AddAssign;
use std::time::Duration;

use crate::sys::Monotonic;

/// Amounts of the last `window`, by second.
#[derive(Clone, Debug)]
pub struct Recent<T> {
    window: Duration,
    by_second: VecDeque<(Monotonic, T)>,
}

impl<T: Copy + Default + PartialEq + AddAssign + Sum> Recent<T> {
    pub fn new(window: Duration) -> Self {
        Self { window, by_second: VecDeque::new() }
    }

    pub fn add(&mut self, amount: T, now: Monotonic) {
        match self.by_second.back_mut() {
            _ if amount == T::default() => {}
            Some((at, sum)) if now.since(*at) < Duration::from_secs(1) => *sum += amount,
            _ => self.by_second.push_back((now, amount)),
        }
        while self.by_second.front().is_some_and(|(at, _)| now.since(*at) >= self.window) {
            self.by_second.pop_front();
        }
    }

    /// The sum of the last `time`, which is no longer than the window.
    pub fn within(&self, time: Duration, now: Monotonic) -> T {
        self.by_second.iter().filter(|(at, _)| now.since(*at) < time).map(|(_, amount)| *amount).sum()
    }

    /// Forgets all of it.
    pub fn clear(&mut self) {
        self.by_second.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_forgotten_after_the_window() {
        let at = |second: u64| Monotonic(second * 1_000_000_000);
        let mut recent = Recent::new(Duration::from_secs(60));
        (0..100).for_each(|second| recent.add(2_u64, at(second)));
        assert_eq!(recent.within(Duration::from_secs(10), at(99)), 20);
        assert_eq!(recent.within(Duration::from_secs(60), at(99)), 120);
        assert_eq!(recent.by_second.len(), 60);
        assert_eq!(recent.within(Duration::from_secs(60), at(159)), 0);
        recent.clear();
        assert_eq!(recent.within(Duration::from_secs(60), at(99)), 0);
    }
}
