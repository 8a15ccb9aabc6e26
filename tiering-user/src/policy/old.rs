//! Which pages were idle for long enough to leave a tier.
//!
//! In: the rules for a VM, a level. Out: for each page whether it may leave. Pure.

use std::time::Duration;

use super::rules::Rules;
use crate::tiermap::{BACKOFF_MAX, PageEntry, Place, Seconds, VmPages};
use crate::tiers::TierId;

/// A page has come back soon 0 to 3 times, as far as the table counts.
const BACKOFFS: usize = BACKOFF_MAX as usize + 1;

/// Which pages may leave the tier at a level.
pub(super) struct Old<'a> {
    rules: &'a Rules,
    level: u8,
    /// Least idle time by how often a page came back, in whole seconds: a look at each page must cost little.
    least_s: [u64; BACKOFFS],
}

impl<'a> Old<'a> {
    pub(super) fn at(level: u8, rules: &'a Rules) -> Self {
        let least_s = std::array::from_fn(|backoff| {
            let backoff = u32::try_from(backoff).unwrap_or(u32::MAX);
            let least = rules.least_idle_under_pressure(level, backoff);
            least.as_secs() + u64::from(least.subsec_nanos() > 0)
        });
        Self { rules, level, least_s }
    }

    /// No page that was idle for less is old.
    pub(super) fn least(&self) -> Duration {
        Duration::from_secs(self.least_s[0])
    }

    pub(super) fn has(&self, pages: &VmPages, entry: PageEntry, now: Seconds) -> bool {
        let least_s = self.least_s.get(entry.backoff() as usize);
        least_s.is_some_and(|least_s| u64::from(entry.idle(now)) >= *least_s)
            && !(self.level == 0 && self.rules.is_warm(entry))
            && !(pages.in_memory(entry.place()) && self.rules.may_be_in_use(entry, now))
    }

    /// The same of a page wherever it is: it must be in the tier, and not be staged.
    pub(super) fn may_leave(&self, pages: &VmPages, entry: PageEntry, now: Seconds) -> bool {
        entry.place() == Place::In(TierId(self.level)) && !entry.staged() && self.has(pages, entry, now)
    }
}
