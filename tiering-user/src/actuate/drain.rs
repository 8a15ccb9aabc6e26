//! Empties a swap tier: what VMs have there comes up to memory, then its areas are switched off.
//!
//! Switching an area off brings up what is in it too, but cannot be interrupted within one process (`try_to_unuse` in
//! mm/swapfile.c, Linux 6.1 to 6.18), and an agent that is to end would wait for all of it. So the pages of private
//! memory come up first, [`WINDOW_PAGES`] at a time, and between them the agent may end. In: the tier, the VMs.
//! Out: pages brought up.
//!
//! # Limits
//! Shared memory, processes that are no VMs and VMs that may not be touched are left to the kernel.

use std::sync::atomic::{AtomicBool, Ordering};

use super::swap::give_slots_back;
use super::target::{Roots, Target, select};
use crate::tiermap::{PageIndex, Place, Places};
use crate::tiers::{SwapError, SwapTiers, TierId};

/// 32 MiB: a third of a second of a disk that reads 100 MB/s.
const WINDOW_PAGES: u32 = 8192;

/// Brings up what is in the tier, and switches its areas off, unless `stop` is set meanwhile.
///
/// # Errors
/// [`SwapError::Stopped`], and those of [`SwapTiers::drain`].
pub(super) fn drain(
    tier: TierId,
    vms: &[Target],
    (roots, places): (&Roots, &Places),
    swap: &mut SwapTiers,
    stop: &AtomicBool,
) -> Result<u64, SwapError> {
    swap.can_drain(tier)?;
    let mut brought_up = 0;
    for vm in vms.iter().filter(|vm| vm.refusal(roots, true).is_none()) {
        for (region, _, _) in vm.info.layout.regions().filter(|(.., shared)| !shared) {
            let end = region.first + region.count;
            for first in (region.first..end).step_by(WINDOW_PAGES as usize) {
                if stop.load(Ordering::Relaxed) {
                    return Err(SwapError::Stopped);
                }
                let pages: Vec<PageIndex> = (first..end.min(first + WINDOW_PAGES)).collect();
                // What cannot be read has ended: nothing of it is in the tier any more.
                let Ok(now) = vm.places(&pages, places) else { break };
                let there = select(&pages, &now, |place| place == Place::In(tier));
                if there.is_empty() {
                    continue;
                }
                if give_slots_back(vm, &there, places).is_err() {
                    break;
                }
                brought_up += there.len() as u64;
            }
        }
    }
    Ok(brought_up + swap.drain(tier)?)
}
