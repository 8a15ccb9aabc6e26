//! Blocks into huge pages.

use std::io;

use super::target::{Outcome, Skip, Target, gone, place_runs};
use crate::sys::Advice;
use crate::tiermap::{BLOCK_PAGES, Places, is_huge};

/// Times a block is tried: the kernel gives up on one of which a page is just being used.
const TRIES: usize = 3;

/// Makes the blocks of `outcome` huge pages, and looks which of them are.
pub(super) fn collapse(target: &Target, places: &Places, outcome: &mut Outcome) {
    if let Err(error) = try_collapse(target, places, outcome) {
        let rest = outcome.asked.len() as u64 - outcome.moved_pages;
        outcome.skip(gone(error), rest);
    }
}

fn try_collapse(target: &Target, places: &Places, outcome: &mut Outcome) -> io::Result<()> {
    let asked = outcome.asked.clone();
    let pagemap = target.process.pagemap()?;
    for block in asked.chunks(BLOCK_PAGES as usize) {
        let Some((start, _)) = target.info.layout.locate(block[0]) else { continue };
        // The kernel would fill them with pages of zeroes.
        if !target.given_back(block)?.is_empty() {
            outcome.skip(Skip::Absent, block.len() as u64);
            continue;
        }
        let mut tries = TRIES;
        while tries > 0 && !is_huge(&pagemap, start)? {
            target.advise(block, Advice::Collapse)?;
            tries -= 1;
        }
        if is_huge(&pagemap, start)? {
            outcome.moved_pages += block.len() as u64;
        } else {
            outcome.skip(Skip::NotCollapsed, block.len() as u64);
        }
    }
    outcome.found = place_runs(&asked, target.places(&asked, places)?.into_iter());
    Ok(())
}
