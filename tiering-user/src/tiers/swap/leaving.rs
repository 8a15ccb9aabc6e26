//! How the areas of a tier go: drained, when somebody asks for it, at the end of the agent, or when nothing is in them.

use std::thread;
use std::time::Duration;

use super::area::Memory;
use super::error::SwapError;
use super::proc_swaps;
use super::segments::{Segment, used_bytes};
use super::tiers::SwapTiers;
use crate::sys::PAGE_BYTES;
use crate::tiers::TierId;

/// Slots that were covered may be counted as used for a moment: so often, and so long each time, it is waited for that.
const LOOKS: u32 = 10;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);
/// More than this is no remainder of a cover.
const LINGERING_BYTES: u64 = 1 << 20;

impl SwapTiers {
    /// Makes sure that there is memory for what is in the tier.
    ///
    /// # Errors
    /// [`AreaError::NoMemory`](super::AreaError::NoMemory), [`SwapError::ProcSwaps`], [`SwapError::NotSwap`].
    pub fn can_drain(&self, tier: TierId) -> Result<(), SwapError> {
        let on = proc_swaps::read().map_err(SwapError::ProcSwaps)?;
        let tier = &self.tiers[self.index(tier)?];
        Ok(Memory::now().check(tier.place.path(), tier.held_bytes(&on))?)
    }

    /// Switches the tier's areas off, which brings what is in them back to RAM, and removes the files; a device keeps
    /// its header. Nothing is sent to the tier any more. Returns the pages that were in it.
    ///
    /// # Errors
    /// [`AreaError::NoMemory`](super::AreaError::NoMemory) where what is in it does not fit; the areas not yet off stay
    /// as they are.
    pub fn drain(&mut self, tier: TierId) -> Result<u64, SwapError> {
        let index = self.index(tier)?;
        self.close()?;
        self.tiers[index].closed = true;
        let mut brought_up = 0;
        while let Some(segment) = self.tiers[index].segments.last() {
            let (area, own) = (segment.area.clone(), segment.own.clone());
            let on = proc_swaps::read().map_err(SwapError::ProcSwaps)?;
            let used = used_bytes(&on, &area);
            if let Err(error) = Memory::now().check(&area.path, used).and_then(|()| own.switch_off()) {
                self.tiers[index].closed = false;
                return Err(error.into());
            }
            if let Err(error) = own.remove() {
                tracing::warn!(%error, "a swap file that is off stays");
            }
            self.tiers[index].segments.pop();
            brought_up += used / PAGE_BYTES;
            self.publish();
        }
        self.numbers.save(&self.areas.list());
        self.tiers[index].place.tidy();
        Ok(brought_up)
    }

    /// Switches off one file of each tier that has two which hold nothing.
    pub(super) fn shed(&mut self) -> Result<(), SwapError> {
        let on = proc_swaps::read().map_err(SwapError::ProcSwaps)?;
        let mut shed = false;
        for tier in &mut self.tiers {
            let holds_nothing = |at: &usize| used_bytes(&on, &tier.segments[*at].area) == 0;
            let empty: Vec<usize> = (0..tier.segments.len()).filter(holds_nothing).collect();
            let [_, .., last] = empty[..] else { continue };
            let own = &tier.segments[last].own;
            own.switch_off()?;
            tracing::info!(path = %own.path.display(), "nothing is in a swap file any more: removing it");
            if let Err(error) = own.remove() {
                tracing::warn!(%error, "a swap file that is off stays");
            }
            tier.segments.remove(last);
            shed = true;
        }
        if shed {
            self.publish();
            self.numbers.save(&self.areas.list());
        }
        Ok(())
    }

    /// Switches off and removes the areas that hold nothing, which takes milliseconds; what holds something stays for
    /// the next agent, since the kernel would look through the page tables of all processes for it.
    ///
    /// Pages of a cover that were just being written stay in the swap cache until the kernel needs memory. Where those
    /// are all that is left, in all areas, they are switched off too: no process has many pages there.
    pub fn release_empty(&mut self) {
        self.let_go();
        self.numbers.save(&self.areas.list());
    }

    /// The same, but for what is saved.
    pub(super) fn let_go(&mut self) {
        // Its slots are free then.
        self.open = None;
        for _ in 0..LOOKS {
            self.release_those_with(0);
            if !(1..=LINGERING_BYTES).contains(&self.held_bytes()) {
                break;
            }
            thread::sleep(BETWEEN_LOOKS);
        }
        if self.held_bytes() <= LINGERING_BYTES {
            self.release_those_with(LINGERING_BYTES);
        }
        for tier in &self.tiers {
            tier.place.tidy();
        }
        for segment in self.tiers.iter().flat_map(|tier| &tier.segments) {
            tracing::info!(path = %segment.own.path.display(), "a swap area stays on for the next agent");
        }
        self.publish();
    }

    /// What all areas hold; more than any number where that cannot be read.
    fn held_bytes(&self) -> u64 {
        let Ok(on) = proc_swaps::read() else { return u64::MAX };
        let segments = self.tiers.iter().flat_map(|tier| &tier.segments);
        segments.map(|segment| used_bytes(&on, &segment.area)).sum()
    }

    /// Switches off the areas that hold no more than `bytes`.
    fn release_those_with(&mut self, bytes: u64) {
        let Ok(on) = proc_swaps::read() else { return };
        for tier in &mut self.tiers {
            tier.segments.retain(|segment| used_bytes(&on, &segment.area) > bytes || !gone(segment));
        }
    }
}

/// Switches an area off and removes its file; false where that failed.
fn gone(segment: &Segment) -> bool {
    let removed = segment.own.switch_off().and_then(|()| segment.own.remove());
    if let Err(error) = &removed {
        tracing::warn!(%error, "an empty swap area stays for the next agent");
    }
    removed.is_ok()
}
