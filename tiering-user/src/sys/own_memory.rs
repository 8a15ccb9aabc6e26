//! What this process itself takes of the host's memory.

use std::io;

use super::PAGE_BYTES;

/// Resident memory of this process, bytes: its own and what it has mapped of files, among these its program and the rings.
///
/// # Errors
/// Where `/proc/self/statm` cannot be read.
pub fn own_memory() -> io::Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let resident = statm.split_ascii_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    Ok(resident.ok_or(io::ErrorKind::InvalidData)? * PAGE_BYTES)
}

/// Gives the kernel back what was freed and is still with the allocator. The allocators of other C libraries than glibc do that by themselves.
pub fn give_back_freed() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it may be called at any time, by any thread (malloc_trim(3)).
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_freed_is_given_back() {
        let before = own_memory().unwrap();
        // Small enough to come from the heap, with something behind it that stays.
        let freed: Vec<Vec<u8>> = (0..16_384).map(|_| vec![1; 4096]).collect();
        let stays = vec![1u8; 64];
        let with = own_memory().unwrap();
        assert!(with > before + (48 << 20), "{before} {with}");
        drop(freed);
        give_back_freed();
        let after = own_memory().unwrap();
        assert!(after < before + (32 << 20), "{before} {with} {after}");
        assert_eq!(stays[0], 1);
    }
}
