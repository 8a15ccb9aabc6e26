//! Which pages a question is about: by address in the process, by address in the guest, by frame.
//!
//! In: a machine, and addresses as somebody asks for them. Out: whether there is RAM of it, which pages are meant, and
//! where each is in the guest. Addresses of a guest whose RAM was found elsewhere than its machine type says are not
//! known.
//!
//! Page tables are looked at by a thread of its own for each question; for a frame, those of the whole machine.

use std::fmt::Write as _;
use std::ops::Range;
use std::thread;

use tiering_common::PC_GAP;

use super::machine::Machine;
use crate::actuate::Target;
use crate::sys::{PAGE_BYTES, PageState};
use crate::telemetry::explain::Explanation;
use crate::telemetry::request::{ApiError, Location, Pages, Reply, VmMap};
use crate::tiermap::PageIndex;
use crate::vm::{Gpa, GuestRange, Hva};

/// Pages read from pagemap at a time.
const CHUNK_PAGES: u32 = 16_384;

impl Machine {
    /// The parts of its RAM with their addresses in the guest; none where these are not to be believed.
    pub(super) fn guest_ranges(&self) -> &[GuestRange] {
        if self.layout.is_wrong() { &[] } else { &self.target.vm.guest_ranges }
    }

    /// Where this address is in the guest.
    pub(super) fn gpa(&self, hva: Hva) -> Option<Gpa> {
        self.guest_ranges().iter().find_map(|range| range.gpa_of(hva))
    }

    /// The number of a page in the guest, where its addresses are known; else its number here, which no other machine's
    /// corresponds to.
    pub(super) fn guest_page(&self, page: PageIndex) -> u64 {
        let hva = self.target.layout.locate(page).map(|(hva, _)| hva);
        let gpa = hva.and_then(|hva| self.gpa(hva));
        gpa.map_or(u64::from(self.target.id.0) << 32 | u64::from(page), |gpa| gpa.0 / PAGE_BYTES)
    }

    /// Where this address of the guest is in the process.
    pub(super) fn hva(&self, gpa: Gpa) -> Result<Hva, ApiError> {
        self.check(&Pages::Gpa(gpa.0..gpa.0.saturating_add(1)))?;
        let hva = self.guest_ranges().iter().find_map(|range| range.hva(gpa));
        hva.ok_or_else(|| ApiError::BadRequest(format!("{:#x} is no RAM of the guest", gpa.0)))
    }

    /// Whether any RAM of the machine is meant.
    pub(super) fn check(&self, pages: &Pages) -> Result<(), ApiError> {
        let name = &self.target.vm.name;
        let (wanted, kind, ram) = match pages {
            Pages::All | Pages::Frame(_) => return Ok(()),
            Pages::Hva(range) => {
                let ram = self.target.vm.ram.iter().map(|region| region.start.0..region.end().0);
                (range, "host-virtual", ram.collect::<Vec<_>>())
            }
            Pages::Gpa(range) => {
                if self.layout.is_wrong() {
                    return Err(ApiError::Refused(format!(
                        "guest-physical addresses of {name} are not where its machine type puts them: use --hva"
                    )));
                }
                let known = self.guest_ranges().iter().filter_map(|range| Some((range.gpa?.0, range.bytes)));
                let ram: Vec<_> = known.flat_map(|(gpa, bytes)| without_pc_gap(gpa..gpa + bytes)).collect();
                if ram.is_empty() {
                    return Err(ApiError::Refused(format!(
                        "guest-physical addresses of {name} are not known, as of its machine type: use --hva"
                    )));
                }
                (range, "guest-physical", ram)
            }
        };
        if ram.iter().any(|ram| wanted.start < ram.end && ram.start < wanted.end) {
            return Ok(());
        }
        let mut text =
            format!("{:#x}..{:#x} is no RAM of {name}, whose {kind} addresses are", wanted.start, wanted.end);
        for (range, before) in ram.iter().zip(std::iter::once(" ").chain(std::iter::repeat(", "))) {
            // Writing to a string cannot fail.
            write!(text, "{before}{:#x}..{:#x}", range.start, range.end).ok();
        }
        Err(ApiError::BadRequest(text))
    }
}

/// What of a range in the guest is RAM in a PC.
fn without_pc_gap(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let below = range.start..range.end.min(PC_GAP.start);
    let above = range.start.max(PC_GAP.end)..range.end;
    [below, above].into_iter().filter(|part| !part.is_empty())
}

/// Whether the page at this address, which is at `gpa` in the guest, is one of those meant.
pub(super) fn is_meant(pages: &Pages, hva: u64, gpa: Option<Gpa>) -> bool {
    let overlaps = |range: &Range<u64>, start: u64| range.start < start + PAGE_BYTES && start < range.end;
    match pages {
        Pages::All | Pages::Frame(_) => true,
        Pages::Hva(range) => overlaps(range, hva),
        Pages::Gpa(range) => gpa.is_some_and(|gpa| overlaps(range, gpa.0)),
    }
}

/// Looks for the page that has this frame now, and answers when it is found.
pub(super) fn find_frame(target: Target, pfn: u64, reply: Reply<Range<u64>>) {
    on_a_thread(move || {
        let name = &target.vm.name;
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
    for (region, start, _) in target.layout.regions() {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_meant_if_any_byte_of_it_is() {
        let meant = |pages: Pages| is_meant(&pages, 0x7000_1000, Some(Gpa(0x1000)));
        assert!(meant(Pages::All));
        assert!(meant(Pages::Hva(0x7000_1fff..0x7000_2000)) && meant(Pages::Gpa(0..0x1001)));
        assert!(!meant(Pages::Hva(0x7000_2000..0x7000_3000)) && !meant(Pages::Gpa(0..0x1000)));
        assert!(
            !is_meant(&Pages::Gpa(0..u64::MAX), 0x7000_1000, None),
            "nobody knows where it is in the guest"
        );
    }

    #[test]
    fn video_memory_of_a_pc_is_no_ram() {
        let ram = |range| without_pc_gap(range).collect::<Vec<_>>();
        assert_eq!(ram(0..0x800_0000), [0..0xa_0000, 0x10_0000..0x800_0000]);
        assert_eq!(ram(0x1_0000_0000..0x2_0000_0000), std::slice::from_ref(&(0x1_0000_0000..0x2_0000_0000)));
    }
}
