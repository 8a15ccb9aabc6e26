//! How fast the host's processors are: where the host is itself a VM, others share its processors and
//! their caches, and steal time does not show that.
//!
//! Out: loads from memory that depend on each other, of 8 MiB, a second of CPU time. A thread of its own measures it,
//! some milliseconds each second. What a guest gets done in a second of CPU time changes with it, roughly: a guest that
//! needs more of the caches loses more.

use anyhow::Result;
use nix::time::{ClockId, clock_gettime};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

const WORDS: usize = 1 << 20;
const LOADS: u32 = 400_000;
const BETWEEN: Duration = Duration::from_secs(1);

/// Measures until it is dropped.
pub struct Pace {
    samples: Receiver<f64>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Pace {
    pub fn start() -> Self {
        let (sender, samples) = mpsc::channel();
        let (stop, stopped) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let mut words: Vec<u64> = (0..WORDS as u64).map(spread).collect();
            while let Ok(per_s) = loads_per_s(&mut words) {
                let told = sender.send(per_s);
                if told.is_err() || stopped.recv_timeout(BETWEEN) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
            }
        });
        Self { samples, stop: Some(stop), thread: Some(thread) }
    }

    /// The mean since the last call; not a number where nothing was measured.
    pub fn take(&self) -> f64 {
        let samples: Vec<f64> = self.samples.try_iter().collect();
        samples.iter().sum::<f64>() / samples.len() as f64
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        drop(self.stop.take());
        // A thread that panicked has told so.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Numbers in a row become ones all over the range (the end of SplitMix64: G. Steele and others, 2014).
fn spread(number: u64) -> u64 {
    let number = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

fn loads_per_s(words: &mut [u64]) -> Result<f64> {
    let before = cpu_time()?;
    let mut at = 0;
    for load in 0..u64::from(LOADS) {
        let word = &mut words[at];
        *word = word.wrapping_add(load).rotate_left(7);
        at = *word as usize % WORDS;
    }
    Ok(f64::from(LOADS) / (cpu_time()? - before).as_secs_f64())
}

fn cpu_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}
