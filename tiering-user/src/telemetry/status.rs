//! The status: one snapshot of tiers, VMs, event accounting and access sources, as JSON shows it.
//!
//! In: nothing; the agent fills it in. Out: serde types whose field names scripts rely on: fields are added,
//! never renamed, and a reader takes the default for one that it misses. Sizes are bytes. Not here: history.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// One snapshot.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    pub uptime_s: f64,
    /// Whether plans are only reported.
    pub dry_run: bool,
    /// The ladder, fastest first.
    pub tiers: Vec<TierStatus>,
    pub vms: Vec<VmStatus>,
    pub events: EventCounts,
    pub sources: Vec<SourceStatus>,
}

/// One tier.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TierStatus {
    pub name: String,
    /// 0 is the fastest.
    pub level: u32,
    pub kind: TierKind,
    /// NUMA nodes; empty for a swap tier.
    pub nodes: Vec<u32>,
    pub capacity_bytes: u64,
    /// In use by anybody.
    pub used_bytes: u64,
    /// In use by the VMs' guest RAM.
    pub vm_bytes: u64,
    /// As measured at start; `None` if it could not be measured.
    pub read_latency_ns: Option<Latency>,
    /// Written to the tier by the agent's moves since it started.
    pub written_bytes_total: u64,
}

/// What a tier is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TierKind {
    #[default]
    Node,
    Swap,
}

/// Quantiles of a latency, nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Latency {
    pub p50: u64,
    pub p99: u64,
}

/// One VM.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VmStatus {
    /// The UUID, or a generated identity where the VM has none.
    pub id: String,
    pub name: String,
    pub namespace: Option<String>,
    pub pid: u32,
    /// Trust domain; a VM without a configured one is its own.
    pub tenant: String,
    pub priority: u8,
    pub class: ClassStatus,
    pub movable: bool,
    /// Why it is not movable; for one that is, why it is moved between memory tiers only.
    pub reason: Option<String>,
    pub ram_bytes: u64,
    /// Guest RAM by tier name, and `swap` where the device is not known.
    pub tier_bytes: BTreeMap<String, u64>,
    /// Highest value of each entry of `tier_bytes` so far.
    pub tier_bytes_peak: BTreeMap<String, u64>,
    /// Guest RAM in huge pages.
    pub huge_bytes: u64,
    /// Guest RAM that was never touched and is in no tier.
    pub untouched_bytes: u64,
    /// Working set.
    pub wss_bytes: u64,
    pub reads_total: u64,
    pub writes_total: u64,
    pub faults_total: u64,
    /// Time the VM waited for pages; `None` where no source can tell.
    pub stall_ns_total: Option<u64>,
    pub demoted_bytes_total: u64,
    pub promoted_bytes_total: u64,
    pub prefetch: PrefetchCounts,
}

/// The class of a VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassStatus {
    pub name: String,
    /// 0 to 1.
    pub confidence: f64,
}

impl Default for ClassStatus {
    fn default() -> Self {
        Self { name: "unknown".to_owned(), confidence: 0.0 }
    }
}

/// Outcome of what was staged for a VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrefetchCounts {
    pub issued_pages: u64,
    /// Touched after they were staged.
    pub used_pages: u64,
    /// Evicted untouched.
    pub wasted_pages: u64,
    /// Asked for before the staging was done.
    pub late_pages: u64,
    /// Issued pages by what foretold them.
    pub from: PrefetchOrigins,
}

/// Issued pages by kind of match.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PrefetchOrigins {
    /// The VM's own earlier behaviour.
    #[serde(rename = "self")]
    pub own: u64,
    /// The same guest frame number in a similar VM.
    pub gfn: u64,
    /// The same file and offset.
    pub file: u64,
    /// The same content.
    pub tag: u64,
}

/// Access events; `produced = consumed + dropped` once the agent has shut down.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventCounts {
    pub produced: u64,
    pub consumed: u64,
    pub dropped: u64,
}

/// One way to see accesses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SourceStatus {
    pub name: String,
    pub state: SourceState,
    /// How it is attached, or why it is not.
    pub detail: String,
}

/// Whether a source delivers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceState {
    Active,
    #[default]
    Unavailable,
}

impl Status {
    /// The VMs that `vm` can mean: a UUID, a pid, `NAMESPACE/NAME`, else a name.
    ///
    /// More than one only where a plain name is used twice.
    #[must_use]
    pub fn find_vms(&self, vm: &str) -> Vec<&VmStatus> {
        let exact = |candidate: &&VmStatus| {
            candidate.id == vm
                || candidate.pid.to_string() == vm
                || candidate.namespace.as_ref().is_some_and(|ns| format!("{ns}/{}", candidate.name) == vm)
        };
        match self.vms.iter().find(exact) {
            Some(found) => vec![found],
            None => self.vms.iter().filter(|candidate| candidate.name == vm).collect(),
        }
    }

    /// Whether there are VMs that could learn from each other, but no two share a tenant.
    #[must_use]
    pub fn sharing_is_off(&self) -> bool {
        let tenants: BTreeSet<_> = self.vms.iter().map(|vm| &vm.tenant).collect();
        self.vms.len() > 1 && tenants.len() == self.vms.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(id: &str, namespace: Option<&str>, name: &str, pid: u32, tenant: &str) -> VmStatus {
        VmStatus {
            id: id.to_owned(),
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
            pid,
            tenant: tenant.to_owned(),
            ..VmStatus::default()
        }
    }

    #[test]
    fn the_json_has_the_documented_fields() {
        let status = Status {
            version: "0.1.0".to_owned(),
            uptime_s: 12.5,
            tiers: vec![TierStatus { read_latency_ns: Some(Latency::default()), ..TierStatus::default() }],
            vms: vec![VmStatus {
                tier_bytes: [("dram".to_owned(), 4096)].into(),
                stall_ns_total: Some(0),
                ..VmStatus::default()
            }],
            sources: vec![SourceStatus { state: SourceState::Active, ..SourceStatus::default() }],
            ..Status::default()
        };
        let expected = serde_json::json!({
            "version": "0.1.0", "uptime_s": 12.5, "dry_run": false,
            "tiers": [{"name": "", "level": 0, "kind": "node", "nodes": [], "capacity_bytes": 0,
                "used_bytes": 0, "vm_bytes": 0, "read_latency_ns": {"p50": 0, "p99": 0},
                "written_bytes_total": 0}],
            "vms": [{"id": "", "name": "", "namespace": null, "pid": 0, "tenant": "", "priority": 0,
                "class": {"name": "unknown", "confidence": 0.0}, "movable": false, "reason": null,
                "ram_bytes": 0, "tier_bytes": {"dram": 4096}, "tier_bytes_peak": {}, "huge_bytes": 0,
                "untouched_bytes": 0, "wss_bytes": 0, "reads_total": 0, "writes_total": 0,
                "faults_total": 0, "stall_ns_total": 0, "demoted_bytes_total": 0,
                "promoted_bytes_total": 0,
                "prefetch": {"issued_pages": 0, "used_pages": 0, "wasted_pages": 0, "late_pages": 0,
                    "from": {"self": 0, "gfn": 0, "file": 0, "tag": 0}}}],
            "events": {"produced": 0, "consumed": 0, "dropped": 0},
            "sources": [{"name": "", "state": "active", "detail": ""}],
        });
        assert_eq!(serde_json::to_value(&status).unwrap(), expected);
        assert_eq!(serde_json::from_value::<Status>(expected).unwrap(), status);
    }

    #[test]
    fn a_reader_bears_missing_and_new_fields() {
        let status: Status =
            serde_json::from_str(r#"{"version":"9.9.9","vms":[{"name":"a","mood":"fine"}]}"#).unwrap();
        assert_eq!(status.vms[0].name, "a");
        assert_eq!(status.vms[0].stall_ns_total, None);
    }

    #[test]
    fn a_vm_is_found_by_name_uuid_pid_and_namespace() {
        let status = Status {
            vms: vec![
                vm("u-1", None, "web", 11, "a"),
                vm("u-2", Some("prod"), "db", 12, "b"),
                vm("u-3", Some("test"), "db", 13, "c"),
            ],
            ..Status::default()
        };
        let ids = |vm: &str| status.find_vms(vm).iter().map(|vm| vm.id.as_str()).collect::<Vec<_>>();
        assert_eq!(ids("web"), ["u-1"]);
        assert_eq!(ids("u-2"), ["u-2"]);
        assert_eq!(ids("13"), ["u-3"]);
        assert_eq!(ids("test/db"), ["u-3"]);
        assert_eq!(ids("db"), ["u-2", "u-3"]);
        assert_eq!(ids("cache"), [""; 0]);
    }

    #[test]
    fn sharing_is_off_until_two_vms_have_one_tenant() {
        let with = |tenants: &[&str]| Status {
            vms: tenants.iter().map(|tenant| vm("", None, "", 0, tenant)).collect(),
            ..Status::default()
        };
        assert!(with(&["a", "b"]).sharing_is_off());
        assert!(!with(&["a", "b", "a"]).sharing_is_off());
        assert!(!with(&["a"]).sharing_is_off(), "one VM has nobody to learn from");
    }
}
