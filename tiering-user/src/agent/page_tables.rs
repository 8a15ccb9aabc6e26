//! Answers that need a look at the page tables of a VM, by a thread of its own for each question.
//!
//! In: a VM, what is asked. Out: the answer, to who asks. Only he waits for the page tables of a process that is stuck.

use std::ops::Range;
use std::thread;

use crate::actuate::Target;
use crate::sys::{PAGE_BYTES, PageState};
use crate::telemetry::explain::Explanation;
use crate::telemetry::request::{ApiError, Location, Reply, VmMap};

/// Pages read from pagemap at a time.
const CHUNK_PAGES: u32 = 16_384;

/// Looks for the page that has this frame now, and answers when it is found.
pub(super) fn find_frame(target: Target, pfn: u64, reply: Reply<Range<u64>>) {
    on_a_thread(move || {
        let name = &target.info.vm.name;
        let answer = match page_with_frame(&target, pfn) {
            Ok(Some(hva)) => Ok(hva..hva + PAGE_BYTES),
            Ok(None) => Err(ApiError::NotFound(format!(
                "no page of {name} has frame {pfn:#x} now: it may be free, or another process's"
            ))),
            Err(error) => Err(ApiError::Unavailable(format!(
                "the page tables of {name} cannot be read ({error}): has it ended?"
            ))),
        };
        // The client may have gone.
        reply.send(answer).ok();
    });
}

/// Answers with a map, once it is looked up where each run begins.
pub(super) fn tell_map(target: Target, mut map: VmMap, reply: Reply<VmMap>) {
    on_a_thread(move || {
        for run in &mut map.runs {
            run.frame_or_slot = location(&target, run.hva);
        }
        reply.send(Ok(map)).ok();
    });
}

/// Answers with an explanation, once it is looked up where the page asked about is.
pub(super) fn tell_explanation(target: Target, mut explanation: Explanation, reply: Reply<Explanation>) {
    on_a_thread(move || {
        if let Some(page) = &mut explanation.page {
            page.frame_or_slot = location(&target, page.hva);
        }
        reply.send(Ok(explanation)).ok();
    });
}

fn location(target: &Target, hva: u64) -> Option<Location> {
    match target.process.pagemap().ok()?.read(hva, 1).ok()?.first()? {
        PageState::Present { pfn } => Some(Location::Frame { pfn: *pfn }),
        PageState::Swapped { area, slot } => Some(Location::Slot { area: (*area).into(), slot: *slot }),
        PageState::Zero | PageState::Absent => None,
    }
}

/// Page tables of a process that is stuck are not to be had: only who asks waits for them.
fn on_a_thread(look: impl FnOnce() + Send + 'static) {
    if let Err(error) = thread::Builder::new().name("tiering-lookup".into()).spawn(look) {
        // The client is told that there is no answer.
        tracing::warn!(%error, "cannot start a thread");
    }
}

fn page_with_frame(target: &Target, pfn: u64) -> std::io::Result<Option<u64>> {
    let pagemap = target.process.pagemap()?;
    for (region, start, _) in target.info.layout.regions() {
        for offset in (0..region.count).step_by(CHUNK_PAGES as usize) {
            let count = CHUNK_PAGES.min(region.count - offset);
            let first = start.0 + u64::from(offset) * PAGE_BYTES;
            let states = pagemap.read(first, count as usize)?;
            let found = (0u64..)
                .zip(states)
                .find(|(_, state)| matches!(state, PageState::Present { pfn: there } if *there == pfn));
            if let Some((page, _)) = found {
                return Ok(Some(first + page * PAGE_BYTES));
            }
        }
    }
    Ok(None)
}
