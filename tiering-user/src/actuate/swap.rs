//! Pages into a swap tier, from wherever they are, memory tiers included.
//!
//! 1. What is in swap elsewhere is brought up, and touched so that it gives its old slot back: a page that was
//!    read back and not written since would otherwise return to the slot it had.
//! 2. The tier is opened ([`SwapTiers::aim`]), the thread bound to one CPU, and the pages are paged out.
//! 3. Where they went is read back; what went elsewhere goes through 1 and 2 again, twice at most.
//!
//! The tier is closed by the caller, after it has told what became of the pages: the next batch may be for it too.
//!
//! # Limits
//! For shared memory the area cannot be read page by page: the growth of the tier's areas tells whether the batch
//! arrived, and if it did not for the most part, the place is "other swap".

use std::borrow::Cow;
use std::io;
use std::thread;
use std::time::Duration;

use super::huge;
use super::page_states::PageStates;
use super::tags::tags;
use super::target::{Outcome, Skip, Target, gone, place_runs, select};
use crate::policy::Reason;
use crate::sys::{Advice, OneCpu, PAGE_BYTES, PageState};
use crate::tiermap::{PageIndex, Place, Places};
use crate::tiers::{SwapError, SwapTiers, TierId, read_proc_swaps};

/// Times a page that is not where it should be is tried.
const ROUNDS: usize = 3;

/// More than this share of a batch that is not there, 1 / 100, is more than what lies in the kernel's per-CPU lists.
/// Most likely it is still being written to where it was before: such a page can neither go nor give its slot back
/// (`folio_free_swap` in mm/swapfile.c). Seen once, on a busy disk: 5,319 of 131,072 pages stayed and 1,093 went back
/// to the tier they had come from.
const STILL_WRITTEN_DIVISOR: usize = 100;
/// Pages that are paged out after one look at which are huge, where those are kept: 2 MiB.
const LOOK_PAGES: usize = 512;
/// How long the disk is given then, before the next round.
const UNTIL_WRITTEN: Duration = Duration::from_millis(50);

/// Places the pages of `outcome` into the tier `to`, one after the other in this order: slots are given out in that
/// order, so that what will be brought back together lies together on the disk. `look` is what the page tables said of
/// them before, and afterwards what they say of those that were tried.
pub(super) fn place(
    target: &Target,
    to: TierId,
    order: &[PageIndex],
    places: &Places,
    swap: &mut SwapTiers,
    look: &mut PageStates,
    outcome: &mut Outcome,
) {
    let mut way = Way { target, to, order, places, swap };
    let result = if target.is_shared(&outcome.asked) {
        way.place_shared(look, outcome)
    } else {
        way.place_private(look, outcome)
    };
    if let Err(why) = result {
        outcome.skip_rest(why);
    }
}

/// Where a batch goes, and what takes it there.
struct Way<'a> {
    target: &'a Target,
    to: TierId,
    order: &'a [PageIndex],
    places: &'a Places,
    swap: &'a mut SwapTiers,
}

impl Way<'_> {
    fn place_private(&mut self, look: &mut PageStates, outcome: &mut Outcome) -> Result<(), Skip> {
        let (target, places) = (self.target, self.places);
        let wanted = Place::In(self.to);
        let before = look.places(&outcome.asked, places);
        // What may be touched soon is not taken from where it can be.
        let only_from_swap = outcome.reason == Reason::MayBeTouched;
        let can_go = |at| at != wanted && at != Place::Untouched && !(only_from_swap && places.in_memory(at));
        let mut pages: Vec<PageIndex> = select(&outcome.asked, &before, can_go);
        pages.retain(|page| !target.info.layout.is_hugetlb(*page));
        let room = self.swap.room(self.to).map_err(failed)?;
        keep(room, &mut pages, outcome);
        // What is in swap has its tag since it went there.
        outcome.tags = tags(target, &look.select(&pages, places, |at| places.in_memory(at)));

        let tried = self.rounds(&pages, look, outcome);
        if tried.is_err() {
            // The table must know where the pages are now.
            look.again(target, &pages).map_err(gone)?;
        }
        let after = look.places(&outcome.asked, places);
        let was_tried = |page: &PageIndex| pages.binary_search(page).is_ok();
        let became_huge = tried.as_ref().map_or(&[][..], Vec::as_slice);
        for ((page, was), is) in outcome.asked.clone().iter().zip(&before).zip(&after) {
            match (*was, *is) {
                (was, is) if is == wanted => outcome.moved(was, wanted, 1),
                (Place::Untouched, _) => outcome.skip(Skip::Absent, 1),
                (_, Place::Untouched) => outcome.skip(Skip::Zero, 1),
                _ if target.info.layout.is_hugetlb(*page) => outcome.skip(Skip::Hugetlb, 1),
                _ if tried.is_err() || !was_tried(page) => {}
                (_, is) if places.in_memory(is) && became_huge.contains(page) => {
                    outcome.skip(Skip::KeptHuge, 1);
                }
                (_, is) if places.in_memory(is) => outcome.skip(Skip::Stayed, 1),
                _ => outcome.skip(Skip::ElsewhereInSwap, 1),
            }
        }
        outcome.found = place_runs(&outcome.asked, after.into_iter());
        tried.map(drop)
    }

    /// Pages out, until they are in the tier or have been tried often enough, pages that were looked at. Each look
    /// after a page-out replaces the one before it. Returns the pages that were left since they are a part of a huge
    /// page now.
    fn rounds(
        &mut self,
        asked: &[PageIndex],
        look: &mut PageStates,
        outcome: &mut Outcome,
    ) -> Result<Vec<PageIndex>, Skip> {
        let (target, to, places) = (self.target, self.to, self.places);
        let _one_cpu = OneCpu::bind();
        let (mut pages, mut became_huge, mut tries) = (asked.to_vec(), Vec::new(), 0);
        for round in 0..ROUNDS {
            tries += 1;
            let elsewhere = |at| !places.in_memory(at) && at != Place::In(to) && at != Place::Untouched;
            let to_come_up = look.select(&pages, places, elsewhere);
            if !to_come_up.is_empty() {
                // A tier that fails is found out before anything is brought up for it.
                self.swap.aim(to, pages.len() as u64).map_err(failed)?;
                give_slots_back(target, &to_come_up, places)?;
            }
            // After the slots were given back: they may lie in a tier that is filled before this one.
            let room = self.swap.aim(to, pages.len() as u64).map_err(failed)?;
            let mut left = keep(room, &mut pages, outcome);
            let huge_now = self.page_out(&mut pages)?;
            left.extend(&huge_now);
            became_huge.extend(huge_now);
            look.again(target, &pages).map_err(gone)?;
            if !to_come_up.is_empty() {
                // They came up and did not go.
                left.sort_unstable();
                look.again(target, &left).map_err(gone)?;
            }
            // One more pass for what the kernel had in its per-CPU lists; after that, what is in memory is so because
            // it was touched, or cannot go.
            let again = |at| elsewhere(at) || round == 0 && places.in_memory(at);
            let tried = pages.len();
            pages = look.select(&pages, places, again);
            if pages.is_empty() {
                break;
            }
            if round + 1 < ROUNDS && pages.len() * STILL_WRITTEN_DIVISOR > tried {
                thread::sleep(UNTIL_WRITTEN);
            }
        }
        if tries > 1 {
            // What had arrived may have been touched meanwhile.
            look.again(target, asked).map_err(gone)?;
        }
        Ok(became_huge)
    }

    /// Pages out `pages`, which are ascending. Takes out of them, and returns, those that have become a part of a huge
    /// page which is kept: of such a VM the page tables are read before each few pages.
    fn page_out(&self, pages: &mut Vec<PageIndex>) -> Result<Vec<PageIndex>, Skip> {
        let ordered = in_order(self.order, pages);
        let at_a_time = if self.target.info.keep_huge { LOOK_PAGES } else { ordered.len().max(1) };
        let mut became_huge = Vec::new();
        for few in ordered.chunks(at_a_time) {
            let small = huge::may_go(self.target, few).map_err(gone)?;
            self.target.advise(&small, Advice::PageOut).map_err(gone)?;
            if small.len() < few.len() {
                became_huge.extend(few.iter().copied().filter(|page| !small.contains(page)));
            }
        }
        drop(ordered);
        became_huge.sort_unstable();
        if !became_huge.is_empty() {
            pages.retain(|page| became_huge.binary_search(page).is_err());
        }
        Ok(became_huge)
    }

    /// For shared memory, whose swapped pages pagemap does not show. The caller asks only for pages that exist.
    fn place_shared(&mut self, look: &mut PageStates, outcome: &mut Outcome) -> Result<(), Skip> {
        let (target, to, places) = (self.target, self.to, self.places);
        let mut pages = outcome.asked.clone();
        if outcome.reason == Reason::MayBeTouched {
            pages = absent(look, &pages);
        }
        let room = self.swap.room(to).map_err(failed)?;
        keep(room, &mut pages, outcome);

        let _one_cpu = OneCpu::bind();
        let to_come_up = absent(look, &pages);
        if !to_come_up.is_empty() {
            // As for private memory: first of all, whether the tier can take them.
            self.swap.aim(to, pages.len() as u64).map_err(failed)?;
        }
        // Reading shared memory in frees its slot.
        target.bring_up(&to_come_up, TierId(0), places).map_err(gone)?;
        let room = self.swap.aim(to, pages.len() as u64).map_err(failed)?;
        keep(room, &mut pages, outcome);
        outcome.tags = tags(target, &pages);
        let used_before = used_pages(self.swap, to).map_err(io_failed)?;
        for _ in 0..2 {
            let became_huge = self.page_out(&mut pages)?;
            outcome.skip(Skip::KeptHuge, became_huge.len() as u64);
        }
        let grown = used_pages(self.swap, to).map_err(io_failed)?.saturating_sub(used_before);

        look.again(target, &pages).map_err(gone)?;
        let out = absent(look, &pages).len() as u64;
        let arrived = grown * 10 >= out * 9;
        let place = |state: PageState| match state {
            PageState::Present { .. } => places.of(state),
            _ if arrived => Place::In(to),
            _ => Place::OtherSwap,
        };
        outcome.skip(Skip::Stayed, pages.len() as u64 - out);
        if arrived {
            outcome.moved_pages = out;
        } else {
            outcome.skip(Skip::ElsewhereInSwap, out);
        }
        outcome.found = place_runs(&pages, look.of(&pages).map(|(_, state)| place(state)));
        Ok(())
    }
}

/// Those of these ascending pages that are not mapped.
fn absent(look: &PageStates, pages: &[PageIndex]) -> Vec<PageIndex> {
    look.of(pages).filter(|(_, state)| *state == PageState::Absent).map(|(page, _)| page).collect()
}

/// These of the ordered pages; they are ascending.
fn in_order<'a>(order: &[PageIndex], pages: &'a [PageIndex]) -> Cow<'a, [PageIndex]> {
    if order.is_sorted() {
        return Cow::Borrowed(pages);
    }
    Cow::Owned(order.iter().copied().filter(|page| pages.binary_search(page).is_ok()).collect())
}

/// Leaves out the pages for which the tier has no room, and returns them.
fn keep(room: u64, pages: &mut Vec<PageIndex>, outcome: &mut Outcome) -> Vec<PageIndex> {
    let fit = pages.len().min(usize::try_from(room).unwrap_or(usize::MAX));
    let left = pages.split_off(fit);
    outcome.skip(Skip::TierFull, left.len() as u64);
    left
}

/// Brings pages up from swap, each without the slot it had.
pub(super) fn give_slots_back(target: &Target, pages: &[PageIndex], places: &Places) -> Result<(), Skip> {
    let up = target.at_home(pages, TierId(0), places, |pages| {
        target.advise(pages, Advice::WillNeed)?;
        target.touch_write(pages)
    });
    up.map_err(gone)
}

fn used_pages(swap: &SwapTiers, tier: TierId) -> io::Result<u64> {
    let on = read_proc_swaps()?;
    let of_tier = swap.areas().list().into_iter().filter(|area| area.tier == tier);
    Ok(of_tier
        .filter_map(|area| on.iter().find(|line| line.path == area.path))
        .map(|line| line.used_bytes / PAGE_BYTES)
        .sum())
}

#[expect(clippy::needless_pass_by_value, reason = "the form map_err wants")]
fn failed(error: SwapError) -> Skip {
    Skip::TierFailed(error.to_string())
}

#[expect(clippy::needless_pass_by_value, reason = "the form map_err wants")]
fn io_failed(error: io::Error) -> Skip {
    Skip::Failed(error.to_string())
}
