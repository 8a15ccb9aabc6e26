//! What KSM has merged of a process. In: `/proc/PID/ksm_merging_pages` and `ksm_stat`. Out: a number of bytes.
//!
//! Limits: kernels without KSM, and those that do not tell (`ksm_zero_pages` is there from 6.6 on), show less.

use std::path::Path;

use crate::sys::PAGE_BYTES;

/// Bytes of the process that KSM keeps one copy of for several pages, pages of zeroes included; none where the kernel
/// does not tell.
#[must_use]
pub fn ksm_bytes(proc_root: &Path, pid: i32) -> Option<u64> {
    let process = proc_root.join(pid.to_string());
    let merging = std::fs::read_to_string(process.join("ksm_merging_pages")).ok()?;
    let merging: u64 = merging.trim().parse().ok()?;
    let stat = std::fs::read_to_string(process.join("ksm_stat")).unwrap_or_default();
    let zero = stat.lines().find_map(|line| line.strip_prefix("ksm_zero_pages ")?.trim().parse().ok());
    Some(merging.saturating_add(zero.unwrap_or(0)).saturating_mul(PAGE_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_pages_and_pages_of_zeroes_count_and_no_file_is_no_zero() {
        let root = tempfile::tempdir().unwrap();
        let process = root.path().join("7");
        std::fs::create_dir(&process).unwrap();
        assert_eq!(ksm_bytes(root.path(), 7), None);
        std::fs::write(process.join("ksm_merging_pages"), "10\n").unwrap();
        assert_eq!(ksm_bytes(root.path(), 7), Some(10 * 4096));
        std::fs::write(
            process.join("ksm_stat"),
            "ksm_rmap_items 40\nksm_zero_pages 5\nksm_merging_pages 10\n",
        )
        .unwrap();
        assert_eq!(ksm_bytes(root.path(), 7), Some(15 * 4096));
    }
}
