//! Pages into a swap tier, from wherever they are.
//!
//! 1. What is in swap elsewhere is brought up, and touched so that it gives its old slot back: a page that was
//!    read back and not written since would otherwise return to the slot it had.
//! 2. The tier is opened ([`SwapTiers::aim`]), the thread bound to one CPU, and the pages are paged out.
//! 3. Where they went is read back; what went elsewhere goes through 1 and 2 again, twice at most.
//!
//! What the tier has left is plugged by the caller, after it has told what became of the pages.
//!
//! # Limits
//! For shared memory the area cannot be read page by page: the growth of the tier's areas tells whether the batch
//! arrived, and if it did not for the most part, the place is "other swap".

use std::io;

use super::target::{Outcome, Skip, Target, place_runs};
use crate::sys::{Advice, OneCpu, PAGE_BYTES, PageState};
use crate::tiermap::{PageIndex, Place, place_of};
use crate::tiers::{SwapError, SwapTiers, TierId, read_proc_swaps};

/// Times a page that is not where it should be is tried.
const ROUNDS: usize = 3;

/// Places the pages of `outcome` into the tier `to`.
pub(super) fn place(target: &Target, to: TierId, swap: &mut SwapTiers, outcome: &mut Outcome) {
    let result = if target.is_shared(&outcome.asked) {
        place_shared(target, to, swap, outcome)
    } else {
        place_private(target, to, swap, outcome)
    };
    if let Err(why) = result {
        let rest = outcome.asked.len() as u64 - outcome.moved_pages;
        outcome.skip(why, rest);
    }
}

fn place_private(
    target: &Target,
    to: TierId,
    swap: &mut SwapTiers,
    outcome: &mut Outcome,
) -> Result<(), Skip> {
    let areas = swap.areas().clone();
    let wanted = Place::In(to);
    let place = |state: PageState| place_of(state, &areas);
    let before: Vec<Place> = states(target, &outcome.asked)?.into_iter().map(place).collect();
    let mut pages: Vec<PageIndex> =
        select(&outcome.asked, &before, |at| at != wanted && at != Place::Untouched);
    let room = swap.room(to).map_err(failed)?;
    outcome.skip(Skip::TierFull, (pages.len() as u64).saturating_sub(room));
    pages.truncate(usize::try_from(room).unwrap_or(usize::MAX));

    let tried = rounds(target, to, swap, pages.clone(), outcome);

    // Also after an error: the table must know where the pages are now.
    let after: Vec<Place> = states(target, &outcome.asked)?.into_iter().map(place).collect();
    let was_tried = |page: &PageIndex| pages.binary_search(page).is_ok();
    for ((page, was), is) in outcome.asked.clone().iter().zip(&before).zip(&after) {
        match (*was, *is) {
            (_, is) if is == wanted => outcome.moved_pages += u64::from(*was != wanted),
            (Place::Untouched, _) => outcome.skip(Skip::Absent, 1),
            (_, Place::Untouched) => outcome.skip(Skip::Zero, 1),
            _ if tried.is_err() || !was_tried(page) => {}
            (_, Place::In(TierId(0))) => outcome.skip(Skip::Stayed, 1),
            _ => outcome.skip(Skip::ElsewhereInSwap, 1),
        }
    }
    outcome.found = place_runs(&outcome.asked, after.into_iter());
    tried
}

/// Pages `pages` out until they are in the tier, or have been tried often enough.
fn rounds(
    target: &Target,
    to: TierId,
    swap: &mut SwapTiers,
    mut pages: Vec<PageIndex>,
    outcome: &mut Outcome,
) -> Result<(), Skip> {
    let areas = swap.areas().clone();
    let places = |pages: &[PageIndex]| -> Result<Vec<Place>, Skip> {
        Ok(states(target, pages)?.into_iter().map(|state| place_of(state, &areas)).collect())
    };
    let _one_cpu = OneCpu::bind();
    for round in 0..ROUNDS {
        let now = places(&pages)?;
        let elsewhere = |at| at != Place::In(TierId(0)) && at != Place::In(to) && at != Place::Untouched;
        give_slots_back(target, &select(&pages, &now, elsewhere))?;
        // After the slots were given back: they may lie in a tier that is filled before this one.
        let room = swap.aim(to, pages.len() as u64).map_err(failed)?;
        outcome.skip(Skip::TierFull, (pages.len() as u64).saturating_sub(room));
        pages.truncate(usize::try_from(room).unwrap_or(usize::MAX));
        target.advise(&pages, Advice::PageOut).map_err(gone)?;
        // One more pass for what the kernel had in its per-CPU lists; after that, what is in memory is so because it
        // was touched, or cannot go.
        let again = |at| elsewhere(at) || round == 0 && at == Place::In(TierId(0));
        pages = select(&pages, &places(&pages)?, again);
        if pages.is_empty() {
            break;
        }
    }
    Ok(())
}

/// For shared memory, whose swapped pages pagemap does not show. The caller asks only for pages that exist.
fn place_shared(
    target: &Target,
    to: TierId,
    swap: &mut SwapTiers,
    outcome: &mut Outcome,
) -> Result<(), Skip> {
    let mut pages = outcome.asked.clone();
    let room = swap.room(to).map_err(failed)?;
    outcome.skip(Skip::TierFull, (pages.len() as u64).saturating_sub(room));
    pages.truncate(usize::try_from(room).unwrap_or(usize::MAX));

    let _one_cpu = OneCpu::bind();
    let absent: Vec<_> = pages.iter().zip(states(target, &pages)?).collect();
    let absent: Vec<_> =
        absent.into_iter().filter(|(_, state)| *state == PageState::Absent).map(|(page, _)| *page).collect();
    // Reading shared memory in frees its slot.
    target.advise(&absent, Advice::WillNeed).map_err(gone)?;
    target.touch_read(&absent).map_err(gone)?;
    let room = swap.aim(to, pages.len() as u64).map_err(failed)?;
    outcome.skip(Skip::TierFull, (pages.len() as u64).saturating_sub(room));
    pages.truncate(usize::try_from(room).unwrap_or(usize::MAX));
    let used_before = used_pages(swap, to).map_err(io_failed)?;
    for _ in 0..2 {
        target.advise(&pages, Advice::PageOut).map_err(gone)?;
    }
    let grown = used_pages(swap, to).map_err(io_failed)?.saturating_sub(used_before);

    let states = states(target, &pages)?;
    let out = states.iter().filter(|state| **state == PageState::Absent).count() as u64;
    let arrived = grown * 10 >= out * 9;
    let place = |state: PageState| match state {
        PageState::Present { .. } => Place::In(TierId(0)),
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

fn states(target: &Target, pages: &[PageIndex]) -> Result<Vec<PageState>, Skip> {
    target.states(pages).map_err(gone)
}

/// Brings pages up from swap, each without the slot it had.
fn give_slots_back(target: &Target, pages: &[PageIndex]) -> Result<(), Skip> {
    target.advise(pages, Advice::WillNeed).map_err(gone)?;
    target.touch_write(pages).map_err(gone)
}

fn select(pages: &[PageIndex], places: &[Place], keep: impl Fn(Place) -> bool) -> Vec<PageIndex> {
    pages.iter().zip(places).filter(|(_, place)| keep(**place)).map(|(page, _)| *page).collect()
}

fn used_pages(swap: &SwapTiers, tier: TierId) -> io::Result<u64> {
    let on = read_proc_swaps()?;
    let of_tier = swap.areas().list().into_iter().filter(|area| area.tier == tier);
    Ok(of_tier
        .filter_map(|area| on.iter().find(|line| line.path == area.path))
        .map(|line| line.used_bytes / PAGE_BYTES)
        .sum())
}

/// Reading a process's memory fails for one reason that matters: it ended.
#[expect(clippy::needless_pass_by_value, reason = "the form map_err wants")]
fn gone(error: io::Error) -> Skip {
    match error.raw_os_error() {
        Some(libc::ESRCH | libc::ENOENT) | None => Skip::Gone,
        _ => Skip::Failed(error.to_string()),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the form map_err wants")]
fn failed(error: SwapError) -> Skip {
    Skip::Failed(error.to_string())
}

#[expect(clippy::needless_pass_by_value, reason = "the form map_err wants")]
fn io_failed(error: io::Error) -> Skip {
    Skip::Failed(error.to_string())
}
