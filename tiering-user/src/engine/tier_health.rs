//! Tiers that could not take what was sent to them, and when they are tried again.
//!
//! In: what a move met, which tiers are hindered, the time. Out: whether a tier takes nothing for now, and why, for the
//! status. A pause of 10 s, doubled each time the tier fails again, up to 10 minutes; one move that arrives ends it. A
//! tier that is hindered by an area of somebody else's takes nothing until that is gone. Meanwhile the other tiers go
//! on. Pure: the time is an argument. What an operator asks for is tried all the same.
//!
//! # Limits
//! A tier whose disk fails still holds what it held: what cannot be read there any more is lost to its VM.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::sys::Monotonic;
use crate::tiers::TierId;

const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_mins(10);

/// The tiers in trouble.
#[derive(Debug, Default)]
pub(super) struct TierHealth {
    failed: BTreeMap<TierId, Failure>,
    /// By areas of others; as last told.
    hindered: BTreeMap<TierId, String>,
}

#[derive(Debug)]
struct Failure {
    text: String,
    pause: Duration,
    /// When the tier may be tried again.
    until: Monotonic,
}

impl TierHealth {
    /// The tier has failed, or failed again. Returns whether that is news.
    pub(super) fn note(&mut self, tier: TierId, text: &str, now: Monotonic) -> bool {
        let known = self.failed.get(&tier);
        let pause = match known {
            None => FIRST_PAUSE,
            // What was under way when it failed says no more than the first failure did.
            Some(trouble) if trouble.until > now => trouble.pause,
            Some(trouble) => (trouble.pause * 2).min(LONGEST_PAUSE),
        };
        let news = known.is_none_or(|trouble| trouble.text != text);
        self.failed.insert(tier, Failure { text: text.to_owned(), pause, until: now.after(pause) });
        news
    }

    /// Something arrived in the tier. Returns whether it was in trouble.
    pub(super) fn clear(&mut self, tier: TierId) -> bool {
        self.failed.remove(&tier).is_some()
    }

    /// These tiers are hindered now, and no others. Returns those that no longer are; what failed there meanwhile did
    /// so for that reason.
    pub(super) fn hinder(&mut self, tiers: BTreeMap<TierId, String>) -> Vec<TierId> {
        let before = std::mem::replace(&mut self.hindered, tiers);
        let free: Vec<_> = before.into_keys().filter(|tier| !self.hindered.contains_key(tier)).collect();
        self.failed.retain(|tier, _| !free.contains(tier));
        free
    }

    /// Whether nothing is planned into the tier now.
    pub(super) fn keep_away(&self, tier: TierId, now: Monotonic) -> bool {
        self.hindered.contains_key(&tier) || self.failed.get(&tier).is_some_and(|trouble| trouble.until > now)
    }

    /// What is wrong with the tier.
    pub(super) fn of(&self, tier: TierId) -> Option<&str> {
        let failed = self.failed.get(&tier).map(|trouble| &trouble.text);
        self.hindered.get(&tier).or(failed).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QLC: TierId = TierId(2);

    fn at(seconds: u64) -> Monotonic {
        Monotonic(seconds * 1_000_000_000)
    }

    #[test]
    fn a_tier_that_fails_is_left_alone_for_longer_and_longer_and_the_others_are_not() {
        let mut health = TierHealth::default();
        assert!(health.note(QLC, "no space", at(100)));
        assert!(health.keep_away(QLC, at(109)));
        assert!(!health.keep_away(QLC, at(110)), "it is tried again");
        assert!(!health.keep_away(TierId(1), at(100)));
        assert!(!health.note(QLC, "no space", at(110)), "the same again is no news");
        assert!(health.keep_away(QLC, at(129)));
        for _ in 0..20 {
            health.note(QLC, "no space", at(100_000));
        }
        assert!(!health.keep_away(QLC, at(100_041)), "what was under way does not count again");
        let mut now = 200_000;
        for _ in 0..20 {
            health.note(QLC, "no space", at(now));
            now += 601;
        }
        assert!(!health.keep_away(QLC, at(now)), "never longer than ten minutes");
        assert_eq!(health.of(QLC), Some("no space"));
    }

    #[test]
    fn a_move_that_arrives_ends_it() {
        let mut health = TierHealth::default();
        health.note(QLC, "no space", at(1));
        assert!(health.clear(QLC));
        assert!(!health.keep_away(QLC, at(2)));
        assert_eq!(health.of(QLC), None);
        assert!(!health.clear(QLC));
    }

    #[test]
    fn a_tier_that_is_hindered_takes_nothing_until_it_is_not_any_more() {
        let mut health = TierHealth::default();
        let zram = || BTreeMap::from([(QLC, "/dev/zram0 has priority 32767".to_owned())]);
        assert_eq!(health.hinder(zram()), []);
        health.note(QLC, "an operator tried it", at(1));
        assert!(health.keep_away(QLC, at(1_000_000)));
        assert_eq!(health.of(QLC), Some("/dev/zram0 has priority 32767"));
        assert!(!health.keep_away(TierId(1), at(1)));
        assert_eq!(health.hinder(zram()), []);
        assert_eq!(health.hinder(BTreeMap::new()), [QLC]);
        assert!(!health.keep_away(QLC, at(1)));
        assert_eq!(health.of(QLC), None);
    }
}
