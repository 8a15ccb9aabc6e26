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

use std::io;
use std::thread;
use std::time::Duration;

use super::huge;
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
/// order, so that what will be brought back together lies together on the disk.
pub(super) fn place(
    target: &Target,
    to: TierId,
    order: &[PageIndex],
    places: &Places,
    swap: &mut SwapTiers,
    outcome: &mut Outcome,
) {
    let result = if target.is_shared(&outcome.asked) {
        place_shared(target, to, order, places, swap, outcome)
    } else {
        place_private(target, to, order, places, swap, outcome)
    };
    if let Err(why) = result {
        outcome.skip_rest(why);
    }
}

fn place_private(
    target: &Target,
    to: TierId,
    order: &[PageIndex],
    places: &Places,
    swap: &mut SwapTiers,
    outcome: &mut Outcome,
) -> Result<(), Skip> {
    let wanted = Place::In(to);
    let before = target.places(&outcome.asked, places).map_err(gone)?;
    // What may be touched soon is not taken from where it can be.
    let only_from_swap = outcome.reason == Reason::MayBeTouched;
    let can_go = |at| at != wanted && at != Place::Untouched && !(only_from_swap && places.in_memory(at));
    let mut pages: Vec<PageIndex> = select(&outcome.asked, &before, can_go);
    pages.retain(|page| !target.layout.is_hugetlb(*page));
    let room = swap.room(to).map_err(failed)?;
    keep(room, &mut pages, outcome);
    // What is in swap has its tag since it went there.
    let mut in_memory = select(&outcome.asked, &before, |at| places.in_memory(at));
    in_memory.retain(|page| pages.binary_search(page).is_ok());
    outcome.tags = tags(target, &in_memory);

    let at: Vec<Place> = {
        let mut chosen = pages.iter().peekable();
        let of_chosen =
            outcome.asked.iter().zip(&before).filter(|(page, _)| chosen.next_if_eq(page).is_some());
        of_chosen.map(|(_, at)| *at).collect()
    };
    let tried = rounds(target, to, order, places, swap, (pages.clone(), at), outcome);

    // Also after an error: the table must know where the pages are now.
    let after = target.places(&outcome.asked, places).map_err(gone)?;
    let was_tried = |page: &PageIndex| pages.binary_search(page).is_ok();
    let became_huge = tried.as_ref().map_or(&[][..], Vec::as_slice);
    for ((page, was), is) in outcome.asked.clone().iter().zip(&before).zip(&after) {
        match (*was, *is) {
            (was, is) if is == wanted => outcome.moved(was, wanted, 1),
            (Place::Untouched, _) => outcome.skip(Skip::Absent, 1),
            (_, Place::Untouched) => outcome.skip(Skip::Zero, 1),
            _ if target.layout.is_hugetlb(*page) => outcome.skip(Skip::Hugetlb, 1),
            _ if tried.is_err() || !was_tried(page) => {}
            (_, is) if places.in_memory(is) && became_huge.contains(page) => outcome.skip(Skip::KeptHuge, 1),
            (_, is) if places.in_memory(is) => outcome.skip(Skip::Stayed, 1),
            _ => outcome.skip(Skip::ElsewhereInSwap, 1),
        }
    }
    outcome.found = place_runs(&outcome.asked, after.into_iter());
    tried.map(drop)
}

/// Pages out, until they are in the tier or have been tried often enough, pages of which it is known where they are.
/// Returns those that were left since they are a part of a huge page now.
fn rounds(
    target: &Target,
    to: TierId,
    order: &[PageIndex],
    places: &Places,
    swap: &mut SwapTiers,
    (mut pages, mut now): (Vec<PageIndex>, Vec<Place>),
    outcome: &mut Outcome,
) -> Result<Vec<PageIndex>, Skip> {
    let _one_cpu = OneCpu::bind();
    let mut became_huge = Vec::new();
    for round in 0..ROUNDS {
        let elsewhere = |at| !places.in_memory(at) && at != Place::In(to) && at != Place::Untouched;
        let to_come_up = select(&pages, &now, elsewhere);
        if !to_come_up.is_empty() {
            // A tier that fails is found out before anything is brought up for it.
            swap.aim(to, pages.len() as u64).map_err(failed)?;
            give_slots_back(target, &to_come_up, places)?;
        }
        // After the slots were given back: they may lie in a tier that is filled before this one.
        let room = swap.aim(to, pages.len() as u64).map_err(failed)?;
        keep(room, &mut pages, outcome);
        became_huge.extend(page_out(target, order, &mut pages)?);
        // One more pass for what the kernel had in its per-CPU lists; after that, what is in memory is so because it
        // was touched, or cannot go.
        let again = |at| elsewhere(at) || round == 0 && places.in_memory(at);
        let after = target.places(&pages, places).map_err(gone)?;
        let tried = pages.len();
        (pages, now) = pages.into_iter().zip(after).filter(|(_, at)| again(*at)).unzip();
        if pages.is_empty() {
            break;
        }
        if round + 1 < ROUNDS && pages.len() * STILL_WRITTEN_DIVISOR > tried {
            thread::sleep(UNTIL_WRITTEN);
        }
    }
    Ok(became_huge)
}

/// Pages out `pages`, which are ascending. Takes out of them, and returns, those that have become a part of a huge page
/// which is kept: of such a machine the page tables are read before each few pages.
fn page_out(
    target: &Target,
    order: &[PageIndex],
    pages: &mut Vec<PageIndex>,
) -> Result<Vec<PageIndex>, Skip> {
    let ordered = in_order(order, pages);
    let at_a_time = if target.keep_huge { LOOK_PAGES } else { ordered.len().max(1) };
    let mut became_huge = Vec::new();
    for few in ordered.chunks(at_a_time) {
        let small = huge::may_go(target, few).map_err(gone)?;
        target.advise(&small, Advice::PageOut).map_err(gone)?;
        if small.len() < few.len() {
            became_huge.extend(few.iter().copied().filter(|page| !small.contains(page)));
        }
    }
    became_huge.sort_unstable();
    pages.retain(|page| became_huge.binary_search(page).is_err());
    Ok(became_huge)
}

/// For shared memory, whose swapped pages pagemap does not show. The caller asks only for pages that exist.
fn place_shared(
    target: &Target,
    to: TierId,
    order: &[PageIndex],
    places: &Places,
    swap: &mut SwapTiers,
    outcome: &mut Outcome,
) -> Result<(), Skip> {
    let mut pages = outcome.asked.clone();
    if outcome.reason == Reason::MayBeTouched {
        let states = states(target, &pages)?;
        let absent = pages.iter().zip(states).filter(|(_, state)| *state == PageState::Absent);
        pages = absent.map(|(page, _)| *page).collect();
    }
    let room = swap.room(to).map_err(failed)?;
    keep(room, &mut pages, outcome);

    let _one_cpu = OneCpu::bind();
    let absent: Vec<_> = pages.iter().zip(states(target, &pages)?).collect();
    let absent: Vec<_> =
        absent.into_iter().filter(|(_, state)| *state == PageState::Absent).map(|(page, _)| *page).collect();
    if !absent.is_empty() {
        // As for private memory: first of all, whether the tier can take them.
        swap.aim(to, pages.len() as u64).map_err(failed)?;
    }
    // Reading shared memory in frees its slot.
    target.bring_up(&absent, TierId(0), places).map_err(gone)?;
    let room = swap.aim(to, pages.len() as u64).map_err(failed)?;
    keep(room, &mut pages, outcome);
    outcome.tags = tags(target, &pages);
    let used_before = used_pages(swap, to).map_err(io_failed)?;
    for _ in 0..2 {
        let became_huge = page_out(target, order, &mut pages)?;
        outcome.skip(Skip::KeptHuge, became_huge.len() as u64);
    }
    let grown = used_pages(swap, to).map_err(io_failed)?.saturating_sub(used_before);

    let states = states(target, &pages)?;
    let out = states.iter().filter(|state| **state == PageState::Absent).count() as u64;
    let arrived = grown * 10 >= out * 9;
    let place = |state: PageState| match state {
        PageState::Present { .. } => places.of(state),
        _ if arrived => Place::In(to),
        _ => Place::OtherSwap,
    };
    outcome.skip(Skip::Stayed, states.len() as u64 - out);
    if arrived {
        outcome.moved_pages = out;
    } else {
        outcome.skip(Skip::ElsewhereInSwap, out);
    }
    outcome.found = place_runs(&pages, states.into_iter().map(place));
    Ok(())
}

/// These of the ordered pages; they are ascending.
fn in_order(order: &[PageIndex], pages: &[PageIndex]) -> Vec<PageIndex> {
    order.iter().copied().filter(|page| pages.binary_search(page).is_ok()).collect()
}

fn states(target: &Target, pages: &[PageIndex]) -> Result<Vec<PageState>, Skip> {
    target.states(pages).map_err(gone)
}

/// Leaves out the pages for which the tier has no room.
fn keep(room: u64, pages: &mut Vec<PageIndex>, outcome: &mut Outcome) {
    outcome.skip(Skip::TierFull, (pages.len() as u64).saturating_sub(room));
    pages.truncate(usize::try_from(room).unwrap_or(usize::MAX));
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
