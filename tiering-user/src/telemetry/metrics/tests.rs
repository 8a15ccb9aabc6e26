use std::collections::HashSet;

use super::*;
use crate::telemetry::latency::Latency;
use crate::telemetry::prefetch::{
    PrefetchByMatch, PrefetchCalibration, PrefetchCounts, PrefetchMatch, PrefetchOrigin,
};
use crate::telemetry::profile::{AheadStatus, ForecastStatus, MissRatio, ProfileStatus, WorkingSet};
use crate::telemetry::savings::{CanFreeStatus, HostSavingsStatus, SavingsSource, SavingsStatus};
use crate::telemetry::status::{
    ClassStatus, DeviceLoad, EventCounts, KernelMovesStatus, RearmStatus, SourceState,
};

/// A host with one VM, in which everything is known.
fn status() -> Status {
    let latency = Some(Latency { p50: 1_500, p99: 2_000_000 });
    let by = PrefetchMatch::Tag;
    Status {
        version: "1.2.3".to_owned(),
        uptime_s: 12.5,
        cpu_percent: 2.5,
        state_saved_unix_s: Some(1_700_000_000),
        tiers: vec![TierStatus {
            name: "nvme".to_owned(),
            capacity_bytes: 1 << 40,
            used_bytes: 1 << 30,
            read_latency_ns: latency,
            write_latency_ns: latency,
            bandwidth_bytes_per_s: Some(5),
            device_load: Some(DeviceLoad {
                read_latency_ns: Some(1),
                write_latency_ns: Some(2),
                in_flight: 3,
            }),
            ..TierStatus::default()
        }],
        vms: vec![VmStatus {
            tier_bytes: [("dram".to_owned(), 4096), ("nvme".to_owned(), 8192)].into(),
            tier_bytes_peak: [("dram".to_owned(), 12_288)].into(),
            class: ClassStatus { name: "web".to_owned(), confidence: 0.5, source: None },
            limited_by: Some("stalls".to_owned()),
            ksm_bytes: Some(0),
            swap_cached_bytes: Some(0),
            savings: SavingsStatus {
                reusable_bytes: 4096,
                can_free: can_free(),
                cold_share: Some(0.75),
                ..SavingsStatus::default()
            },
            rearm: RearmStatus { pause_ns: Some(2_000_000), ..RearmStatus::default() },
            stall_ns_total: Some(2_500_000_000),
            profile: Some(profile()),
            demoted_bytes_total: 8192,
            prefetch: PrefetchCounts {
                by_match: vec![PrefetchByMatch { by, issued_pages: 7, ..PrefetchByMatch::default() }],
                origins: vec![PrefetchOrigin { by, window_pages: 32, ..PrefetchOrigin::default() }; 2],
                delay_ns: latency,
                mapping_delay_ns: latency,
                calibration: PrefetchCalibration { brier: Some(0.25), ..PrefetchCalibration::default() },
                ..PrefetchCounts::default()
            },
            ..vm(Some("prod"), "web-1", "id-1", "acme")
        }],
        events: EventCounts { seen: 5, produced: 4, consumed: 3, dropped: 1 },
        moved_by_others: KernelMovesStatus { reclaimed_bytes_total: 4096, ..KernelMovesStatus::default() },
        sources: vec![SourceStatus {
            name: "page_fault".to_owned(),
            state: SourceState::Active,
            ..SourceStatus::default()
        }],
        images: vec![image("acme", 7, 65_536)],
        savings: HostSavingsStatus { can_free: can_free(), vms_known: 1, ..HostSavingsStatus::default() },
        ..Status::default()
    }
}

fn can_free() -> CanFreeStatus {
    CanFreeStatus {
        source: Some(SavingsSource::PageAges),
        expected_bytes: Some(8192),
        upper_bytes: Some(16_384),
        ..CanFreeStatus::default()
    }
}

fn profile() -> ProfileStatus {
    ProfileStatus {
        writes_per_s: 7.5,
        sequential: Some(0.25),
        strided: Some(0.5),
        working_sets: vec![WorkingSet { within_ms: 60_000, bytes: 8192 }],
        miss_ratios: vec![MissRatio { bytes: 4096, ratio: 0.75 }],
        period_ms: Some(480_000),
        ahead: vec![AheadStatus {
            after_ms: 60_000,
            accesses_per_s: ForecastStatus { expected: 300.5, ..ForecastStatus::default() },
            used_bytes: ForecastStatus { expected: 8192.0, ..ForecastStatus::default() },
        }],
        ..ProfileStatus::default()
    }
}

fn vm(namespace: Option<&str>, name: &str, id: &str, tenant: &str) -> VmStatus {
    VmStatus {
        namespace: namespace.map(str::to_owned),
        name: name.to_owned(),
        id: id.to_owned(),
        tenant: tenant.to_owned(),
        ..VmStatus::default()
    }
}

fn image(tenant: &str, inode: u64, read_ahead_bytes_total: u64) -> ImageStatus {
    ImageStatus {
        tenant: tenant.to_owned(),
        name: "base.img".to_owned(),
        device: "8:1".to_owned(),
        inode,
        read_ahead_bytes_total,
        ..ImageStatus::default()
    }
}

fn scrape(status: Status) -> String {
    render(Arc::new(status)).unwrap()
}

#[track_caller]
fn assert_has(text: &str, line: &str) {
    assert!(text.lines().any(|l| l == line), "no line {line} in\n{text}");
}

/// The lines that are samples, without their values.
fn series(text: &str) -> Vec<&str> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples.map(|line| line.rsplit_once(' ').expect("a name and a value").0).collect()
}

#[test]
fn a_scrape_tells_of_the_agent_its_tiers_vms_images_and_sources() {
    let text = scrape(status());
    for line in [
        "# HELP tiering_vm_demoted_bytes Moved to a slower tier",
        "# TYPE tiering_vm_demoted_bytes counter",
        "# UNIT tiering_vm_demoted_bytes bytes",
        r#"tiering_vm_demoted_bytes_total{vm="web-1",namespace="prod",id="id-1"} 8192"#,
        r#"tiering_vm_tier_bytes{vm="web-1",namespace="prod",id="id-1",tier="nvme"} 8192"#,
        r#"tiering_vm_tier_peak_bytes{vm="web-1",namespace="prod",id="id-1",tier="dram"} 12288"#,
        r#"tiering_vm_info{vm="web-1",namespace="prod",id="id-1",tenant="acme",class="web"} 1"#,
        r#"tiering_vm_held_back{vm="web-1",namespace="prod",id="id-1"} 1"#,
        r#"tiering_vm_stall_seconds_total{vm="web-1",namespace="prod",id="id-1"} 2.5"#,
        r#"tiering_vm_prefetch_issued_pages_total{vm="web-1",namespace="prod",id="id-1",match="tag"} 7"#,
        r#"tiering_vm_prefetch_reasons{vm="web-1",namespace="prod",id="id-1",match="tag"} 2"#,
        r#"tiering_vm_prefetch_window_pages{vm="web-1",namespace="prod",id="id-1",match="tag"} 64"#,
        r#"tiering_vm_used_within_bytes{vm="web-1",namespace="prod",id="id-1",seconds="60"} 8192"#,
        r#"tiering_vm_access_rate_per_second{vm="web-1",namespace="prod",id="id-1",kind="write"} 7.5"#,
        r#"tiering_vm_walks_ratio{vm="web-1",namespace="prod",id="id-1",kind="strided"} 0.5"#,
        r#"tiering_vm_miss_ratio{vm="web-1",namespace="prod",id="id-1",bytes="4096"} 0.75"#,
        r#"tiering_vm_period_seconds{vm="web-1",namespace="prod",id="id-1"} 480.0"#,
        r#"tiering_vm_expected_access_rate_per_second{vm="web-1",namespace="prod",id="id-1",seconds="60"} 300.5"#,
        r#"tiering_vm_expected_used_bytes{vm="web-1",namespace="prod",id="id-1",seconds="60"} 8192.0"#,
        r#"tiering_vm_can_free_bytes{vm="web-1",namespace="prod",id="id-1",bound="upper",source="page_ages"} 16384"#,
        r#"tiering_vm_reusable_bytes{vm="web-1",namespace="prod",id="id-1"} 4096"#,
        r#"tiering_vm_cold_ratio{vm="web-1",namespace="prod",id="id-1"} 0.75"#,
        r#"tiering_savings_can_free_bytes{bound="expected",source="page_ages"} 8192"#,
        r#"tiering_build_info{version="1.2.3"} 1"#,
        "tiering_uptime_seconds 12.5",
        "tiering_agent_cpu_ratio 0.025",
        "tiering_state_saved_timestamp_seconds 1700000000",
        "tiering_events_produced_total 4",
        "tiering_events_consumed_total 3",
        "tiering_events_dropped_total 1",
        r#"tiering_moved_reclaimed_bytes_total{mover="others"} 4096"#,
        r#"tiering_tier_size_bytes{tier="nvme"} 1099511627776"#,
        r#"tiering_tier_free_bytes{tier="nvme"} 1098437885952"#,
        r#"tiering_tier_read_latency_seconds{tier="nvme",percentile="99"} 0.002"#,
        r#"tiering_tier_device_requests{tier="nvme"} 3"#,
        r#"tiering_source_state{source="page_fault",state="active"} 1"#,
        r#"tiering_source_state{source="page_fault",state="unavailable"} 0"#,
        r#"tiering_image_read_ahead_bytes_total{tenant="acme",image="base.img",device="8:1",inode="7"} 65536"#,
    ] {
        assert_has(&text, line);
    }
    assert!(text.ends_with("# EOF\n"));
    assert!(!text.contains("bound=\"lower\""), "page ages have no lower bound");
}

#[test]
fn every_counter_ends_in_total_and_every_metric_has_help_and_a_sample() {
    let text = scrape(status());
    let samples = series(&text);
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect::<Vec<_>>();
    assert!(types.len() > 60, "{types:?}");
    for (name, kind) in types.iter().map(|line| line.split_once(' ').unwrap()) {
        let shown = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
        let named = |series: &&&str| series.split('{').next() == Some(shown.as_str());
        assert!(samples.iter().any(|series| named(&series)), "no sample {shown}");
        assert!(name.starts_with("tiering_") && !name.ends_with("_total"), "{name}");
        let help = text.lines().find_map(|line| line.strip_prefix(&format!("# HELP {name} ")));
        assert!(help.is_some_and(|help| help.len() > 10 && !help.ends_with('.')), "{name}: {help:?}");
    }
    assert_eq!(samples.iter().collect::<HashSet<_>>().len(), samples.len(), "one sample a series");
}

#[test]
fn what_is_not_known_has_no_sample() {
    let unknown = Status {
        tiers: vec![TierStatus { name: "dram".to_owned(), ..TierStatus::default() }],
        vms: vec![vm(None, "web-1", "id-1", "id-1")],
        ..Status::default()
    };
    let text = scrape(unknown);
    for name in [
        "vm_stall",
        "vm_ksm",
        "tier_read_latency",
        "tier_device",
        "state_saved",
        "vm_prefetch",
        "vm_can_free",
    ] {
        let prefix = format!("tiering_{name}");
        assert!(!series(&text).iter().any(|series| series.starts_with(&prefix)), "{name} in\n{text}");
    }
    assert_has(&text, r#"tiering_vm_demoted_bytes_total{vm="web-1",id="id-1"} 0"#);
}

#[test]
fn a_hostile_name_stays_inside_its_label() {
    let name = "a\"} 1\ntiering_events_dropped_total 99\n# EOF\n\\";
    let hostile = Status { vms: vec![vm(Some("\\"), name, "id-1", "\"")], ..Status::default() };
    let text = scrape(hostile);
    assert_has(
        &text,
        r#"tiering_vm_ram_bytes{vm="a\"} 1\ntiering_events_dropped_total 99\n# EOF\n\\",namespace="\\",id="id-1"} 0"#,
    );
    assert_has(&text, "tiering_events_dropped_total 0");
    assert_eq!(text.lines().filter(|line| *line == "# EOF").count(), 1);
}

#[test]
fn neither_vms_of_one_name_nor_one_image_of_two_tenants_are_taken_together() {
    let twins = Status {
        vms: vec![
            VmStatus { ram_bytes: 1, ..vm(None, "web", "id-1", "red") },
            VmStatus { ram_bytes: 2, ..vm(None, "web", "id-2", "blue") },
        ],
        images: vec![image("red", 7, 1), image("blue", 7, 2), image("blue", 8, 3)],
        ..Status::default()
    };
    let text = scrape(twins);
    assert_has(&text, r#"tiering_vm_ram_bytes{vm="web",id="id-1"} 1"#);
    assert_has(&text, r#"tiering_vm_ram_bytes{vm="web",id="id-2"} 2"#);
    let read = r#"tiering_image_read_ahead_bytes_total{tenant="blue",image="base.img",device="8:1""#;
    assert_has(&text, &format!(r#"{read},inode="7"}} 2"#));
    assert_has(&text, &format!(r#"{read},inode="8"}} 3"#));
    let series = series(&text);
    assert_eq!(series.iter().collect::<HashSet<_>>().len(), series.len(), "one sample a series");
}

#[test]
fn no_series_names_another_vm_or_a_content_tag() {
    let mut secret = status();
    secret.vms[0].prefetch.origins[0].leader = "id-of-another".to_owned();
    let text = scrape(secret);
    assert!(!text.contains("id-of-another"), "{text}");
}

#[test]
fn the_documentation_names_every_metric() {
    let page = include_str!("../../../../docs/metrics.md");
    let text = scrape(status());
    let missing = series(&text).into_iter().map(|series| series.split('{').next().unwrap().to_owned());
    let missing: Vec<_> = missing.filter(|name| !page.contains(&format!("`{name}`"))).collect();
    assert_eq!(missing, [""; 0], "not in docs/metrics.md");
}
