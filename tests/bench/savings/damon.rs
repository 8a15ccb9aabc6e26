//! Whether DAMON could page out guests' memory here.

use std::path::Path;

const KDAMONDS: &str = "/sys/kernel/mm/damon/admin/kdamonds";

/// Why nothing is measured of it. Changes nothing: a kdamond that is there belongs to somebody else.
pub fn why_not() -> String {
    let Ok(kdamonds) = std::fs::read_to_string(Path::new(KDAMONDS).join("nr_kdamonds")) else {
        return format!("no {KDAMONDS}");
    };
    if kdamonds.trim() != "0" {
        // The kernel tells what it can do only where a context is set up.
        let operations = Path::new(KDAMONDS).join("0/contexts/0/avail_operations");
        let operations = std::fs::read_to_string(operations).unwrap_or_default();
        if operations.lines().any(|line| line == "paddr") && !operations.lines().any(|line| line == "vaddr") {
            return "this kernel's DAMON cannot monitor processes (CONFIG_DAMON_VADDR)".to_owned();
        }
        return "somebody else uses DAMON".to_owned();
    }
    "DAMON is not set up by this benchmark".to_owned()
}
