//! What KSM has merged of a process. In: `/proc/PID/ksm_merging_pages` and `ksm_stat`. Out: a number of bytes.
//!
//! Limits: kernels without KSM, and those that do not tell (`ksm_zero_pages` is there from 6.6 on), show less.

use std::io::Read as _;
use std::path::Path;

use procfs::process::Process;

use super::ProcessKey;
use super::process::Proc;
use crate::sys::PAGE_BYTES;

/// Bytes of the process that KSM keeps one copy of for several pages, pages of zeroes included; none where the kernel
/// does not tell.
#[must_use]
pub fn ksm_bytes(proc_root: &Path, key: ProcessKey) -> Option<u64> {
    let process = Proc::open_key(proc_root, key).ok()?;
    let text = |file| {
        let read = |process: &Process| {
            let mut text = String::new();
            process.open_relative(file)?.read_to_string(&mut text)?;
            Ok(text)
        };
        process.read(file, read).ok()
    };
    let merging: u64 = text("ksm_merging_pages")?.trim().parse().ok()?;
    let stat = text("ksm_stat").unwrap_or_default();
    let zero = stat.lines().find_map(|line| line.strip_prefix("ksm_zero_pages ")?.trim().parse().ok());
    Some(merging.saturating_add(zero.unwrap_or(0)).saturating_mul(PAGE_BYTES))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{FakeHost, Guest};
    use super::*;

    #[test]
    fn merged_pages_and_pages_of_zeroes_count_and_no_file_is_no_zero() {
        let host = FakeHost::new();
        host.start(7, &Guest::kvm("a", 64));
        let key = Proc::open(host.proc_root(), 7).and_then(|process| process.key()).unwrap();
        let bytes = || ksm_bytes(host.proc_root(), key);
        assert_eq!(bytes(), None);
        host.write(7, "ksm_merging_pages", b"10\n");
        assert_eq!(bytes(), Some(10 * 4096));
        host.write(7, "ksm_stat", b"ksm_rmap_items 40\nksm_zero_pages 5\nksm_merging_pages 10\n");
        assert_eq!(bytes(), Some(15 * 4096));
        let earlier = ProcessKey { start_time_ticks: key.start_time_ticks - 1, ..key };
        assert_eq!(ksm_bytes(host.proc_root(), earlier), None, "of the one that had its number before");
    }
}
