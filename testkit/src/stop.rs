//! Ctrl-C and other wishes to end: noted, so that whatever waits fails, and everything is cleaned up on the way out.
//!
//! In: SIGINT, SIGTERM, SIGHUP, from [`on_signals`] on. Out: [`check`], which every wait of this library calls, and
//! [`sleep`]. There is one note for the whole process, as there is one terminal.

use anyhow::{Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

static ASKED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
static TOLD: AtomicBool = AtomicBool::new(false);
const POLL: Duration = Duration::from_millis(50);

/// From now on SIGINT, SIGTERM and SIGHUP are noted instead of ending the process.
///
/// # Errors
/// Where the signals cannot be caught.
pub fn on_signals() -> Result<()> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&ASKED))?;
    }
    Ok(())
}

/// A signal came.
#[must_use]
pub fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// Says so once on standard error.
///
/// # Errors
/// If a signal came.
pub fn check() -> Result<()> {
    if asked() {
        if !TOLD.swap(true, Ordering::Relaxed) {
            eprintln!("interrupted: cleaning up");
        }
        bail!("interrupted");
    }
    Ok(())
}

/// Sleeps for `duration`, unless a signal comes.
///
/// # Errors
/// If a signal came.
pub fn sleep(duration: Duration) -> Result<()> {
    let until = Instant::now() + duration;
    loop {
        check()?;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(POLL));
    }
}
