//! Single values as text: sizes, times, where a page is.

use bytesize::ByteSize;

use crate::telemetry::request::Location;

/// In the place of what is not there, or not known.
pub(super) const NONE: &str = "-";

pub(super) fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

/// In the unit that leaves one to three digits before the point.
pub(super) fn nanoseconds(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{}.{} us", ns / 1_000, ns % 1_000 / 100),
        1_000_000..1_000_000_000 => format!("{}.{} ms", ns / 1_000_000, ns % 1_000_000 / 100_000),
        _ => format!("{}.{} s", ns / 1_000_000_000, ns % 1_000_000_000 / 100_000_000),
    }
}

pub(super) fn or_none(value: Option<String>) -> String {
    value.unwrap_or_else(|| NONE.to_owned())
}

pub(super) fn location(location: Location) -> String {
    match location {
        Location::Frame { pfn } => format!("frame {pfn:#x}"),
        Location::Slot { area, slot } => format!("area {area} slot {slot}"),
    }
}
