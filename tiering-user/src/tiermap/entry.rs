//! What is known of one page, in four bytes.

use crate::tiers::TierId;

/// Seconds since the agent's start; what idle age is measured in. Wraps after 18 hours, which
/// [`PageEntry::idle`] takes into account as long as [`PageEntry::cap_idle`] is called more often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Seconds(pub u16);

impl Seconds {
    /// How long ago it was; 0 for what is later than `now`.
    pub fn idle(self, now: Self) -> u16 {
        if self.is_ahead_of(now) { 0 } else { now.0.wrapping_sub(self.0) }
    }

    /// Whether it is later than `now`, as far as can be told.
    pub fn is_ahead_of(self, now: Self) -> bool {
        now.0.wrapping_sub(self.0) > IDLE_MOST
    }
}

/// Idle ages beyond this are all the same, seconds.
pub const IDLE_CAP: u16 = 50_000;
/// A difference beyond this is an access later than the time it is compared with.
const IDLE_MOST: u16 = 60_000;
/// Most that coming back can multiply the idle age a page must reach: 2 to this power.
/// Most often that it counts that a page came back soon.
pub const BACKOFF_MAX: u32 = 3;

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// It takes no memory anywhere: never touched, or the kernel's shared page of zeroes.
    Untouched,
    In(TierId),
    /// In a swap area that is not one of the ladder's, or, for shared guest RAM, in one that cannot be told.
    OtherSwap,
}

const TIER_SHIFT: u32 = 28;
const OTHER_SWAP: u32 = 15;
const STAGED: u32 = 1 << 27;
const WRITTEN: u32 = 1 << 26;
const BACKOFF_SHIFT: u32 = 24;
const BACKOFF_MASK: u32 = 3 << BACKOFF_SHIFT;
const FREQUENCY_SHIFT: u32 = 20;
const RECENT_SHIFT: u32 = 16;
/// Most that frequency and recent accesses can count.
const COUNT_MAX: u32 = 15;
const LAST_MASK: u32 = 0xffff;

/// Bits, from the top: 4 place, 1 staged, 1 written, 2 back-off, 4 frequency, 4 recent accesses, 16 second of the last
/// access.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct PageEntry(u32);

impl PageEntry {
    /// A page that was found, and of whose accesses nothing is known: as if accessed now.
    pub fn found(place: Place, now: Seconds) -> Self {
        Self(0).with_place(place).with_last(now)
    }

    pub fn place(self) -> Place {
        match self.0 >> TIER_SHIFT {
            0 => Place::Untouched,
            OTHER_SWAP => Place::OtherSwap,
            code => Place::In(TierId((code - 1) as u8)),
        }
    }

    #[must_use]
    pub fn with_place(self, place: Place) -> Self {
        let code = match place {
            Place::Untouched => 0,
            Place::In(TierId(level)) => u32::from(level) + 1,
            Place::OtherSwap => OTHER_SWAP,
        };
        Self(self.0 & !(0xf << TIER_SHIFT) | code << TIER_SHIFT)
    }

    /// Brought up ahead of need, and not touched since.
    pub fn staged(self) -> bool {
        self.0 & STAGED != 0
    }

    #[must_use]
    pub fn with_staged(self, staged: bool) -> Self {
        Self(if staged { self.0 | STAGED } else { self.0 & !STAGED })
    }

    /// Whether a write was seen since the page was last cold.
    pub fn written(self) -> bool {
        self.0 & WRITTEN != 0
    }

    /// How often it came back soon after a demotion; its idle age must reach 2 to this power times the usual.
    pub fn backoff(self) -> u32 {
        (self.0 & BACKOFF_MASK) >> BACKOFF_SHIFT
    }

    #[must_use]
    pub fn with_backoff(self, backoff: u32) -> Self {
        Self(self.0 & !BACKOFF_MASK | backoff.min(BACKOFF_MAX) << BACKOFF_SHIFT)
    }

    /// How warm it is: [`Self::frequency`] and the accesses of the running epoch, 0 to 30.
    pub fn heat(self) -> u8 {
        self.frequency() + self.recent()
    }

    /// Accesses an epoch, as a moving average over the epochs that have ended; 0 to 15.
    pub fn frequency(self) -> u8 {
        (self.0 >> FREQUENCY_SHIFT & COUNT_MAX) as u8
    }

    /// Accesses more than usual in the running epoch: positive while a page gets warmer.
    pub fn momentum(self) -> i8 {
        self.recent().cast_signed() - self.frequency().cast_signed()
    }

    fn recent(self) -> u8 {
        (self.0 >> RECENT_SHIFT & COUNT_MAX) as u8
    }

    #[must_use]
    fn with_counts(self, frequency: u8, recent: u8) -> Self {
        let bits = u32::from(frequency).min(COUNT_MAX) << FREQUENCY_SHIFT
            | u32::from(recent).min(COUNT_MAX) << RECENT_SHIFT;
        Self(self.0 & !(COUNT_MAX << FREQUENCY_SHIFT | COUNT_MAX << RECENT_SHIFT) | bits)
    }

    #[must_use]
    fn with_last(self, now: Seconds) -> Self {
        Self(self.0 & !LAST_MASK | u32::from(now.0))
    }

    /// Seconds since the last access that is known; 0 for one that is later than `now`.
    pub fn idle(self, now: Seconds) -> u16 {
        self.last().idle(now)
    }

    /// When it was accessed last.
    pub fn last(self) -> Seconds {
        Seconds((self.0 & LAST_MASK) as u16)
    }

    /// The same entry after an access.
    #[must_use]
    pub fn accessed(self, now: Seconds, write: bool) -> Self {
        let counted = self.with_counts(self.frequency(), self.recent() + 1);
        let entry = counted.with_last(now).with_staged(false);
        if write { entry.with_written() } else { entry }
    }

    /// The same entry, one of whose accesses was a write.
    #[must_use]
    pub fn with_written(self) -> Self {
        Self(self.0 | WRITTEN)
    }

    /// The same entry after a demotion that the kernel did not carry out: as if it had come back just now.
    #[must_use]
    pub fn postponed(self, now: Seconds) -> Self {
        self.with_backoff(self.backoff() + 1).with_last(now)
    }

    /// The same entry after a move into a faster tier: it may stay there as long as if it had been accessed just now.
    #[must_use]
    pub fn arrived(self, now: Seconds) -> Self {
        self.with_last(now)
    }

    /// The same entry, of a page in a region that is accessed: as if it had been accessed so many `times`.
    #[must_use]
    pub fn probably_accessed(self, now: Seconds, times: u8) -> Self {
        self.with_counts(self.frequency(), self.recent().saturating_add(times)).with_last(now)
    }

    /// The same entry, of a page that may have been in use until then without an access that was seen.
    #[must_use]
    pub fn used_until(self, time: Seconds) -> Self {
        self.with_last(time)
    }

    /// The same entry, of whose accesses nothing is known.
    #[must_use]
    pub fn without_heat(self) -> Self {
        self.with_counts(0, 0)
    }

    /// The same entry at the end of an epoch. A page without heat has no history of writes either.
    #[must_use]
    pub fn cooled(self) -> Self {
        let (frequency, recent) = (self.frequency(), self.recent());
        // Rounded towards what is new, so that one access counts and none ends at zero.
        let mean = (frequency + recent + u8::from(recent > frequency)) / 2;
        let cooled = self.with_counts(mean, 0);
        if mean == 0 { Self(cooled.0 & !WRITTEN) } else { cooled }
    }

    /// The same entry with its idle age kept from wrapping around.
    #[must_use]
    pub fn cap_idle(self, now: Seconds) -> Self {
        if self.idle(now) > IDLE_CAP { self.with_last(Seconds(now.0.wrapping_sub(IDLE_CAP))) } else { self }
    }
}

impl std::fmt::Debug for PageEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageEntry")
            .field("place", &self.place())
            .field("staged", &self.staged())
            .field("written", &self.written())
            .field("backoff", &self.backoff())
            .field("frequency", &self.frequency())
            .field("recent", &self.recent())
            .finish_non_exhaustive()
    }
}

const _: () = assert!(size_of::<PageEntry>() == 4);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place() -> impl Strategy<Value = Place> {
        prop_oneof![
            Just(Place::Untouched),
            Just(Place::OtherSwap),
            (0u8..8).prop_map(|level| Place::In(TierId(level)))
        ]
    }

    proptest! {
        #[test]
        fn fields_do_not_disturb_each_other(
            place in place(), staged: bool, backoff in 0u32..4, touches in 0u16..600, last: u16, later: u16, write: bool,
        ) {
            let mut entry = PageEntry::found(Place::Untouched, Seconds(0));
            for _ in 0..touches {
                entry = entry.accessed(Seconds(last), false);
            }
            if write {
                entry = entry.accessed(Seconds(last), true);
            }
            let seen = touches + u16::from(write);
            let last = if seen == 0 { 0 } else { last };
            let entry = entry.with_place(place).with_backoff(backoff).with_staged(staged);
            prop_assert_eq!(entry.place(), place);
            prop_assert_eq!(entry.staged(), staged);
            prop_assert_eq!(entry.written(), write);
            prop_assert_eq!(entry.backoff(), backoff);
            prop_assert_eq!(u16::from(entry.heat()), seen.min(15));
            let idle = if later > IDLE_MOST { 0 } else { later };
            prop_assert_eq!(entry.idle(Seconds(last.wrapping_add(later))), idle);
        }
    }

    #[test]
    fn heat_follows_the_accesses_and_fades_without_them() {
        let mut entry = PageEntry::found(Place::In(TierId(0)), Seconds(0));
        let mut epoch = |accesses: u16| {
            for _ in 0..accesses {
                entry = entry.accessed(Seconds(1), true);
            }
            let before = (entry.momentum(), entry.written());
            entry = entry.cooled();
            (before.0, before.1, entry.frequency())
        };
        assert_eq!(epoch(1), (1, true, 1), "one access is seen in the next epoch");
        assert_eq!(epoch(7), (6, true, 4));
        assert_eq!(epoch(4), (0, true, 4), "as usual");
        assert_eq!(epoch(0), (-4, true, 2));
        assert_eq!(epoch(0), (-2, true, 1));
        assert_eq!(epoch(0), (-1, true, 0));
        assert_eq!((entry.heat(), entry.written()), (0, false), "a cold page has no history");
    }

    #[test]
    fn a_long_idle_page_does_not_become_young_again() {
        let mut entry = PageEntry::found(Place::In(TierId(0)), Seconds(0));
        for hour in 1..100u32 {
            let now = Seconds((hour * 3600 % 65536) as u16);
            entry = entry.cap_idle(now);
            assert!(entry.idle(now) >= 3600, "hour {hour}");
        }
    }
}
