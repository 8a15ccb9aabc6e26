//! Where a page is, as the answers of the control socket have it in JSON.

use serde::{Deserialize, Serialize};

/// Where a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Location {
    /// In memory: its page frame number.
    Frame { pfn: u64 },
    /// Swapped out: number of the swap area, as the kernel counts them, and slot in it.
    Slot { area: u32, slot: u64 },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_a_frame_or_a_slot_in_json() {
        let frame = Some(Location::Frame { pfn: 7 });
        let slot = Some(Location::Slot { area: 1, slot: 9 });
        assert_eq!(serde_json::to_string(&frame).unwrap(), r#"{"pfn":7}"#);
        assert_eq!(serde_json::to_string(&slot).unwrap(), r#"{"area":1,"slot":9}"#);
        let read: Option<Location> = serde_json::from_str(r#"{"area":1,"slot":9}"#).unwrap();
        assert_eq!(read, slot);
    }
}
