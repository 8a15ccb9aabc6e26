//! How many demoted pages a VM may have to wait for.
//!
//! In, once a second: the pages it waited for, and how much it has in memory. Out: whether that is too many. Each such
//! page is a debt, which is forgiven at the rate the operator allows; while the debt is too large nothing more goes
//! down. So in the long run no more come back than that, whatever the reason for a wrong guess was. The measure, pages
//! a minute as a share of the working set, and its 0.2 % are those of Lagar-Cavilla et al., "Software-Defined Far
//! Memory in Warehouse-Scale Computers" (ASPLOS 2019).
//!
//! # Limits
//! What the VM has in memory stands for its working set: too large until all that is idle has gone. What is down
//! already comes back also while nothing more goes: only that is bounded which follows. Who sent a page down is not
//! told apart.

/// A debt of this many pages is nothing yet, however little memory the VM has: what is idle is found out by paging
/// some of it out.
const ALWAYS_ALLOWED: f64 = 256.0;
/// A debt of so many minutes is not exceeded: a VM whose work has changed is tried again after that.
const MOST_MINUTES: f64 = 30.0;

/// What one VM waited for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Refaults {
    debt_pages: f64,
    pages_a_minute: f64,
    over: bool,
}

/// More came back than may.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TooMany {
    /// Pages, beyond what was allowed so far.
    pub debt_pages: f64,
    pub pages_a_minute: f64,
}

impl Refaults {
    /// A second has passed, in which the VM waited for `returned` pages; it has `in_memory` in memory tiers, of
    /// which it may wait for `limit_percent` a minute. From 100 % on there is no limit.
    pub fn second(&mut self, returned: u64, in_memory: u64, limit_percent: f64) {
        if limit_percent >= 100.0 {
            *self = Self::default();
            return;
        }
        // However little memory it has, it is tried again.
        let least = if limit_percent > 0.0 { ALWAYS_ALLOWED / MOST_MINUTES } else { 0.0 };
        self.pages_a_minute = (in_memory as f64 * limit_percent / 100.0).max(least);
        let allowed = ALWAYS_ALLOWED.max(self.pages_a_minute);
        let most = (allowed / 2.0 + MOST_MINUTES * self.pages_a_minute).max(allowed + 1.0);
        let debt = self.debt_pages + returned as f64 - self.pages_a_minute / 60.0;
        self.debt_pages = debt.clamp(0.0, most);
        // Not for one page more or less.
        self.over = self.debt_pages > if self.over { allowed / 2.0 } else { allowed };
    }

    /// Whether nothing more should go down.
    pub fn too_many(&self) -> Option<TooMany> {
        let Self { debt_pages, pages_a_minute, over } = *self;
        over.then_some(TooMany { debt_pages, pages_a_minute })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 0.2 % of it are 600 pages a minute.
    const PAGES: u64 = 300_000;

    fn wait(refaults: &mut Refaults, seconds: u32, returned_a_second: u64) {
        (0..seconds).for_each(|_| refaults.second(returned_a_second, PAGES, 0.2));
    }

    #[test]
    fn what_is_allowed_may_come_back_for_ever() {
        let mut refaults = Refaults::default();
        wait(&mut refaults, 10_000, 10);
        assert_eq!(refaults.too_many(), None);
        wait(&mut refaults, 1, 600);
        assert_eq!(refaults.too_many(), None, "a minute's worth at once");
        wait(&mut refaults, 1, 30);
        let too_many = refaults.too_many().unwrap();
        assert_eq!((too_many.debt_pages.round(), too_many.pages_a_minute.round()), (610.0, 600.0));
    }

    #[test]
    fn a_burst_is_paid_off_before_more_goes_down() {
        let mut refaults = Refaults::default();
        wait(&mut refaults, 1, 1210);
        wait(&mut refaults, 89, 0);
        assert!(refaults.too_many().is_some());
        wait(&mut refaults, 1, 0);
        assert_eq!(refaults.too_many(), None, "900 pages in 90 s");
    }

    #[test]
    fn it_is_tried_again_whatever_came_back() {
        for pages in [0, 1000, 300_000] {
            let mut refaults = Refaults::default();
            (0..100).for_each(|_| refaults.second(1_000_000, pages, 0.2));
            assert!(refaults.too_many().is_some(), "{pages}");
            (0..31 * 60).for_each(|_| refaults.second(0, pages, 0.2));
            assert_eq!(refaults.too_many(), None, "{pages}");
        }
    }

    #[test]
    fn a_small_vm_may_wait_for_some_pages_and_a_limit_of_100_percent_is_none() {
        let mut refaults = Refaults::default();
        refaults.second(256, 5000, 0.2);
        assert_eq!(refaults.too_many(), None);
        refaults.second(256, 5000, 0.2);
        assert!(refaults.too_many().is_some());
        refaults.second(100_000, 5000, 100.0);
        assert_eq!(refaults.too_many(), None);
        refaults.second(257, 5000, 0.0);
        (0..10_000).for_each(|_| refaults.second(0, 5000, 0.0));
        assert!(refaults.too_many().is_some(), "none may, and that is never forgiven");
    }
}
