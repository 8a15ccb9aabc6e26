//! How fast pages leave memory for swap, and when their memory becomes free. Pure: facts and time in, decisions out.
//!
//! A page that is paged out leaves the page table at once, and its copy stays in memory, in the swap cache. Until the
//! copy is freed the page comes back without a read: the guest waits for some microseconds, as for any page that it
//! touches for the first time. So paging out is how the agent looks whether a page is used, where nothing else shows
//! it, and memory is freed in a second step:
//!
//! 1. *Sent*: pages go out at a rate that the VM's waits allow ([`Pacer`]).
//! 2. *On probation*: copies stay for half a minute at least. What comes back meanwhile is in use, and says something
//!    of what lies around it ([`Probation`]).
//! 3. *Freed*: copies go, the pages least likely to come back first, as long as what is expected to come back stays
//!    within `policy.refault_limit`.
//!
//! What that says of the memory of a VM is in [`savings`].
//!
//! # Limits
//! What goes out is written, whether it comes back or not. A working set that jumps shows when it has jumped, not
//! before.

mod bits;
mod lru;
mod pacer;
mod probation;
mod recent;
pub mod savings;
#[cfg(test)]
mod simulation;

use std::iter::Sum;
use std::ops::Range;
use std::time::Duration;

pub use probation::Return;
pub use recent::Recent;

use self::lru::Lru;
use self::pacer::Pacer;
use self::probation::Probation;
use self::savings::Tried;
use crate::policy::Verdict;
use crate::sys::Monotonic;
use crate::tiermap::PageIndex;

/// What a page that comes back costs while its copy is in memory: a fault of the guest and one of the host, with room
/// to spare (2.2 us natively, docs/decisions/0006).
const COPY_WAIT: Duration = Duration::from_micros(10);
/// Of the time of its virtual processors, so much a VM may wait.
const BUDGET_SHARE: f64 = 0.001;
/// Pages that any VM may wait for in a minute, however small it is.
const LEAST_READS_A_MINUTE: f64 = 8.0;
/// Times between two steps: a part of the least idle time, within these bounds.
const EVERY_DIVISOR: u32 = 24;
const EVERY_LEAST: Duration = Duration::from_secs(1);
const EVERY_MOST: Duration = Duration::from_secs(5);

/// What a VM may wait for in a minute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    pub wait: Duration,
    /// Pages that are read from swap.
    pub reads: f64,
}

impl Budget {
    /// Of a VM with so many virtual processors that has touched so many pages, of which it may wait for `percent`; none
    /// where there is no limit. A read takes `read_wait`.
    pub fn new(vcpus: u32, touched_pages: u64, percent: f64, read_wait: Duration) -> Option<Self> {
        if percent >= 100.0 {
            return None;
        }
        let wait = Duration::from_mins(1).mul_f64(BUDGET_SHARE) * vcpus.max(1);
        let by_time = wait.as_secs_f64() / read_wait.as_secs_f64().max(1e-6);
        let by_pages = touched_pages as f64 * percent / 100.0;
        let least = if percent > 0.0 { LEAST_READS_A_MINUTE } else { 0.0 };
        Some(Self { wait, reads: by_pages.min(by_time).max(least) })
    }
}

/// Of several VMs together.
impl Sum for Budget {
    fn sum<I: Iterator<Item = Self>>(each: I) -> Self {
        each.fold(Self { wait: Duration::ZERO, reads: 0.0 }, |sum, one| Self {
            wait: sum.wait + one.wait,
            reads: sum.reads + one.reads,
        })
    }
}

/// What leaves memory of one VM.
#[derive(Clone, Debug, Default)]
pub struct Reclaim {
    pacer: Pacer,
    lru: Lru,
    probation: Probation,
    budget: Option<Budget>,
    /// How long a page must be idle.
    demote_after: Duration,
}

impl Reclaim {
    /// What the VM may wait for from now on (none: whatever it is), and how long a page must be idle.
    pub fn set_limits(&mut self, budget: Option<Budget>, demote_after: Duration) {
        (self.budget, self.demote_after) = (budget, demote_after);
        self.probation.set_demote_after(demote_after);
    }

    /// How many of the VM's `pages` may go out now.
    pub fn may_send(&mut self, pages: u64, now: Monotonic) -> u64 {
        let wait = self.budget.map_or(Duration::MAX, |budget| budget.wait);
        self.pacer.step(pages, wait, self.every(), now)
    }

    /// How many pages of a block may.
    pub fn verdict(&self, block: u32, now: Monotonic) -> Verdict {
        self.probation.verdict(block, now)
    }

    /// An earlier agent saw this block in use.
    pub fn was_in_use(&mut self, block: u32, now: Monotonic) {
        self.probation.was_in_use(block, now);
    }

    /// How many of the VM's `pages` the kernel may be asked for now, which chooses them. A read takes `read_wait`.
    pub fn may_reclaim(&mut self, pages: u64, read_wait: Duration, now: Monotonic) -> u64 {
        let wait =
            self.budget.map_or(Duration::MAX, |budget| budget.wait.min(read_wait.mul_f64(budget.reads)));
        self.lru.step(pages, wait, self.every(), now)
    }

    fn every(&self) -> Duration {
        (self.demote_after / EVERY_DIVISOR).clamp(EVERY_LEAST, EVERY_MOST)
    }

    /// The VM waited for so many pages to be read, each for `read_wait`, whoever chose them.
    pub fn read_back(&mut self, pages: u64, read_wait: Duration, now: Monotonic) {
        let times = u32::try_from(pages).unwrap_or(u32::MAX);
        self.lru.read_back(pages, read_wait.saturating_mul(times), now);
    }

    /// Of what the kernel chooses nothing cold is left.
    pub fn has_found_no_cold(&self) -> bool {
        self.lru.has_found_none()
    }

    /// The kernel has reclaimed so many pages of its own choice.
    pub fn reclaimed(&mut self, pages: u64, now: Monotonic) {
        self.lru.reclaimed(pages, now);
    }

    /// The kernel has moved so many pages of its own choice to a lower memory tier, from where none has to be read.
    pub fn demoted(&mut self, pages: u64) {
        self.lru.demoted(pages);
    }

    /// These ascending pages went out. Those that left memory because they were idle say whether others are.
    pub fn sent(&mut self, pages: &[PageIndex], were_idle: bool, now: Monotonic) {
        self.pacer.sent(pages.len() as u64);
        self.probation.sent(pages, were_idle, now);
    }

    /// Whether a copy of this page is in memory, as far as is known: it comes back without a read.
    pub fn has_copy(&self, page: PageIndex) -> bool {
        self.probation.has_copy(page)
    }

    /// A page came back that the VM waited for; it stands for so many. A read takes `read_wait`.
    pub fn waited_for(
        &mut self,
        page: PageIndex,
        weight: u32,
        read_wait: Duration,
        now: Monotonic,
    ) -> Return {
        let back = self.probation.returned(page, weight, weight);
        let wait = if back.read { read_wait } else { COPY_WAIT };
        self.pacer.waited(wait * weight, now);
        back
    }

    /// A page was touched so many times that nobody had to wait for.
    pub fn touched(&mut self, page: PageIndex, weight: u32) -> Return {
        self.probation.returned(page, weight, 0)
    }

    /// A page is in memory, and nobody is known to have touched it.
    pub fn is_back(&mut self, page: PageIndex) {
        self.probation.returned(page, 0, 0);
    }

    /// Time has passed: what came back is counted.
    pub fn count(&mut self, now: Monotonic) {
        self.probation.count(now);
    }

    /// Forgets the pages of this range that are not away any more, whoever brought them up.
    pub fn keep(&mut self, pages: Range<PageIndex>, is_away: impl Fn(PageIndex) -> bool) {
        self.probation.keep(pages, is_away);
    }

    /// At most `most` pages whose copies are to be freed now, of blocks whose copies can be.
    pub fn due(&mut self, most: u64, now: Monotonic, can: impl Fn(PageIndex) -> bool) -> Vec<PageIndex> {
        self.probation.due(self.budget.map(|budget| budget.reads), most, now, can)
    }

    /// The same where memory is short: whatever comes back.
    pub fn due_at_once(
        &mut self,
        most: u64,
        now: Monotonic,
        can: impl Fn(PageIndex) -> bool,
    ) -> Vec<PageIndex> {
        self.probation.due(None, most, now, can)
    }

    /// The copies of these pages are gone.
    pub fn freed(&mut self, pages: &[PageIndex]) {
        self.probation.freed(pages);
    }

    /// The kernel has freed all copies.
    pub fn all_freed(&mut self) {
        self.probation.all_freed();
    }

    /// Pages that are away and have a copy in memory, as far as is known.
    pub fn copies(&self) -> u64 {
        self.probation.copies()
    }

    /// What came of the pages that went out, by block.
    pub fn tried(&self, now: Monotonic) -> Tried {
        self.probation.tried(now)
    }

    /// Why nothing goes out, where the VM waited for too much.
    pub fn rests(&self, now: Monotonic) -> Option<String> {
        self.pacer.rests_until(now).or_else(|| self.lru.rests_until(now))?;
        let (waits, budget) =
            (self.pacer.waits_a_minute(now).max(self.lru.waits_a_minute(now)), self.budget?);
        Some(format!(
            "it waited for pages that went out for {} ms a minute, and may for {}: nothing goes for a minute",
            waits.as_millis(),
            budget.wait.as_millis()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_the_lesser_of_pages_and_time() {
        let read = Duration::from_micros(100);
        let reads =
            |vcpus, pages, percent| Budget::new(vcpus, pages, percent, read).map(|budget| budget.reads);
        assert_eq!(reads(1, 100_000, 0.2), Some(200.0));
        assert_eq!(reads(1, 100_000_000, 0.2), Some(600.0), "60 ms of reads that take 100 us");
        assert_eq!(reads(8, 100_000_000, 0.2), Some(4800.0));
        assert_eq!(reads(1, 100, 0.2), Some(LEAST_READS_A_MINUTE));
        assert_eq!((reads(1, 100, 0.0), reads(1, 100, 100.0)), (Some(0.0), None));
    }
}
