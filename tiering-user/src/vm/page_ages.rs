//! How old the pages of control groups are, as the kernel's multi-generational LRU (MGLRU) has it.
//!
//! In: the text of `/sys/kernel/debug/lru_gen` (Documentation/admin-guide/mm/multigen_lru.rst; the format is the same
//! from Linux 6.1 to 6.18). Out: [`PageAges`], plain values. The file is only read: writing to it forces ageing, which
//! costs the VMs.
//!
//! A generation begins when the kernel looks through the page tables, and its age is the time since. A page that is
//! found accessed goes into the youngest one. So a page in one generation was accessed between the begin of that one
//! and the begin of the next, and not from then until the kernel last looked, when the youngest generation began. What
//! was accessed since then does not show.
//!
//! # Limits
//! The kernel looks only where memory is reclaimed, by itself or because the agent asks, and it skips page tables in
//! which it found little before: ages are too high rather than too low. Before Linux 6.12 it does not see there what a
//! KVM guest accesses. Ages wrap after 49 days: those of older generations are put right, that of the youngest is not.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

/// First kernel of which ages take in what KVM guests access.
const SEES_KVM: (u32, u32) = (6, 12);
/// Ages are 32 bits of milliseconds.
const WRAPS_AFTER: Duration = Duration::from_millis(1 << 32);

/// Why nobody can tell how old pages are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAges {
    #[error("this kernel has no MGLRU (CONFIG_LRU_GEN)")]
    NoMglru,
    #[error("MGLRU is switched off (`echo y > /sys/kernel/mm/lru_gen/enabled`)")]
    Off,
    #[error("debugfs is not mounted (`mount -t debugfs none /sys/kernel/debug`)")]
    NoDebugfs,
    #[error("/sys/kernel/debug/lru_gen cannot be read ({0}): it needs root, and a kernel without lockdown")]
    Unreadable(String),
}

/// The ages of some groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageAges {
    /// By path; none where two groups have that path, one of which is being removed.
    groups: BTreeMap<String, Option<GroupAges>>,
    /// Whether ages take in what KVM guests access.
    pub sees_kvm: bool,
}

/// The generations of one group, by node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupAges {
    nodes: Vec<Vec<Generation>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Generation {
    age: Duration,
    /// Anonymous and shared memory, in memory: mapped, or as a copy in the swap cache.
    pages: u64,
}

/// Pages that were not accessed for some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Idle {
    /// Not for so long when the kernel last looked.
    pub pages: u64,
    /// May have been idle for so long now.
    pub most_pages: u64,
    /// All that the group has in memory.
    pub of_pages: u64,
    /// How long ago the kernel last looked.
    pub looked_ago: Duration,
    /// The longest time for which a page was seen to be idle.
    pub watched: Duration,
    /// Whether that was long enough, and not too long ago.
    pub is_known: bool,
}

impl PageAges {
    /// Reads the ages of those groups that `wanted` names. `sys_root` is `/sys`, `proc_root` is `/proc`.
    ///
    /// # Errors
    /// [`NoAges`].
    pub fn read(sys_root: &Path, proc_root: &Path, wanted: impl Fn(&str) -> bool) -> Result<Self, NoAges> {
        let enabled = std::fs::read_to_string(sys_root.join("kernel/mm/lru_gen/enabled"));
        let enabled = enabled.map_err(|_| NoAges::NoMglru)?;
        let bits = u32::from_str_radix(enabled.trim().trim_start_matches("0x"), 16).unwrap_or(0);
        if bits & 1 == 0 {
            return Err(NoAges::Off);
        }
        let text = std::fs::read_to_string(sys_root.join("kernel/debug/lru_gen"));
        let text = text.map_err(|error: io::Error| match error.kind() {
            ErrorKind::NotFound => NoAges::NoDebugfs,
            _ => NoAges::Unreadable(error.to_string()),
        })?;
        let release = std::fs::read_to_string(proc_root.join("sys/kernel/osrelease")).unwrap_or_default();
        Ok(Self { sees_kvm: sees_kvm(&release), ..Self::parse(&text, wanted) })
    }

    fn parse(text: &str, wanted: impl Fn(&str) -> bool) -> Self {
        let mut groups = BTreeMap::new();
        let mut add = |path: Option<&str>, ages: GroupAges| {
            if let Some(path) = path.filter(|path| wanted(path)) {
                let twice = groups.contains_key(path);
                groups.insert(path.to_owned(), (!twice).then_some(ages));
            }
        };
        let (mut path, mut ages) = (None, GroupAges::default());
        for line in text.lines() {
            if let Some(memcg) = line.strip_prefix("memcg ") {
                add(path.take(), std::mem::take(&mut ages));
                // The number, then the path, which may contain spaces; empty without control groups.
                path = memcg.trim_start().split_once(' ').map(|(_, path)| path);
            } else if line.trim_start().starts_with("node ") {
                ages.nodes.push(Vec::new());
            } else if let (Some(node), Some(generation)) = (ages.nodes.last_mut(), generation(line)) {
                node.push(generation);
            }
        }
        add(path, ages);
        groups.values_mut().flatten().for_each(GroupAges::unwrap_ages);
        Self { groups, sees_kvm: false }
    }

    /// Those of the group of this path, of which the file told.
    #[must_use]
    pub fn of(&self, path: &str) -> Option<&GroupAges> {
        self.groups.get(path)?.as_ref()
    }
}

impl GroupAges {
    /// Older generations cannot be younger: their age has wrapped.
    fn unwrap_ages(&mut self) {
        for node in &mut self.nodes {
            let mut younger = Duration::ZERO;
            for generation in node.iter_mut().rev() {
                while generation.age < younger {
                    generation.age += WRAPS_AFTER;
                }
                younger = generation.age;
            }
        }
    }

    /// Pages that were idle for `least`. Nothing is known of a node that the kernel has not looked at for `stale`.
    #[must_use]
    pub fn idle(&self, least: Duration, stale: Duration) -> Idle {
        let mut idle = Idle::default();
        let mut known_ago = None;
        let mut looked = Duration::MAX;
        for node in &self.nodes {
            let all: u64 = node.iter().map(|generation| generation.pages).sum();
            let Some(youngest) = node.last().filter(|_| all > 0) else { continue };
            // Of a page all that is known is that it was not accessed since the next generation began.
            let idle_for = |at: usize| node.get(at + 1).map(|next| next.age.saturating_sub(youngest.age));
            let watched = (0..node.len()).filter_map(idle_for).max().unwrap_or_default();
            idle.of_pages += all;
            idle.watched = idle.watched.max(watched);
            looked = looked.min(youngest.age);
            if watched < least || youngest.age > stale {
                idle.most_pages += all;
                continue;
            }
            known_ago = known_ago.max(Some(youngest.age));
            for (at, generation) in node.iter().enumerate() {
                idle.pages += generation.pages * u64::from(idle_for(at).is_some_and(|time| time >= least));
                idle.most_pages += generation.pages * u64::from(generation.age >= least);
            }
        }
        idle.is_known = known_ago.is_some();
        idle.looked_ago = known_ago.unwrap_or(if looked == Duration::MAX { Duration::ZERO } else { looked });
        idle
    }
}

/// Number, age, anonymous pages, file pages.
fn generation(line: &str) -> Option<Generation> {
    let mut fields = line.split_whitespace();
    fields.next()?.parse::<u64>().ok()?;
    let age = Duration::from_millis(fields.next()?.parse().ok()?);
    Some(Generation { age, pages: fields.next()?.parse().ok()? })
}

fn sees_kvm(release: &str) -> bool {
    let mut numbers = release.trim().split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= SEES_KVM
}

#[cfg(test)]
#[path = "page_ages_tests.rs"]
mod tests;
