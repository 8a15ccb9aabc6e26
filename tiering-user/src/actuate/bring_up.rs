//! Pages up from swap: mapped at once, or only into memory ahead of need.

use super::target::{Outcome, Skip, Target, place_runs};
use crate::sys::{Advice, PageState};
use crate::tiermap::{PageIndex, PageRun, Place, place_of};
use crate::tiers::Areas;

/// Brings the pages of `outcome` up and maps them.
pub(super) fn bring_up(target: &Target, areas: &Areas, outcome: &mut Outcome) {
    let asked = outcome.asked.clone();
    let result = target.states(&asked).and_then(|before| {
        let pages = if target.is_shared(&asked) { asked.clone() } else { swapped(&asked, &before) };
        target.advise(&pages, Advice::WillNeed)?;
        target.touch_read(&pages)?;
        let after = target.states(&asked)?;
        for (was, is) in before.iter().zip(&after) {
            match (was, is) {
                (PageState::Present { .. } | PageState::Zero, _) => {}
                (_, PageState::Present { .. }) => outcome.moved_pages += 1,
                (PageState::Absent, _) => outcome.skip(Skip::Absent, 1),
                _ => outcome.skip(Skip::Stayed, 1),
            }
        }
        outcome.found = found(target, &asked, &after, areas);
        Ok(())
    });
    note_error(result, outcome);
}

/// Starts to read the pages of `outcome` into memory. They stay unmapped, so that the first touch is still seen;
/// pagemap shows them as swapped until then.
pub(super) fn stage(target: &Target, outcome: &mut Outcome) {
    let result = target.advise(&outcome.asked, Advice::WillNeed);
    if result.is_ok() {
        outcome.moved_pages = outcome.asked.len() as u64;
    }
    note_error(result, outcome);
}

/// Sends staged pages that were not used back: page-out passes over pages that are not mapped, so they are mapped
/// first; their slots still stand, so nothing is written.
pub(super) fn drop_stage(target: &Target, areas: &Areas, outcome: &mut Outcome) {
    let asked = outcome.asked.clone();
    let result = target.states(&asked).and_then(|before| {
        // What is mapped by now was touched after all.
        let pages = if target.is_shared(&asked) { Vec::new() } else { swapped(&asked, &before) };
        target.touch_read(&pages)?;
        target.advise(&pages, Advice::PageOut)?;
        let after = target.states(&asked)?;
        outcome.moved_pages = swapped(&asked, &after).len() as u64;
        outcome.skip(Skip::Stayed, asked.len() as u64 - outcome.moved_pages);
        outcome.found = found(target, &asked, &after, areas);
        Ok(())
    });
    note_error(result, outcome);
}

/// Where the pages are, as far as pagemap tells: of shared memory it shows only what is mapped.
fn found(target: &Target, pages: &[PageIndex], states: &[PageState], areas: &Areas) -> Vec<(PageRun, Place)> {
    let shared = |page| target.layout.locate(page).is_some_and(|(_, shared)| shared);
    let told = |page, state| state != PageState::Absent || !shared(page);
    let told = pages.iter().zip(states).filter(|(page, state)| told(**page, **state));
    let (pages, places): (Vec<_>, Vec<_>) =
        told.map(|(page, state)| (*page, place_of(*state, areas))).unzip();
    place_runs(&pages, places.into_iter())
}

fn swapped(pages: &[PageIndex], states: &[PageState]) -> Vec<PageIndex> {
    let is_swapped = |state: &PageState| matches!(state, PageState::Swapped { .. });
    pages.iter().zip(states).filter(|(_, state)| is_swapped(state)).map(|(page, _)| *page).collect()
}

fn note_error(result: std::io::Result<()>, outcome: &mut Outcome) {
    if let Err(error) = result {
        let rest = (outcome.asked.len() as u64).saturating_sub(outcome.moved_pages);
        let ended = matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT) | None);
        outcome.skip(if ended { Skip::Gone } else { Skip::Failed(error.to_string()) }, rest);
    }
}
