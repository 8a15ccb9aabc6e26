//! What a scenario found: a table of what was measured and what it should be.
//!
//! In: rows, one by one. Out: a table for people, a file that other processes read. A row that is not as it should be
//! does not end the scenario: the rest is still worth knowing.

use crate::paths::target_dir;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fmt::{self, Display};
use std::path::{Path, PathBuf};
use std::time::Instant;

const FILE: &str = "results.json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    pub what: String,
    pub found: String,
    /// Empty where the row is there to be known, whatever it says.
    pub wanted: String,
    pub ok: bool,
    /// A measured figure that is not what one aims at; it fails nothing.
    #[serde(default)]
    pub missed: bool,
}

/// The table of one scenario.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    pub scenario: String,
    pub rows: Vec<Row>,
    /// The few figures that one line has room for.
    #[serde(default)]
    pub headlines: Vec<String>,
    /// Rows are printed as they come, with the seconds since then.
    #[serde(skip, default = "Instant::now")]
    began: Instant,
}

/// Where the tables of all scenarios of a run are kept.
fn folder() -> PathBuf {
    target_dir().join("lab-results")
}

impl Results {
    #[must_use]
    pub fn new(scenario: &str) -> Self {
        Self { scenario: scenario.to_owned(), rows: Vec::new(), headlines: Vec::new(), began: Instant::now() }
    }

    /// Notes what should be so, and whether it is. Returns `ok`.
    pub fn check(&mut self, what: &str, found: impl Display, wanted: &str, ok: bool) -> bool {
        self.push(what, &found, wanted, ok, false);
        ok
    }

    /// Notes a measured figure beside what one aims at.
    pub fn figure(&mut self, what: &str, found: impl Display, target: &str, met: bool) {
        self.push(what, &found, target, true, !met);
    }

    /// Adds a figure to the one line that sums everything up.
    pub fn headline(&mut self, figure: impl Into<String>) {
        self.headlines.push(figure.into());
    }

    /// Notes what is worth knowing.
    pub fn note(&mut self, what: &str, found: impl Display) {
        self.push(what, &found, "", true, false);
    }

    fn push(&mut self, what: &str, found: &dyn Display, wanted: &str, ok: bool, missed: bool) {
        let (what, found, wanted) = (what.to_owned(), found.to_string(), wanted.to_owned());
        let row = Row { what, found, wanted, ok, missed };
        println!("{:>4} s {}", self.began.elapsed().as_secs(), line(&row));
        self.rows.push(row);
    }

    /// What is not as it should be.
    #[must_use]
    pub fn wrong(&self) -> Vec<String> {
        let wrong = self.rows.iter().filter(|row| !row.ok);
        wrong.map(|row| format!("{} ({}; wanted {})", row.what, row.found, row.wanted)).collect()
    }

    /// Writes the table into a folder.
    ///
    /// # Errors
    /// Where that fails.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// Reads the table that was written into a folder.
    ///
    /// # Errors
    /// Where there is none.
    pub fn load(folder: &Path) -> Result<Self> {
        Self::read(&folder.join(FILE))
    }

    /// Keeps the table for [`Results::of_this_run`].
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn keep(&self) -> Result<()> {
        let path = folder().join(format!("{}.json", self.scenario.replace("::", ".")));
        std::fs::create_dir_all(folder())?;
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// The tables kept since [`Results::begin_run`], by name.
    #[must_use]
    pub fn of_this_run() -> Vec<Self> {
        let files = std::fs::read_dir(folder()).into_iter().flatten().flatten();
        let mut all: Vec<_> = files.filter_map(|file| Self::read(&file.path()).ok()).collect();
        all.sort_by(|a, b| a.scenario.cmp(&b.scenario));
        all
    }

    /// Forgets the tables of earlier runs.
    pub fn begin_run() {
        // There is none at first.
        let _ = std::fs::remove_dir_all(folder());
    }

    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no table", path.display()))
    }
}

fn line(row: &Row) -> String {
    let verdict = match row {
        Row { ok: false, .. } => "NO",
        Row { missed: true, .. } => "--",
        Row { .. } => "  ",
    };
    let wanted = if row.wanted.is_empty() { String::new() } else { format!("  (wanted: {})", row.wanted) };
    format!("{verdict} {:<58} {}{wanted}", row.what, row.found)
}

impl Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.scenario.replace('_', " ").replace("::", ": "))?;
        let lines: Vec<_> = self.rows.iter().map(line).collect();
        f.write_str(&lines.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_shows_what_is_wrong_and_survives_its_file() {
        let mut results = Results::new("moves::a_page_goes_down");
        results.note("pages", 7);
        assert!(results.check("in nvme", 7, "7", true));
        assert!(!results.check("in qlc", 3, "at least 6", false));
        results.figure("share of the raw call", "93 %", "95 %", false);
        assert_eq!(results.wrong(), ["in qlc (3; wanted at least 6)"], "a missed target fails nothing");
        let table = results.to_string();
        let mut lines = table.lines();
        assert_eq!(lines.next(), Some("moves: a page goes down"));
        assert!(lines.next().unwrap().trim_start().starts_with("pages"));
        assert!(lines.nth(1).unwrap().starts_with("NO in qlc"), "{table}");
        assert!(lines.next().unwrap().starts_with("-- share of the raw call"), "{table}");

        let folder = tempfile::tempdir().unwrap();
        results.save(folder.path()).unwrap();
        assert_eq!(Results::load(folder.path()).unwrap().rows, results.rows);
    }
}
