//! Who may have how much of the first tier.
//!
//! In three steps:
//!
//! 1. Weighted max-min fairness: a VM that wants less than its share keeps what it wants, and the rest is shared
//!    among those that want more, by weight. Every VM has a floor.
//! 2. Of a VM whose accesses to pages in memory show, it is known how many would wait if it had less or more (its
//!    miss-ratio curve). Half of such a VM's fair share goes where it spares the most waits for a page, times the
//!    weight (lookahead of utility-based partitioning; M. K. Qureshi, Y. N. Patt, [MICRO
//!    2006](https://doi.org/10.1109/MICRO.2006.49)). Where one part alone spares nothing and several do, as with walks,
//!    they go together or not at all.
//! 3. What spares nobody anything is shared as in the first step.
//!
//! A share is a bound only while the tier is short of room.
//!
//! # Limits
//! A VM of which not enough shows keeps its fair share. A curve tells what was, not what will be, and in steps:
//! VMs that are alike can end up a few parts apart.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::priority_scale;
use crate::track::VmId;

/// Equal parts of what a VM wants, for which it is told how many accesses wait.
pub const PARTS: usize = 16;
/// Of its fair share, what a VM keeps whatever others would do with it.
const KEPT: u64 = 2;
/// Gains that differ by less, as a factor, count as equal: chance makes them different.
const ALIKE: f64 = 1.1;

/// Accesses in some time, the same for all VMs, that wait if a VM has 0, 1, ... [`PARTS`] parts of what it
/// wants.
pub type Waits = [f64; PARTS + 1];

/// What a VM wants of the first tier.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Claim {
    pub vm: VmId,
    /// Pages it has there.
    pub wants: u64,
    /// Pages it is left in any case.
    pub floor: u64,
    /// Positive.
    pub weight: f64,
    /// None where it cannot be told.
    pub waits: Option<Waits>,
}

/// The weight of a VM: 1 for priority 50, 4 for 100, a quarter for 0.
pub fn weight(priority: u8) -> f64 {
    priority_scale(priority).powi(2)
}

/// Divides `pages` among the claims, in their order.
pub fn shares(claims: &[Claim], pages: u64) -> Vec<u64> {
    let floors = claims.iter().map(|claim| claim.floor.min(claim.wants)).collect();
    let fair = max_min(claims, floors, pages);
    let kept = |(claim, fair): (&Claim, &u64)| match claim.waits {
        Some(_) => (fair / KEPT).max(claim.floor).min(*fair),
        None => *fair,
    };
    let mut shares: Vec<u64> = claims.iter().zip(&fair).map(kept).collect();
    let mut rest = pages.saturating_sub(shares.iter().sum());
    let mut gains: BinaryHeap<(Gain, usize)> =
        (0..claims.len()).filter_map(|i| Some((next_gain(&claims[i], shares[i], rest)?, i))).collect();
    while let Some((gain, i)) = gains.pop() {
        // There may be less left than when this was worked out.
        if gain.pages.0 <= rest {
            shares[i] += gain.pages.0;
            rest -= gain.pages.0;
        }
        gains.extend(next_gain(&claims[i], shares[i], rest).map(|gain| (gain, i)));
    }
    max_min(claims, shares, pages)
}

/// Divides what is left of `pages` among the claims, which have these `shares` already.
fn max_min(claims: &[Claim], mut shares: Vec<u64>, pages: u64) -> Vec<u64> {
    // Those that want more, the easiest to satisfy first.
    let mut open: Vec<usize> = (0..claims.len()).filter(|i| claims[*i].wants > shares[*i]).collect();
    let per_weight = |i: usize| (claims[i].wants - shares[i]) as f64 / claims[i].weight;
    open.sort_by(|a, b| per_weight(*a).total_cmp(&per_weight(*b)));
    let mut rest = pages.saturating_sub(shares.iter().sum());
    let mut weights: f64 = open.iter().map(|i| claims[*i].weight).sum();
    for i in open {
        let claim = &claims[i];
        // Its part of what is left, beyond what it has.
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

/// What more pages would spare a VM.
///
/// Ordered by what is given first: the greatest gain; of like ones that of the VM that has the least of what it
/// wants, and the fewest pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Gain {
    /// Accesses that need not wait, for each of these pages, times the VM's weight: the logarithm by [`ALIKE`].
    a_page: i64,
    /// In thousandths.
    lacks: u64,
    pages: Reverse<u64>,
}

/// The most that a VM that has so many pages would gain for a page by up to `most` more, in whole parts. None
/// where nothing is gained.
fn next_gain(claim: &Claim, has: u64, most: u64) -> Option<Gain> {
    let waits = claim.waits?;
    let at = |pages: u64| {
        let part = pages as f64 * PARTS as f64 / claim.wants.max(1) as f64;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to PARTS")]
        let below = (part as usize).min(PARTS - 1);
        waits[below] + (waits[below + 1] - waits[below]) * (part - below as f64)
    };
    let ends = (1..=PARTS as u64).map(|part| part * claim.wants / PARTS as u64);
    let lacks = (claim.wants - has) * 1000 / claim.wants.max(1);
    let gains = ends.filter(|end| *end > has && *end - has <= most).filter_map(|end| {
        let a_page = (at(has) - at(end)) * claim.weight / (end - has) as f64;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the logarithm of a number is some hundreds at most"
        )]
        let log = (a_page.ln() / ALIKE.ln()).floor() as i64;
        (a_page > 0.0).then_some(Gain { a_page: log, lacks, pages: Reverse(end - has) })
    });
    gains.max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claim(wants: u64, floor: u64, weight: f64) -> Claim {
        Claim { vm: VmId(1), wants, floor, weight, waits: None }
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

    /// Of a VM that accesses a page in so many, evenly, so many times a second.
    fn evenly(wants: u64, pages: u64, rate: f64) -> Claim {
        let missed = |part| (1.0 - part as f64 * wants as f64 / (PARTS as u64 * pages) as f64).max(0.0);
        let waits = std::array::from_fn(|part| rate * missed(part));
        Claim { waits: Some(waits), ..claim(wants, 0, 1.0) }
    }

    #[test]
    fn pages_go_where_they_spare_the_most_waits() {
        // The first one uses a tenth of what it has, the other one all of it.
        let claims = [evenly(1000, 100, 50.0), evenly(1000, 1000, 50.0)];
        assert_eq!(shares(&claims, 1000), [250, 750], "half of the fair share is kept");
        let alike = [evenly(1000, 1000, 50.5), evenly(1000, 1000, 50.0)];
        assert_eq!(shares(&alike, 1000), [500, 500], "chance decides nothing");
        let often = [evenly(1000, 1000, 90.0), evenly(1000, 1000, 10.0)];
        assert_eq!(shares(&often, 1000), [750, 250]);
        let important = [evenly(1000, 1000, 90.0), Claim { weight: 20.0, ..evenly(1000, 1000, 10.0) }];
        assert!(shares(&important, 1000)[1] > 900, "weight counts in both");
        let unknown = [evenly(1000, 100, 50.0), claim(1000, 0, 1.0)];
        assert_eq!(
            shares(&unknown, 1000),
            [375, 625],
            "of whom nothing is known has its fair share at least"
        );
    }

    #[test]
    fn a_walk_is_worth_nothing_in_part_and_all_of_it_together() {
        let walk = |pages: u64, rate| {
            let waits =
                std::array::from_fn(
                    |part| if part as u64 * 1000 >= PARTS as u64 * pages { 0.0 } else { rate },
                );
            Claim { waits: Some(waits), ..claim(1000, 0, 1.0) }
        };
        // It fits beside half of the other one's fair share, and spares more there than that would.
        assert_eq!(shares(&[walk(750, 90.0), evenly(1000, 1000, 50.0)], 1000), [750, 250]);
        let gain = next_gain(&walk(750, 90.0), 250, 1000).unwrap();
        assert_eq!(gain.pages, Reverse(500));
        assert_eq!(next_gain(&walk(750, 90.0), 250, 499), None);
        // And here it does not: what it would have of it helps the other one.
        assert_eq!(shares(&[walk(1000, 90.0), evenly(1000, 1000, 50.0)], 1000), [250, 750]);
    }

    #[test]
    fn priority_weighs() {
        assert!(
            [(0, 0.25), (50, 1.0), (100, 4.0)]
                .iter()
                .all(|(priority, is)| (weight(*priority) - is).abs() < 1e-9)
        );
    }

    fn any_claim() -> impl Strategy<Value = Claim> {
        // What waits with each part more, with parts that change nothing.
        let steps = prop::array::uniform16(prop_oneof![Just(0.0), 0.0f64..10.0]);
        (0u64..10_000, prop_oneof![Just(0), 0u64..1000], 0.1f64..8.0, prop::option::of(steps)).prop_map(
            |(wants, floor, weight, steps)| {
                let waits = steps.map(|steps| std::array::from_fn(|part| steps[part..].iter().sum()));
                Claim { waits, ..claim(wants, floor, weight) }
            },
        )
    }

    proptest! {
        #[test]
        fn all_is_given_and_nobody_gets_more_than_it_wants_nor_less_than_its_floor_or_half_its_fair_share(
            claims in prop::collection::vec(any_claim(), 0..20), pages in 0u64..100_000,
        ) {
            let divided = shares(&claims, pages);
            let floors: Vec<u64> = claims.iter().map(|claim| claim.floor.min(claim.wants)).collect();
            for ((claim, share), floor) in claims.iter().zip(&divided).zip(&floors) {
                prop_assert!(*share <= claim.wants && share >= floor);
            }
            let wanted: u64 = claims.iter().map(|claim| claim.wants).sum();
            let least: u64 = floors.iter().sum();
            prop_assert_eq!(divided.iter().sum::<u64>(), pages.max(least).min(wanted));
            for (share, fair) in divided.iter().zip(max_min(&claims, floors, pages)) {
                prop_assert!(*share >= fair / KEPT);
            }
        }
    }
}
