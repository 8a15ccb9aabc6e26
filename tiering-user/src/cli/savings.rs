//! Savings as text: what is lasting of them, and how much more can be freed.
//!
//! In: the types that `--json` prints. Out: lines of the status, rows of a VM.

use std::time::Duration;

use super::table::printable;
use super::units::size;
use crate::telemetry::savings::{CanFreeStatus, HostSavingsStatus, SavingsSource, SavingsStatus};
use crate::telemetry::status::Status;

/// What was free for less says nothing of what is lasting.
const KNOWN_AFTER_S: u64 = 60;

/// Lines of the status.
pub(super) fn lines(status: &Status) -> String {
    let savings = &status.savings;
    let mut text = String::new();
    let is_known = savings.over_s >= KNOWN_AFTER_S;
    if is_known && savings.reusable_bytes + savings.opportunistic_bytes > 0 {
        text += &format!(
            "reusable: {} of it was free all of the last {}, {} is free only now\n",
            size(savings.reusable_bytes),
            time(savings.over_s),
            size(savings.opportunistic_bytes)
        );
    }
    match (savings.vms_known, savings.vms_unknown) {
        (0, 0) => return text,
        (0, _) => text += "can be freed: not known yet\n",
        (_, 0) => text += &format!("can be freed: {}\n", more(&savings.can_free)),
        (known, unknown) => {
            let all = known + unknown;
            text += &format!("can be freed: {}, of {known} VMs of {all}\n", more(&savings.can_free));
        }
    }
    if let Some(detail) = &savings.can_free.detail {
        text += &format!("  {}\n", printable(detail));
    }
    text
}

/// What can be freed of a host, in a line.
pub(super) fn host(savings: &HostSavingsStatus) -> String {
    let all = savings.vms_known + savings.vms_unknown;
    let detail = savings.can_free.detail.as_ref().map(|detail| format!("; {detail}")).unwrap_or_default();
    match savings.vms_known {
        0 => format!("the agent does not know yet what can be freed{detail}"),
        known => format!("{}, {known} VMs of {all}{detail}", more(&savings.can_free)),
    }
}

/// Rows of one VM.
pub(super) fn rows(savings: &SavingsStatus) -> Vec<(&'static str, String)> {
    let reusable = format!(
        "{}: free all of the last {} ({} all of the last hour)",
        size(savings.reusable_bytes),
        time(savings.over_s),
        size(savings.free_for_1h_bytes)
    );
    let mut rows = vec![
        ("reusable", reusable),
        ("opportunistic", format!("{}: free now, and not all that time", size(savings.opportunistic_bytes))),
        ("can be freed", can_free(&savings.can_free)),
    ];
    if let (Some(bytes), Some(share)) = (savings.working_set_bytes, savings.cold_share) {
        let text = format!("{:.0} % of what was touched; {} are left", share * 100.0, size(bytes));
        rows.push(("cold", text));
    }
    rows
}

/// With what it follows from.
pub(super) fn can_free(can_free: &CanFreeStatus) -> String {
    let detail = can_free.detail.as_ref().map(|detail| format!(": {detail}")).unwrap_or_default();
    match can_free.source {
        None => format!("not known yet{detail}"),
        Some(SavingsSource::NotMoved) => format!("nothing{detail}"),
        Some(_) => format!("{}{detail}", more(can_free)),
    }
}

fn more(can_free: &CanFreeStatus) -> String {
    let by = match can_free.source {
        Some(SavingsSource::PageAges) => "by page ages",
        Some(SavingsSource::Tried) => "by pages tried",
        Some(SavingsSource::ReadBack) => "by what was read back",
        Some(SavingsSource::Several) => "by page ages and pages tried",
        Some(SavingsSource::NotMoved) | None => "",
    };
    let bounds = match (can_free.lower_bytes, can_free.upper_bytes) {
        (Some(lower), Some(upper)) => format!("between {} and {}; ", size(lower), size(upper)),
        (None, Some(upper)) => format!("at most {}; ", size(upper)),
        _ => String::new(),
    };
    format!("{} more ({bounds}{by})", size(can_free.expected_bytes.unwrap_or(0)))
}

fn time(seconds: u64) -> String {
    let rounded = match seconds {
        0..120 => seconds,
        120..7200 => seconds / 60 * 60,
        _ => seconds / 3600 * 3600,
    };
    match rounded {
        86_400 => "24 h".to_owned(),
        rounded => humantime::format_duration(Duration::from_secs(rounded)).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn tried() -> CanFreeStatus {
        CanFreeStatus {
            source: Some(SavingsSource::Tried),
            expected_bytes: Some(1200 * MIB),
            lower_bytes: Some(900 * MIB),
            upper_bytes: Some(1400 * MIB),
            detail: Some("of 300 blocks 70 % stayed".to_owned()),
        }
    }

    fn host(can_free: CanFreeStatus, known: u64, unknown: u64) -> Status {
        let savings = HostSavingsStatus {
            can_free,
            vms_known: known,
            vms_unknown: unknown,
            ..HostSavingsStatus::default()
        };
        Status { savings, ..Status::default() }
    }

    #[test]
    fn the_status_has_a_line_for_what_can_be_freed_and_says_what_is_not_known() {
        let known = CanFreeStatus { detail: None, ..tried() };
        let line = "can be freed: 1.2 GiB more (between 900.0 MiB and 1.4 GiB; by pages tried)\n";
        assert_eq!(lines(&host(known.clone(), 2, 0)), line);
        let some = lines(&host(CanFreeStatus { detail: Some("of b not".to_owned()), ..known }, 1, 2));
        assert!(some.ends_with("by pages tried), of 1 VMs of 3\n  of b not\n"), "{some}");
        let none = CanFreeStatus { detail: Some("of a not".to_owned()), ..CanFreeStatus::default() };
        assert_eq!(lines(&host(none, 0, 1)), "can be freed: not known yet\n  of a not\n");
        assert_eq!(lines(&Status::default()), "", "without VMs there is nothing to tell");
    }

    #[test]
    fn what_is_lasting_is_told_with_its_time() {
        let mut status = host(tried(), 1, 0);
        status.savings.reusable_bytes = 5 * MIB;
        status.savings.opportunistic_bytes = 2 * MIB;
        status.savings.over_s = 5000;
        let line = "reusable: 5.0 MiB of it was free all of the last 1h 23m, 2.0 MiB is free only now\n";
        assert!(lines(&status).starts_with(line), "{}", lines(&status));
        status.savings.over_s = 86_400;
        assert!(lines(&status).contains("the last 24 h,"));
        status.savings.over_s = 59;
        assert!(!lines(&status).contains("reusable"), "too early");
    }

    #[test]
    fn a_vm_shows_its_source_its_bounds_and_its_cold_share() {
        let savings = SavingsStatus {
            can_free: tried(),
            working_set_bytes: Some(300 * MIB),
            cold_share: Some(0.75),
            ..SavingsStatus::default()
        };
        let text = format!("{:?}", rows(&savings));
        for part in
            ["1.2 GiB more (between", "of 300 blocks 70 % stayed", "75 % of what was touched; 300.0 MiB"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        let ages = CanFreeStatus { source: Some(SavingsSource::PageAges), lower_bytes: None, ..tried() };
        assert!(can_free(&ages).contains("(at most 1.4 GiB; by page ages)"));
        let unknown = CanFreeStatus { detail: Some("a dry run".to_owned()), ..CanFreeStatus::default() };
        assert_eq!(can_free(&unknown), "not known yet: a dry run");
        assert_eq!(rows(&SavingsStatus::default()).len(), 3, "no share that nobody knows");
    }
}
