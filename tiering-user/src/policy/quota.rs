//! Who may have how much of the first tier.
//!
//! Weighted max-min fairness: a machine that wants less than its share keeps what it wants, and the rest is shared among
//! those that want more, by weight. Every machine has a floor. A share is a bound only while the tier is short of room.
//!
//! # Limits
//! What a machine wants is what it has there, not what one more page would spare it.

use super::priority_scale;
use crate::track::VmId;

/// What a machine wants of the first tier.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Claim {
    pub vm: VmId,
    /// Pages it has there.
    pub wants: u64,
    /// Pages it is left in any case.
    pub floor: u64,
    /// Positive.
    pub weight: f64,
}

/// The weight of a machine: 1 for priority 50, 4 for 100, a quarter for 0.
pub fn weight(priority: u8) -> f64 {
    priority_scale(priority).powi(2)
}

/// Divides `pages` among the claims, in their order.
pub fn shares(claims: &[Claim], pages: u64) -> Vec<u64> {
    let least = |claim: &Claim| claim.floor.min(claim.wants);
    let mut shares: Vec<u64> = claims.iter().map(least).collect();
    // Those that want more than their floor, the easiest to satisfy first.
    let mut open: Vec<usize> = (0..claims.len()).filter(|i| claims[*i].wants > shares[*i]).collect();
    let per_weight = |claim: &Claim| claim.wants as f64 / claim.weight;
    open.sort_by(|a, b| per_weight(&claims[*a]).total_cmp(&per_weight(&claims[*b])));
    let mut rest = pages.saturating_sub(shares.iter().sum());
    let mut weights: f64 = open.iter().map(|i| claims[*i].weight).sum();
    for i in open {
        let claim = &claims[i];
        // Its part of what is left, of which its floor is already its own.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a part of a number of pages"
        )]
        let part = (rest as f64 * (claim.weight / weights)).ceil() as u64;
        let more = part.min(claim.wants - shares[i]).min(rest);
        shares[i] += more;
        rest -= more;
        weights -= claim.weight;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claim(wants: u64, floor: u64, weight: f64) -> Claim {
        Claim { vm: VmId(1), wants, floor, weight }
    }

    #[test]
    fn those_that_want_little_keep_it_and_the_rest_is_shared_by_weight() {
        let claims = [claim(100, 0, 1.0), claim(1000, 0, 1.0), claim(1000, 0, 2.0)];
        assert_eq!(shares(&claims, 1000), [100, 300, 600]);
        assert_eq!(shares(&claims, 5000), [100, 1000, 1000], "there is room for all");
    }

    #[test]
    fn a_floor_is_kept_whatever_the_weight() {
        let claims = [claim(1000, 200, 0.25), claim(1000, 0, 4.0)];
        let divided = shares(&claims, 500);
        assert!(divided[0] >= 200, "{divided:?}");
        assert!(divided.iter().sum::<u64>() <= 500);
    }

    #[test]
    fn priority_weighs() {
        assert!(
            [(0, 0.25), (50, 1.0), (100, 4.0)]
                .iter()
                .all(|(priority, is)| (weight(*priority) - is).abs() < 1e-9)
        );
    }

    proptest! {
        #[test]
        fn nobody_gets_more_than_it_wants_nor_less_than_its_floor(
            claims in prop::collection::vec((0u64..10_000, 0u64..1000, 0.1f64..8.0), 0..20), pages in 0u64..100_000,
        ) {
            let claims: Vec<_> = claims.into_iter().map(|(wants, floor, weight)| claim(wants, floor, weight)).collect();
            let divided = shares(&claims, pages);
            let floors: u64 = claims.iter().map(|claim| claim.floor.min(claim.wants)).sum();
            prop_assert!(divided.iter().sum::<u64>() <= pages.max(floors));
            for (claim, share) in claims.iter().zip(&divided) {
                prop_assert!(*share <= claim.wants && *share >= claim.floor.min(claim.wants));
            }
            let wanted: u64 = claims.iter().map(|claim| claim.wants).sum();
            if wanted <= pages && floors == 0 {
                prop_assert_eq!(divided.iter().sum::<u64>(), wanted);
            }
        }
    }
}
