//! A set of names in one KiB: how many they are, and how much of another set they are.
//!
//! MinHash by one permutation (Li, Owen, Zhang, "One Permutation Hashing", 2012): a name's hash says to which bin it
//! belongs and with which value, and each bin keeps its least. Of two sets, a bin's least over both is a name of each
//! set with the probability that any name of both is: so shares of bins estimate shares of names. Bins that are empty
//! in both sets say nothing and are left out, which keeps the estimate unbiased for sets of few names, too.
//!
//! # Limits
//! Names cannot be taken out. The standard error of a share is that of a coin thrown as often as there are bins that
//! count: at most 0.031 where 256 do; 0.13 for the share of a set that is a sixteenth of the union, whose bins are 16.
//! Of the size it is 6 %. Up to about 2^31 names.

/// For a standard error of 3 %; also at least as many as the bands of [`super::bands`] need.
pub(super) const BINS: usize = 256;
/// No name has this value, and none a negative one: every x86-64 compares signed numbers four at a time.
pub(super) const EMPTY: i32 = i32::MAX;
/// Bits of a hash that are its value.
const RANGE: u64 = (1 << 31) - 1;
const NO_NAMES: [i32; BINS] = [EMPTY; BINS];

/// A set of names, as the least hash of each bin. Takes no memory as long as it is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sketch(Option<Box<[i32; BINS]>>);

/// How two sets meet: bins whose least name is in both, or in one of them only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Meeting {
    pub both: u32,
    pub first_only: u32,
    pub second_only: u32,
}

impl Meeting {
    /// Takes the sets as what they have in each bin.
    pub fn of(first: &[i32; BINS], second: &[i32; BINS]) -> Self {
        let mut meeting = Self::default();
        for (a, b) in first.iter().zip(second) {
            meeting.both += u32::from(a == b) & u32::from(*a != EMPTY);
            meeting.first_only += u32::from(a < b);
            meeting.second_only += u32::from(b < a);
        }
        meeting
    }

    /// Of what is in either, the share that is in both; None if there is nothing.
    pub fn jaccard(self) -> Option<f64> {
        share(self.both, self.both + self.first_only + self.second_only)
    }

    /// Of the first, the share that is in the second, too.
    pub fn of_first(self) -> Option<f64> {
        share(self.both, self.both + self.first_only)
    }

    /// Of the second, the share that is in the first, too.
    pub fn of_second(self) -> Option<f64> {
        share(self.both, self.both + self.second_only)
    }
}

fn share(part: u32, whole: u32) -> Option<f64> {
    (whole > 0).then(|| f64::from(part) / f64::from(whole))
}

impl Sketch {
    pub fn insert(&mut self, name: u64) {
        let hash = mix(name);
        let bins = self.0.get_or_insert_with(|| Box::new(NO_NAMES));
        // The bin by the highest bits, the value by the lowest: they are independent.
        let least = &mut bins[(hash >> 56) as usize];
        *least = (*least).min(((hash & RANGE) as i32).min(EMPTY - 1));
    }

    /// Adds all names of another set.
    pub fn merge(&mut self, other: &Self) {
        let Some(others) = &other.0 else { return };
        match &mut self.0 {
            Some(bins) => {
                bins.iter_mut().zip(others.iter()).for_each(|(bin, other)| *bin = (*bin).min(*other));
            }
            None => self.0 = Some(others.clone()),
        }
    }

    pub fn clear(&mut self) {
        self.0 = None;
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// About how many names there are.
    ///
    /// Names fall into a bin at some rate, so its least value is exponentially distributed, and cut off at 1, where a
    /// bin is empty: this is the maximum-likelihood estimate of that rate, for few names as for many.
    pub fn distinct(&self) -> f64 {
        let range = f64::from(EMPTY);
        let filled = self.bins().iter().filter(|least| **least != EMPTY).count() as f64;
        let values: f64 = self.bins().iter().map(|least| (f64::from(*least) + 1.0).min(range) / range).sum();
        filled * BINS as f64 / values
    }

    /// Of the names in either, the share that is in both; 0 if there are none.
    pub fn jaccard(&self, other: &Self) -> f64 {
        self.meet(other).jaccard().unwrap_or(0.0)
    }

    /// Of this one's names, the share that the other has, too; 0 if there are none.
    ///
    /// Counted over the bins whose least name is this one's, instead of from the Jaccard index and two estimated sizes:
    /// what is wholly contained is so exactly, and the errors of the sizes do not add up.
    pub fn contained_in(&self, other: &Self) -> f64 {
        self.meet(other).of_first().unwrap_or(0.0)
    }

    pub(super) fn meet(&self, other: &Self) -> Meeting {
        Meeting::of(self.bins(), other.bins())
    }

    pub(super) fn bins(&self) -> &[i32; BINS] {
        self.0.as_deref().unwrap_or(&NO_NAMES)
    }
}

impl FromIterator<u64> for Sketch {
    fn from_iter<Names: IntoIterator<Item = u64>>(names: Names) -> Self {
        let mut sketch = Self::default();
        names.into_iter().for_each(|name| sketch.insert(name));
        sketch
    }
}

/// Splitmix64's output function: a bijection that spreads every bit.
pub(super) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_empty_set_has_nothing_and_shares_nothing() {
        let (none, some) = (Sketch::default(), Sketch::from_iter(0..9));
        assert!(none.is_empty() && !some.is_empty());
        assert_eq!((none.distinct(), none.jaccard(&none), none.contained_in(&some)), (0.0, 0.0, 0.0));
        let mut cleared = some.clone();
        cleared.clear();
        assert_eq!(cleared, none);
        cleared.merge(&some);
        assert_eq!(cleared, some);
    }

    #[test]
    fn a_part_of_a_set_is_wholly_contained_whatever_the_sizes() {
        for (part, whole) in [(1, 2), (10, 1000), (500, 100_000)] {
            let (part, whole) = (Sketch::from_iter(0..part), Sketch::from_iter(0..whole));
            assert!(part.contained_in(&whole) == 1.0 || part.meet(&whole).of_first().is_none());
            assert!(whole.contained_in(&part) < 0.6);
        }
    }

    #[test]
    fn few_names_are_nearly_exact() {
        let (one, other) = (Sketch::from_iter([1, 2, 3]), Sketch::from_iter([3, 4]));
        assert_eq!((one.jaccard(&other), one.contained_in(&other)), (0.25, 1.0 / 3.0));
        assert!((one.distinct() - 3.0).abs() < 0.1);
    }

    #[test]
    fn the_error_of_a_size_is_as_small_as_it_should_be() {
        for names in [1u64, 30, 256, 1000, 30_000] {
            let errors = (0..50).map(|set| {
                let sketch = Sketch::from_iter((0..names).map(|name| mix(set << 40 | name)));
                (sketch.distinct() / names as f64 - 1.0).powi(2)
            });
            let error = (errors.sum::<f64>() / 50.0).sqrt();
            assert!(error < 0.08, "{names} names: {error:.3}");
        }
    }

    proptest! {
        /// Five standard errors, and what the estimate is of: exact sets.
        #[test]
        fn shares_are_those_of_the_exact_sets(seed: u64, both in 0u64..3000, one in 0u64..3000, other in 0u64..3000) {
            let names = |from: u64, count: u64| (0..count).map(move |name| mix(seed ^ mix(from + name)));
            let first: Sketch = names(0, both).chain(names(1 << 40, one)).collect();
            let second: Sketch = names(0, both).chain(names(2 << 40, other)).collect();
            let near = |found: f64, part: u64, whole: u64, of_bins: f64| {
                let exact = part as f64 / whole.max(1) as f64;
                let bins = (whole as f64).min(BINS as f64 * of_bins).max(1.0) * 0.6;
                (found - exact).abs() <= 5.0 * (exact * (1.0 - exact) / bins).sqrt() + 0.02 + 2.0 / bins
            };
            let union = both + one + other;
            let of_first = (both + one) as f64 / union.max(1) as f64;
            prop_assert!(near(first.jaccard(&second), both, union, 1.0));
            prop_assert!(near(first.contained_in(&second), both, both + one, of_first));
            let mut merged = first.clone();
            merged.merge(&second);
            prop_assert!((merged.distinct() - union as f64).abs() <= 0.35 * union as f64 + 1.0);
            prop_assert_eq!(first.jaccard(&second), second.jaccard(&first));
        }
    }
}
