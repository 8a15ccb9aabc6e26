//! The kernel's swap readahead, changed for a while.
//!
//! In: a value of `vm.page-cluster`. Out: the value from before once the guard is dropped, also where a signal ends a
//! wait ([`crate::stop`]).

use anyhow::{Context as _, Result};
use std::path::Path;

const PAGE_CLUSTER: &str = "/proc/sys/vm/page-cluster";

/// Sets back what was there when it is dropped.
#[derive(Debug)]
pub struct Readahead {
    before: String,
}

impl Readahead {
    /// Remembers what is set.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn keep() -> Result<Self> {
        Ok(Self { before: std::fs::read_to_string(PAGE_CLUSTER).context(PAGE_CLUSTER)? })
    }

    /// The kernel reads 2 to the power of `cluster` pages at once.
    ///
    /// # Errors
    /// Without the right to.
    pub fn set(&self, cluster: &str) -> Result<()> {
        std::fs::write(Path::new(PAGE_CLUSTER), cluster).context(PAGE_CLUSTER)
    }
}

impl Drop for Readahead {
    fn drop(&mut self) {
        // Nobody to return an error to; it could be written before.
        std::fs::write(PAGE_CLUSTER, &self.before).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stop;
    use nix::sys::signal::{Signal, raise};
    use std::time::{Duration, Instant};

    fn set_and_wait() -> Result<()> {
        let readahead = Readahead::keep()?;
        readahead.set("1")?;
        raise(Signal::SIGINT)?;
        stop::sleep(Duration::from_secs(60))
    }

    #[test]
    fn a_signal_ends_the_wait_and_the_readahead_is_as_before() {
        if crate::skip::skip_or_fail(crate::skip::need_root()).is_none() {
            return;
        }
        stop::on_signals().unwrap();
        let before = std::fs::read_to_string(PAGE_CLUSTER).unwrap();
        let began = Instant::now();
        let error = set_and_wait().unwrap_err().to_string();
        assert_eq!(error, "interrupted");
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        assert_eq!(std::fs::read_to_string(PAGE_CLUSTER).unwrap(), before);
    }
}
