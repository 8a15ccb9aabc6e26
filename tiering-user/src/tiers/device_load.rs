//! How busy the disks below the swap tiers are, for whoever wants to spare them.
//!
//! In: the `stat` line of a block device (Documentation/block/stat.rst), twice. Out: a [`DeviceLoad`] a tier, in a
//! handle that is shared. Decides nothing.
//!
//! # Limits
//! The kernel counts whole milliseconds, added up over all requests: the mean of a single fast request can be 0.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::TierId;

/// What one disk did in the last second, whoever asked for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceLoad {
    pub reads: u64,
    /// Mean time of a read, queueing included; none where nothing was read.
    pub read_latency_ns: Option<u64>,
    /// Mean time of a write; none where nothing was written.
    pub write_latency_ns: Option<u64>,
    /// Requests that the disk has not answered yet.
    pub in_flight: u64,
}

/// Counters of a block device since its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskStat {
    reads: u64,
    read_ms: u64,
    writes: u64,
    write_ms: u64,
    in_flight: u64,
}

impl DiskStat {
    /// Reads a `stat` line; none where it is no such line.
    pub fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace().map(|field| field.parse::<u64>().ok());
        let mut next = |skipped| fields.nth(skipped).flatten();
        // reads, merged, sectors, ms; the same of writes; in flight.
        let (reads, read_ms) = (next(0)?, next(2)?);
        let (writes, write_ms) = (next(0)?, next(2)?);
        Some(Self { reads, read_ms, writes, write_ms, in_flight: next(0)? })
    }
}

impl DeviceLoad {
    /// What happened between two looks.
    pub fn between(before: &DiskStat, after: &DiskStat) -> Self {
        let mean_ns = |requests_before: u64, requests: u64, ms_before: u64, ms: u64| {
            let done = requests.saturating_sub(requests_before);
            ms.saturating_sub(ms_before).saturating_mul(1_000_000).checked_div(done)
        };
        Self {
            reads: after.reads.saturating_sub(before.reads),
            read_latency_ns: mean_ns(before.reads, after.reads, before.read_ms, after.read_ms),
            write_latency_ns: mean_ns(before.writes, after.writes, before.write_ms, after.write_ms),
            in_flight: after.in_flight,
        }
    }
}

/// The load of each tier's disk, as of the last second; shared with the thread that looks.
#[derive(Clone, Debug, Default)]
pub struct DeviceLoads(Arc<Mutex<Vec<Option<DeviceLoad>>>>);

impl DeviceLoads {
    /// The load of the disk below this tier; none for a memory tier, and before it was looked at twice.
    pub fn of(&self, tier: TierId) -> Option<DeviceLoad> {
        self.lock().get(usize::from(tier.0)).copied().flatten()
    }

    /// Notes what was seen; none where the disk could not be looked at.
    pub fn set(&self, tier: TierId, load: Option<DeviceLoad>) {
        let mut loads = self.lock();
        let level = usize::from(tier.0);
        if loads.len() <= level {
            loads.resize(level + 1, None);
        }
        loads[level] = load;
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<DeviceLoad>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As read on Linux 6.18.
    const BEFORE: &str = "   95932     7302  7358098   165219    19760    62758 20588384    97003        0    18196   264783    11482       66  2680776     2495     1270       65\n";
    const AFTER: &str = "   95942     7302  7358178   165319    19764    62758 20588416    97011        3    18206   264891    11482       66  2680776     2495     1270       65\n";

    fn stat(line: &str) -> DiskStat {
        DiskStat::parse(line).unwrap()
    }

    #[test]
    fn means_are_of_what_was_done_between_two_looks() {
        let load = DeviceLoad::between(&stat(BEFORE), &stat(AFTER));
        let expected = DeviceLoad {
            reads: 10,
            read_latency_ns: Some(10_000_000),
            write_latency_ns: Some(2_000_000),
            in_flight: 3,
        };
        assert_eq!(load, expected);
    }

    #[test]
    fn a_disk_at_rest_has_no_latency_and_a_disk_that_was_swapped_for_another_none_either() {
        let rest = DeviceLoad::between(&stat(BEFORE), &stat(BEFORE));
        assert_eq!(rest, DeviceLoad::default());
        assert_eq!(DeviceLoad::between(&stat(AFTER), &stat(BEFORE)).read_latency_ns, None);
        assert_eq!(DiskStat::parse("1 2 3"), None);
        assert_eq!(DiskStat::parse("a b c d e f g h i"), None);
    }

    #[test]
    fn a_load_is_of_one_tier() {
        let loads = DeviceLoads::default();
        let busy = DeviceLoad { in_flight: 9, ..DeviceLoad::default() };
        loads.clone().set(TierId(2), Some(busy));
        assert_eq!([0, 2, 5].map(|level| loads.of(TierId(level))), [None, Some(busy), None]);
    }
}
