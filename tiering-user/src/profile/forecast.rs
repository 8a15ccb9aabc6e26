//! What a series will be some points ahead: of a few plain methods the one that erred least so far, with bounds that
//! are passed as often as they should be.
//!
//! In: the series, its period if it has one, and how many points ahead. Out: a [`Forecast`]. The series is gone through
//! from its start as if each point had just come: what each method would have said is judged by what came. So a
//! forecast has no state of its own, and whoever has the history has all of it.
//!
//! A bound is the expected value and a number of mean errors. That number rises where the bound was passed and falls
//! where it was not, so that in the long run one point in twenty is beyond it, whatever the errors look like (quantile
//! tracking; A. Angelopoulos, E. Candès and R. Tibshirani, *Conformal PID control for time series prediction*, NeurIPS
//! 2023).

use std::collections::VecDeque;
use std::fmt;

/// Share of points beyond a bound.
const BEYOND: f64 = 0.05;
/// How fast a bound follows: in mean errors, when it was passed.
const FOLLOW: f64 = 0.5;
/// Mean errors from the expected value to a bound, at first.
const FIRST_BOUND: f64 = 2.0;
/// Points after which an error counts half: so many at least, and so many periods.
const HALF_LIFE: (f64, f64) = (60.0, 3.0);
/// Another method than the naive one has to be better by this.
const BETTER: f64 = 0.97;
/// And to have been judged by so many points.
const JUDGED_LEAST: f64 = 6.0;
/// So many points in a row beyond the same bound are another series: how much a method erred before says nothing any
/// more.
const CHANGED: i32 = 6;
/// Periods of which the seasonal mean is.
const SEASONS: usize = 3;
/// What the level takes from each point, alone and with a trend; what the trend takes; and what is left of it a point
/// further.
const LEVEL: f64 = 0.2;
const LEVEL_WITH_TREND: f64 = 0.5;
const TREND: f64 = 0.1;
const DAMPED: f64 = 0.9;

/// How a forecast is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// As it is.
    Naive,
    /// As it was lately (exponential smoothing).
    Level,
    /// On as it went lately, less and less (Holt's damped trend).
    Trend,
    /// As it was a period ago.
    Seasonal,
    /// As it was in the last periods, their mean.
    SeasonalMean,
    /// As it is, and the change that was there a period ago.
    SeasonalChange,
}

impl Method {
    /// In order: of two that err alike the earlier one is taken.
    pub const ALL: [Self; 6] =
        [Self::Naive, Self::Level, Self::Trend, Self::Seasonal, Self::SeasonalMean, Self::SeasonalChange];

    /// Whether it says what was there a period ago.
    pub fn is_seasonal(self) -> bool {
        matches!(self, Self::Seasonal | Self::SeasonalMean | Self::SeasonalChange)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Naive => "naive",
            Self::Level => "level",
            Self::Trend => "trend",
            Self::Seasonal => "seasonal",
            Self::SeasonalMean => "seasonal-mean",
            Self::SeasonalChange => "seasonal-change",
        })
    }
}

/// What a value will be, in its own unit. Never negative.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Forecast {
    pub expected: f64,
    /// One in twenty is below this.
    pub lower: f64,
    /// One in twenty is above this.
    pub upper: f64,
    pub method: Method,
    /// The mean error so far, by that of the naive method for as many points ahead: below 1 it is better. None where
    /// the naive one never erred.
    pub error: Option<f64>,
}

/// Of the values, oldest first, what will be there `steps` points after the last one. None before anything can be
/// judged.
pub fn forecast(values: &[f64], period: Option<f64>, steps: usize) -> Option<Forecast> {
    let period = period.filter(|period| *period >= 2.0);
    let half_life = HALF_LIFE.0.max(HALF_LIFE.1 * period.unwrap_or(0.0));
    let keep = 0.5_f64.powf(half_life.recip());
    let mut candidates = [Candidate::default(); Method::ALL.len()];
    let mut smoothed = Smoothed::default();
    let mut said: VecDeque<[Option<Said>; Method::ALL.len()]> = VecDeque::with_capacity(steps + 1);
    for (at, value) in values.iter().enumerate() {
        if said.len() == steps
            && let Some(said) = said.pop_front()
        {
            for (candidate, said) in candidates.iter_mut().zip(said) {
                said.into_iter().for_each(|said| candidate.judge(said, *value, keep, steps));
            }
        }
        smoothed.push(*value);
        let expected = expected(&values[..=at], &smoothed, period, steps);
        let say = |(candidate, expected): (&Candidate, Option<f64>)| Some(candidate.say(expected?));
        let mut each = candidates.iter().zip(expected).map(say);
        said.push_back(std::array::from_fn(|_| each.next().flatten()));
    }
    let naive = candidates[0].error()?;
    let last = Method::ALL.into_iter().zip(candidates).zip(said.pop_back()?);
    let judged = last.filter_map(|((method, candidate), said)| Some((method, candidate.error()?, said?)));
    let handicapped = |(method, error, _): &(Method, f64, Said)| match method {
        Method::Naive => *error * BETTER,
        _ => *error,
    };
    let best = judged.min_by(|a, b| handicapped(a).total_cmp(&handicapped(b)));
    let (method, error, Said { expected, bounds }) = best?;
    let [lower, upper] = bounds?;
    Some(Forecast { expected, lower, upper, method, error: (naive > 0.0).then(|| error / naive) })
}

/// What one method says.
#[derive(Clone, Copy, Debug)]
struct Said {
    expected: f64,
    /// None before it was judged often enough.
    bounds: Option<[f64; 2]>,
}

/// By each of [`Method::ALL`]; none by those that have seen too little.
fn expected(
    values: &[f64],
    smoothed: &Smoothed,
    period: Option<f64>,
    steps: usize,
) -> [Option<f64>; Method::ALL.len()] {
    let at = values.len() - 1;
    let naive = values[at];
    // The least whole number of periods after which what is asked for is in the past.
    let past = |more: usize| {
        let period = period?;
        let periods = (steps as f64 / period).ceil() + more as f64;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive, and a few series long at most"
        )]
        let back = (periods * period).round() as usize;
        Some((
            *values.get((at + steps).checked_sub(back)?)?,
            at.checked_sub(back).map(|before| values[before]),
        ))
    };
    let seasonal = past(0).map(|(then, _)| then);
    let seasons = (0..SEASONS).map_while(past).map(|(then, _)| then);
    let (sum, count) = seasons.fold((0.0, 0u32), |(sum, count), then| (sum + then, count + 1));
    let change = past(0).and_then(|(then, before)| Some(then - before?));
    Method::ALL.map(|method| {
        let value = match method {
            Method::Naive => Some(naive),
            Method::Level => Some(smoothed.level),
            Method::Trend => Some(smoothed.on(steps)),
            Method::Seasonal => seasonal,
            Method::SeasonalMean => (count > 0).then(|| sum / f64::from(count)),
            Method::SeasonalChange => change.map(|change| naive + change),
        };
        value.map(|value| value.max(0.0))
    })
}

/// How one method did, and where its bounds are.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    /// Sum of its errors, and how many they are, faded.
    errors: (f64, f64),
    /// Mean errors from what it expects to the lower and the upper bound.
    bounds: [f64; 2],
    /// Points in a row above its upper bound; below zero, under the lower one.
    beyond: i32,
}

impl Default for Candidate {
    fn default() -> Self {
        Self { errors: (0.0, 0.0), bounds: [FIRST_BOUND; 2], beyond: 0 }
    }
}

impl Candidate {
    /// Its mean error, once it was judged often enough.
    fn error(&self) -> Option<f64> {
        let (sum, count) = self.errors;
        (count >= JUDGED_LEAST).then(|| sum / count)
    }

    fn say(&self, expected: f64) -> Said {
        let [below, above] = self.bounds;
        let bounds = self
            .error()
            .map(|error| [expected - below * error, expected + above * error].map(|bound| bound.max(0.0)));
        Said { expected, bounds }
    }

    /// What it said `steps` points ago came to be this.
    fn judge(&mut self, said: Said, value: f64, keep: f64, steps: usize) {
        let (sum, count) = self.errors;
        self.errors = (sum * keep + (said.expected - value).abs(), count * keep + 1.0);
        let Some([lower, upper]) = said.bounds else { return };
        let passed = [value < lower, value > upper];
        for (bound, passed) in self.bounds.iter_mut().zip(passed) {
            *bound += FOLLOW * (f64::from(u8::from(passed)) - BEYOND);
        }
        self.beyond = match passed {
            [_, true] => self.beyond.max(0) + 1,
            [true, _] => self.beyond.min(0) - 1,
            _ => 0,
        };
        // What so many points said of the same change is one error.
        if self.beyond.abs() >= CHANGED.saturating_add_unsigned(u32::try_from(steps).unwrap_or(u32::MAX)) {
            *self = Self::default();
        }
    }
}

/// What is left of the past in the level, and in the level and trend.
#[derive(Clone, Copy, Debug, Default)]
struct Smoothed {
    points: u64,
    level: f64,
    with_trend: f64,
    trend: f64,
}

impl Smoothed {
    fn push(&mut self, value: f64) {
        if self.points == 0 {
            (self.level, self.with_trend) = (value, value);
        }
        self.points += 1;
        self.level += LEVEL * (value - self.level);
        let before = self.with_trend;
        let on = before + DAMPED * self.trend;
        self.with_trend = on + LEVEL_WITH_TREND * (value - on);
        self.trend = TREND * (self.with_trend - before) + (1.0 - TREND) * DAMPED * self.trend;
    }

    /// Where it is so many points further.
    fn on(&self, steps: usize) -> f64 {
        let steps = i32::try_from(steps).unwrap_or(i32::MAX);
        self.with_trend + self.trend * DAMPED * (1.0 - DAMPED.powi(steps)) / (1.0 - DAMPED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From -1 to 1, and nothing to do with each other.
    fn noise(seed: u32) -> impl FnMut() -> f64 {
        let mut state = seed;
        move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(state >> 8) / f64::from(1 << 23) - 1.0
        }
    }

    /// Of what is predicted at each of the later points: the mean error by that of the naive method, and the share
    /// above and below the bounds.
    fn rolling(values: &[f64], period: Option<f64>, steps: usize) -> (f64, f64, f64) {
        let (mut error, mut naive, mut above, mut below, mut count) = (0.0, 0.0, 0u32, 0u32, 0u32);
        for at in values.len() / 3..values.len() - steps {
            let said = forecast(&values[..=at], period, steps).unwrap();
            let came = values[at + steps];
            error += (said.expected - came).abs();
            naive += (values[at] - came).abs();
            above += u32::from(came > said.upper);
            below += u32::from(came < said.lower);
            count += 1;
        }
        (error / naive, f64::from(above) / f64::from(count), f64::from(below) / f64::from(count))
    }

    #[test]
    fn what_comes_each_period_is_foretold() {
        let mut noise = noise(1);
        let work: Vec<f64> =
            (0..360).map(|at| 50.0 + 10.0 * noise() + if at % 48 < 12 { 1000.0 } else { 0.0 }).collect();
        let (error, above, below) = rolling(&work, Some(48.0), 6);
        assert!(error < 0.15, "{error}");
        assert!((0.02..0.08).contains(&above) && (0.02..0.08).contains(&below), "{above} {below}");
        // At its end a period and a half are over: quiet, and work again in half a period.
        assert!(forecast(&work, Some(48.0), 6).unwrap().expected < 100.0);
        let rise = forecast(&work, Some(48.0), 28).unwrap();
        assert!(rise.expected > 900.0 && rise.method.is_seasonal() && rise.lower > 100.0, "{rise:?}");
        assert!(rise.error.unwrap() < 0.2, "{rise:?}");
    }

    #[test]
    fn a_period_need_not_be_a_whole_number_of_points() {
        let saw: Vec<f64> = (0..400).map(|at| (f64::from(at) % 7.5) * 10.0).collect();
        let (error, ..) = rolling(&saw, Some(7.5), 3);
        assert!(error < 0.3, "{error}");
    }

    #[test]
    fn where_nothing_comes_again_it_is_not_much_worse_than_the_naive_method() {
        for seed in 1..6 {
            let mut noise = noise(seed);
            let white: Vec<f64> = (0..600).map(|_| 100.0 + 50.0 * noise()).collect();
            let mut sum = 1000.0;
            let walk: Vec<f64> = (0..600)
                .map(|_| {
                    sum = f64::max(sum + 10.0 * noise(), 0.0);
                    sum
                })
                .collect();
            for (values, most) in [(white, 0.85), (walk, 1.05)] {
                for period in [None, Some(17.0)] {
                    let (error, above, below) = rolling(&values, period, 5);
                    assert!(error < most, "{error}, seed {seed}, period {period:?}");
                    assert!(
                        (0.02..0.08).contains(&above) && (0.02..0.08).contains(&below),
                        "{above} {below}"
                    );
                }
            }
        }
    }

    #[test]
    fn after_a_change_what_was_is_forgotten() {
        // A period that ends; what was there of it must not be expected for long.
        let mut noise = noise(3);
        let ended: Vec<f64> =
            (0..360).map(|at| 50.0 + noise() + if at % 20 < 10 && at < 200 { 1000.0 } else { 0.0 }).collect();
        assert!(forecast(&ended[..200], Some(20.0), 5).unwrap().expected > 900.0);
        let after = forecast(&ended, Some(20.0), 5).unwrap();
        assert!((after.expected - 50.0).abs() < 5.0 && after.upper < 200.0, "{after:?}");
        // A level that is another one.
        let shifted: Vec<f64> = (0..300).map(|at| if at < 150 { 1000.0 } else { 10.0 } + noise()).collect();
        let after = forecast(&shifted[..170], None, 5).unwrap();
        assert!((after.expected - 10.0).abs() < 3.0, "{after:?}");
    }

    #[test]
    fn too_little_is_no_forecast_and_what_never_changes_is_sure() {
        assert_eq!(forecast(&[], None, 1), None);
        assert_eq!(forecast(&[1.0; 6], None, 6), None);
        let same = forecast(&[7.0; 20], Some(4.0), 6).unwrap();
        assert_eq!((same.expected, same.lower, same.upper, same.error), (7.0, 7.0, 7.0, None));
        assert_eq!(same.method, Method::Naive);
    }
}
