use super::*;
use crate::telemetry::prefetch::{
    CalibrationBin, PrefetchByMatch, PrefetchCalibration, PrefetchCounts, PrefetchLastDay, PrefetchLastDayBy,
    PrefetchMatch, PrefetchOrigin,
};
use crate::telemetry::profile::{AheadStatus, ForecastStatus, MissRatio, ReuseTimes, WorkingSet};
use crate::telemetry::savings::{CanFreeStatus, SavingsSource, SavingsStatus};

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

fn predicted(expected: f64, lower: f64, upper: f64, error: Option<f64>) -> ForecastStatus {
    ForecastStatus { expected, lower, upper, method: "naive".to_owned(), error }
}

#[test]
fn the_json_has_the_documented_fields() {
    let status = Status {
        version: "0.1.0".to_owned(),
        uptime_s: 12.5,
        tiers: vec![TierStatus {
            read_latency_ns: Some(Latency::default()),
            latency_histogram: vec![(127, 3)],
            device_load: Some(DeviceLoad::default()),
            ..TierStatus::default()
        }],
        vms: vec![VmStatus {
            tier_bytes: [("dram".to_owned(), 4096)].into(),
            stall_ns_total: Some(0),
            savings: SavingsStatus {
                can_free: CanFreeStatus {
                    source: Some(SavingsSource::Tried),
                    expected_bytes: Some(8192),
                    lower_bytes: Some(4096),
                    upper_bytes: None,
                    detail: Some("so".to_owned()),
                },
                working_set_bytes: Some(4096),
                cold_share: Some(0.5),
                ..SavingsStatus::default()
            },
            profile: Some(ProfileStatus {
                reads_per_s: 1.5,
                sequential: Some(0.25),
                working_sets: vec![WorkingSet { within_ms: 10_000, bytes: 4096 }],
                miss_ratios: vec![MissRatio { bytes: 8192, ratio: 0.5 }],
                reuse_ms: Some(ReuseTimes { p50: 1, p90: 2, p99: 3 }),
                ahead: vec![AheadStatus {
                    after_ms: 60_000,
                    accesses_per_s: predicted(1.0, 0.5, 2.0, None),
                    used_bytes: predicted(4096.0, 0.0, 8192.0, Some(1.0)),
                }],
                hour: vec![1.0],
                ..ProfileStatus::default()
            }),
            prefetch: PrefetchCounts {
                by_match: vec![PrefetchByMatch { by: PrefetchMatch::Tag, ..PrefetchByMatch::default() }],
                origins: vec![PrefetchOrigin {
                    leader: "a".to_owned(),
                    confidence: 0.5,
                    window_pages: 32,
                    ..PrefetchOrigin::default()
                }],
                last_day: PrefetchLastDay {
                    by: vec![PrefetchLastDayBy { avoided_pages: 5, ..PrefetchLastDayBy::default() }],
                    ..PrefetchLastDay::default()
                },
                calibration: PrefetchCalibration {
                    brier: Some(0.25),
                    bins: vec![CalibrationBin { pages: 4, confidence: 0.5, used: 0.75 }],
                },
                ..PrefetchCounts::default()
            },
            ..VmStatus::default()
        }],
        sources: vec![SourceStatus { state: SourceState::Active, ..SourceStatus::default() }],
        images: vec![ImageStatus { device: "8:1".to_owned(), confidence: 0.5, ..ImageStatus::default() }],
        ..Status::default()
    };
    let prefetch = serde_json::json!({
        "issued_pages": 0, "used_pages": 0, "wasted_pages": 0, "late_pages": 0,
        "mapped_pages": 0, "lifted_pages": 0, "delay_ns": null, "mapping_delay_ns": null,
        "from": {"self": 0, "gfn": 0, "file": 0, "tag": 0}, "by_match": [{"match": "tag", "issued_pages": 0,
            "used_pages": 0, "wasted_pages": 0, "late_pages": 0, "mapped_pages": 0, "lifted_pages": 0,
            "shadow_right_pages": 0, "shadow_wrong_pages": 0}],
        "origins": [{"leader": "a", "way": "followed", "match": "self", "issued_pages": 0,
            "used_pages": 0, "wasted_pages": 0, "late_pages": 0,
            "shadow_right_pages": 0, "shadow_wrong_pages": 0, "confidence": 0.5, "window_pages": 32}],
        "last_day": {"avoided_pages": 0, "wasted_pages": 0,
            "by": [{"leader": null, "avoided_pages": 5, "wasted_pages": 0}]},
        "calibration": {"brier": 0.25, "bins": [{"pages": 4, "confidence": 0.5, "used": 0.75}]}});
    let profile = serde_json::json!({
        "reads_per_s": 1.5, "writes_per_s": 0.0, "sequential": 0.25, "strided": null,
        "working_sets": [{"within_ms": 10_000, "bytes": 4096}], "miss_ratios": [{"bytes": 8192, "ratio": 0.5}],
        "reuse_ms": {"p50": 1, "p90": 2, "p99": 3}, "entropy_bits": null,
        "period_ms": null, "period_correlation": null,
        "ahead": [{"after_ms": 60_000,
            "accesses_per_s": {"expected": 1.0, "lower": 0.5, "upper": 2.0, "method": "naive", "error": null},
            "used_bytes": {"expected": 4096.0, "lower": 0.0, "upper": 8192.0, "method": "naive", "error": 1.0}}],
        "phase_changes_total": 0, "phase_ms": 0, "cpus": 0.0,
        "read_bytes_per_s": 0.0, "written_bytes_per_s": 0.0,
        "anonymous_bytes": 0, "file_bytes": 0, "shared_bytes": 0, "hour": [1.0]});
    let can_free = serde_json::json!({
        "source": "tried", "expected_bytes": 8192, "lower_bytes": 4096, "upper_bytes": null, "detail": "so"});
    let savings = serde_json::json!({
        "reusable_bytes": 0, "over_s": 0, "free_for_1h_bytes": 0, "opportunistic_bytes": 0, "can_free": can_free,
        "working_set_bytes": 4096, "cold_share": 0.5});
    let vm = serde_json::json!({
        "id": "", "name": "", "namespace": null, "pid": 0, "tenant": "", "priority": 0,
        "class": {"name": "unknown", "confidence": 0.0, "source": null}, "movable": false, "reason": null,
        "limited_by": null, "ram_bytes": 0, "left_alone": [], "tier_bytes": {"dram": 4096}, "tier_bytes_peak": {},
        "page_tables_read": false,
        "huge_bytes": 0, "huge_lost_bytes": 0, "huge_kept_bytes": 0, "huge_split_bytes_total": 0,
        "collapsed_bytes_total": 0,
        "ksm_bytes": null, "swap_cached_bytes": null, "freed_bytes": 0, "savings": savings, "free_page_reporting": null,
        "untouched_bytes": 0, "wss_bytes": 0, "profile": profile, "reads_total": 0, "writes_total": 0,
        "faults_total": 0, "sampled_total": 0, "sampled_one_in": 0,
        "rearm": {"why_not": null, "rounds_total": 0, "every_ns": 0, "pause_ns": null, "used_bytes": 0},
        "stall_ns_total": 0, "demoted_bytes_total": 0,
        "promoted_bytes_total": 0, "ping_pong_pages": 0,
        "prefetch": prefetch});
    let expected = serde_json::json!({
        "version": "0.1.0", "uptime_s": 12.5, "dry_run": false,
        "agent": {"memory_bytes": 0, "memory_limit_bytes": 0, "forgotten_total": 0, "left_out_pages_total": 0},
        "swap_cached_bytes": 0,
        "tiers": [{"name": "", "level": 0, "kind": "node", "nodes": [], "capacity_bytes": 0,
            "used_bytes": 0, "vm_bytes": 0, "read_latency_ns": {"p50": 0, "p99": 0},
            "written_bytes_total": 0, "read_bytes_total": 0, "latency_histogram": [[127, 3]],
            "write_latency_ns": null, "trouble": null,
            "bandwidth_bytes_per_s": null, "device": null,
            "device_load": {"read_latency_ns": null, "write_latency_ns": null, "in_flight": 0}}],
        "vms": [vm],
        "savings": {"reusable_bytes": 0, "over_s": 0, "free_for_1h_bytes": 0, "opportunistic_bytes": 0,
            "can_free": {"source": null, "expected_bytes": null, "lower_bytes": null, "upper_bytes": null,
                "detail": null},
            "vms_known": 0, "vms_unknown": 0},
        "events": {"seen": 0, "produced": 0, "consumed": 0, "dropped": 0},
        "sources": [{"name": "", "state": "active", "detail": ""}],
        "blocks": {"shown": 0, "left_out_total": 0},
        "moved_by_others": {"reclaimed_bytes_total": 0, "migrated_bytes_total": 0, "collapsed_bytes_total": 0},
        "moved_by_agent": {"reclaimed_bytes_total": 0, "migrated_bytes_total": 0, "collapsed_bytes_total": 0},
        "kernel_demotion": {"enabled": false, "refused": null},
        "images": [{"name": "", "tenant": "", "device": "8:1", "inode": 0, "bytes": 0, "vms": [], "known_bytes": 0,
            "read_ahead_bytes_total": 0, "confidence": 0.5, "window_bytes": 0}],
        "warnings": [],
        "state_saved_unix_s": null,
        "cpu_percent": 0.0,
        "image_reads_lost_total": 0,
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
