//! Memory nodes: pages of another process moved from one to another, and where this thread's own allocations go.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use super::Pidfd;

/// Bits of a node mask: more than any kernel is built for (`CONFIG_NODES_SHIFT` is at most 10).
const NODE_BITS: usize = 1024;
const WORD_BITS: usize = u64::BITS as usize;

type NodeMask = [u64; NODE_BITS / WORD_BITS];

/// What `move_pages` says of one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveStatus {
    /// It is on this node now.
    On(u32),
    /// It stays, with this error number: `ENOENT` (not present), `EACCES` (mapped by another process too),
    /// `EBUSY` (cannot be taken off its list now), `EFAULT` (the page of zeroes).
    Refused(i32),
    /// Nothing: the kernel gives up at the first pages that it could not move, and tells neither which these were nor
    /// what became of those around and behind them (`do_pages_move` in mm/migrate.c, Linux 6.1 to 6.18).
    Untold,
}

/// Moves the pages of `process` at these addresses to `node`, those that are mapped by it alone. A huge page moves as
/// a whole with the first of its addresses; what is said of the others depends on the kernel, so where pages are is
/// to be read back with [`super::Pagemap`].
///
/// # Errors
/// `ENOMEM` (the node is full), `ENODEV` (there is no such node), `EACCES` (outside of this thread's cpuset), `EPERM`
/// (no CAP_SYS_NICE), `ESRCH` (the process is gone). Some of the pages may have moved all the same.
pub fn move_pages(process: &Pidfd, addresses: &[u64], node: u32) -> io::Result<Vec<MoveStatus>> {
    const UNTOLD: i32 = i32::MIN;
    let node = i32::try_from(node).map_err(io::Error::other)?;
    let nodes = vec![node; addresses.len()];
    let mut statuses = vec![UNTOLD; addresses.len()];
    process.by_number(|pid| {
        // SAFETY: the three arrays have the length that is given; the kernel reads the first two and writes the third.
        // The addresses are those of the other process, never ours.
        let result = unsafe {
            libc::syscall(
                libc::SYS_move_pages,
                pid,
                addresses.len(),
                addresses.as_ptr(),
                nodes.as_ptr(),
                statuses.as_mut_ptr(),
                MPOL_MF_MOVE,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    })?;
    let told = statuses.into_iter().map(|status| match u32::try_from(status) {
        Ok(node) => MoveStatus::On(node),
        Err(_) if status == UNTOLD => MoveStatus::Untold,
        Err(_) => MoveStatus::Refused(-status),
    });
    Ok(told.collect())
}

/// While this lives, what this thread makes present, in its own memory or in that of another process, goes to the
/// nodes it was made with as long as they have room.
///
/// `MPOL_PREFERRED_MANY`, not `MPOL_BIND`: where these nodes are full, a page goes elsewhere, which is read back;
/// bound, it would call the OOM killer on hosts that have memory on other nodes.
#[derive(Debug)]
pub struct PreferNodes {
    mode_before: i32,
    nodes_before: NodeMask,
}

impl PreferNodes {
    /// Prefers `nodes`.
    ///
    /// # Errors
    /// `EINVAL` (none of these nodes has memory), `ENOSYS` (a kernel without NUMA), `EPERM` (forbidden by seccomp).
    pub fn set(nodes: &[u32]) -> io::Result<Self> {
        let mask = mask_of(nodes)?;
        let mut before = Self { mode_before: 0, nodes_before: [0; NODE_BITS / WORD_BITS] };
        // SAFETY: the kernel writes the mode and at most NODE_BITS bits of the mask, both of which outlive the call.
        let read = unsafe {
            libc::syscall(
                libc::SYS_get_mempolicy,
                &raw mut before.mode_before,
                before.nodes_before.as_mut_ptr(),
                NODE_BITS,
                0,
                0,
            )
        };
        if read != 0 {
            return Err(io::Error::last_os_error());
        }
        set_policy(MPOL_PREFERRED_MANY, &mask)?;
        Ok(before)
    }
}

impl Drop for PreferNodes {
    fn drop(&mut self) {
        // What was in force is allowed again; if not, the next guard says so.
        set_policy(self.mode_before, &self.nodes_before).ok();
    }
}

/// Has the kernel put what comes into this part of a shared file on `nodes` while they have room; none: as it likes.
///
/// The policy stays with the file. The mapping by which it is said is gone again at once: a page that two processes map
/// would not be paged out.
///
/// # Errors
/// `EINVAL` (none of these nodes has memory, or `offset` is not that of a page), `ENOMEM`, `EACCES`.
pub fn prefer_nodes_of_file(file: &File, offset: u64, bytes: u64, nodes: &[u32]) -> io::Result<()> {
    let mask = mask_of(nodes)?;
    // A new mapping has no policy, so asking for none would change nothing, also not in the file (`mbind_range` in
    // mm/mempolicy.c, Linux 6.1 to 6.18): another one goes first.
    let modes = if nodes.is_empty() { &[MPOL_LOCAL, libc::MPOL_DEFAULT][..] } else { &[MPOL_PREFERRED_MANY] };
    let length = usize::try_from(bytes).map_err(io::Error::other)?;
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    // SAFETY: a new mapping at a place of the kernel's choice, which nothing can be read or written through.
    let start = unsafe {
        libc::mmap(std::ptr::null_mut(), length, libc::PROT_NONE, libc::MAP_SHARED, file.as_raw_fd(), offset)
    };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let result = modes.iter().try_for_each(|mode| {
        // SAFETY: the range is the mapping just made; the kernel reads at most NODE_BITS bits of the mask.
        let bound =
            unsafe { libc::syscall(libc::SYS_mbind, start, length, *mode, mask.as_ptr(), NODE_BITS, 0) };
        if bound == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    });
    // SAFETY: the mapping is ours, whole, and nothing refers to it.
    unsafe { libc::munmap(start, length) };
    result
}

fn mask_of(nodes: &[u32]) -> io::Result<NodeMask> {
    let mut mask: NodeMask = [0; NODE_BITS / WORD_BITS];
    for node in nodes {
        let node = usize::try_from(*node).map_err(io::Error::other)?;
        let word =
            mask.get_mut(node / WORD_BITS).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        *word |= 1 << (node % WORD_BITS);
    }
    Ok(mask)
}

/// The node that the page at this byte of ours is on.
///
/// # Errors
/// `ENOSYS` (a kernel without NUMA), `EPERM` (forbidden by seccomp).
pub fn node_of(byte: &u8) -> io::Result<u32> {
    const MPOL_F_NODE: usize = 1 << 0;
    const MPOL_F_ADDR: usize = 1 << 1;
    let mut node: i32 = -1;
    let nobody: *mut u64 = std::ptr::null_mut();
    // SAFETY: the kernel writes one number and no mask; the address is that of a live byte, which it only looks up.
    let result = unsafe {
        libc::syscall(
            libc::SYS_get_mempolicy,
            &raw mut node,
            nobody,
            0,
            std::ptr::from_ref(byte),
            MPOL_F_NODE | MPOL_F_ADDR,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    u32::try_from(node).map_err(io::Error::other)
}

// include/uapi/linux/mempolicy.h; the first from Linux 5.15 on.
const MPOL_PREFERRED_MANY: i32 = 5;
const MPOL_LOCAL: i32 = 4;
/// Pages that other processes map too stay.
const MPOL_MF_MOVE: i32 = 1 << 1;

fn set_policy(mode: i32, nodes: &NodeMask) -> io::Result<()> {
    // SAFETY: the kernel reads at most NODE_BITS bits of the mask, which outlives the call. The policy is this
    // thread's.
    let result = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, nodes.as_ptr(), NODE_BITS) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{PAGE_BYTES, ZeroPages};

    #[test]
    fn each_page_has_its_own_answer() {
        let mut memory = ZeroPages::map(3).unwrap();
        // Page 1 is made present; the others are not.
        memory.write_touch(1);
        let start = memory.start() as u64;
        let addresses: Vec<u64> = (0..3).map(|page| start + page * PAGE_BYTES).collect();
        let process = Pidfd::open(i32::try_from(std::process::id()).unwrap()).unwrap();
        let moved = move_pages(&process, &addresses, 0).unwrap();
        let absent = MoveStatus::Refused(libc::ENOENT);
        assert_eq!(moved, [absent, MoveStatus::On(0), absent]);
        assert!(move_pages(&process, &addresses, 1000).is_err(), "no host of ours has a node 1000");
    }

    /// What the kernel shows for a mapping of the file that begins there.
    fn policy_at(file: &File, offset: u64) -> String {
        let offset = libc::off_t::try_from(offset).unwrap();
        let (any, length) = (std::ptr::null_mut(), PAGE_BYTES as usize);
        // SAFETY: a new mapping at a place of the kernel's choice, which nothing can be read or written through.
        let start =
            unsafe { libc::mmap(any, length, libc::PROT_NONE, libc::MAP_SHARED, file.as_raw_fd(), offset) };
        let maps = std::fs::read_to_string("/proc/self/numa_maps").unwrap();
        // SAFETY: the mapping is ours, whole, and nothing refers to it.
        unsafe { libc::munmap(start, length) };
        let wanted = format!("{:x} ", start.addr());
        let line = maps.lines().find_map(|line| line.strip_prefix(&wanted)).unwrap();
        line.split(" file=").next().unwrap().to_owned()
    }

    #[test]
    fn a_part_of_a_shared_file_takes_a_policy_and_gives_it_back() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(8 * PAGE_BYTES).unwrap();
        prefer_nodes_of_file(&file, 2 * PAGE_BYTES, 4 * PAGE_BYTES, &[0]).unwrap();
        assert_eq!(policy_at(&file, 2 * PAGE_BYTES), "prefer (many):0");
        assert_eq!(policy_at(&file, 0), "default");
        prefer_nodes_of_file(&file, 0, 8 * PAGE_BYTES, &[]).unwrap();
        assert_eq!(policy_at(&file, 2 * PAGE_BYTES), "default");
        assert!(
            prefer_nodes_of_file(&file, 0, PAGE_BYTES, &[1000]).is_err(),
            "no host of ours has a node 1000"
        );
        assert!(prefer_nodes_of_file(&file, 1, PAGE_BYTES, &[0]).is_err(), "not the start of a page");
    }

    #[test]
    fn a_byte_of_ours_is_on_a_node() {
        let mut memory = crate::sys::Buffer::map(1).unwrap();
        memory.bytes_mut()[0] = 1;
        let node = node_of(&memory.bytes()[0]).unwrap();
        assert!(std::path::Path::new(&format!("/sys/devices/system/node/node{node}")).exists(), "{node}");
    }

    #[test]
    fn what_was_in_force_before_the_guard_is_in_force_after_it() {
        let first = PreferNodes::set(&[0]).unwrap();
        assert_eq!(first.mode_before, libc::MPOL_DEFAULT);
        let second = PreferNodes::set(&[0]).unwrap();
        assert_eq!((second.mode_before, second.nodes_before[0]), (MPOL_PREFERRED_MANY, 1));
        drop(second);
        assert_eq!(PreferNodes::set(&[0]).unwrap().mode_before, MPOL_PREFERRED_MANY);
        drop(first);
        assert_eq!(PreferNodes::set(&[0]).unwrap().mode_before, libc::MPOL_DEFAULT);
        assert!(PreferNodes::set(&[100_000]).is_err());
    }
}
