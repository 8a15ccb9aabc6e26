//! Which swap files in a tier's folder are the agent's own, and whether the tiers may be used as they are. Pure.
//!
//! In: what the folder holds, which areas are on, what the configuration says now. Out: a [`Claim`], or the reason why
//! nothing there is touched.
//!
//! 1. A file is the agent's own by its name and its header ([`Found::made_for`]). Anything else in the folder that is a
//!    swap file, on or not, is somebody else's: the tier is refused.
//! 2. An own file that is not on was left by a crash or a reboot. Its content means nothing any more.
//! 3. An own file that is on is taken over, if its priority is that of the tier's place in the ladder. If not (the
//!    tiers were exchanged, one was inserted or removed), the kernel would fill the tiers in another order than the
//!    agent believes: it is a [`Misfit`], and what is in it must come up to memory.
//!
//! # Limits
//! A tier that was renamed keeps its files. A file that somebody makes with the name, the label and a random UUID that
//! earlier versions gave theirs passes for one of them.

use std::fmt;
use std::path::Path;

use super::area::{Memory, Own};
use super::error::SwapError;
use super::files::{FileId, Found, OnArea};
use super::order::priorities;
use super::proc_swaps::SwapLine;

/// What of a tier's folder is the agent's.
#[derive(Clone, Debug, Default)]
pub(super) struct Claim {
    pub(super) on: Vec<(Own, SwapLine)>,
    /// Not on: to be removed.
    pub(super) stale: Vec<Own>,
}

/// Sorts what is in the folder of a tier.
///
/// # Errors
/// [`SwapError::Foreign`].
pub(super) fn claim(tier: &str, folder: &Path, found: &[Found], on: &[OnArea]) -> Result<Claim, SwapError> {
    let mut claim = Claim::default();
    for file in found {
        let area = on.iter().find(|area| area.file == Some(file.id));
        let own = Own { path: file.path.clone(), id: file.id, bytes: file.bytes };
        let foreign = |what: String| SwapError::Foreign {
            tier: tier.to_owned(),
            path: file.path.clone(),
            folder: folder.to_owned(),
            what,
        };
        match area {
            Some(OnArea { line, .. }) if file.made_for.is_some() && line.is_file => {
                claim.on.push((own, line.clone()));
            }
            Some(OnArea { line, .. }) => {
                return Err(foreign(format!("a swap area that is on, with priority {}", line.priority)));
            }
            None if file.is_on => {
                return Err(foreign(
                    "a swap file that is on, but /proc/swaps does not show which".to_owned(),
                ));
            }
            None if file.made_for.is_some() => claim.stale.push(own),
            None if file.header.is_some() => return Err(foreign("a swap file".to_owned())),
            None => {}
        }
    }
    Ok(claim)
}

/// An area of ours that is on with a priority that does not fit the ladder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Misfit {
    pub(super) own: Own,
    pub(super) used_bytes: u64,
    priority: i32,
    /// The tier it belongs to, or was made for.
    tier: String,
    /// None for a tier that the configuration does not name any more.
    needed: Option<i32>,
}

impl Misfit {
    /// Whether it is in the folder of a tier.
    pub(super) fn has_tier(&self) -> bool {
        self.needed.is_some()
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { own, used_bytes, priority, tier, needed } = self;
        let (path, mib) = (own.path.display(), used_bytes >> 20);
        match needed {
            Some(needed) => write!(
                f,
                "{mib} MiB of tier `{tier}` are in {path}, which is on with priority {priority}, where the tier's place \
                 in the ladder needs {needed}"
            ),
            None => write!(
                f,
                "{mib} MiB of a tier `{tier}`, which the configuration does not name, are in {path}, on with priority \
                 {priority}"
            ),
        }
    }
}

/// Takes the areas that do not fit out of the claims of the swap tiers, given in the order of the ladder, and adds the
/// areas of ours that are in the folder of no tier, or on the device of none.
pub(super) fn misfits(tiers: &mut [(String, Claim)], on: &[OnArea]) -> Vec<Misfit> {
    let claimed: Vec<FileId> = tiers.iter().flat_map(|(_, claim)| &claim.on).map(|(own, _)| own.id).collect();
    let mut misfits = Vec::new();
    for (place, (tier, claim)) in tiers.iter_mut().enumerate() {
        let fitting = priorities(place);
        for (own, line) in claim.on.extract_if(.., |(_, line)| !fitting.contains(&line.priority)) {
            misfits.push(Misfit {
                own,
                used_bytes: line.used_bytes,
                priority: line.priority,
                tier: tier.clone(),
                needed: Some(fitting.start),
            });
        }
    }
    for area in on {
        let line = &area.line;
        if let (Some(id), Some(tier)) = (area.id(), &area.made_for)
            && !claimed.contains(&id)
        {
            misfits.push(Misfit {
                own: Own { path: line.path.clone(), id, bytes: line.size_bytes },
                used_bytes: line.used_bytes,
                priority: line.priority,
                tier: tier.clone(),
                needed: None,
            });
        }
    }
    misfits
}

/// Whether there is memory for what is in all of them.
///
/// # Errors
/// [`SwapError::DrainFirst`].
pub(super) fn can_come_up(misfits: &[Misfit], memory: Memory) -> Result<(), SwapError> {
    let used_bytes = misfits.iter().map(|misfit| misfit.used_bytes).sum();
    if memory.takes(used_bytes) {
        return Ok(());
    }
    Err(SwapError::DrainFirst {
        misfits: misfits.iter().map(Misfit::to_string).collect::<Vec<_>>().join("; "),
        needed_mib: used_bytes >> 20,
        available_mib: memory.available_bytes >> 20,
    })
}

#[cfg(test)]
mod tests {
    use super::super::header::Header;
    use super::*;

    const MIB: u64 = 1 << 20;

    fn id(inode: u64) -> FileId {
        FileId { device: 1, inode }
    }

    fn ours(path: &str, inode: u64) -> Found {
        let made_for = Some("nvme".to_owned());
        let header = Some(Header { made_for: made_for.clone(), on_device: None });
        Found { path: path.into(), id: id(inode), bytes: 64 * MIB, header, made_for, is_on: false }
    }

    fn foreign(path: &str, inode: u64) -> Found {
        Found { header: Some(Header::default()), made_for: None, ..ours(path, inode) }
    }

    fn on(path: &str, inode: u64, priority: i32) -> OnArea {
        let line = SwapLine {
            path: path.into(),
            is_file: true,
            size_bytes: 64 * MIB,
            used_bytes: 8 * MIB,
            priority,
        };
        OnArea { line, file: Some(id(inode)), device: None, made_for: Some("nvme".to_owned()) }
    }

    fn claimed(found: &[Found], on: &[OnArea]) -> Result<Claim, String> {
        claim("nvme", Path::new("/t"), found, on).map_err(|error| error.to_string())
    }

    #[test]
    fn own_files_are_taken_over_by_whatever_path_they_are_on_and_the_rest_is_stale() {
        let found = [ours("/t/segment-0.swap", 10), ours("/t/segment-1.swap", 11)];
        let claim = claimed(&found, &[on("/bound/elsewhere", 11, 32067)]).unwrap();
        let paths = |own: &Own| own.path.to_string_lossy().into_owned();
        assert_eq!(claim.on.iter().map(|(own, _)| paths(own)).collect::<Vec<_>>(), ["/t/segment-1.swap"]);
        assert_eq!(claim.stale.iter().map(paths).collect::<Vec<_>>(), ["/t/segment-0.swap"]);
    }

    #[test]
    fn swap_files_of_others_on_or_not_are_told_and_nothing_is_claimed() {
        let own = ours("/t/segment-0.swap", 10);
        let told = |file: Found, on: &[OnArea]| claimed(&[own.clone(), file], on).unwrap_err();
        let text = told(foreign("/t/swapfile", 20), &[on("/host/swapfile", 20, -2)]);
        assert!(
            text.contains("tier `nvme`: /t/swapfile is a swap area that is on, with priority -2"),
            "{text}"
        );
        assert!(text.contains("give the tier a folder of its own"), "{text}");
        let text = told(foreign("/t/segment-3.swap", 20), &[]);
        assert!(text.contains("/t/segment-3.swap is a swap file, and not the agent's"), "{text}");
        let text = told(Found { is_on: true, ..ours("/t/segment-3.swap", 20) }, &[]);
        assert!(text.contains("/proc/swaps does not show which"), "{text}");
        // A file of ours that somebody uses through a loop device.
        let mut looped = on("/dev/loop0", 20, -2);
        looped.line.is_file = false;
        let text = told(ours("/t/segment-3.swap", 20), &[looped]);
        assert!(text.contains("is on, with priority -2"), "{text}");
    }

    #[test]
    fn a_file_that_is_no_swap_is_nobodys_business() {
        let plain = Found { header: None, made_for: None, ..ours("/t/segment-3.swap", 20) };
        let claim = claimed(&[plain], &[]).unwrap();
        assert!(claim.on.is_empty() && claim.stale.is_empty());
    }

    /// The claims of `nvme` and `qlc`, each with one file that is on.
    fn two_tiers(priorities: [i32; 2]) -> (Vec<(String, Claim)>, Vec<OnArea>) {
        let tiers = ["nvme", "qlc"].into_iter().zip([10, 20]).zip(priorities);
        let (mut claims, mut all) = (Vec::new(), Vec::new());
        for ((tier, inode), priority) in tiers {
            let path = format!("/{tier}/segment-0.swap");
            let area = on(&path, inode, priority);
            let claim = claimed(&[ours(&path, inode)], std::slice::from_ref(&area)).unwrap();
            claims.push((tier.to_owned(), claim));
            all.push(area);
        }
        (claims, all)
    }

    #[test]
    fn files_at_the_place_of_their_tier_stay_on() {
        let (mut claims, on) = two_tiers([priorities(0).start, priorities(1).start + 3]);
        assert_eq!(misfits(&mut claims, &on), []);
        assert!(claims.iter().all(|(_, claim)| claim.on.len() == 1));
    }

    #[test]
    fn files_of_tiers_that_were_exchanged_or_removed_do_not_fit() {
        let (mut claims, mut on_now) = two_tiers([priorities(1).start, priorities(0).start]);
        on_now.push(on("/removed/segment-0.swap", 30, priorities(0).start));
        // Neither a disk nor a file of somebody else's is ours to switch off.
        on_now.push(OnArea { made_for: None, ..on("/swapfile", 31, -2) });
        on_now.push(OnArea { file: None, made_for: None, ..on("/dev/sda2", 0, -3) });
        let found = misfits(&mut claims, &on_now);
        assert!(claims.iter().all(|(_, claim)| claim.on.is_empty()));
        let told: Vec<_> = found.iter().map(Misfit::to_string).collect();
        assert_eq!(
            told,
            [
                "8 MiB of tier `nvme` are in /nvme/segment-0.swap, which is on with priority 32617, where the tier's \
                 place in the ladder needs 32667",
                "8 MiB of tier `qlc` are in /qlc/segment-0.swap, which is on with priority 32667, where the tier's \
                 place in the ladder needs 32617",
                "8 MiB of a tier `nvme`, which the configuration does not name, are in /removed/segment-0.swap, on \
                 with priority 32667",
            ]
        );

        let memory = |available_bytes| Memory { total_bytes: 1 << 30, available_bytes };
        can_come_up(&found, memory(48 * MIB)).unwrap();
        let refused = can_come_up(&found, memory(30 * MIB)).unwrap_err().to_string();
        assert!(
            refused.contains("drain") && refused.contains("24 MiB") && refused.contains("30 MiB"),
            "{refused}"
        );
        assert!(refused.starts_with(&told[0]), "{refused}");
        can_come_up(&[], memory(0)).unwrap();
    }
}
