//! From the ways in which VMs are alike to one score that means something, learned from what became of stages.
//!
//! A logistic model: the score is the probability that what is staged for a follower because of its leader is used.
//! Each report of stages that have ended is one step of gradient descent on the log-loss.
//!
//! # Limits
//! Only pairs that were staged for are learned from. Five weights for all pairs of a tenant: what is
//! special about one pair is for the caller to know. A part that is not known counts like a part that is 0.

use serde::{Deserialize, Serialize};

use super::parts::Parts;

/// How far one report can move a weight.
const RATE: f64 = 0.1;
/// Stages that have ended after which a report has half of its full weight.
const ENDED_HALF: f64 = 64.0;
const WEIGHT_MOST: f64 = 6.0;
/// From a score of 0.0025 to one of 0.5, where VMs have nothing in common.
const BIAS: std::ops::RangeInclusive<f64> = -6.0..=0.0;

/// What each part is worth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Weights {
    bias: f64,
    /// In the order of the fields of [`Parts`].
    parts: [f64; 5],
}

impl Default for Weights {
    /// Nothing in common: 0.05. The same content in the same places: 0.9. Files and behaviour alone are weak reasons.
    fn default() -> Self {
        Self { bias: -2.95, parts: [2.2, 3.0, 0.5, 0.3, 2.0] }
    }
}

impl Weights {
    /// Whether they can have been learned.
    pub fn are_plausible(&self) -> bool {
        BIAS.contains(&self.bias) && self.parts.iter().all(|weight| (0.0..=WEIGHT_MOST).contains(weight))
    }

    /// Probability that what is staged is used.
    pub fn score(&self, parts: &Parts) -> f64 {
        let known = parts.each().into_iter().map(|part| part.unwrap_or(0.0));
        let sum: f64 = known.zip(self.parts).map(|(part, weight)| part * weight).sum();
        1.0 / (1.0 + (-(self.bias + sum)).exp())
    }

    /// Of `ended` stages of a pair with these parts, `used` were used.
    pub fn learn(&mut self, parts: &Parts, used: u32, ended: u32) {
        if ended == 0 {
            return;
        }
        let ended = f64::from(ended);
        let share = (f64::from(used) / ended).min(1.0);
        let step = RATE * ended / (ended + ENDED_HALF) * (share - self.score(parts));
        self.bias = (self.bias + step).clamp(*BIAS.start(), *BIAS.end());
        for (weight, part) in self.parts.iter_mut().zip(parts.each()) {
            *weight = (*weight + step * part.unwrap_or(0.0)).clamp(0.0, WEIGHT_MOST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOTHING: Parts = Parts { content: None, placed: None, files: None, behaviour: None, lagged: None };
    const CLONE: Parts = Parts { content: Some(1.0), placed: Some(1.0), ..NOTHING };
    const FILES: Parts = Parts { files: Some(1.0), ..NOTHING };

    #[test]
    fn it_starts_with_what_one_would_guess() {
        let weights = Weights::default();
        assert!((weights.score(&NOTHING) - 0.05).abs() < 0.005);
        assert!((weights.score(&CLONE) - 0.9).abs() < 0.01);
        assert!(weights.score(&FILES) < 0.1, "{}", weights.score(&FILES));
        let zeroes = Parts { content: Some(0.0), lagged: Some(0.0), ..NOTHING };
        assert_eq!(weights.score(&zeroes), weights.score(&NOTHING));
    }

    #[test]
    fn it_comes_to_expect_what_it_saw() {
        for seen in [30, 70, 97] {
            let mut weights = Weights::default();
            (0..500).for_each(|_| weights.learn(&CLONE, seen, 100));
            assert!((weights.score(&CLONE) - f64::from(seen) / 100.0).abs() < 0.01);
        }
    }

    #[test]
    fn many_stages_say_more_than_one_and_none_say_nothing() {
        let after = |used, ended| {
            let mut weights = Weights::default();
            weights.learn(&CLONE, used, ended);
            weights.score(&CLONE)
        };
        let at_first = Weights::default().score(&CLONE);
        assert!(after(0, 1000) < after(0, 10) && after(0, 10) < at_first);
        assert!(after(0, 1000) > at_first - 0.05, "but not everything");
        assert_eq!(after(0, 0), at_first);
    }

    #[test]
    fn what_misleads_is_no_longer_believed_and_what_helps_still_is() {
        let mut weights = Weights::default();
        let misled = Parts { files: Some(1.0), lagged: Some(1.0), ..NOTHING };
        for _ in 0..500 {
            weights.learn(&misled, 0, 100);
            weights.learn(&CLONE, 95, 100);
        }
        assert!(weights.parts[4] < 0.2 * Weights::default().parts[4], "{weights:?}");
        assert!(weights.score(&misled) < 0.05 && weights.score(&CLONE) > 0.93);
    }

    proptest! {
        #[test]
        fn it_cannot_run_away(reports in prop::collection::vec((prop::array::uniform5(prop::option::of(0.0..=1.0f64)), 0u32..500, 0u32..500), 0..300)) {
            let mut weights = Weights::default();
            for ([content, placed, files, behaviour, lagged], used, ended) in reports {
                let parts = Parts { content, placed, files, behaviour, lagged };
                let before = weights.score(&parts);
                weights.learn(&parts, used, ended);
                let (after, share) = (weights.score(&parts), f64::from(used.min(ended)) / f64::from(ended.max(1)));
                prop_assert!(ended == 0 || (after - share).abs() <= (before - share).abs() + 1e-9, "away from what was seen");
            }
            prop_assert!(weights.are_plausible());
        }
    }
}
