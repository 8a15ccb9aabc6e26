//! Which boot of the host this is.

/// The kernel's identity of this boot; empty where it cannot be told.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
