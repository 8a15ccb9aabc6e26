//! What a test guest does with its memory, and what it answers. The one place where both are described.
//!
//! The host writes a [`Pattern`] on the guest's kernel command line; the guest's init reads it there. A guest
//! 1. maps `mem_mib` of anonymous memory, fills every page with content that follows from seed, page and version, prints `tg: ready`;
//! 2. touches random pages of the hot set (the first `hot_mib`) all the time, gently, and every `loop_every_ms` all pages of
//!    the loop set (the next `loop_mib`) in a pseudo-random order that is the same each time;
//! 3. leaves the rest alone: it is cold. Each touch compares the whole page, one in `write_one_in` writes a new version;
//! 4. on the line `finish` compares every page once and prints `tg: result ` and a [`GuestResult`]; on `poweroff` switches off.
//!
//! A page that is not what it should be is printed as `tg: bad page N`.

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// Printed when all pages are filled.
pub const READY: &str = "tg: ready";
/// Printed before the JSON of a [`GuestResult`].
pub const RESULT: &str = "tg: result ";
/// Bytes of a page of the guest.
pub const PAGE_BYTES: usize = 4096;

/// The memory behaviour of a guest; on the kernel command line each field is `tg.FIELD=NUMBER`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    /// What the content follows from: guests of equal seed hold equal pages.
    pub seed: u64,
    /// All memory of the pattern. The guest's own system takes about 60 MiB more.
    pub mem_mib: usize,
    /// Touched all the time.
    pub hot_mib: usize,
    /// Walked every [`Pattern::loop_every_ms`].
    pub loop_mib: usize,
    /// From the start of one walk of the loop set to the next.
    pub loop_every_ms: u64,
    /// One touch in this many writes; 0 is never.
    pub write_one_in: u64,
}

impl Default for Pattern {
    fn default() -> Self {
        Self { seed: 7, mem_mib: 160, hot_mib: 16, loop_mib: 48, loop_every_ms: 12_000, write_one_in: 8 }
    }
}

impl Pattern {
    /// The words for the kernel command line.
    #[must_use]
    pub fn to_cmdline(&self) -> String {
        let Self { seed, mem_mib, hot_mib, loop_mib, loop_every_ms, write_one_in } = self;
        format!(
            "tg.seed={seed} tg.mem_mib={mem_mib} tg.hot_mib={hot_mib} tg.loop_mib={loop_mib} \
             tg.loop_every_ms={loop_every_ms} tg.write_one_in={write_one_in}"
        )
    }

    /// Reads the `tg.` words of a kernel command line; fields that are not there keep their default.
    ///
    /// # Errors
    /// An unknown `tg.` word, a value that is no number, or sets that do not fit into the memory.
    pub fn from_cmdline(cmdline: &str) -> Result<Self> {
        let mut pattern = Self::default();
        for word in cmdline.split_whitespace().filter_map(|word| word.strip_prefix("tg.")) {
            let (field, value) = word.split_once('=').with_context(|| format!("tg.{word} has no value"))?;
            let number: u64 = value.parse().with_context(|| format!("tg.{word}: not a number"))?;
            match field {
                "seed" => pattern.seed = number,
                "mem_mib" => pattern.mem_mib = usize::try_from(number)?,
                "hot_mib" => pattern.hot_mib = usize::try_from(number)?,
                "loop_mib" => pattern.loop_mib = usize::try_from(number)?,
                "loop_every_ms" => pattern.loop_every_ms = number,
                "write_one_in" => pattern.write_one_in = number,
                _ => bail!("tg.{field} is unknown"),
            }
        }
        ensure!(
            pattern.hot_mib.checked_add(pattern.loop_mib).is_some_and(|sets| sets <= pattern.mem_mib),
            "hot set and loop set are larger than the memory: {pattern:?}"
        );
        Ok(pattern)
    }
}

/// What a guest says about its memory when it is told to finish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestResult {
    /// Every page was what it should be, each time it was looked at.
    pub checksum_ok: bool,
    /// Pages compared by the final pass.
    pub pages_verified: u64,
    /// Touches of the pattern, all compared as well.
    pub touches: u64,
    /// Complete walks of the loop set.
    pub loops: u64,
    /// How long the first load of a page of the loop set took.
    pub touch_ns: TouchNs,
}

/// Quantiles in nanoseconds, from a histogram with steps of an eighth of an octave; 0 where nothing was touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TouchNs {
    /// Half of the touches took at most this.
    pub p50: u64,
    /// 99 % of the touches took at most this.
    pub p99: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_survives_the_command_line() {
        let pattern =
            Pattern { seed: 99, mem_mib: 64, hot_mib: 4, loop_mib: 60, loop_every_ms: 500, write_one_in: 0 };
        let cmdline = format!("quiet console=ttyS0 {} panic=-1", pattern.to_cmdline());
        assert_eq!(Pattern::from_cmdline(&cmdline).unwrap(), pattern);
    }

    #[test]
    fn other_words_are_none_of_ours() {
        assert_eq!(Pattern::from_cmdline("quiet seed=1 root=/dev/vda").unwrap(), Pattern::default());
    }

    #[test]
    fn mistakes_are_named() {
        for (cmdline, named) in [
            ("tg.sed=1", "tg.sed is unknown"),
            ("tg.seed", "tg.seed has no value"),
            ("tg.mem_mib=16M", "tg.mem_mib=16M: not a number"),
            ("tg.mem_mib=8 tg.hot_mib=8 tg.loop_mib=1", "larger than the memory"),
        ] {
            let error = format!("{:#}", Pattern::from_cmdline(cmdline).unwrap_err());
            assert!(error.contains(named), "{cmdline}: {error}");
        }
    }
}
