//! The output of a child process, line by line, while it runs.
//!
//! In: its pipes, each read by a thread. Out: the lines so far, and waiting for one that matters.
//! It does not know what the lines mean.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many lines [`Lines::tail`] shows.
const TAIL: usize = 25;

#[derive(Debug, Default)]
struct Buffer {
    lines: Vec<String>,
    open_pipes: usize,
}

/// Lines read so far from one or more pipes. Clones share the buffer.
#[derive(Debug, Clone, Default)]
pub struct Lines(Arc<Mutex<Buffer>>);

impl Lines {
    /// Starts a thread that reads a pipe to its end.
    pub fn read<R: Read + Send + 'static>(&self, pipe: R) {
        self.lock().open_pipes += 1;
        let shared = self.clone();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(pipe);
            let mut line = Vec::new();
            // A console is not always UTF-8, and a pipe that breaks has ended as well.
            while reader.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                shared.lock().lines.push(text);
                line.clear();
            }
            shared.lock().open_pipes -= 1;
        });
    }

    /// The first line from index `from` on that `wanted` turns into a value.
    pub fn find<T>(&self, from: usize, wanted: impl FnMut(&str) -> Option<T>) -> Option<T> {
        self.lock().lines.iter().skip(from).map(String::as_str).find_map(wanted)
    }

    /// How many lines there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().lines.len()
    }

    /// All pipes are at their end: no more lines will come.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.lock().open_pipes == 0
    }

    /// Everything so far.
    #[must_use]
    pub fn text(&self) -> String {
        self.lock().lines.join("\n")
    }

    /// The last lines, for an error message.
    #[must_use]
    pub fn tail(&self) -> String {
        tail(&self.text(), TAIL)
    }

    fn lock(&self) -> MutexGuard<'_, Buffer> {
        // A reader that panicked has at worst not pushed its line.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last lines of a text, for an error message.
#[must_use]
pub fn tail(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().map(str::trim_end).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_without_their_ends_and_the_end_is_seen() {
        let lines = Lines::default();
        lines.read(&b"one\r\ntw\xffo\nlast"[..]);
        while !lines.ended() {
            std::thread::yield_now();
        }
        assert_eq!(lines.text(), "one\ntw\u{fffd}o\nlast");
        assert_eq!(lines.find(1, |line| line.strip_prefix("la").map(str::to_owned)).as_deref(), Some("st"));
        assert_eq!(lines.find(1, |line| (line == "one").then_some(())), None);
    }
}
