//! Which pages a question is about: by address in the process, by address in the guest, by frame.
//!
//! In: a VM, and addresses as somebody asks for them. Out: whether there is RAM of it, which pages are meant, and
//! where each is in the guest. Addresses of a guest whose RAM was found elsewhere than its machine type says are not
//! known. Pure.

use std::fmt::Write as _;
use std::ops::Range;

use tiering_common::PC_GAP;

use super::ManagedVm;
use crate::sys::PAGE_BYTES;
use crate::telemetry::request::{ApiError, Pages};
use crate::tiermap::PageIndex;
use crate::vm::{Gpa, GuestRange, Hva};

impl ManagedVm {
    /// The parts of its RAM with their addresses in the guest; none where these are not to be believed.
    pub fn guest_ranges(&self) -> &[GuestRange] {
        if self.gpa_proof.is_wrong() { &[] } else { &self.info.vm.guest_ranges }
    }

    /// Where this address is in the guest.
    pub fn gpa(&self, hva: Hva) -> Option<Gpa> {
        self.guest_ranges().iter().find_map(|range| range.gpa_of(hva))
    }

    /// The number of a page in the guest, where its addresses are known; else its number here, which no other VM's
    /// corresponds to.
    pub fn guest_page(&self, page: PageIndex) -> u64 {
        let hva = self.info.layout.locate(page).map(|(hva, _)| hva);
        let gpa = hva.and_then(|hva| self.gpa(hva));
        gpa.map_or(u64::from(self.info.id.0) << 32 | u64::from(page), |gpa| gpa.0 / PAGE_BYTES)
    }

    /// Where this address of the guest is in the process.
    pub fn hva(&self, gpa: Gpa) -> Result<Hva, ApiError> {
        self.check(&Pages::Gpa(gpa.0..gpa.0.saturating_add(1)))?;
        let hva = self.guest_ranges().iter().find_map(|range| range.hva(gpa));
        hva.ok_or_else(|| ApiError::BadRequest(format!("{:#x} is no RAM of the guest", gpa.0)))
    }

    /// Whether any RAM of the VM is meant.
    pub fn check(&self, pages: &Pages) -> Result<(), ApiError> {
        let name = &self.info.vm.name;
        let (wanted, kind, ram) = match pages {
            Pages::All | Pages::Frame(_) => return Ok(()),
            Pages::Hva(range) => {
                let ram = self.info.vm.ram.iter().map(|region| region.start.0..region.end().0);
                (range, "host-virtual", ram.collect::<Vec<_>>())
            }
            Pages::Gpa(range) => {
                if self.gpa_proof.is_wrong() {
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
pub fn is_meant(pages: &Pages, hva: u64, gpa: Option<Gpa>) -> bool {
    let overlaps = |range: &Range<u64>, start: u64| range.start < start + PAGE_BYTES && start < range.end;
    match pages {
        Pages::All | Pages::Frame(_) => true,
        Pages::Hva(range) => overlaps(range, hva),
        Pages::Gpa(range) => gpa.is_some_and(|gpa| overlaps(range, gpa.0)),
    }
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
