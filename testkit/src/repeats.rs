//! Median and spread of a few repeats.
//!
//! In: numbers. Out: their median, least and largest. An even count has the mean of the middle two as its median.

use std::fmt;

/// What repeats of one measurement gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Repeats {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Repeats {
    /// None where nothing was measured.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        };
        Some(Self { median, least, most })
    }
}

impl fmt::Display for Repeats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(1);
        let Self { median, least, most } = self;
        write!(f, "{median:.digits$} ({least:.digits$} to {most:.digits$})")
    }
}

#[cfg(test)]
mod tests {
    use super::Repeats;

    #[test]
    fn the_median_is_in_the_middle_and_the_spread_around_it() {
        assert_eq!(Repeats::of(&[3.0, 1.0, 9.0]).unwrap().to_string(), "3.0 (1.0 to 9.0)");
        assert_eq!(format!("{:.0}", Repeats::of(&[4.0, 2.0]).unwrap()), "3 (2 to 4)");
        assert_eq!(Repeats::of(&[]), None);
    }
}
