//! Ctrl-C and other wishes to end: seen by a flag, so that everything is cleaned up.

use anyhow::{Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether one came.
#[derive(Debug)]
pub struct Stop {
    flag: Arc<AtomicBool>,
    told: Cell<bool>,
}

impl Stop {
    /// From now on SIGINT, SIGTERM and SIGHUP set the flag instead of ending us.
    ///
    /// # Errors
    /// Where the signals cannot be caught.
    pub fn on_signals() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&flag))?;
        }
        Ok(Self { flag, told: Cell::new(false) })
    }

    /// A signal came.
    #[must_use]
    pub fn asked(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// Says so once.
    ///
    /// # Errors
    /// If a signal came.
    pub fn check(&self) -> Result<()> {
        if self.asked() {
            if !self.told.replace(true) {
                eprintln!("interrupted: cleaning up");
            }
            bail!("interrupted");
        }
        Ok(())
    }
}
