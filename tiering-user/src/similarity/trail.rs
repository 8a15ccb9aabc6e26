//! What a VM touched lately, and what before.
//!
//! In: names of what it touches, and the ends of epochs. Out: how much of what one VM touched in this epoch
//! another one had touched before, or in the same epoch ([`Trail::lagged`]).
//!
//! # Limits
//! Within an epoch it is not known who was first. What lies further back is forgotten all at once, after
//! [`EPOCHS_A_GENERATION`] epochs at the earliest and twice as many at the latest.

use super::sketch::Sketch;

/// Epochs after which what was touched before them begins to be forgotten.
const EPOCHS_A_GENERATION: u32 = 8;

/// What one VM touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trail {
    /// In this epoch.
    recent: Sketch,
    /// In the epochs before it: this generation and the last.
    earlier: Sketch,
    last: Sketch,
    epochs: u32,
}

impl Trail {
    /// The VM touches this.
    pub fn note(&mut self, name: u64) {
        self.recent.insert(name);
    }

    /// An epoch has ended: what was recent is earlier now. To be called after VMs were compared: with nothing
    /// recent there is nothing to compare.
    pub fn turn(&mut self) {
        self.earlier.merge(&self.recent);
        self.recent.clear();
        self.epochs += 1;
        if self.epochs == EPOCHS_A_GENERATION {
            self.epochs = 0;
            self.last = std::mem::take(&mut self.earlier);
        }
    }

    /// All that it is known to have touched.
    pub fn seen(&self) -> Sketch {
        let mut seen = self.recent.clone();
        seen.merge(&self.earlier);
        seen.merge(&self.last);
        seen
    }

    /// Of what the follower touched in this epoch, the share that the leader had touched by then. None where either has
    /// touched nothing.
    pub fn lagged(leader: &Self, follower: &Self) -> Option<f64> {
        leader.lead(&leader.seen(), follower)
    }

    /// The same with `seen` at hand.
    pub(super) fn lead(&self, seen: &Sketch, follower: &Self) -> Option<f64> {
        if seen.is_empty() || follower.recent.is_empty() {
            return None;
        }
        Some(follower.recent.contained_in(seen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(trail: &mut Trail, names: std::ops::Range<u64>) {
        names.for_each(|name| trail.note(name));
    }

    #[test]
    fn the_one_behind_follows_and_the_one_ahead_does_not() {
        let (mut ahead, mut behind) = (Trail::default(), Trail::default());
        touch(&mut ahead, 0..2000);
        touch(&mut behind, 50_000..52_000);
        ahead.turn();
        behind.turn();
        touch(&mut ahead, 2000..4000);
        touch(&mut behind, 0..2000);
        assert_eq!(Trail::lagged(&ahead, &behind), Some(1.0));
        assert_eq!(Trail::lagged(&behind, &ahead), Some(0.0));
    }

    #[test]
    fn of_one_that_touched_nothing_nothing_can_be_told() {
        let (nothing, mut some) = (Trail::default(), Trail::default());
        touch(&mut some, 0..10);
        assert_eq!(Trail::lagged(&nothing, &some), None);
        assert_eq!(Trail::lagged(&some, &nothing), None);
        assert_eq!(Trail::lagged(&some, &some), Some(1.0));
    }

    #[test]
    fn what_is_long_ago_is_forgotten_but_not_too_early() {
        let mut trail = Trail::default();
        for before in 0..3 {
            touch(&mut trail, 0..100);
            (0..=before).for_each(|_| trail.turn());
            let names: Sketch = (0..100).collect();
            for _ in 0..EPOCHS_A_GENERATION - 1 {
                assert_eq!(names.contained_in(&trail.seen()), 1.0);
                trail.turn();
            }
            (0..=EPOCHS_A_GENERATION).for_each(|_| trail.turn());
            assert!(trail.seen().is_empty());
        }
    }
}
