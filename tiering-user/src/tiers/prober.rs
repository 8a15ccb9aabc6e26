//! Keeps the figures of the tiers current while the agent runs.
//!
//! In: what was measured at start, and which areas are on. Out: [`Speeds`] and [`DeviceLoads`], shared handles that
//! others read. Once a second, on a thread of its own: one page of each swap tier in use is read past the page cache,
//! and the counters of its disk are looked at. Decides nothing.
//!
//! # Limits
//! Memory tiers are measured once, at start. A disk that does not answer holds up the figures of all tiers, and the
//! agent not at all.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::device_load::DiskStat;
use super::probe_file::ProbeFile;
use super::{Area, Areas, DeviceLoad, DeviceLoads, Latencies, Quantiles, TierId};
use crate::sys;

const EVERY: Duration = Duration::from_secs(1);

/// How fast a tier is, as far as known.
#[derive(Clone, Debug, Default)]
pub struct Speed {
    /// Of reads.
    pub latencies: Latencies,
    /// Of writes of single pages, as measured at start.
    pub write: Option<Quantiles>,
    pub bandwidth_bytes_per_s: Option<u64>,
}

/// The speed of each tier; shared with the thread that probes.
#[derive(Clone, Debug, Default)]
pub struct Speeds(Arc<Mutex<Vec<Speed>>>);

impl Speeds {
    /// One a tier, in order.
    pub fn new(speeds: Vec<Speed>) -> Self {
        Self(Arc::new(Mutex::new(speeds)))
    }

    /// What `read` makes of the tier's speed; none where there is no such tier.
    pub fn with<T>(&self, tier: TierId, read: impl FnOnce(&mut Speed) -> T) -> Option<T> {
        let mut speeds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        speeds.get_mut(usize::from(tier.0)).map(read)
    }
}

/// What is needed to go on probing a swap tier.
#[derive(Debug)]
pub struct Probe {
    pub tier: TierId,
    pub file: Option<ProbeFile>,
    /// The device to be read where there is no file yet: it was not made into swap when the tiers were measured.
    pub device: Option<PathBuf>,
    /// The counters of its disk.
    pub stat: Option<PathBuf>,
    /// What they said the last time.
    pub before: Option<DiskStat>,
}

/// The thread; it ends soon after this is dropped.
#[derive(Debug)]
pub struct Prober {
    /// Closed to end the thread.
    _stop: mpsc::Sender<()>,
}

impl Prober {
    /// Starts to probe.
    ///
    /// # Errors
    /// Where no thread can be had.
    pub fn start(
        mut probes: Vec<Probe>,
        areas: Areas,
        speeds: Speeds,
        loads: DeviceLoads,
    ) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel::<()>();
        thread::Builder::new().name("tiering-prober".into()).spawn(move || {
            while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                let in_use = areas.list();
                for probe in &mut probes {
                    probe.look(&in_use, &speeds, &loads);
                }
            }
        })?;
        Ok(Self { _stop: stop })
    }
}

impl Probe {
    /// What is due every second.
    fn look(&mut self, in_use: &[Area], speeds: &Speeds, loads: &DeviceLoads) {
        let text = self.stat.as_ref().and_then(|stat| fs::read_to_string(stat).ok());
        let now = text.and_then(|line| DiskStat::parse(&line));
        let load = self.before.zip(now).map(|(before, now)| DeviceLoad::between(&before, &now));
        loads.set(self.tier, load);
        self.before = now;
        if in_use.iter().any(|area| area.tier == self.tier) {
            self.read(speeds);
        }
    }

    fn read(&mut self, speeds: &Speeds) {
        if self.file.is_none()
            && let Some(device) = self.device.take()
        {
            self.file = ProbeFile::on_device(&device, sys::now().0).ok();
        }
        match self.file.as_mut().map(ProbeFile::read_page) {
            None => {}
            Some(Ok(took)) => {
                speeds.with(self.tier, |speed| speed.latencies.record(took, sys::now()));
            }
            // The disk says the same of the swap file itself, to whoever reads it: here once is enough.
            Some(Err(error)) => {
                tracing::warn!(tier = self.tier.0, %error, "a tier's disk cannot be read: probing it no more");
                self.file = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIER: TierId = TierId(1);

    fn area(tier: TierId) -> Area {
        let path = PathBuf::from("/nowhere/segment-0.swap");
        Area { path, tier, number: 0, priority: 0, bytes: 0, covered_pages: 0 }
    }

    #[test]
    fn a_tier_in_use_is_read_and_its_disk_is_looked_at_in_any_case() {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let stat = folder.path().join("stat");
        let file = ProbeFile::create(folder.path(), 1, sys::now()).unwrap();
        let mut probe =
            Probe { tier: TIER, file: Some(file), device: None, stat: Some(stat.clone()), before: None };
        let (speeds, loads) = (Speeds::new(vec![Speed::default(); 2]), DeviceLoads::default());
        let mut look = |line: &str, in_use| {
            fs::write(&stat, line).unwrap();
            probe.look(&[area(in_use)], &speeds, &loads);
            let reads =
                speeds.with(TIER, |speed| speed.latencies.buckets().iter().map(|(_, n)| n).sum::<u64>());
            (reads.unwrap(), loads.of(TIER).map(|load| (load.read_latency_ns, load.in_flight)))
        };
        assert_eq!(look("10 0 80 100 0 0 0 0 0", TierId(2)), (0, None), "nothing to compare with yet");
        assert_eq!(look("12 0 96 108 0 0 0 0 5", TierId(2)), (0, Some((Some(4_000_000), 5))));
        assert_eq!(look("12 0 96 108 0 0 0 0 0", TIER), (1, Some((None, 0))));
        assert_eq!(look("nonsense", TIER), (2, None), "what cannot be read is not what was read before");
    }
}
