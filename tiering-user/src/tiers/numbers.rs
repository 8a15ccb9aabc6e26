//! The kernel's numbers of our swap areas, kept across restarts of the agent.
//!
//! Pagemap names the area of a swapped page by number, `/proc/swaps` by path, and nothing tells which is which.
//! For an area it switches on, the agent finds the number by experiment; for one it takes over, it reads what
//! its predecessor wrote down. Where that is missing, it takes the order of `/proc/swaps`, which is that of the
//! numbers, as if no number had been given up in between.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::SwapLine;
use super::segments::Area;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Saved {
    /// Of the boot in which the numbers are true.
    boot_id: String,
    areas: Vec<(PathBuf, u8)>,
}

#[derive(Debug)]
pub(super) struct Store {
    file: PathBuf,
}

impl Store {
    pub(super) fn in_folder(state_dir: &Path) -> Self {
        Self { file: state_dir.join("swap-numbers.json") }
    }

    /// The number of each area that is on, in the same order.
    pub(super) fn load(&self, on: &[SwapLine]) -> Vec<u8> {
        let text = fs::read_to_string(&self.file).unwrap_or_default();
        let saved: Saved = serde_json::from_str(&text).unwrap_or_default();
        let areas = if saved.boot_id == boot_id() { saved.areas } else { Vec::new() };
        assign(on, &areas)
    }

    /// Writes down what is known; the agent runs on where it cannot.
    pub(super) fn save(&self, areas: &[Area]) {
        if areas.is_empty() && !self.file.exists() {
            return;
        }
        let areas = areas.iter().map(|area| (area.path.clone(), area.number)).collect();
        let saved = Saved { boot_id: boot_id(), areas };
        let written = serde_json::to_string(&saved).map_err(std::io::Error::from).and_then(|text| {
            if let Some(folder) = self.file.parent() {
                fs::create_dir_all(folder)?;
            }
            let new = self.file.with_extension("new");
            fs::write(&new, text)?;
            fs::rename(new, &self.file)
        });
        if let Err(error) = written {
            tracing::warn!(file = %self.file.display(), %error, "cannot write down the numbers of the swap files");
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

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(path: &str) -> SwapLine {
        SwapLine { path: path.into(), size_bytes: 0, used_bytes: 0, priority: 0 }
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
    fn another_boot_knows_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::in_folder(folder.path());
        let old = r#"{"boot_id":"another","areas":[["/a",7]]}"#;
        fs::write(folder.path().join("swap-numbers.json"), old).unwrap();
        assert_eq!(store.load(&[line("/a")]), [0]);
    }
}
