//! Pages that went out and whose copies are in memory still, and when those are freed.
//!
//! In: pages that went out, came back, and whose copies were freed. Out: pages whose copies are to be freed now
//! ([`Probation::due`]).
//!
//! How many pages will come back in a minute is estimated by what came back:
//!
//! - by block of 2 MiB and by how long a page is away, in a few classes ([`TICKS`]). What is not known of a block in a
//!   class is taken from what is known of it in the class before, and of the first class from all blocks.
//! - by blocks that were calm and of which many pages came back at once, by how long the block had been calm. That is
//!   one event, however many pages it brought: a loop or a nightly job comes back so. What counts is how often that
//!   happened to blocks in the ten minutes from where the block is now.
//!
//! Copies are freed in the order of what is expected, as long as what is expected of all that was freed stays within
//! what may come back in a minute, and no more than that has come back in the last one. None is freed within its first
//! half minute.
//!
//! # Limits
//! Nothing is known of how long a block stays calm before one of its VM has woken.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use super::bits::Bits;
use super::savings::Tried;
use crate::policy::{Evidence, Verdict};
use crate::sys::Monotonic;
use crate::tiermap::{BLOCK_PAGES, PageIndex};

/// Pages pass from one class to the next at times that are multiples of so many seconds; in the last one they stay.
const TICKS: [u64; CLASSES - 1] = [30, 30, 60, 180, 300, 600];
const CLASSES: usize = 7;
/// From this class on a page is away for half a minute, and its copy may be freed. What comes back sooner was just in
/// use, and says little of later.
const SETTLED: usize = 2;
/// Any page that went out so long ago, and is away, is in that class: two ticks, and what a count may be late.
const SETTLES_WITHIN: Duration = Duration::from_secs(70);
/// From this class on a page that comes back was away for long: some ten minutes.
const LATE: usize = 5;
/// How often what came back is counted.
const COUNT_EVERY: Duration = Duration::from_secs(10);
/// What came back counts half after so many minutes.
const HALF_LIFE: f64 = 10.0;
const WAKES_HALF_LIFE: f64 = 30.0;
/// Returns a page-minute in the first class, before anything is known; it weighs as much as so many page-minutes.
const FIRST_RATE: f64 = 0.05;
const PRIOR_PAGE_MINUTES: f64 = 200.0;
/// How much less often pages come back than in the class before: not at all, as if so many returns had shown that.
const PRIOR_EXPECTED: f64 = 32.0;
/// What a block is thought to do in a class before it was watched there weighs as much as one return, but no more than
/// so many page-minutes, in the first class and in the others: a block in use among thousands that are cold shows soon.
const PRIOR_RETURNS: f64 = 1.0;
const PRIOR_MOST_FIRST: f64 = 100.0;
const PRIOR_MOST_LATER: f64 = 4000.0;
/// A class that was watched for less says nothing.
const LEAST_PAGE_MINUTES: f64 = 1e-3;
/// No rate is taken to be lower.
const LEAST_RATE: f64 = 1e-6;
/// The same for blocks that wake.
const PRIOR_BLOCK_MINUTES: f64 = 300.0;
/// A block woke where so many of its settled pages came back between two counts, and at least one in
/// [`WAKE_DIVISOR`].
const WAKE_LEAST: u32 = 16;
const WAKE_DIVISOR: u32 = 8;
/// A page is worth a read in so many minutes.
const WORTH_MINUTES: f64 = 30.0;
/// Of what may come back in a minute: what is expected of all that was freed.
const EXPECTED_SHARE: f64 = 0.5;
/// How long a block was calm, minutes: the upper bounds of all classes but the last.
const CALM: [f64; 6] = [1.0, 2.0, 5.0, 10.0, 20.0, 40.0];
/// How far it is looked ahead whether a block wakes, minutes.
const AHEAD: f64 = 10.0;
/// Counts of a minute.
const COUNTS: usize = 6;

/// A page came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Return {
    /// Whether it had to be read; else its copy was in memory.
    pub read: bool,
    /// Whether it had gone out a short while ago; none where that is not known.
    pub soon: Option<bool>,
}

/// The pages of one VM that are away.
#[derive(Clone, Debug, Default)]
pub struct Probation {
    blocks: BTreeMap<u32, Block>,
    /// Returns of a page of the first class.
    first: Rate,
    /// By class: returns, and how many there would be if blocks went on as in the class before.
    falls: [Fall; CLASSES],
    /// By how long they had been calm: blocks that woke.
    wakes: [Rate; CALM.len() + 1],
    /// How long a page must be idle before it goes out.
    demote_after: Duration,
    counted_at: Option<Monotonic>,
    copies: u64,
    /// Reads since the last count, and of the counts of the last minute.
    reads: u64,
    last_reads: [u64; COUNTS],
}

#[derive(Clone, Debug)]
struct Block {
    /// Pages that are away, by class.
    away: [Bits; CLASSES],
    /// Those whose copies are in memory.
    copies: Bits,
    /// Pages that went out since the block is known, whether they are back or not.
    tried: Bits,
    /// When pages went out last.
    sent_at: Monotonic,
    /// How many of those that went last came back soon, and which of them have not.
    evidence: Evidence,
    last: Bits,
    /// Came back since the last count, by class.
    returns: [u32; CLASSES],
    /// By class.
    rates: [Rate; CLASSES],
    calm_since: Monotonic,
}

/// How often something happens, a minute.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    minutes: f64,
    events: f64,
}

/// How much less often pages of a class come back than those of the class before.
///
/// What to expect of a block in a class is what came back of it in the class before. Blocks that are never touched add
/// nothing to either sum: that a class has more of them than the one before, because they went out first, must not look
/// like a fall.
#[derive(Clone, Copy, Debug, Default)]
struct Fall {
    expected: f64,
    came: f64,
}

impl Fall {
    fn decay(&mut self, factor: f64) {
        self.expected *= factor;
        self.came *= factor;
    }

    fn add(&mut self, expected: f64, came: u32) {
        self.expected += expected;
        self.came += f64::from(came);
    }

    fn factor(self) -> f64 {
        ((self.came + PRIOR_EXPECTED) / (self.expected + PRIOR_EXPECTED)).min(1.0)
    }
}

impl Rate {
    /// As it was, where it was watched.
    fn seen(self) -> Option<f64> {
        (self.minutes >= LEAST_PAGE_MINUTES).then(|| self.events / self.minutes)
    }

    fn decay(&mut self, factor: f64) {
        self.minutes *= factor;
        self.events *= factor;
    }

    /// As `prior`, as long as little is known.
    fn towards(self, prior: f64, prior_minutes: f64) -> f64 {
        (self.events + prior * prior_minutes) / (self.minutes + prior_minutes)
    }

    fn add(&mut self, minutes: f64, events: u32) {
        self.minutes += minutes;
        self.events += f64::from(events);
    }
}

/// Returns for each page and minute.
#[derive(Clone, Copy, Debug)]
struct Expected {
    rate: f64,
    /// One standard error above that. Of many blocks that are alike some seem calm by chance.
    at_most: f64,
}

impl Block {
    fn new(now: Monotonic) -> Self {
        Self {
            away: Default::default(),
            copies: Bits::default(),
            tried: Bits::default(),
            sent_at: now,
            evidence: Evidence::default(),
            last: Bits::default(),
            returns: [0; CLASSES],
            rates: Default::default(),
            calm_since: now,
        }
    }

    /// Returns for each page and minute, by class: in the first one as of all blocks, then as in the class before and
    /// as that falls from class to class elsewhere, until enough is known of this one.
    fn expected(&self, first: f64, falls: &[Fall; CLASSES]) -> [Expected; CLASSES] {
        let mut before = first;
        std::array::from_fn(|class| {
            let prior_minutes = match class {
                0 => (PRIOR_RETURNS / first).min(PRIOR_MOST_FIRST),
                _ => (PRIOR_RETURNS / (before * falls[class].factor())).min(PRIOR_MOST_LATER),
            };
            let Rate { minutes, events } = self.rates[class];
            let (minutes, events) = (minutes + prior_minutes, events + PRIOR_RETURNS);
            before = (events / minutes).max(LEAST_RATE);
            Expected { rate: before, at_most: (events + events.sqrt()) / minutes }
        })
    }

    fn calm_minutes(&self, now: Monotonic) -> f64 {
        now.since(self.calm_since).as_secs_f64() / 60.0
    }

    fn is_back(&self) -> bool {
        self.away.iter().all(|bits| bits.count() == 0)
    }
}

impl Probation {
    /// How long a page must be idle before it goes out.
    pub fn set_demote_after(&mut self, demote_after: Duration) {
        self.demote_after = demote_after;
    }

    /// How many pages of a block may go out.
    pub fn verdict(&self, block: u32, now: Monotonic) -> Verdict {
        let evidence = self.blocks.get(&block).map_or_else(Evidence::default, |block| block.evidence);
        evidence.verdict(self.demote_after, now)
    }

    /// An earlier agent saw this block in use.
    pub fn was_in_use(&mut self, block: u32, now: Monotonic) {
        self.blocks.entry(block).or_insert_with(|| Block::new(now)).evidence = Evidence::in_use(now);
    }

    /// These ascending pages went out. Those that left memory because they were idle say whether others are.
    pub fn sent(&mut self, pages: &[PageIndex], were_idle: bool, now: Monotonic) {
        for pages in pages.chunk_by(|a, b| a / BLOCK_PAGES == b / BLOCK_PAGES) {
            let block = self.blocks.entry(pages[0] / BLOCK_PAGES).or_insert_with(|| Block::new(now));
            block.sent_at = now;
            let count = u32::try_from(pages.len()).unwrap_or(BLOCK_PAGES);
            if were_idle && block.evidence.sent(count, self.demote_after, now) {
                block.last = Bits::default();
            }
            for page in pages.iter().map(|page| page % BLOCK_PAGES) {
                block.away.iter_mut().for_each(|bits| _ = bits.set(page, false));
                block.away[0].set(page, true);
                block.tried.set(page, true);
                block.last.set(page, were_idle);
                self.copies += u64::from(!block.copies.set(page, true));
            }
        }
    }

    /// A page came back, or is known to be there: it was touched so many times, and waited for so many.
    pub fn returned(&mut self, page: PageIndex, touches: u32, waits: u32) -> Return {
        let Some(block) = self.blocks.get_mut(&(page / BLOCK_PAGES)) else {
            self.reads += u64::from(waits);
            return Return { read: true, soon: None };
        };
        let page = page % BLOCK_PAGES;
        let class = (0..CLASSES).find(|class| block.away[*class].set(page, false));
        if let Some(class) = class {
            block.returns[class] += waits;
        }
        if block.last.set(page, false) && class.is_some_and(|class| class < SETTLED) {
            block.evidence.came_back(touches);
        }
        let read = !block.copies.set(page, false);
        if read {
            self.reads += u64::from(waits);
        } else {
            self.copies -= 1;
        }
        Return { read, soon: class.map(|class| class < LATE) }
    }

    /// The copies of these pages are gone.
    pub fn freed(&mut self, pages: &[PageIndex]) {
        for page in pages {
            if let Some(block) = self.blocks.get_mut(&(page / BLOCK_PAGES)) {
                self.copies -= u64::from(block.copies.set(page % BLOCK_PAGES, false));
            }
        }
    }

    /// The kernel needed the memory: no copy is left.
    pub fn all_freed(&mut self) {
        self.blocks.values_mut().for_each(|block| block.copies = Bits::default());
        self.copies = 0;
    }

    /// Whether a copy of this page is in memory, as far as is known.
    pub fn has_copy(&self, page: PageIndex) -> bool {
        self.blocks.get(&(page / BLOCK_PAGES)).is_some_and(|block| block.copies.get(page % BLOCK_PAGES))
    }

    /// Pages whose copies are in memory, as far as is known.
    pub fn copies(&self) -> u64 {
        self.copies
    }

    /// What came of the pages that went out, by block.
    pub fn tried(&self, now: Monotonic) -> Tried {
        let mut tried = Tried::default();
        for (number, block) in &self.blocks {
            let count = |away: &[Bits]| away.iter().map(|bits| bits.count()).sum();
            let (out, away) = (block.tried.count(), count(&block.away));
            // What comes back shows at once, what stays does not: until then nothing is concluded of the block.
            if now.since(block.sent_at) < SETTLES_WITHIN {
                tried.add_open(out, away);
            } else {
                tried.add(*number, out, count(&block.away[SETTLED..]));
            }
        }
        tried
    }

    /// Forgets the pages of this range that are not away any more, whoever brought them up.
    pub fn keep(&mut self, pages: Range<PageIndex>, is_away: impl Fn(PageIndex) -> bool) {
        for (number, block) in
            self.blocks.range_mut(pages.start / BLOCK_PAGES..pages.end.div_ceil(BLOCK_PAGES))
        {
            for bits in &mut block.away {
                for page in bits.ones().filter(|page| !is_away(number * BLOCK_PAGES + page)) {
                    bits.set(page, false);
                    self.copies -= u64::from(block.copies.set(page, false));
                }
            }
        }
    }

    /// At most `most` pages whose copies are to be freed now, in ascending order, of a VM that may wait for so many
    /// reads a minute; none: whatever comes back. Only of blocks for a page of which `can` says so.
    pub fn due(
        &mut self,
        reads_a_minute: Option<f64>,
        most: u64,
        now: Monotonic,
        can: impl Fn(PageIndex) -> bool,
    ) -> Vec<PageIndex> {
        self.count(now);
        let first = self.first_rate();
        let (most_a_minute, most_rate) = match reads_a_minute {
            Some(reads) => (reads * EXPECTED_SHARE, 1.0 / WORTH_MINUTES),
            None => (f64::INFINITY, f64::INFINITY),
        };
        let mut expected = 0.0;
        let mut candidates = Vec::new();
        for (number, block) in &self.blocks {
            let wakes = self.wakes_ahead(block.calm_minutes(now));
            let rates = block.expected(first, &self.falls);
            for (bits, Expected { rate, at_most }) in block.away.iter().zip(rates).skip(SETTLED) {
                let away = bits.count();
                if away == 0 {
                    continue;
                }
                let rate = rate + wakes;
                let copies = bits.both(block.copies);
                let count = copies.count();
                expected += f64::from(away - count) * rate;
                let can = || copies.ones().next().is_some_and(|page| can(number * BLOCK_PAGES + page));
                if count > 0 && at_most + wakes <= most_rate && can() {
                    candidates.push((rate, *number, count, copies));
                }
            }
        }
        let reads = self.last_reads.iter().sum::<u64>().max(self.last_reads[0] * COUNTS as u64) + self.reads;
        expected = f64::max(expected, reads as f64);
        candidates.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut due = Vec::new();
        for (rate, number, count, copies) in candidates {
            expected += f64::from(count) * rate;
            if expected > most_a_minute || due.len() as u64 + u64::from(count) > most {
                break;
            }
            due.extend(copies.ones().map(|page| number * BLOCK_PAGES + page));
        }
        due.sort_unstable();
        due
    }

    /// Returns for each page of the first class and minute.
    fn first_rate(&self) -> f64 {
        self.first.towards(FIRST_RATE, PRIOR_PAGE_MINUTES)
    }

    /// How often a block wakes that has been calm for so long, a minute, in the next few.
    fn wakes_ahead(&self, calm: f64) -> f64 {
        let (mut from, mut before) = (0.0, 0.0);
        let bounds = CALM.iter().copied().chain([f64::INFINITY]);
        let parts = self.wakes.iter().zip(bounds).map(|(rate, until)| {
            let minutes = (until.min(calm + AHEAD) - f64::max(from, calm)).max(0.0);
            from = until;
            before = rate.towards(before, PRIOR_BLOCK_MINUTES);
            before * minutes
        });
        parts.sum::<f64>() / AHEAD
    }

    /// Takes in what came back since the last count, and lets pages pass to the next class.
    pub fn count(&mut self, now: Monotonic) {
        let since = *self.counted_at.get_or_insert(now);
        if now.since(since) < COUNT_EVERY {
            return;
        }
        self.counted_at = Some(now);
        let minutes = now.since(since).as_secs_f64() / 60.0;
        let (decay, wakes_decay) = ((-minutes / HALF_LIFE).exp2(), (-minutes / WAKES_HALF_LIFE).exp2());
        self.first.decay(decay);
        self.falls.iter_mut().for_each(|fall| fall.decay(decay));
        self.wakes.iter_mut().for_each(|rate| rate.decay(wakes_decay));
        self.last_reads.rotate_right(1);
        self.last_reads[0] = std::mem::take(&mut self.reads);
        for block in self.blocks.values_mut() {
            let returns = std::mem::take(&mut block.returns);
            let settled: u32 = block.away[SETTLED..].iter().map(|bits| bits.count()).sum();
            let back: u32 = returns[SETTLED..].iter().sum();
            let calm = CALM.partition_point(|bound| *bound <= block.calm_minutes(since));
            self.wakes[calm].minutes += minutes;
            let woke = back >= WAKE_LEAST.max((settled + back) / WAKE_DIVISOR);
            if woke {
                self.wakes[calm].events += 1.0;
                block.calm_since = now;
                // Times have changed.
                if block.evidence.verdict(self.demote_after, now) != Verdict::InUse {
                    block.evidence = Evidence::default();
                }
            }
            let before = block.rates.map(Rate::seen);
            for (class, rate) in block.rates.iter_mut().enumerate() {
                rate.decay(decay);
                if woke && class >= SETTLED {
                    continue;
                }
                let page_minutes = f64::from(block.away[class].count() + returns[class]) * minutes;
                rate.add(page_minutes, returns[class]);
                match class.checked_sub(1).map(|last| before[last]) {
                    None => self.first.add(page_minutes, returns[class]),
                    Some(Some(before)) => self.falls[class].add(before * page_minutes, returns[class]),
                    Some(None) => {}
                }
            }
            for class in (0..CLASSES - 1).rev() {
                let tick = Duration::from_secs(TICKS[class]).as_nanos() as u64;
                if now.0 / tick > since.0 / tick {
                    let pass = std::mem::take(&mut block.away[class]);
                    block.away[class + 1].add(pass);
                }
            }
        }
        let demote_after = self.demote_after;
        let says_something = |block: &Block| {
            block.evidence.verdict(demote_after, now) == Verdict::InUse
                || block.rates.iter().any(|rate| rate.events > 0.1)
        };
        self.blocks.retain(|_, block| !block.is_back() || says_something(block));
    }
}

#[cfg(test)]
#[path = "probation_tests.rs"]
mod tests;
