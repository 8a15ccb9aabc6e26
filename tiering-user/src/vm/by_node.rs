//! How much of a control group's memory is on which memory nodes.
//!
//! In: `memory.numa_stat` of a group (v2, Linux 5.10). Out: what is on nodes that a caller chooses. Pages that the
//! kernel demotes stay charged to their group, so its other counters do not show them.

use std::path::Path;

/// Memory of a group on some nodes, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnNodes {
    /// Mapped and shared memory.
    pub guest_bytes: u64,
    /// Page cache, without shared memory.
    pub file_bytes: u64,
}

impl OnNodes {
    /// Of the group in this folder, what is on nodes that `counts`; none where the kernel does not tell.
    pub fn of(group: &Path, counts: impl Fn(u32) -> bool) -> Option<Self> {
        let text = std::fs::read_to_string(group.join("memory.numa_stat")).ok()?;
        Self::in_text(&text, counts)
    }

    /// How much less there is `after`.
    #[must_use]
    pub fn less(self, after: Self) -> Self {
        Self {
            guest_bytes: self.guest_bytes.saturating_sub(after.guest_bytes),
            file_bytes: self.file_bytes.saturating_sub(after.file_bytes),
        }
    }

    fn in_text(text: &str, counts: impl Fn(u32) -> bool) -> Option<Self> {
        // anon N0=4096 N1=0
        let sum = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
            let mut bytes = 0;
            for field in line.split_ascii_whitespace() {
                let (node, value) = field.strip_prefix('N')?.split_once('=')?;
                let value: u64 = value.parse().ok()?;
                bytes += if counts(node.parse().ok()?) { value } else { 0 };
            }
            Some(bytes)
        };
        let (anon, shared) = (sum("anon")?, sum("shmem")?);
        Some(Self { guest_bytes: anon + shared, file_bytes: sum("file")?.saturating_sub(shared) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_on_the_nodes_asked_for_is_counted() {
        let text = "anon N0=8192 N1=4096\nfile N0=12288 N1=0\nanon_thp N0=1 N1=1\nshmem N0=4096 N1=0\n";
        let on = |node| OnNodes::in_text(text, |other| other == node).unwrap();
        assert_eq!(on(0), OnNodes { guest_bytes: 12288, file_bytes: 8192 });
        assert_eq!(on(1), OnNodes { guest_bytes: 4096, file_bytes: 0 });
        assert_eq!(on(0).less(on(1)), OnNodes { guest_bytes: 8192, file_bytes: 8192 });
        assert_eq!(on(1).less(on(0)), OnNodes::default());
        assert_eq!(OnNodes::in_text("anon N0=1\n", |_| true), None);
    }
}
