//! Tags of pages that are about to go to swap.
//!
//! In: a VM and pages of it that are in memory. Out: the keyed hash of the content of each, as it is now: what the
//! guest writes before the page is out is missed, and the tag then matches nothing, or what it matched before.

use super::target::Target;
use crate::predict::Tag;
use crate::sys::{self, PAGE_BYTES};
use crate::tiermap::PageIndex;

/// Pages copied by one call.
const CALL_PAGES: usize = 256;

/// The tags of `pages`; none of pages of zeroes, of pages that cannot be read, and where nobody may learn from the
/// VM.
pub(super) fn tags(target: &Target, pages: &[PageIndex]) -> Vec<(PageIndex, Tag)> {
    let Some(key) = &target.info.tag_key else { return Vec::new() };
    let mut tags = Vec::with_capacity(pages.len());
    let mut buffer = vec![[0; PAGE_BYTES as usize]; CALL_PAGES.min(pages.len())];
    let mut rest = pages;
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(CALL_PAGES)];
        // A VM that has ended is told of by what comes next.
        let copied = sys::read_pages(&target.process, &target.addresses(chunk), &mut buffer).unwrap_or(0);
        let tagged = chunk.iter().zip(&buffer[..copied]);
        tags.extend(tagged.filter_map(|(page, content)| Some((*page, key.tag(content)?))));
        // The page after the last one copied cannot be: go on behind it.
        rest = &rest[(copied + usize::from(copied < chunk.len())).min(rest.len())..];
    }
    tags
}
