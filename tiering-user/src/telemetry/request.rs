//! What can be asked of the agent over the control socket, and its answers.
//!
//! In: nothing. Out: [`Request`], which the API sends to the agent's task with a place for the answer, and the
//! answers as they stand in JSON. Not here: HTTP, and the reading of the status, which needs no request.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::explain::{Address, Explanation};
pub use super::location::Location;
use super::similar::Similar;

/// Where the agent puts its answer.
pub type Reply<T> = oneshot::Sender<Result<T, ApiError>>;

/// The pages a question is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Pages {
    /// All of the guest's RAM.
    #[default]
    All,
    /// Those in a range of host-virtual addresses.
    Hva(Range<u64>),
    /// Those in a range of guest-physical addresses.
    Gpa(Range<u64>),
    /// The one with this page frame number.
    Frame(u64),
}

/// A request. `vm` is the `id` of a VM in the status; `hva` is a range of host-virtual addresses, `None` all
/// of the guest's RAM.
#[derive(Debug)]
pub enum Request {
    /// Read the mapping table.
    Map { vm: String, pages: Pages, reply: Reply<VmMap> },
    /// Find the page with this frame: its host-virtual addresses.
    FindFrame { vm: String, pfn: u64, reply: Reply<Range<u64>> },
    /// Say why the VM, or the page at this address, is where it is.
    Explain { vm: String, at: Option<Address>, reply: Reply<Explanation> },
    /// Say how alike VMs are: all, or one and its leaders.
    Similar { vm: Option<String>, reply: Reply<Similar> },
    /// Send a trace of what happens to these VMs, or to all if there are none, block by block, until nobody takes them
    /// any more.
    Record { vms: BTreeSet<String>, sink: mpsc::Sender<Vec<u8>>, reply: Reply<()> },
    /// Move pages to the tier `to`.
    Move { vm: String, to: String, hva: Option<Range<u64>>, reply: Reply<MoveOutcome> },
    /// Bring all pages of a tier up and switch it off.
    Drain { tier: String, reply: Reply<DrainOutcome> },
}

/// Why a request was not done. The text says what is wrong and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// There is no such VM, tier or path (404).
    #[error("{0}")]
    NotFound(String),
    /// It would do harm or cannot be done to this VM or tier (409).
    #[error("{0}")]
    Refused(String),
    /// The agent cannot answer now (503).
    #[error("{0}")]
    Unavailable(String),
    /// The request makes no sense (400).
    #[error("{0}")]
    BadRequest(String),
}

/// Body of a request to move pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveBody {
    /// Name of the tier.
    pub to: String,
    /// As [`parse_range`] reads it; missing or null for all of the guest's RAM.
    #[serde(default)]
    pub hva: Option<String>,
}

/// The mapping table of a VM, or a part of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct VmMap {
    /// The VM's id.
    pub vm: String,
    pub page_bytes: u64,
    /// Ascending by address, without overlap.
    pub runs: Vec<MapRun>,
}

/// Pages next to each other that are alike.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MapRun {
    /// Host-virtual address of the first page.
    pub hva: u64,
    pub pages: u64,
    /// Guest-physical address of the first page, where the layout is known.
    pub gpa: Option<u64>,
    /// A tier's name; `swap` where the device is not known; `untouched` where there is no page yet.
    pub tier: String,
    /// Of the first page, as read from the kernel for this answer.
    pub frame_or_slot: Option<Location>,
    pub heat: u32,
    /// Time since the last access seen, or since the page was found; `None` if it was never touched.
    pub idle_ms: Option<u64>,
    /// Brought up ahead of need and not touched since.
    pub staged: bool,
    /// A write was seen since the agent started.
    pub written: bool,
}

/// What became of a move.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveOutcome {
    pub asked_pages: u64,
    pub moved_pages: u64,
    pub moved_bytes: u64,
    /// Of the asked pages, those that are in the tier afterwards, as read back.
    pub in_tier_pages: u64,
    /// Guest RAM in huge pages that is in none any more.
    pub huge_split_bytes: u64,
    /// Pages that were left alone, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// Since it was asked for, with the sweep that comes first.
    pub elapsed_ms: u64,
}

/// What became of a drain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainOutcome {
    pub tier: String,
    pub brought_up_pages: u64,
    pub elapsed_ms: u64,
}

/// Reads `A..B`: two byte addresses, hexadecimal with `0x` or decimal, the second one exclusive.
///
/// # Errors
/// A message that shows the form, if the text is none or the range is empty.
pub fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let range = text.split_once("..").and_then(|(a, b)| Some(number(a)?..number(b)?));
    match range {
        Some(range) if !range.is_empty() => Ok(range),
        Some(_) => Err(format!("`{text}` is an empty range: the first address must be the lower one")),
        None => {
            Err(format!("`{text}` is no range: write two addresses, such as 0x7f0000000000..0x7f0000200000"))
        }
    }
}

/// Reads one address or frame number, hexadecimal with `0x` or decimal.
///
/// # Errors
/// A message that shows the form.
pub fn parse_number(text: &str) -> Result<u64, String> {
    number(text).ok_or_else(|| format!("`{text}` is no number: write it as 0x7f0000000000 or in decimal"))
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        // from_str_radix takes a sign.
        Some(digits) if digits.starts_with('+') => None,
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Writes a range so that [`parse_range`] reads it.
#[must_use]
pub fn format_range(range: &Range<u64>) -> String {
    format!("{:#x}..{:#x}", range.start, range.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_hexadecimal_or_decimal_and_never_empty() {
        assert_eq!(parse_range("0x1000..0x3000"), Ok(0x1000..0x3000));
        assert_eq!(parse_range("4096..0X2000"), Ok(0x1000..0x2000));
        for text in
            ["", "0x1000", "0x1000-0x2000", "..0x1000", "1000..", "0x..0x1", "f000..f001", "0x+1..0x2"]
        {
            assert!(parse_range(text).expect_err(text).contains("0x7f0000000000.."), "{text}");
        }
        assert!(parse_range("0x2000..0x1000").expect_err("it ends before it starts").contains("empty"));
        assert!(parse_range("1..1").expect_err("nothing is in it").contains("empty"));
    }

    #[test]
    fn a_formatted_range_reads_back() {
        let range = 0x7f12_3400_0000..u64::MAX;
        assert_eq!(parse_range(&format_range(&range)), Ok(range));
    }
}
