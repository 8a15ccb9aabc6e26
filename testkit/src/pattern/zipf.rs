//! Ranks of a Zipf distribution: rank r, from 1, comes with a probability in proportion to r^-skew.
//!
//! In: how many ranks, the skew, random numbers. Out: ranks, from 0. Only integers are used: libraries compute powers
//! differently on different processors, and the guest's must be the host's.
//!
//! Limits: a weight is at least 2^-40 of the first, so very rare ranks come a little too often.

use crate::random::Random;

/// Bits behind the point of logarithms and weights.
const LOG_BITS: u32 = 32;
const WEIGHT_BITS: u32 = 40;
/// Bits behind the point while computing.
const BITS: u32 = 62;

#[derive(Debug, Clone)]
pub struct Zipf {
    /// Weight of each rank and all before it.
    sums: Vec<u64>,
}

impl Zipf {
    pub fn new(ranks: usize, skew_percent: u64) -> Self {
        let roots = roots();
        let mut sum = 0;
        let weights = (1..=ranks as u64).map(|rank| {
            sum += power_of_half(u128::from(log2(rank)) * u128::from(skew_percent) / 100, &roots);
            sum
        });
        Self { sums: weights.collect() }
    }

    /// The next rank, from 0.
    pub fn draw(&self, random: &mut Random) -> usize {
        let total = self.sums.last().copied().unwrap_or(0);
        // The high half of the product: below the total, without the bias of a remainder.
        let at = (u128::from(random.next()) * u128::from(total)) >> 64;
        self.sums.partition_point(|sum| u128::from(*sum) <= at)
    }
}

/// The logarithm to base 2 of a number above 0: whole part, then bit by bit by squaring.
fn log2(number: u64) -> u64 {
    let whole = number.ilog2();
    let mut rest = u128::from(number) << (BITS - whole);
    let mut log = u64::from(whole);
    for _ in 0..LOG_BITS {
        rest = (rest * rest) >> BITS;
        let bit = rest >> (BITS + 1);
        rest >>= bit;
        log = log << 1 | u64::from(bit == 1);
    }
    log
}

/// 2 to the power of -1/2, -1/4, and so on.
fn roots() -> [u128; LOG_BITS as usize] {
    let mut root: u128 = 1 << (BITS - 1);
    std::array::from_fn(|_| {
        root = (root << BITS).isqrt();
        root
    })
}

/// 2 to the power of minus an exponent, at least the smallest number above 0.
fn power_of_half(exponent: u128, roots: &[u128; LOG_BITS as usize]) -> u64 {
    let whole = exponent >> LOG_BITS;
    if whole >= u128::from(WEIGHT_BITS) {
        return 1;
    }
    let mut power = (1 << BITS) >> whole;
    for (bit, root) in (0..LOG_BITS).rev().zip(roots) {
        if exponent >> bit & 1 == 1 {
            power = (power * root) >> BITS;
        }
    }
    u64::try_from(power >> (BITS - WEIGHT_BITS)).map_or(1, |weight| weight.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_the_ranks_powers() {
        for skew_percent in [0, 50, 99, 150] {
            let zipf = Zipf::new(1000, skew_percent);
            let mut before = 0;
            for (rank, sum) in (1..).zip(&zipf.sums) {
                let weight = (sum - before) as f64 / (1u64 << WEIGHT_BITS) as f64;
                let expected = f64::from(rank).powf(-(skew_percent as f64) / 100.0);
                assert!((weight / expected - 1.0).abs() < 1e-6, "{rank}^-{skew_percent}%: {weight}");
                before = *sum;
            }
        }
    }
}
