//! How busy the device of a tier is, and how long a VM waited for what was read from it. Pure.

use std::time::Duration;

/// How busy the device of a tier is; none where it cannot be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierLoad {
    /// Mean of the last reads.
    pub read_latency_ns: Option<u64>,
    /// The same, when nothing else was going on.
    pub read_latency_at_rest_ns: Option<u64>,
    pub in_flight: Option<u64>,
    /// Reads of the last second, whoever asked for them.
    pub reads: u64,
}

/// How long a VM waited in a second for `pages` of a tier whose device was as busy as `load` says. A page whose copy
/// was still in the swap cache, or that came with its neighbours, needed no read of its own: no more are counted than
/// the device did.
pub fn fault_wait(pages: u64, load: &TierLoad) -> Duration {
    let reads = pages.min(load.reads);
    Duration::from_nanos(reads.saturating_mul(load.read_latency_ns.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_needed_no_read_was_not_waited_for() {
        let load = |reads, read_latency_ns| TierLoad { reads, read_latency_ns, ..TierLoad::default() };
        assert_eq!(fault_wait(100, &load(1000, Some(90_000))), Duration::from_millis(9));
        assert_eq!(fault_wait(1000, &load(10, Some(90_000))), Duration::from_micros(900));
        assert_eq!(fault_wait(1000, &load(0, None)), Duration::ZERO);
    }
}
