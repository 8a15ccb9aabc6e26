//! How the heat of a VM's pages is spread, and what counts as hot, warm and cold.
//!
//! The hot set is what is hottest and still fits into the share of the first tier that the VM may have; the bin
//! below is warm: not worth a promotion, and not yet one to demote. After MEMTIS (Lee et al., SOSP 2023).
//!
//! # Limits
//! Heat counts accesses that are seen. A page that stays mapped shows none, and counts as cold however hot it is,
//! unless its VM's pages are armed anew in rounds.

use crate::tiermap::{HEAT_BINS as BINS, VmPages};

/// Pages in memory by heat, in bins of powers of two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeatHistogram {
    pub pages: [u64; BINS],
}

/// From which heat on a page is hot, and warm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bands {
    pub hot_from: u8,
    pub warm_from: u8,
}

impl HeatHistogram {
    /// Counts the pages of all memory tiers.
    pub fn of(pages: &VmPages) -> Self {
        Self { pages: pages.heat() }
    }

    /// The bands for a VM that may have `room` pages in the first tier.
    pub fn bands(&self, room: u64) -> Bands {
        let mut hottest = 0;
        let mut hot_bin = BINS;
        while hot_bin > 1 && hottest + self.pages[hot_bin - 1] <= room {
            hot_bin -= 1;
            hottest += self.pages[hot_bin];
        }
        Bands { hot_from: least_heat(hot_bin), warm_from: least_heat(hot_bin.max(2) - 1) }
    }
}

impl Bands {
    /// Everything that was accessed lately is hot: where there is room for all.
    pub const ROOMY: Self = Self { hot_from: 1, warm_from: 1 };

    /// Whether a page of this heat is worth a promotion: hot, or warm and getting warmer.
    pub fn deserves_promotion(self, heat: u8, momentum: i8) -> bool {
        heat >= self.hot_from || heat >= self.warm_from && momentum > 0
    }
}

fn least_heat(bin: usize) -> u8 {
    if bin == 0 { 0 } else { 1 << (bin - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiermap::heat_bin as bin;
    use proptest::prelude::*;

    #[test]
    fn the_hot_set_is_what_fits_and_the_bin_below_is_warm() {
        let histogram = HeatHistogram { pages: [1000, 300, 200, 100, 50, 10] };
        let bands = |room| histogram.bands(room);
        assert_eq!(bands(660), Bands { hot_from: 1, warm_from: 1 });
        assert_eq!(bands(659), Bands { hot_from: 2, warm_from: 1 });
        assert_eq!(bands(160), Bands { hot_from: 4, warm_from: 2 });
        assert_eq!(bands(9), Bands { hot_from: 32, warm_from: 16 }, "nothing is hot where nothing fits");
        assert!(bands(160).deserves_promotion(4, -3));
        assert!(bands(160).deserves_promotion(3, 1) && !bands(160).deserves_promotion(3, 0));
        assert!(!bands(160).deserves_promotion(1, 1));
    }

    proptest! {
        #[test]
        fn the_hot_set_never_exceeds_its_room(pages in prop::array::uniform6(0u64..1000), room in 0u64..6000) {
            let histogram = HeatHistogram { pages };
            let bands = histogram.bands(room);
            let hot: u64 = (1..BINS).filter(|bin| least_heat(*bin) >= bands.hot_from).map(|bin| pages[bin]).sum();
            prop_assert!(hot <= room);
            prop_assert!(bands.warm_from <= bands.hot_from);
            // As large as it can be: with the next bin it would not fit.
            if bands.hot_from > 1 {
                let next = bin(bands.hot_from.min(16) - u8::from(bands.hot_from <= 16));
                let next = if bands.hot_from > 16 { BINS - 1 } else { next };
                prop_assert!(hot + pages[next] > room);
            }
        }
    }
}
