//! Has the kernel let go of copies in the swap cache.
//!
//! In: a machine whose control group is its own, a number of bytes. Out: by how much the group's share of the swap
//! cache fell. Not here: whether it should be done (`reclaim`).
//!
//! # Limits
//! The kernel reclaims what it finds oldest in the group (`memory.reclaim`, from 5.19 on). Where it takes a swappiness
//! with the order (from 6.12 on), it looks at anonymous memory only; before, also at page cache of the group.

use std::fs;
use std::io;

use super::target::{Roots, Target};
use crate::vm::GroupMemory;

/// Only anonymous memory is looked at.
const SWAPPINESS: u32 = 200;

pub(super) fn free(target: &Target, roots: &Roots, bytes: u64) -> u64 {
    let look = || GroupMemory::of(&roots.proc, &roots.cgroup, target.vm.key);
    let before = look().with_owner(&roots.proc, &roots.cgroup, target.vm.key);
    let Some(group) = before.group.filter(|_| before.is_vms_own) else { return 0 };
    let file = roots.cgroup.join(group.trim_start_matches('/')).join("memory.reclaim");
    let write = |order: String| fs::write(&file, order);
    let written = match write(format!("{bytes} swappiness={SWAPPINESS}")) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => write(bytes.to_string()),
        other => other,
    };
    // It found less than that, which is no error.
    if let Err(error) = written.or_else(|error| if again(&error) { Ok(()) } else { Err(error) }) {
        tracing::debug!(vm = target.vm.name, %error, "the swap cache is not freed");
    }
    let after = look().swap_cached_bytes.unwrap_or(0);
    before.swap_cached_bytes.unwrap_or(0).saturating_sub(after)
}

fn again(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAGAIN)
}
