//! A thread of the agent that panics ends the agent: it would go on half alive, and nobody would know.
//!
//! In: panics of all threads whose name begins with `tiering-`. Out: which thread it was, for the main loop to end with
//! [`super::Error::Panicked`]. A thread that hangs is no panic.

use std::panic;
use std::thread;

use tokio::sync::mpsc;

use super::Error;

const NAMES: &str = "tiering-";

/// A thread has panicked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Panicked {
    pub thread: String,
    /// What it said, and where.
    pub message: String,
}

impl From<Panicked> for Error {
    fn from(Panicked { thread, message }: Panicked) -> Self {
        Self::Panicked { thread, message: message.lines().collect::<Vec<_>>().join(": ") }
    }
}

/// Tells of each panic from now on, for the life of the process; what was done about panics before is done too.
pub(super) fn watch() -> mpsc::UnboundedReceiver<Panicked> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        before(info);
        let current = thread::current();
        if let Some(name) = current.name().filter(|name| name.starts_with(NAMES)) {
            // Nobody listens any more while the agent ends.
            sender.send(Panicked { thread: name.to_owned(), message: info.to_string() }).ok();
        }
    }));
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end_badly(name: &str) {
        let thread = thread::Builder::new().name(name.to_owned()).spawn(|| panic!("out of cheese")).unwrap();
        assert!(thread.join().is_err());
    }

    #[test]
    fn a_thread_that_panics_is_named_with_what_it_said_and_those_of_others_are_not_ours() {
        let mut panics = watch();
        end_badly("somebody");
        end_badly("tiering-mover");
        let Panicked { thread, message } = panics.try_recv().unwrap();
        assert_eq!(thread, "tiering-mover");
        assert!(message.contains("out of cheese") && message.contains("panics.rs"), "{message}");
        assert!(panics.try_recv().is_err());
        let error = Error::from(Panicked { thread, message });
        assert_eq!(error.exit_code(), 70, "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
    }
}
