//! What the tiers are like: looked at once before the agent serves, and kept current while it does.
//!
//! In: the ladder. Out: warnings, in the log and in the status; each tier's figures in the status; the load of the
//! disks ([`Survey::loads`]). Nothing here keeps the agent from starting.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::policy::TierLoad;
use crate::telemetry::latency::Latency;
use crate::telemetry::status::{self, TierStatus};
use crate::tiers::{
    Areas, DeviceLoads, Facts, Finding, Ladder, Probe, Prober, Quantiles, Speed, Speeds, SwapPlace, TierId,
    TierKind, measure, verify,
};

/// Shared handles, and what was found at start.
#[derive(Debug, Default)]
pub(super) struct Survey {
    speeds: Speeds,
    loads: DeviceLoads,
    /// Median of a read when the agent started, by level.
    at_rest_ns: Vec<Option<u64>>,
    swap_tiers: Vec<TierId>,
    /// What each tier is on, by level.
    devices: Vec<Option<String>>,
    warnings: Vec<String>,
    /// Until [`Survey::keep_current`] hands them on.
    probes: Vec<Probe>,
    _prober: Option<Prober>,
}

impl Survey {
    /// Looks at the host, measures each tier, and warns of what contradicts the ladder. Takes half a second,
    /// twice that where it finds the ladder out of order, and two seconds for each tier that does not answer.
    pub(super) fn of(ladder: &Ladder) -> Self {
        let facts = Facts::gather(Path::new("/sys"), Path::new("/proc"), ladder);
        let (mut speeds, mut p50_ns, mut probes) = (Vec::new(), Vec::new(), Vec::new());
        for (tier, measurement) in ladder.tiers().iter().zip(measure(ladder.tiers(), &facts.nodes)) {
            p50_ns.push(measurement.p50_ns());
            let speed = match measurement.outcome {
                Ok(measured) => Speed {
                    latencies: measured.latencies,
                    write: measured.write,
                    bandwidth_bytes_per_s: Some(measured.bandwidth_bytes_per_s),
                },
                Err(error) => {
                    tracing::warn!(tier = tier.name, "{error}");
                    Speed::default()
                }
            };
            speeds.push(speed);
            let disks = facts.disks.get(usize::from(tier.id.0)).and_then(Option::as_ref);
            if let TierKind::Swap { place, .. } = &tier.kind {
                let stat = disks.map(|disks| disks.stat.clone());
                let device = match place {
                    SwapPlace::Folder(_) => None,
                    SwapPlace::Device { path, .. } => measurement.probe.is_none().then(|| path.clone()),
                };
                probes.push(Probe { tier: tier.id, file: measurement.probe, device, stat, before: None });
            }
        }
        let findings = verify(ladder, &facts, &p50_ns);
        for finding in &findings {
            tracing::warn!("{}", in_full(finding));
        }
        Self {
            speeds: Speeds::new(speeds),
            loads: DeviceLoads::default(),
            at_rest_ns: p50_ns,
            swap_tiers: ladder.swap_tiers().map(|tier| tier.id).collect(),
            devices: ladder.tiers().iter().map(|tier| facts.device_of(tier)).collect(),
            warnings: findings.iter().map(in_full).collect(),
            probes,
            _prober: None,
        }
    }

    /// Goes on measuring the tiers that are in use, on a thread of its own.
    ///
    /// # Errors
    /// Where no thread can be had.
    pub(super) fn keep_current(&mut self, areas: Areas) -> io::Result<()> {
        let probes = std::mem::take(&mut self.probes);
        self._prober = Some(Prober::start(probes, areas, self.speeds.clone(), self.loads.clone())?);
        Ok(())
    }

    /// The load of the disks below the tiers.
    pub(super) fn loads(&self) -> &DeviceLoads {
        &self.loads
    }

    /// How busy the disks below the swap tiers are, for the brakes.
    pub(super) fn tier_loads(&self) -> BTreeMap<TierId, TierLoad> {
        self.swap_tiers.iter().map(|tier| (*tier, self.tier_load(*tier))).collect()
    }

    fn tier_load(&self, tier: TierId) -> TierLoad {
        let load = self.loads.of(tier);
        TierLoad {
            read_latency_ns: load.and_then(|load| load.read_latency_ns),
            read_latency_at_rest_ns: self.at_rest_ns.get(usize::from(tier.0)).copied().flatten(),
            in_flight: load.map(|load| load.in_flight),
            reads: load.map_or(0, |load| load.reads),
        }
    }

    pub(super) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Puts what is known of a tier's speed into its status.
    pub(super) fn tell(&self, tier: TierId, status: &mut TierStatus) {
        self.speeds.with(tier, |speed| {
            status.read_latency_ns = speed.latencies.quantiles().map(told);
            status.write_latency_ns = speed.write.map(told);
            status.latency_histogram = speed.latencies.buckets();
            status.bandwidth_bytes_per_s = speed.bandwidth_bytes_per_s;
        });
        status.device = self.devices.get(usize::from(tier.0)).cloned().flatten();
        status.device_load = self.loads().of(tier).map(|load| status::DeviceLoad {
            read_latency_ns: load.read_latency_ns,
            write_latency_ns: load.write_latency_ns,
            in_flight: load.in_flight,
        });
    }
}

fn told(quantiles: Quantiles) -> Latency {
    Latency { p50: quantiles.p50_ns, p99: quantiles.p99_ns }
}

fn in_full(finding: &Finding) -> String {
    format!("{finding}: {}", finding.advice())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys;
    use crate::tiers::DeviceLoad;
    use std::time::Duration;

    #[test]
    fn a_tier_tells_what_was_measured_and_one_that_could_not_be_says_nothing() {
        let mut speed = Speed { bandwidth_bytes_per_s: Some(1 << 30), ..Speed::default() };
        speed.latencies.record(Duration::from_nanos(90), sys::now());
        let survey = Survey {
            speeds: Speeds::new(vec![speed, Speed::default()]),
            devices: vec![None, Some("sda".to_owned())],
            ..Survey::default()
        };
        survey.loads().set(TierId(1), Some(DeviceLoad { in_flight: 3, ..DeviceLoad::default() }));
        let told = |level| {
            let mut status = TierStatus::default();
            survey.tell(TierId(level), &mut status);
            status
        };
        let (memory, disk) = (told(0), told(1));
        assert_eq!(memory.read_latency_ns, Some(Latency { p50: 90, p99: 90 }));
        assert_eq!((memory.latency_histogram.len(), memory.bandwidth_bytes_per_s), (1, Some(1 << 30)));
        assert_eq!((memory.device, memory.device_load), (None, None));
        assert_eq!((disk.read_latency_ns, disk.bandwidth_bytes_per_s), (None, None));
        assert_eq!(
            (disk.device.as_deref(), disk.device_load.map(|load| load.in_flight)),
            (Some("sda"), Some(3))
        );
        assert_eq!(told(7), TierStatus::default());
    }
}
