//! Pages up from swap into memory ahead of need, and back.

use super::huge;
use super::target::{Outcome, Skip, Target, gone, place_runs};
use crate::sys::{Advice, PageState};
use crate::tiermap::{PageIndex, PageRun, Place, Places};
use crate::tiers::TierId;

/// Pages that are mapped at a time to be paged out: 1 MiB.
const DROP_PAGES: usize = 256;

/// Starts to read the pages of `outcome` into memory. They stay unmapped, so that the first touch is still seen;
/// pagemap shows them as swapped until then.
pub(super) fn stage(target: &Target, to: TierId, places: &Places, outcome: &mut Outcome) {
    let result = target.at_home(&outcome.asked, to, places, |pages| target.advise(pages, Advice::WillNeed));
    if result.is_ok() {
        outcome.moved_pages = outcome.asked.len() as u64;
    }
    note_error(result, outcome);
}

/// Waits until staged pages are read, and maps them.
pub(super) fn map_staged(target: &Target, places: &Places, outcome: &mut Outcome) {
    let asked = outcome.asked.clone();
    // A page whose stage came to nothing comes up now: in the first tier, as all that is mapped ahead of need.
    let touched = target.at_home(&asked, TierId(0), places, |pages| target.touch_read(pages));
    let result = touched.and_then(|()| {
        outcome.found = found(target, &asked, &target.states(&asked)?, places);
        outcome.moved_pages = outcome.found.iter().map(|(run, _)| u64::from(run.count)).sum();
        Ok(())
    });
    note_error(result, outcome);
}

/// Sends staged pages that were not used back: page-out passes over pages that are not mapped, so they are mapped
/// first; their slots still stand, so nothing is written.
pub(super) fn drop_stage(target: &Target, mapped: bool, places: &Places, outcome: &mut Outcome) {
    let asked = outcome.asked.clone();
    let result = target.states(&asked).and_then(|before| {
        let pages = match (mapped, target.is_shared(&asked)) {
            (true, true) => asked.clone(),
            (true, false) => in_state(&asked, &before, |state| state != PageState::Absent),
            (false, true) => Vec::new(),
            // What is mapped by now was touched after all.
            (false, false) => swapped(&asked, &before),
        };
        // A few at a time: what the kernel has let go of already comes up once more.
        for pages in pages.chunks(DROP_PAGES) {
            target.at_home(pages, TierId(0), places, |pages| target.touch_read(pages))?;
            target.advise(&huge::may_go(target, pages)?, Advice::PageOut)?;
        }
        let after = target.states(&asked)?;
        outcome.moved_pages = swapped(&asked, &after).len() as u64;
        outcome.skip(Skip::Stayed, asked.len() as u64 - outcome.moved_pages);
        outcome.found = found(target, &asked, &after, places);
        Ok(())
    });
    note_error(result, outcome);
}

/// Where the pages are, as far as pagemap tells: of shared memory it shows only what is mapped.
fn found(
    target: &Target,
    pages: &[PageIndex],
    states: &[PageState],
    places: &Places,
) -> Vec<(PageRun, Place)> {
    let shared = |page| target.info.layout.locate(page).is_some_and(|(_, shared)| shared);
    let told = |page, state| state != PageState::Absent || !shared(page);
    let told = pages.iter().zip(states).filter(|(page, state)| told(**page, **state));
    let (pages, places): (Vec<_>, Vec<_>) = told.map(|(page, state)| (*page, places.of(*state))).unzip();
    place_runs(&pages, places.into_iter())
}

fn swapped(pages: &[PageIndex], states: &[PageState]) -> Vec<PageIndex> {
    in_state(pages, states, |state| matches!(state, PageState::Swapped { .. }))
}

fn in_state(pages: &[PageIndex], states: &[PageState], is: impl Fn(PageState) -> bool) -> Vec<PageIndex> {
    pages.iter().zip(states).filter(|(_, state)| is(**state)).map(|(page, _)| *page).collect()
}

fn note_error(result: std::io::Result<()>, outcome: &mut Outcome) {
    if let Err(error) = result {
        let rest = (outcome.asked.len() as u64).saturating_sub(outcome.moved_pages);
        outcome.skip(gone(error), rest);
    }
}
