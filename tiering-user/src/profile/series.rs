//! A series of measurements that gets coarser with age: an hour by 10 s, a day by the minute, a week by 10 min.
//!
//! In: one point an epoch. Out: the points of each resolution, oldest first; the period that a series has, if it has
//! one; all of it as bytes.

use std::collections::VecDeque;
use std::time::Duration;

use super::forecast::{Forecast, forecast};

/// Length of an epoch.
pub const EPOCH: Duration = Duration::from_secs(10);
/// Epochs in a point, and points that are kept, finest first.
const LEVELS: [(u32, usize); 3] = [(1, 360), (6, 1440), (60, 1008)];
/// Least correlation of a series with itself a period earlier.
const CORRELATED: f64 = 0.5;
/// Periods that a series must have held to have one.
const PERIODS_LEAST: usize = 3;
/// A correlation this near to the highest one is as good, so that a multiple is not taken for the period.
const NEARLY: f64 = 0.9;

/// What is predicted so far ahead without a period is predicted by the finest points of which that is no more than so
/// many.
const POINTS_AHEAD: u32 = 30;

/// What was measured in a span of time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Point {
    /// Accesses a second, the mean.
    pub rate: f32,
    /// Working set in pages, the highest.
    pub working_set: u32,
}

/// A period that a series has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Season {
    pub period: Duration,
    /// Of the rate with itself a period earlier, 0.5 to 1.
    pub correlation: f64,
    /// By the points of this level.
    level: usize,
}

impl Season {
    /// How exactly the period is known.
    pub fn resolution(&self) -> Duration {
        length(self.level)
    }
}

/// What will be, some time from now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ahead {
    pub after: Duration,
    /// Values are means, or the highest, of so long until then.
    pub over: Duration,
    /// Accesses a second.
    pub rate: Forecast,
    /// Pages that were used within a minute.
    pub working_set: Forecast,
}

/// Points of one resolution, and the one that is not complete.
#[derive(Clone, Debug, Default, PartialEq)]
struct Level {
    points: VecDeque<Point>,
    sum: f32,
    most: u32,
    epochs: u32,
}

/// The series of one VM.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    levels: [Level; LEVELS.len()],
}

impl Series {
    pub fn push(&mut self, point: Point) {
        for (level, (epochs, most)) in self.levels.iter_mut().zip(LEVELS) {
            level.sum += point.rate;
            level.most = level.most.max(point.working_set);
            level.epochs += 1;
            if level.epochs == epochs {
                let point = Point { rate: level.sum / epochs as f32, working_set: level.most };
                if level.points.len() == most {
                    level.points.pop_front();
                }
                let points = std::mem::take(&mut level.points);
                *level = Level { points, ..Level::default() };
                level.points.push_back(point);
            }
        }
    }

    /// Memory that its points take, bytes.
    pub fn bytes(&self) -> u64 {
        self.levels.iter().map(|level| (level.points.capacity() * size_of::<Point>()) as u64).sum()
    }

    /// Lets so many epochs pass of which nothing is known: as if there had been no accesses.
    pub fn skip(&mut self, epochs: u64) {
        // Until even the coarsest point that had begun is gone.
        let all = LEVELS.iter().map(|(epochs, most)| u64::from(*epochs) * (*most as u64 + 1)).max();
        let all = all.unwrap_or(0);
        (0..epochs.min(all)).for_each(|_| self.push(Point::default()));
    }

    /// As bytes: of each level the number of its points, of epochs in the one that is not complete, and that; then the
    /// points. Little-endian, each point a rate and a working set of four bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for Level { points, sum, most, epochs } in &self.levels {
            // No level has as many.
            let count = u32::try_from(points.len()).unwrap_or(u32::MAX);
            [count, *epochs, sum.to_bits(), *most].iter().for_each(|word| bytes.extend(word.to_le_bytes()));
            for point in points {
                bytes.extend(point.rate.to_le_bytes());
                bytes.extend(point.working_set.to_le_bytes());
            }
        }
        bytes
    }

    /// None for what [`Self::encode`] has not written.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut words = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word));
        let mut series = Self::default();
        for (level, (epochs, most)) in series.levels.iter_mut().zip(LEVELS) {
            let (count, running) = (words.next()? as usize, words.next()?);
            (level.sum, level.most) = (f32::from_bits(words.next()?), words.next()?);
            if count > most || running >= epochs || !level.sum.is_finite() {
                return None;
            }
            level.epochs = running;
            for _ in 0..count {
                let (rate, working_set) = (f32::from_bits(words.next()?), words.next()?);
                level
                    .points
                    .push_back(Some(Point { rate, working_set }).filter(|point| point.rate.is_finite())?);
            }
        }
        (words.next().is_none() && bytes.len().is_multiple_of(4)).then_some(series)
    }

    /// The points of the last hour, one an epoch, oldest first.
    pub fn hour(&self) -> impl ExactSizeIterator<Item = Point> {
        self.points(0)
    }

    /// After how long its accesses come and go again; by the finest resolution that shows it. None where it does not.
    pub fn season(&self) -> Option<Season> {
        (0..LEVELS.len()).find_map(|level| {
            let rates: Vec<f64> = self.points(level).map(|point| f64::from(point.rate)).collect();
            let (lag, correlation) = period(&rates)?;
            Some(Season { period: length(level) * u32::try_from(lag).ok()?, correlation, level })
        })
    }

    /// Whether that season predicts the rate better than anything else does: where half a period from now it is as a
    /// period before, not as it is now.
    pub fn comes_again(&self, season: Season) -> bool {
        let rates: Vec<f64> = self.points(season.level).map(|point| point.rate.into()).collect();
        let period = season.period.div_duration_f64(length(season.level));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive, and a few hundred at most"
        )]
        let half = (period / 2.0).ceil() as usize;
        forecast(&rates, Some(period), half).is_some_and(|forecast| forecast.method.is_seasonal())
    }

    /// What will be `after` so long, if it goes on with this season. None while there is too little to go by.
    pub fn ahead(&self, after: Duration, season: Option<Season>) -> Option<Ahead> {
        let level = level_for(after, season);
        let points = |duration: Duration| duration.div_duration_f64(length(level));
        let period = season.map(|season| points(season.period));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positive, and a few hundred at most"
        )]
        let steps = points(after).round().max(1.0) as usize;
        let rates: Vec<f64> = self.points(level).map(|point| point.rate.into()).collect();
        let working_sets: Vec<f64> = self.points(level).map(|point| point.working_set.into()).collect();
        let rate = forecast(&rates, period, steps)?;
        let working_set = forecast(&working_sets, period, steps)?;
        Some(Ahead { after, over: length(level), rate, working_set })
    }

    /// Whether the latest epoch has changed what [`Self::ahead`] says of this.
    pub fn is_new(&self, after: Duration, season: Option<Season>) -> bool {
        self.levels[level_for(after, season)].epochs == 0
    }

    fn points(&self, level: usize) -> impl ExactSizeIterator<Item = Point> {
        self.levels[level].points.iter().copied()
    }
}

/// Of a point.
fn length(level: usize) -> Duration {
    EPOCH * LEVELS[level].0
}

/// The level whose points say most about what will be so far ahead: those that show the season, if they are fine
/// enough.
fn level_for(after: Duration, season: Option<Season>) -> usize {
    let of_season = season.map(|season| season.level).filter(|level| length(*level) <= after);
    let finest = || (0..LEVELS.len()).find(|level| after <= length(*level) * POINTS_AHEAD);
    of_season.or_else(finest).unwrap_or(LEVELS.len() - 1)
}

/// The lag at which a series is most like itself, and its autocorrelation there.
fn period(values: &[f64]) -> Option<(usize, f64)> {
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    let centred: Vec<f64> = values.iter().map(|value| value - mean).collect();
    let variance = centred.iter().map(|value| value * value).sum::<f64>() / centred.len().max(1) as f64;
    // A rate that hardly varies has no period, whatever its last digits do.
    if variance <= (0.05 * mean).powi(2) {
        return None;
    }
    let at = |lag: usize| {
        let pairs = centred.iter().zip(centred.get(lag..).unwrap_or_default());
        let product: f64 = pairs.map(|(before, now)| before * now).sum();
        product / ((centred.len() - lag) as f64 * variance)
    };
    let correlations: Vec<f64> = (0..=values.len() / PERIODS_LEAST).map(at).collect();
    // A series that changes slowly is like itself a moment ago: a period comes after it was not.
    let first = correlations.iter().position(|correlation| *correlation < 0.0)?;
    let best = correlations.iter().skip(first).copied().fold(0.0, f64::max);
    let peaks =
        correlations.windows(3).enumerate().skip(first).filter(|(_, near)| near[1] >= near[0].max(near[2]));
    let found = peaks
        .map(|(before, near)| (before + 1, near[1]))
        .find(|(_, correlation)| *correlation >= NEARLY * best);
    found.filter(|(_, correlation)| *correlation >= CORRELATED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(rates: impl Iterator<Item = f32>) -> Series {
        let mut series = Series::default();
        rates.for_each(|rate| series.push(Point { rate, working_set: 0 }));
        series
    }

    /// Numbers from 0 to 255 that have nothing to do with each other.
    fn noise() -> impl FnMut() -> f32 {
        let mut state = 1u32;
        move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as f32
        }
    }

    #[test]
    fn older_points_are_coarser_and_there_are_never_more_than_so_many() {
        let mut series = Series::default();
        for epoch in 0..100_000u32 {
            series.push(Point { rate: (epoch % 60) as f32, working_set: epoch % 60 });
        }
        let lens = series.levels.each_ref().map(|level| level.points.len());
        assert_eq!(lens, LEVELS.map(|(_, most)| most));
        assert_eq!(series.hour().last(), Some(Point { rate: 39.0, working_set: 39 }));
        let ten_minutes = series.levels[2].points.back().unwrap();
        assert_eq!((ten_minutes.rate, ten_minutes.working_set), (29.5, 59));
    }

    #[test]
    fn a_series_is_the_same_after_it_was_written_and_nonsense_is_none() {
        let mut noise = noise();
        let series = series((0..10_007).map(|_| noise()));
        let bytes = series.encode();
        assert!(bytes.len() < 30_000, "{} bytes", bytes.len());
        assert_eq!(Series::decode(&bytes), Some(series));
        assert_eq!(Series::decode(&Series::default().encode()), Some(Series::default()));
        assert_eq!(Series::decode(&bytes[..bytes.len() - 4]), None);
        assert_eq!(Series::decode(&[0xff; 64]), None);
        assert_eq!(Series::decode(&[]), None);
    }

    #[test]
    fn time_that_nobody_watched_is_without_accesses() {
        let mut series = series((0..100).map(|_| 7.0));
        series.skip(10);
        assert_eq!(series.hour().filter(|point| point.rate > 0.0).count(), 100);
        series.skip(u64::MAX);
        assert!(series.levels.iter().all(|level| level.points.iter().all(|point| point.rate == 0.0)));
    }

    #[test]
    fn a_period_is_found_at_the_resolution_that_shows_it() {
        let mut noise = noise();
        // Two minutes of work in every eight.
        let minutes = series((0..360).map(|epoch| noise() + if epoch % 48 < 12 { 1000.0 } else { 0.0 }));
        let season = minutes.season().unwrap();
        assert_eq!(season.period, Duration::from_mins(8));
        assert!(season.correlation > 0.8, "{season:?}");
        // An hour in every six: an hour's points show nothing of it.
        let hours = series((0..8640).map(|epoch| noise() + if epoch % 2160 < 360 { 1000.0 } else { 0.0 }));
        assert_eq!(hours.season().unwrap().period, Duration::from_hours(6));
    }

    #[test]
    fn what_comes_each_period_is_foretold_by_the_points_that_show_it() {
        let mut noise = noise();
        let minutes = series((0..360).map(|epoch| noise() + if epoch % 48 < 12 { 1000.0 } else { 0.0 }));
        // 24 epochs of quiet are over, so in four minutes there is work.
        let season = minutes.season();
        let ahead = |minutes_ahead| minutes.ahead(Duration::from_mins(minutes_ahead), season).unwrap().rate;
        assert!(ahead(1).upper < 600.0, "{:?}", ahead(1));
        assert!(ahead(5).expected > 900.0 && ahead(5).method.is_seasonal(), "{:?}", ahead(5));
        // A job of an hour each day, which begins in 20 minutes.
        let at_night = |epoch: u32| if epoch % 8640 < 360 { 1000.0 } else { 0.0 };
        let days = series((0..6 * 8640 - 120).map(|epoch| noise() + at_night(epoch)));
        let season = days.season();
        assert_eq!(season.unwrap().period, Duration::from_hours(24));
        let ahead = |minutes_ahead| days.ahead(Duration::from_mins(minutes_ahead), season).unwrap().rate;
        assert!(ahead(10).expected < 300.0 && ahead(30).expected > 900.0, "{:?} {:?}", ahead(10), ahead(30));
        assert_eq!(Series::default().ahead(Duration::from_mins(1), None), None);
    }

    #[test]
    fn what_comes_again_is_known_whatever_its_period_is() {
        let mut noise = noise();
        // So that a minute from now, and five, it is as it is now.
        for period in [6, 10, 15, 48] {
            let series =
                series((0..360).map(|epoch| noise() + if epoch % period < 2 { 1000.0 } else { 0.0 }));
            let season = series.season().unwrap();
            assert_eq!(season.period, EPOCH * period);
            assert!(series.comes_again(season), "{season:?}");
        }
        // What is always the same does not.
        let steady = series((0..360).map(|_| 7.0));
        assert!(!steady.comes_again(Season { period: EPOCH * 10, correlation: 0.6, level: 0 }));
    }

    #[test]
    fn what_has_no_period_is_given_none() {
        assert_eq!(Series::default().season(), None);
        assert_eq!(series((0..360).map(|_| 7.0)).season(), None, "steady");
        assert_eq!(series((0..360).map(|epoch| epoch as f32)).season(), None, "a trend");
        let mut noise = noise();
        let noise = series((0..360).map(|_| noise()));
        assert_eq!(noise.season(), None, "noise");
        let once = series((0..360).map(|epoch| if epoch == 100 { 1000.0 } else { 1.0 }));
        assert_eq!(once.season(), None, "a single burst");
    }
}
