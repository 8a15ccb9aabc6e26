//! Pages into a memory tier, from wherever they are.
//!
//! 1. What is in swap is brought up and mapped, by a thread that prefers the node it left, else the tier's nodes.
//! 2. What is in memory elsewhere is moved to the node it left, else to the node of the tier that has most free
//!    ([`sys::move_pages`]).
//! 3. Where they are is read back.
//!
//! # Limits
//! A huge page moves as a whole, also when only a part of it was asked for. A VM that binds its RAM to nodes is
//! not moved between them: its pages come up from swap where its binding wants them.

use std::collections::BTreeMap;

use super::later::Preferences;
use super::page_states::PageStates;
use super::target::{Outcome, Skip, Target, gone, place_runs, select};
use crate::sys::{self, MoveStatus, PAGE_BYTES};
use crate::tiermap::{PageIndex, Place, Places};
use crate::tiers::{NodeMemory, TierId};

/// Pages of one call, round by round: one page that cannot be moved makes the kernel give up on those behind it.
const CALL_PAGES: [usize; 3] = [1024, 32, 1];
/// Share of a lower memory tier that stays free, so that its kernel threads need not reclaim there: 1 / 20. The
/// kernel's own high watermark is below 1 % of a node (mm/page_alloc.c, `__setup_per_zone_wmarks`).
const MARGIN_DIVISOR: u64 = 20;

/// Bytes that a lower memory tier can still take.
pub fn room_bytes(memory: NodeMemory) -> u64 {
    memory.free.saturating_sub(memory.total / MARGIN_DIVISOR)
}

/// The same for any memory tier: in the first one the page cache gives way, and copies in the swap cache. All there is,
/// where that cannot be told.
fn room_for(tier: TierId, memory: NodeMemory) -> u64 {
    match tier {
        TierId(0) if memory.total == 0 => u64::MAX,
        TierId(0) => memory.available.saturating_sub(memory.total / MARGIN_DIVISOR),
        _ => room_bytes(memory),
    }
}

/// Places the pages of `outcome` into the memory tier `to`. `look` is what the page tables said of them before, and
/// afterwards what they say.
pub(super) fn place(
    target: &Target,
    to: TierId,
    places: &Places,
    later: &mut Preferences,
    look: &mut PageStates,
    outcome: &mut Outcome,
) {
    if target.info.vm.numa_bound && to != TierId(0) {
        let asked = outcome.asked.len() as u64;
        return outcome.skip(Skip::Bound, asked);
    }
    if target.is_shared(&outcome.asked) {
        later.set(target, &outcome.asked, to, places);
    }
    if let Err(why) = try_place(target, to, places, look, outcome) {
        outcome.skip_rest(why);
    }
}

fn try_place(
    target: &Target,
    to: TierId,
    places: &Places,
    look: &mut PageStates,
    outcome: &mut Outcome,
) -> Result<(), Skip> {
    let wanted = Place::In(to);
    let asked = outcome.asked.clone();
    let before = seen(target, look, &asked, places);
    let mut pages = select(&asked, &before, |at| at != wanted && at != Place::Untouched);
    let room = room_for(to, places.nodes.memory(to)) / PAGE_BYTES;
    pages.truncate(usize::try_from(room).unwrap_or(usize::MAX));
    let chosen = |page: &PageIndex| pages.binary_search(page).is_ok();

    let in_memory = look.select(&pages, places, |at| places.in_memory(at));
    let swapped = look.select(&pages, places, |at| !places.in_memory(at));
    // Those that come up elsewhere are moved from there.
    let mut tried = target.bring_up(&swapped, to, places).map_err(gone);
    let mut refused = BTreeMap::new();
    if target.info.vm.numa_bound {
        refused.extend(in_memory.iter().map(|page| (*page, Skip::Bound)));
    } else if tried.is_ok() {
        tried = migrate(target, &pages, to, places, &mut refused);
    }

    // Also after an error: the table must know where the pages are now.
    *look = PageStates::in_brief(target, &asked, places).map_err(gone)?;
    let after = seen(target, look, &asked, places);
    for ((page, was), is) in asked.iter().zip(&before).zip(&after) {
        match (*was, *is) {
            (was, is) if is == wanted => outcome.moved(was, wanted, 1),
            (Place::Untouched, _) => outcome.skip(Skip::Absent, 1),
            (_, Place::Untouched) => outcome.skip(Skip::Zero, 1),
            _ if !chosen(page) => outcome.skip(Skip::TierFull, 1),
            _ if tried.is_err() => {}
            _ => outcome.skip(refused.get(page).cloned().unwrap_or(Skip::Stayed), 1),
        }
    }
    // Of shared memory in swap, the table knows better where it is.
    let shared = target.is_shared(&asked);
    let told = asked.into_iter().zip(after).filter(|(_, at)| !shared || *at != Place::OtherSwap);
    let (pages, found): (Vec<_>, Vec<_>) = told.unzip();
    outcome.found = place_runs(&pages, found.into_iter());
    tried
}

/// Moves those of the pages that are in memory, and not in `to`. Why one stays is noted in `refused`.
fn migrate(
    target: &Target,
    pages: &[PageIndex],
    to: TierId,
    places: &Places,
    refused: &mut BTreeMap<PageIndex, Skip>,
) -> Result<(), Skip> {
    // With one memory tier, what is in memory is in it.
    if places.nodes.tiers().0 <= 1 {
        return Ok(());
    }
    let mut rest = pages.to_vec();
    for (round, call_pages) in CALL_PAGES.into_iter().enumerate() {
        let elsewhere = |at| places.in_memory(at) && at != Place::In(to);
        let now = PageStates::at(target, &rest).map_err(gone)?;
        let mut left = now.select(&rest, places, elsewhere);
        left.retain(|page| !refused.contains_key(page));
        // Small calls that move nothing would only be followed by smaller ones.
        let stuck = round > 1 && left.len() == rest.len();
        let Some(roomiest) = places.nodes.roomiest(to).filter(|_| !left.is_empty() && !stuck) else { break };
        let by_home = target.by_home(to, &left, places);
        let calls = by_home.iter().flat_map(|(home, pages)| {
            let node = home.filter(|home| places.nodes.has_room(*home)).unwrap_or(roomiest);
            pages.chunks(call_pages).map(move |chunk| (node, chunk))
        });
        for (node, chunk) in calls {
            match sys::move_pages(&target.process, &target.addresses(chunk), node) {
                Ok(statuses) => {
                    let whys = chunk.iter().zip(statuses);
                    refused.extend(whys.filter_map(|(page, status)| Some((*page, why_stays(status)?))));
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
                    refused.extend(left.iter().map(|page| (*page, Skip::TierFull)));
                    return Ok(());
                }
                Err(error) => return Err(gone(error)),
            }
        }
        rest = left;
    }
    Ok(())
}

/// What another try would not change.
fn why_stays(status: MoveStatus) -> Option<Skip> {
    match status {
        MoveStatus::Refused(libc::EACCES) => Some(Skip::MappedElsewhere),
        _ => None,
    }
}

/// Where these pages were; shared memory that is not mapped counts as in swap.
fn seen(target: &Target, look: &PageStates, pages: &[PageIndex], places: &Places) -> Vec<Place> {
    let mut found = look.places(pages, places);
    if target.is_shared(pages) {
        found.iter_mut().filter(|at| **at == Place::Untouched).for_each(|at| *at = Place::OtherSwap);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_twentieth_of_a_lower_tier_stays_free() {
        let memory = |free| NodeMemory { total: 1000, free, available: 1000, copies: 0 };
        assert_eq!(room_bytes(memory(1000)), 950);
        assert_eq!(room_bytes(memory(51)), 1);
        assert_eq!(room_bytes(memory(49)), 0, "what the page cache holds does not count");
        assert_eq!(room_for(TierId(0), memory(49)), 950, "but in the first tier it does");
        assert_eq!(room_for(TierId(0), NodeMemory::default()), u64::MAX, "a kernel without NUMA");
    }
}
