//! The words `tg.FIELD=VALUE` of a kernel command line, by which a guest is told what to do.
//!
//! In: a command line with words of others. Out: the value of each field, asked for one by one. What nobody asked for,
//! and what cannot be read, is an error that names the word.

use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;

/// The words that were not asked for yet.
pub(crate) struct Words<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Words<'a> {
    pub(crate) fn read(cmdline: &'a str) -> Result<Self> {
        let words = cmdline.split_whitespace().filter_map(|word| word.strip_prefix("tg."));
        let words = words.map(|word| word.split_once('=').with_context(|| format!("tg.{word} has no value")));
        words.collect::<Result<_>>().map(Self)
    }

    pub(crate) fn has(&self, field: &str) -> bool {
        self.0.contains_key(field)
    }

    pub(crate) fn take(&mut self, field: &str) -> Option<&'a str> {
        self.0.remove(field)
    }

    pub(crate) fn number<T: std::str::FromStr>(&mut self, field: &str, default: T) -> Result<T> {
        let Some(value) = self.take(field) else { return Ok(default) };
        value.parse().ok().with_context(|| format!("tg.{field}={value}: not a number, or too large"))
    }

    pub(crate) fn flag(&mut self, field: &str) -> Result<bool> {
        let value: u8 = self.number(field, 0)?;
        ensure!(value <= 1, "tg.{field}={value}: neither 0 nor 1");
        Ok(value == 1)
    }

    /// All words must have been asked for; `with` is the one that decides which they are.
    pub(crate) fn end(self, with: &str) -> Result<()> {
        match self.0.keys().next() {
            Some(field) => bail!("tg.{field} is unknown with {with}"),
            None => Ok(()),
        }
    }
}
