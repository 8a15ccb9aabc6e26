//! What the pages of a block that went out say of the others.
//!
//! In: how many went out, and came back soon. Out: how many more of the block may go ([`Verdict`]). The last that went
//! count, since those that are left may be others. Pure.

use std::time::Duration;

use crate::sys::Monotonic;

/// Pages of a block that go first.
pub const FIRST_PAGES: u32 = 8;
/// A block is in use where more than so many of so many came back soon: what comes back so costs no read, and the
/// others are worth more than that.
const IN_USE: (u32, u32) = (3, 4);
/// What is in use comes back within this part of the least idle time, within these bounds.
const WINDOW_DIVISOR: u32 = 4;
const WINDOW_LEAST: Duration = Duration::from_secs(1);
const WINDOW_MOST: Duration = Duration::from_secs(10);
/// A block in use is left alone for so many times the least idle time, as is a page that has come back three times.
const REST_FACTOR: u32 = 8;

/// How many pages of a block may leave memory for swap now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is known of it, or nothing any more: a few.
    Unknown,
    /// Some went a moment ago: none.
    Open,
    /// Most came back soon: none.
    InUse,
    /// Enough stayed away: all that were idle for long enough.
    Calm,
}

/// The pages of a block that went out last, within a short while.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Evidence {
    sent: u32,
    back: u32,
    /// When the first of them went.
    began: Monotonic,
}

impl Evidence {
    /// Of a block that was in use when an earlier agent looked.
    pub fn in_use(now: Monotonic) -> Self {
        Self { sent: FIRST_PAGES, back: FIRST_PAGES, began: now }
    }

    /// So many pages went out, where a page must be idle for `demote_after`. Returns whether they are the first that
    /// count, and none that went before does any more.
    pub fn sent(&mut self, pages: u32, demote_after: Duration, now: Monotonic) -> bool {
        let anew = self.sent == 0 || now.since(self.began) >= window(demote_after);
        if anew {
            *self = Self { began: now, ..Self::default() };
        }
        self.sent = self.sent.saturating_add(pages);
        anew
    }

    /// So many of them came back soon.
    pub fn came_back(&mut self, pages: u32) {
        self.back = self.back.saturating_add(pages).min(self.sent);
    }

    /// What it says of the block.
    pub fn verdict(self, demote_after: Duration, now: Monotonic) -> Verdict {
        let in_use = self.back.saturating_mul(IN_USE.1) > self.sent.saturating_mul(IN_USE.0);
        let age = now.since(self.began);
        match () {
            () if self.sent == 0 => Verdict::Unknown,
            () if in_use && age < demote_after.saturating_mul(REST_FACTOR) => Verdict::InUse,
            () if in_use => Verdict::Unknown,
            () if age < window(demote_after) => Verdict::Open,
            () => Verdict::Calm,
        }
    }
}

/// How long it takes until what is in use has come back.
fn window(demote_after: Duration) -> Duration {
    (demote_after / WINDOW_DIVISOR).clamp(WINDOW_LEAST, WINDOW_MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is in use comes back within ten seconds, and is left alone for 16 minutes.
    const IDLE: Duration = Duration::from_mins(2);

    fn at(second: u64) -> Monotonic {
        Monotonic(second * 1_000_000_000)
    }

    #[test]
    fn what_stays_away_for_a_while_lets_the_rest_go() {
        let mut evidence = Evidence::default();
        assert_eq!(evidence.verdict(IDLE, at(5)), Verdict::Unknown);
        evidence.sent(8, IDLE, at(5));
        evidence.came_back(6);
        assert_eq!(evidence.verdict(IDLE, at(14)), Verdict::Open);
        assert_eq!(evidence.verdict(IDLE, at(15)), Verdict::Calm, "6 of 8 came back");
        assert_eq!(evidence.verdict(IDLE, at(100_000)), Verdict::Calm);
    }

    #[test]
    fn what_comes_back_leaves_the_block_alone_for_a_while() {
        let mut evidence = Evidence::default();
        evidence.sent(8, IDLE, at(5));
        evidence.came_back(7);
        assert_eq!(evidence.verdict(IDLE, at(6)), Verdict::InUse);
        assert_eq!(evidence.verdict(IDLE, at(5 + 959)), Verdict::InUse);
        assert_eq!(evidence.verdict(IDLE, at(5 + 960)), Verdict::Unknown);
        evidence.sent(8, IDLE, at(970));
        assert_eq!(evidence.verdict(IDLE, at(980)), Verdict::Calm, "it was seen anew");
        assert_eq!(Evidence::in_use(at(7)).verdict(IDLE, at(7)), Verdict::InUse);
    }

    #[test]
    fn the_last_batch_counts() {
        let mut evidence = Evidence::default();
        evidence.sent(500, IDLE, at(0));
        evidence.sent(12, IDLE, at(5));
        assert_eq!(evidence.verdict(IDLE, at(10)), Verdict::Calm);
        evidence.sent(20, IDLE, at(100));
        assert_eq!(evidence.verdict(IDLE, at(100)), Verdict::Open);
        evidence.came_back(16);
        assert_eq!(evidence.verdict(IDLE, at(110)), Verdict::InUse, "what was left of the block");
    }

    #[test]
    fn one_access_that_stands_for_many_does_not_count_for_more_than_went() {
        let mut evidence = Evidence::default();
        evidence.sent(8, IDLE, at(0));
        evidence.came_back(1000);
        evidence.sent(8, IDLE, at(1));
        assert_eq!(evidence.verdict(IDLE, at(20)), Verdict::Calm, "8 of 16");
    }
}
