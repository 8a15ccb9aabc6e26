//! Why a swap tier, or the device that it is to be, cannot be used.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::area::AreaError;
use super::order::BASE_PRIORITY;
use super::proc_swaps::SwapLine;

/// Why a swap tier cannot be used.
#[derive(Debug, Error)]
pub enum SwapError {
    #[error(transparent)]
    Area(#[from] AreaError),
    #[error("tier `{tier}`: {error}")]
    Device { tier: String, error: DeviceError },
    #[error("cannot read /proc/swaps: {0}")]
    ProcSwaps(io::Error),
    #[error(
        "tier `{tier}`: {} is {what}, and not the agent's: nothing in {} is touched; give the tier a folder of its \
         own, or switch that file off and move it elsewhere", path.display(), folder.display()
    )]
    Foreign { tier: String, path: PathBuf, folder: PathBuf, what: String },
    #[error(
        "tiers `{first}` and `{second}` have one folder, by the paths {} and {}: nothing in it is touched; give each \
         tier a folder of its own", paths[0].display(), paths[1].display()
    )]
    OneFolder { first: String, second: String, paths: [PathBuf; 2] },
    #[error(
        "{misfits}: to bring {needed_mib} MiB up, {available_mib} MiB of memory are too little, and nothing is \
         changed; start the agent with the tiers as they were and drain these first (`tiering drain TIER`), or free \
         memory"
    )]
    DrainFirst { misfits: String, needed_mib: u64, available_mib: u64 },
    #[error(
        "{} has priority {priority} and would be filled before the tiers: switch it off with swapoff, or on again \
         with a priority below {BASE_PRIORITY}", path.display()
    )]
    Above { path: PathBuf, priority: i32 },
    #[error("the tier is not drained: the agent ends; what came up so far is in memory")]
    Stopped,
    #[error("tier `{0}` is no swap tier")]
    NotSwap(String),
    #[error("pages cannot be directed to tier `{tier}`: {source}")]
    Direct { tier: String, source: io::Error },
    #[error(
        "{left_mib} MiB are free in faster swap tiers and cannot be covered: may the control group of the agent \
         not swap (memory.swap.max)?"
    )]
    Uncovered { left_mib: u64 },
    #[error("the kernel's number of {} cannot be found out: is another swap area filled first?", path.display())]
    NoNumber { path: PathBuf },
}

impl SwapError {
    pub(super) fn above(line: &SwapLine) -> Self {
        Self::Above { path: line.path.clone(), priority: line.priority }
    }
}

/// Why a device is not used. Nothing on it is changed then.
#[derive(Debug, Error)]
pub enum DeviceError {
    #[error(
        "{}: cannot be found ({source}); name the device by a path that stays, such as /dev/disk/by-id/...",
        path.display()
    )]
    NotThere { path: PathBuf, source: io::Error },
    #[error("{} is no block device; for a folder with swap files say `path` in place of `device`", path.display())]
    NotADevice { path: PathBuf },
    #[error("{} is {what}: nothing on it is changed; {advice}", path.display())]
    Unsafe { path: PathBuf, what: String, advice: &'static str },
    #[error(
        "{} is in use ({by}): nothing on it is changed; end that, or name another device", path.display()
    )]
    InUse { path: PathBuf, by: String },
    #[error(
        "{} is not empty, it has {found}: nothing on it is changed; name another device, or, if nothing on it is \
         needed, zero its first 4 MiB and its last MiB: `blkdiscard --zeroout --length 4MiB {}` and `blkdiscard \
         --zeroout --offset {} --length 1MiB {}`", path.display(), path.display(), end_at, path.display()
    )]
    NotEmpty { path: PathBuf, found: String, end_at: u64 },
    #[error("{} has {mib} MiB: at least 32 MiB are needed", path.display())]
    TooSmall { path: PathBuf, mib: u64 },
    #[error("{} is another device by now than the one that was looked at: nothing on it is changed", path.display())]
    Replaced { path: PathBuf },
    #[error("{}: cannot {action}: {source}", path.display())]
    Io { path: PathBuf, action: &'static str, source: io::Error },
}

impl DeviceError {
    pub(super) fn of_tier(self, tier: &str) -> SwapError {
        SwapError::Device { tier: tier.to_owned(), error: self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_was_found_and_how_to_give_the_device_away() {
        let error =
            DeviceError::NotEmpty { path: "/dev/sdx".into(), found: "an XFS file system".into(), end_at: 99 };
        let text = error.to_string();
        assert!(
            text.starts_with("/dev/sdx is not empty, it has an XFS file system: nothing on it is changed")
        );
        assert!(text.contains("--offset 99 --length 1MiB /dev/sdx"), "{text}");
    }
}
