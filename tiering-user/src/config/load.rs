//! From a file to a checked [`Config`], and from a [`Config`] back to TOML.
//!
//! In: a path, or text and the name to report it under. Out: a valid [`Config`], or an [`Error`] whose message
//! is one line, `FILE:LINE:COLUMN: what is wrong, what is allowed`. Not here: the rules (`validate`).

use std::io;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::{Config, Problem};

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("{}: cannot be read ({source}): check the path and its permissions", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The text is no valid configuration. Line and column count characters from 1.
    #[error("{origin}:{line}:{column}: {message}")]
    Invalid { origin: String, line: usize, column: usize, message: String },
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// [`Error::Read`] if the file cannot be read, else as [`Config::parse`].
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads and checks `text`; `origin` stands for the file's name in errors.
    ///
    /// # Errors
    /// [`Error::Invalid`], with the position of the first thing that is wrong.
    pub fn parse(text: &str, origin: &str) -> Result<Self, Error> {
        let invalid = |offset: usize, message: &str| {
            let (line, column) = position(text, offset);
            let message = message.lines().map(str::trim).collect::<Vec<_>>().join("; ");
            Error::Invalid { origin: origin.to_owned(), line, column, message }
        };
        let config: Self = toml::from_str(text)
            .map_err(|error| invalid(error.span().map_or(0, |span| span.start), error.message()))?;
        config.validate().map_err(|Problem { key, message }| invalid(offset_of_key(text, &key), &message))?;
        Ok(config)
    }

    /// The ladder alone as TOML, to be put into a file.
    #[must_use]
    pub fn ladder_toml(&self) -> String {
        let tiers = std::collections::BTreeMap::from([("tier", &self.tiers)]);
        toml::to_string(&tiers).expect("TOML can hold the ladder: keys are strings, and paths came as text")
    }

    /// The effective configuration as TOML: [`Config::parse`] of it gives the same configuration.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("TOML can hold all of it: keys are strings, and paths came as text")
    }
}

/// Line and column, both from 1, of the byte at `offset`.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// Where the value of `key` (see [`Problem::key`]) starts; if it stands on a default, the table it belongs to.
fn offset_of_key(text: &str, key: &str) -> usize {
    let Ok(root) = DeTable::parse(text) else { return 0 };
    let root = DeValue::Table(root.into_inner());
    let (mut value, mut offset) = (&root, 0);
    for step in key.split('.') {
        let next = match step.parse::<usize>() {
            Ok(index) => value.get(index),
            Err(_) => value.get(step),
        };
        let Some(next) = next else { break };
        offset = next.span().start;
        value = next.get_ref();
    }
    offset
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
