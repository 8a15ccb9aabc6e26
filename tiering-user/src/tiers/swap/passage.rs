//! Keeps what pages out for a faster tier apart from what fills a lower one: the kernel has one order of areas for all.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

/// How long one waits for the other, and how often it looks.
const LOOKS: u32 = 50;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// Open, but while a lower tier is filled.
#[derive(Clone, Debug, Default)]
pub struct Passage(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    is_shut: AtomicBool,
    /// Held by what passes.
    passing: Mutex<()>,
}

impl Passage {
    /// Does something that pages out by the order of the areas; none where a lower tier is being filled for too long.
    pub fn pass<R>(&self, page_out: impl FnOnce() -> R) -> Option<R> {
        for _ in 0..LOOKS {
            let guard = self.0.passing.lock().unwrap_or_else(PoisonError::into_inner);
            if !self.0.is_shut.load(Ordering::SeqCst) {
                let done = page_out();
                drop(guard);
                return Some(done);
            }
            drop(guard);
            thread::sleep(BETWEEN_LOOKS);
        }
        None
    }

    /// Nothing passes from now on. What passes already is waited for, but not for ever: a disk may hang.
    pub(super) fn shut(&self) {
        self.0.is_shut.store(true, Ordering::SeqCst);
        for _ in 0..LOOKS {
            match self.0.passing.try_lock() {
                Ok(_) | Err(TryLockError::Poisoned(_)) => return,
                Err(TryLockError::WouldBlock) => thread::sleep(BETWEEN_LOOKS),
            }
        }
    }

    pub(super) fn open(&self) {
        self.0.is_shut.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_passes_while_it_is_shut() {
        let passage = Passage::default();
        assert_eq!(passage.pass(|| 1), Some(1));
        passage.shut();
        assert_eq!(passage.pass(|| 2), None);
        passage.open();
        assert_eq!(passage.pass(|| 3), Some(3));
    }

    #[test]
    fn what_passes_is_waited_for() {
        let passage = Passage::default();
        let (begun, begins) = std::sync::mpsc::channel();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                passage.pass(|| {
                    begun.send(()).unwrap();
                    thread::sleep(BETWEEN_LOOKS * 3);
                    done.store(true, Ordering::SeqCst);
                })
            });
            begins.recv().unwrap();
            passage.shut();
            assert!(done.load(Ordering::SeqCst));
        });
    }
}
