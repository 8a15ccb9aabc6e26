//! The kernel's numbers of our swap areas, kept across restarts of the agent.
//!
//! Pagemap names the area of a swapped page by number, `/proc/swaps` by path, and nothing tells which is which.
//! For an area it switches on, the agent finds the number by experiment; for one it takes over, it reads what
//! its predecessor wrote down. Where that is missing, it takes the order of `/proc/swaps`, which is that of the
//! numbers, as if no number had been given up in between.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::proc_swaps::SwapLine;
use super::segments::Area;
use crate::store::Store;
use crate::sys::boot_id;

const RECORD: &str = "swap-areas";

#[derive(Debug, Default, Serialize, Deserialize)]
struct Saved {
    /// Of the boot in which the numbers are true.
    boot_id: String,
    areas: Vec<(PathBuf, u8)>,
}

#[derive(Debug)]
pub(super) struct Numbers(pub(super) Arc<Store>);

impl Numbers {
    /// The number of each area that is on, in the same order.
    pub(super) fn load(&self, on: &[SwapLine]) -> Vec<u8> {
        let saved = self.0.read(RECORD).and_then(|bytes| serde_json::from_slice::<Saved>(&bytes).ok());
        let areas = saved.filter(|saved| saved.boot_id == boot_id()).map(|saved| saved.areas);
        assign(on, &areas.unwrap_or_default())
    }

    /// Writes down what is known, before anything is in these areas; the agent runs on where it cannot.
    pub(super) fn save(&self, areas: &[Area]) {
        if areas.is_empty() && self.0.read(RECORD).is_none() {
            return;
        }
        let areas = areas.iter().map(|area| (area.path.clone(), area.number)).collect();
        let saved = Saved { boot_id: boot_id(), areas };
        match serde_json::to_vec(&saved) {
            Ok(bytes) => drop(self.0.write(&[(RECORD.to_owned(), Some(bytes))])),
            // A path that is no text: it is ours to choose, and its number is found by the order then.
            Err(error) => tracing::warn!(%error, "cannot write down the numbers of the swap files"),
        }
    }
}

/// Numbers in the order of `/proc/swaps`: the saved one where there is one, else the next after the area before.
fn assign(on: &[SwapLine], saved: &[(PathBuf, u8)]) -> Vec<u8> {
    let mut next = 0;
    on.iter()
        .map(|line| {
            let number =
                saved.iter().find(|(path, _)| *path == line.path).map_or(next, |(_, number)| *number);
            next = number + 1;
            number
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(path: &str) -> SwapLine {
        SwapLine { path: path.into(), is_file: true, size_bytes: 0, used_bytes: 0, priority: 0 }
    }

    #[test]
    fn numbers_follow_the_order_where_nothing_is_known() {
        assert_eq!(assign(&[line("/a"), line("/b")], &[]), [0, 1]);
    }

    #[test]
    fn what_was_written_down_wins_and_moves_the_rest() {
        let on = [line("/a"), line("/b"), line("/c")];
        assert_eq!(assign(&on, &[("/b".into(), 4)]), [0, 4, 5]);
    }

    #[test]
    fn numbers_are_known_to_the_next_agent_of_the_same_boot() {
        let folder = tempfile::tempdir().unwrap();
        let area = |path: &str, number| Area {
            path: path.into(),
            tier: crate::tiers::TierId(1),
            number,
            priority: 0,
            bytes: 0,
            covered_pages: 0,
        };
        let numbers = || Numbers(Arc::new(Store::in_folder(folder.path())));
        numbers().save(&[area("/a", 7)]);
        assert_eq!(numbers().load(&[line("/a"), line("/b")]), [7, 8]);

        let old = r#"{"boot_id":"another","areas":[["/a",7]]}"#;
        numbers().0.write(&[(RECORD.to_owned(), Some(old.into()))]);
        assert_eq!(numbers().load(&[line("/a")]), [0], "another boot has other numbers");
    }
}
