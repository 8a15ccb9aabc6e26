//! Takes over into the table what a sweep found.

use super::entry::{PageEntry, Place, Seconds};
use super::layout::{BLOCK_PAGES, PageRun};
use super::sweep::Sweep;
use super::table::VmPages;

/// What a sweep told that was not known, pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Had come back to memory unseen, which counts as an access.
    pub unseen: u64,
    /// Whose place in the table was wrong, those among them.
    pub changed: u64,
}

impl VmPages {
    /// Takes over what a sweep of a part found that began at `began`; an access since then knows better, but not on
    /// which node.
    pub fn apply(&mut self, sweep: &Sweep, began: Seconds, now: Seconds) -> Applied {
        let age = now.0.wrapping_sub(began.0);
        let mut applied = Applied::default();
        let mut next = sweep.part.first;
        let end = PageRun { first: sweep.part.first + sweep.part.count, count: 0 };
        for (run, place) in sweep.runs.iter().copied().chain([(end, Place::Untouched)]) {
            let between = PageRun { first: next, count: run.first.saturating_sub(next) };
            // Most of what was not found was not known either.
            for part in between.by_block() {
                if self.is_all(part, Place::Untouched) {
                    continue;
                }
                for page in part.pages() {
                    let entry = self.get(page);
                    let accessed_since = entry.heat() > 0 && entry.idle(now) <= age;
                    if entry.place() != Place::Untouched && !accessed_since {
                        self.update(page, |_| PageEntry::default());
                        applied.changed += 1;
                    }
                }
            }
            next = run.first + run.count;
            // Most of what was found is where it was.
            let moved: Vec<_> = run.by_block().filter(|part| !self.is_all(*part, place)).collect();
            for page in moved.into_iter().flat_map(PageRun::pages) {
                let before = self.get(page);
                let (was, one) = (before.place(), PageRun { first: page, count: 1 });
                let accessed_since = before.heat() > 0 && before.idle(now) <= age;
                let is_new = match (was, place) {
                    // For shared memory a sweep can only tell "in swap"; in which tier, the table knows better.
                    (Place::In(_), Place::OtherSwap) if self.in_swap(was) => false,
                    (was, is) if was == is => false,
                    (was, is) if self.in_memory(was) && !self.in_memory(is) => !accessed_since,
                    _ => true,
                };
                if !is_new {
                    continue;
                }
                applied.changed += 1;
                match (was, place) {
                    (Place::Untouched, _) => self.update(page, |_| PageEntry::found(place, now)),
                    (was, is) if self.in_memory(is) && !self.in_memory(was) => {
                        applied.unseen += 1;
                        self.touch(page, now, false);
                        self.update(page, |entry| entry.with_place(is));
                    }
                    (_, is) => self.place(one, is),
                }
            }
        }
        applied
    }

    /// Whether all pages of a run, which is a part of one block, are in this place.
    fn is_all(&self, part: PageRun, place: Place) -> bool {
        let Some(block) = self.blocks.get(part.first / BLOCK_PAGES) else { return place == Place::Untouched };
        let first = (part.first % BLOCK_PAGES) as usize;
        let entries = block.entries.get(first..first + part.count as usize).unwrap_or_default();
        entries.len() == part.count as usize && entries.iter().all(|entry| entry.place() == place)
    }
}
