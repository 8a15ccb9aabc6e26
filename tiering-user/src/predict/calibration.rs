//! Whether what is thought of stages is true: of those thought to be used with a probability of 0.9, nine in ten should
//! be.
//!
//! In: each stage's confidence when it was asked for, and whether it was used. Out: a reliability diagram (stages by
//! confidence, in tenths) and the Brier score, the mean square of the difference (G. W. Brier, Monthly Weather Review
//! 78, 1950).

use std::ops::AddAssign;

const BINS: usize = 10;

/// Stages that were thought about as likely to be used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bin {
    pub ended: u64,
    pub used: u64,
    /// Sum of their confidences.
    pub confidence: f64,
}

/// Of all stages that ended.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Calibration {
    bins: [Bin; BINS],
    squares: f64,
}

impl Calibration {
    pub fn note(&mut self, confidence: f64, used: bool) {
        let outcome = f64::from(u8::from(used));
        self.squares += (confidence - outcome).powi(2);
        let bin = (1..BINS).filter(|tenths| confidence * BINS as f64 >= *tenths as f64).count();
        let bin = &mut self.bins[bin];
        bin.ended += 1;
        bin.used += u64::from(used);
        bin.confidence += confidence;
    }

    /// From the least likely tenth to the most likely.
    pub fn bins(&self) -> &[Bin] {
        &self.bins
    }

    /// 0 is best; what is never sure and right half the time has 0.25. Of nothing there is none.
    pub fn brier(&self) -> Option<f64> {
        let ended: u64 = self.bins.iter().map(|bin| bin.ended).sum();
        (ended > 0).then(|| self.squares / ended as f64)
    }
}

impl AddAssign for Calibration {
    fn add_assign(&mut self, other: Self) {
        self.squares += other.squares;
        for (bin, other) in self.bins.iter_mut().zip(other.bins) {
            bin.ended += other.ended;
            bin.used += other.used;
            bin.confidence += other.confidence;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_right_as_often_as_it_says_is_calibrated() {
        let mut calibration = Calibration::default();
        assert_eq!(calibration.brier(), None);
        (0..10).for_each(|stage| calibration.note(0.9, stage != 0));
        calibration.note(1.0, true);
        calibration.note(0.0, false);
        let bins = calibration.bins();
        assert_eq!((bins[9].ended, bins[9].used, bins[0].ended, bins[0].used), (11, 10, 1, 0));
        assert!((bins[9].confidence - 10.0).abs() < 1e-9);
        let brier = calibration.brier().unwrap();
        assert!((brier - (9.0 * 0.01 + 0.81) / 12.0).abs() < 1e-9, "{brier}");
    }
}
