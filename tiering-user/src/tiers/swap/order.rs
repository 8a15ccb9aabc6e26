//! The order in which the kernel fills the areas: the priorities that those of each tier can have, and the names of the
//! files, one for each priority of a tier.

use std::ops::Range;

use crate::sys::SWAP_PRIORITY_MAX;

/// No area of ours has a lower priority.
pub const BASE_PRIORITY: i32 = SWAP_PRIORITY_MAX - 700;
const PRIORITY_STEP: i32 = 50;
/// More than there can be swap tiers.
const MOST_PLACES: i32 = 12;

/// The priorities that areas of the swap tier in this place, counted from the fastest, can have.
pub(super) fn priorities(place: usize) -> Range<i32> {
    let below = MOST_PLACES - i32::try_from(place).unwrap_or(MOST_PLACES).min(MOST_PLACES);
    let first = BASE_PRIORITY + below * PRIORITY_STEP;
    first..first + PRIORITY_STEP
}

/// The number in the name of a swap file that a tier makes.
pub(super) fn segment_number(name: &str) -> Option<i32> {
    let number = name.strip_prefix("segment-")?.strip_suffix(".swap")?.parse().ok()?;
    (segment_name(number) == name && (0..PRIORITY_STEP).contains(&number)).then_some(number)
}

pub(super) fn segment_name(number: i32) -> String {
    format!("segment-{number}.swap")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_priorities_follow_the_ladder() {
        let all: Vec<i32> = (0..7).rev().flat_map(priorities).collect();
        assert!(
            all.is_sorted()
                && all.iter().all(|priority| (BASE_PRIORITY..SWAP_PRIORITY_MAX).contains(priority))
        );
    }

    #[test]
    fn only_names_that_a_tier_gives_are_names_of_its_files() {
        assert_eq!(segment_number("segment-0.swap"), Some(0));
        assert_eq!(segment_number(&segment_name(PRIORITY_STEP - 1)), Some(PRIORITY_STEP - 1));
        for name in
            ["segment-50.swap", "segment-01.swap", "segment-+1.swap", "segment--1.swap", "segment-.swap"]
        {
            assert_eq!(segment_number(name), None, "{name}");
        }
        assert_eq!(segment_number("segment-1.swap.bak"), None);
    }
}
